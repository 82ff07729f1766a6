#!/usr/bin/env bash
# Installs the Debian package in a root folder of Debian, boots systemd there, and does what docs/install.md and
# docs/operations.md say, on the unit as it is: first start, a day of changes, kills, a wrong configuration, work by hand, timers, removal.
#   tests/ops/systemd.sh PACKAGE.deb
# One line per step; the first that fails ends it, with the log. Needs root, debootstrap and systemd-container (nspawn).
# Nothing leaves the machine: the container has a loopback device only, and the FHIR server runs on it.
set -euo pipefail

readonly PORT=8080
package=$(realpath "$1")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$here/steps.sh"
root=$scratch/root
nspawn=(systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --private-users=no --private-network)

main() {
  trap finish EXIT
  cp --archive "$("$here/root.sh" systemd)" "$root"
  cp "$package" "$root/package.deb"

  step "the package installs" outside dpkg --install /package.deb
  step "the package makes the user fhir-sync" outside id fhir-sync
  step "the service is not enabled before it is configured" fails outside systemctl is-enabled fhir-sync
  configure
  boot
  step "the configuration is valid" inside fhir-sync check --config /etc/fhir-sync/fhir-sync.toml
  step "the service starts" inside systemctl enable --now fhir-sync
  step "it runs as its own user, without any capability" confined
  step "the first sync makes it healthy" eventually 120 healthy
  a_day
  step "a day of changes arrives" eventually 60 logged 'Observation: .*30 inserted'
  step "killed by SIGKILL, it is back" killed KILL 60
  step "hung, it is killed by the watchdog and back" killed STOP 150
  step "after both it is healthy" eventually 60 healthy
  process=$(main_pid)
  reload
  by_hand
  wrong_configuration
  timers
  step "nothing below the state folder belongs to another user" one_owner
  removal
  echo "all steps passed"
}

logs() {
  [[ -z ${leader:-} ]] || inside journalctl --no-pager --lines=60 --unit='fhir-sync*'
}

finish() {
  if [[ -n ${machine:-} ]]; then
    inside systemctl poweroff >/dev/null 2>&1 || true
    timeout 30 tail --pid="$machine" --follow /dev/null || kill -KILL "$machine" || true
  fi
  [[ -z ${hospital:-} ]] || kill "$hospital" 2>/dev/null || true
  rm -rf "$scratch"
}

# Runs a command in the root folder, without systemd.
outside() {
  "${nspawn[@]}" --pipe "$@"
}

# Runs a command in the booted machine, as root.
inside() {
  nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup -- env --ignore-environment \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
}

configure() {
  cat >"$root/etc/fhir-sync/fhir-sync.toml" <<END
[server]
url = "http://127.0.0.1:$PORT/fhir"
token_url = "http://127.0.0.1:$PORT/token"
client_id = "ops"
key_id = "ops"
private_key_file = "/run/credentials/fhir-sync.service/private-key"
[tables]
root = "/var/lib/fhir-sync/lake"
[state]
file = "/var/lib/fhir-sync/state.json"
[[export]]
name = "all"
level = "system"
types = ["Patient", "Observation"]
incremental = "*/5 * * * * *"
max_age = "1h"
END
  key "$root/etc/fhir-sync/private-key.pem"
}

boot() {
  mkdir --parents "$root/var/log/journal"
  "${nspawn[@]}" --boot --console=pipe </dev/null >"$scratch/boot" 2>&1 &
  machine=$!
  step "systemd boots" eventually 60 leader_found
  step "systemd is up" eventually 60 inside systemctl is-active --quiet multi-user.target
  nsenter --target "$leader" --net python3 "$here/hospital.py" "$PORT" >"$scratch/hospital" 2>&1 &
  hospital=$!
  step "the FHIR server serves" eventually 30 grep --quiet http "$scratch/hospital"
}

leader_found() {
  leader=$(pgrep --parent "$machine" | head --lines=1)
  [[ -n $leader ]]
}

a_day() {
  kill -USR1 "$hospital"
}

healthy() {
  inside fhir-sync healthcheck
}

logged() {
  inside journalctl --quiet --unit=fhir-sync --output=cat --no-pager | grep --extended-regexp --quiet "$1"
}

main_pid() {
  inside systemctl show --property=MainPID --value fhir-sync
}

confined() {
  local pid status
  pid=$(main_pid)
  status=$(inside cat "/proc/$pid/status")
  grep --perl-regexp '^CapEff:\s+0+$' <<<"$status" && grep --perl-regexp '^NoNewPrivs:\s+1$' <<<"$status" || return
  [[ $(inside ps -o user= -p "$pid") == fhir-sync ]] || return
  [[ $(inside stat --format=%a /run/credentials/fhir-sync.service/private-key) == 4[04]0 ]]
}

# killed SIGNAL SECONDS: another process runs at last, and says that it is ready.
killed() {
  before=$(main_pid)
  inside systemctl kill --kill-whom=main --signal="$1" fhir-sync
  eventually "$2" another_runs
}

another_runs() {
  local now
  now=$(main_pid)
  [[ $now != 0 && $now != "$before" ]] && inside systemctl is-active --quiet fhir-sync
}

reload() {
  sed --in-place 's/^max_age = .*/max_age = "2h"/' "$root/etc/fhir-sync/fhir-sync.toml"
  step "a changed configuration is reloaded" inside systemctl reload fhir-sync
  step "it holds" eventually 30 max_age_is 7200
}

max_age_is() {
  inside fhir-sync healthcheck | grep --quiet "\"max_age_seconds\": *$1"
}

wrong_configuration() {
  inside cp --preserve /etc/fhir-sync/fhir-sync.toml /etc/fhir-sync/fhir-sync.toml.good
  echo 'unknown = 1' >>"$root/etc/fhir-sync/fhir-sync.toml"
  step "a wrong configuration fails the start" fails inside systemctl restart fhir-sync
  step "its exit code is 78, and it is not started again" gave_up
  inside mv /etc/fhir-sync/fhir-sync.toml.good /etc/fhir-sync/fhir-sync.toml
  step "corrected, it starts" inside systemctl start fhir-sync
}

gave_up() {
  [[ $(inside systemctl show --property=ExecMainStatus --value fhir-sync) == 78 ]] || return
  [[ $(inside systemctl show --property=ActiveState --value fhir-sync) == failed ]]
}

timers() {
  step "the daemon stops" inside systemctl disable --now fhir-sync
  alone
  step "the timers start" inside systemctl enable --now fhir-sync-{once,full-refresh,maintain}.timer
  step "they have a next time" eventually 10 timers_wait
  a_day
  step "fhir-sync-once syncs" inside systemctl start fhir-sync-once
  step "fhir-sync-full-refresh syncs" inside systemctl start fhir-sync-full-refresh
  step "fhir-sync-maintain maintains" inside systemctl start fhir-sync-maintain
  step "the timers stop" inside systemctl disable --now fhir-sync-{once,full-refresh,maintain}.timer
}

timers_wait() {
  [[ $(inside systemctl list-timers --no-legend 'fhir-sync-*' | wc --lines) == 3 ]]
}

one_owner() {
  [[ -n $(inside find /var/lib/private/fhir-sync -user fhir-sync -name state.json) ]] || return
  [[ -z $(inside find /var/lib/private/fhir-sync ! -user fhir-sync -print) ]]
}

removal() {
  step "the package is purged" inside dpkg --purge fhir-sync
  step "the tables stay" inside test -d /var/lib/private/fhir-sync/lake/Patient.parquet
  step "no unit stays" fails inside systemctl cat fhir-sync
}

# What docs/operations.md lets root do while the service runs, word by word.
by_hand() {
  local config=/etc/fhir-sync/fhir-sync.toml steps=FHIR_SYNC__MAINTENANCE__STEPS=vacuum
  step "by hand: status, runs and state show look" looking
  step "by hand: sync goes through the service" inside fhir-sync sync --config "$config"
  step "by hand: the disk is full, a dry run" inside fhir-sync maintain --config "$config" --dry-run
  step "by hand: the disk is full, vacuum" inside env "$steps" fhir-sync maintain --config "$config"
  step "by hand: the disk is full, a shorter retention" inside env "$steps" \
    FHIR_SYNC__MAINTENANCE__VACUUM_RETENTION=1h fhir-sync maintain --config "$config" --force
  step "by hand: the whole maintenance" inside fhir-sync maintain --config "$config"
  step "by hand: job cancel" inside fhir-sync job cancel --config "$config"
  step "by hand: verify finds that all is well" inside fhir-sync verify --config "$config"
  step "the service has not been restarted" same_process
}

looking() {
  inside fhir-sync status --config /etc/fhir-sync/fhir-sync.toml &&
    inside fhir-sync runs --config /etc/fhir-sync/fhir-sync.toml &&
    inside fhir-sync state show --config /etc/fhir-sync/fhir-sync.toml
}

same_process() {
  [[ $(main_pid) == "$process" ]]
}

# Root maintains where no service runs: what it writes belongs to the user of the service.
alone() {
  step "without the service: maintain" inside fhir-sync maintain --config /etc/fhir-sync/fhir-sync.toml
  step "without the service: nothing belongs to root" one_owner
}

main
