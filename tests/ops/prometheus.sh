#!/usr/bin/env bash
# A real Prometheus scrapes a real daemon, with the alerts that we ship: while data are fresh none fires; when the FHIR
# server is gone FhirSyncStale and FhirSyncFailing fire; when it is back they end.
#   tests/ops/prometheus.sh PROGRAM
# One line per step; the first that fails ends it, with the logs. Needs prometheus, curl and openssl. Takes a minute: the
# waits of the alerts are seconds here. Nothing leaves the machine.
set -euo pipefail

program=$(realpath "$1")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
alerts=$here/../../deploy/prometheus/alerts.yml
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$here/steps.sh"

main() {
  trap finish EXIT
  fhir_port=$(free_port)
  prometheus_port=$(free_port)
  start_server
  start_daemon
  start_prometheus
  step "prometheus scrapes the daemon" eventually 30 answers 'up{job="fhir-sync"} == 1'
  step "the first sync is in the metrics" eventually 60 answers 'fhir_sync_last_success_timestamp_seconds > 0'
  step "rows were counted" answers 'sum(fhir_sync_rows_total{operation="inserted"}) == 1200'
  step "no alert fires" fails answers 'ALERTS{alertstate="firing"}'
  kill "$server"
  step "without the FHIR server FhirSyncStale fires" eventually 60 fires FhirSyncStale
  step "FhirSyncFailing fires" eventually 60 fires FhirSyncFailing
  step "/health agrees" stale
  step "retries are counted" answers 'sum(fhir_sync_retries_total{reason="connect"}) > 0'
  start_server
  step "with the server again FhirSyncStale ends" eventually 60 fails fires FhirSyncStale
  step "FhirSyncFailing ends" eventually 60 fails fires FhirSyncFailing
  kill "$daemon"
  wait "$daemon" || true
  step "without the daemon FhirSyncDown fires" eventually 60 fires FhirSyncDown
  echo "all steps passed"
}

logs() {
  tail --lines=20 "$scratch/daemon" "$scratch/prometheus" "$scratch/server"
}

finish() {
  for process in "${prometheus:-}" "${daemon:-}" "${server:-}"; do
    [[ -z $process ]] || kill "$process" 2>/dev/null || true
  done
  wait
  rm -rf "$scratch"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_server() {
  python3 "$here/hospital.py" "$fhir_port" >"$scratch/server" 2>&1 &
  server=$!
  step "the FHIR server serves" eventually 30 grep --quiet http "$scratch/server"
}

start_daemon() {
  key "$scratch/key.pem"
  mkdir "$scratch/lake"
  cat >"$scratch/fhir-sync.toml" <<END
[server]
url = "http://127.0.0.1:$fhir_port/fhir"
token_url = "http://127.0.0.1:$fhir_port/token"
client_id = "ops"
key_id = "ops"
private_key_file = "$scratch/key.pem"
outage_patience = "1s"
[server.poll]
min_interval = "100ms"
[tables]
root = "$scratch/lake"
[state]
file = "$scratch/state.json"
[health]
listen = "127.0.0.1:0"
[[export]]
name = "all"
level = "system"
types = ["Patient", "Observation"]
incremental = "*/2 * * * * *"
max_age = "15s"
END
  "$program" run --config "$scratch/fhir-sync.toml" 2>"$scratch/daemon" &
  daemon=$!
  step "the daemon is ready" eventually 30 address_found
}

# Sets `address`: where the daemon listens, as its log says.
address_found() {
  address=$(sed --quiet 's/.*"message":"ready".*"health":"\([^"]*\)".*/\1/p' "$scratch/daemon")
  [[ -n $address ]]
}

# The rules as they are, but for their waits.
start_prometheus() {
  sed 's/for: .*/for: 3s/' "$alerts" >"$scratch/alerts.yml"
  cat >"$scratch/prometheus.yml" <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: fhir-sync
    static_configs: [{targets: ["$address"]}]
END
  prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/tsdb" \
    --web.listen-address="127.0.0.1:$prometheus_port" >"$scratch/prometheus" 2>&1 &
  prometheus=$!
}

# Has a query a result?
answers() {
  curl --silent --show-error --get --data-urlencode "query=$1" "http://127.0.0.1:$prometheus_port/api/v1/query" |
    tee /dev/stderr | grep --quiet '"result":\[{'
}

fires() {
  answers "ALERTS{alertname=\"$1\",alertstate=\"firing\"}"
}

stale() {
  [[ $(curl --silent --output /dev/null --write-out '%{http_code}' "http://$address/health") == 503 ]]
}

main
