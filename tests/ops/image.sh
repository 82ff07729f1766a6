#!/usr/bin/env bash
# Builds the image of the Dockerfile around a program that is built, and runs it: a full and an incremental sync, the
# daemon with its health check, as another user, with nothing to write to but its volumes.
#   tests/ops/image.sh PROGRAM
# The bases are root folders of Debian, because the public images cannot be had everywhere; in the build base `cargo` puts
# PROGRAM in place instead of compiling it. Everything else is what the Dockerfile says.
# One line per step; the first that fails ends it. Needs root, debootstrap, buildah, podman and runc. Nothing leaves the
# machine: the containers share a network namespace that has a loopback device only.
set -euo pipefail

readonly PORT=8080
program=$(realpath "$1")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$here/steps.sh"
# Storage of its own, by plain folders: no overlay file system, and no image of yours is touched.
export CONTAINERS_STORAGE_CONF=$scratch/storage.conf BUILDAH_ISOLATION=chroot
cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "vfs"
graphroot = "$scratch/graph"
runroot = "$scratch/run"
END

main() {
  trap finish EXIT
  base=$("$here/root.sh" base)
  step "the bases are imported" bases
  step "the image builds" build
  step "it names a user that is not root, and a health check" named
  network
  configure
  step "sync loads everything" sync 'Observation: 1000 received, 1000 inserted'
  a_day
  step "sync again brings what changed" sync 'Observation: 40 received, 30 inserted, 10 deleted'
  step "the daemon starts" daemon
  step "the health check, which reads the configuration, finds it healthy" eventually 60 podman healthcheck run fhir-sync
  step "it runs as user 65532, without any capability" confined
  step "it cannot write to its own file system" fails podman exec fhir-sync /bin/touch /usr/bin/other
  a_day
  step "the daemon brings another day" eventually 60 logged '30 inserted'
  step "it ends when it is stopped" stopped
  echo "all steps passed"
}

logs() {
  podman logs --tail 40 fhir-sync
}

finish() {
  podman rm --force --all --time 5 >/dev/null 2>&1 || true
  [[ -z ${hospital:-} ]] || kill "$hospital" 2>/dev/null || true
  [[ -z ${holder:-} ]] || kill "$holder" 2>/dev/null || true
  rm -rf "$scratch"
}

bases() {
  import "$base" runtime || return
  local build=$scratch/build
  cp --archive "$base" "$build" || return
  install -D "$program" "$build/prebuilt/fhir-sync" || return
  strip "$build/prebuilt/fhir-sync" || return
  printf '#!/bin/sh\nexec install -D /prebuilt/fhir-sync target/release/fhir-sync\n' >"$build/usr/local/bin/cargo"
  chmod 0755 "$build/usr/local/bin/cargo"
  import "$build" build && rm -r "$build"
}

import() {
  tar --directory="$1" --create . | podman import --quiet - "localhost/ops-$2"
}

build() {
  buildah bud --format docker --layers=false --build-arg BUILD_BASE=localhost/ops-build \
    --build-arg RUNTIME_BASE=localhost/ops-runtime --build-arg REVISION=ops --tag localhost/fhir-sync "$here/../.."
}

named() {
  podman image inspect --format '{{.User}} {{.HealthCheck.Test}} {{.Labels}}' localhost/fhir-sync |
    grep --extended-regexp '^65532:65532 .*healthcheck.*image.revision:ops'
}

# A process that holds the network namespace, and the FHIR server in it.
network() {
  unshare --net sh -c 'ip link set lo up && exec sleep infinity' &
  holder=$!
  step "there is a network of its own" eventually 10 holds
  nsenter --target "$holder" --net python3 "$here/hospital.py" "$PORT" >"$scratch/hospital" 2>&1 &
  hospital=$!
  step "the FHIR server serves" eventually 30 grep --quiet http "$scratch/hospital"
}

holds() {
  [[ $(cat "/proc/$holder/comm") == sleep ]]
}

configure() {
  mkdir "$scratch/etc"
  cat >"$scratch/etc/fhir-sync.toml" <<END
[server]
url = "http://127.0.0.1:$PORT/fhir"
token_url = "http://127.0.0.1:$PORT/token"
client_id = "ops"
key_id = "ops"
private_key_file = "/run/secrets/fhir-sync/private-key"
[tables]
root = "/srv/lake"
[state]
file = "/var/lib/fhir-sync/state.json"
[health]
# Not the default, so that the health check has to read it here.
listen = "127.0.0.1:9200"
[[export]]
name = "all"
level = "system"
types = ["Patient", "Observation"]
incremental = "*/5 * * * * *"
max_age = "1h"
END
  key "$scratch/etc/key"
  chown 65532:65532 "$scratch/etc/key"
  chmod 0400 "$scratch/etc/key"
}

# As docs/install.md says, but for the network and the limits, which runc needs to have within those of this process.
run() {
  podman --runtime runc run --network "ns:/proc/$holder/ns/net" --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
    --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges \
    --volume "$scratch/etc/fhir-sync.toml:/etc/fhir-sync/fhir-sync.toml:ro" \
    --volume "$scratch/etc/key:/run/secrets/fhir-sync/private-key:ro" \
    --volume fhir-sync-state:/var/lib/fhir-sync --volume fhir-sync-lake:/srv/lake "$@"
}

# sync PATTERN: what a line of its log says.
sync() {
  run --rm localhost/fhir-sync sync --config /etc/fhir-sync/fhir-sync.toml 2>&1 | tee "$scratch/report" || return
  grep --extended-regexp "$1" "$scratch/report"
}

daemon() {
  run --detach --name fhir-sync --stop-timeout 90 localhost/fhir-sync
}

a_day() {
  kill -USR1 "$hospital"
}

logged() {
  podman logs fhir-sync 2>&1 | grep --quiet "$1"
}

confined() {
  local status
  status=$(cat "/proc/$(podman inspect --format '{{.State.Pid}}' fhir-sync)/status")
  grep --perl-regexp '^Uid:\s+65532\s' <<<"$status" && grep --perl-regexp '^CapEff:\s+0+$' <<<"$status"
}

stopped() {
  podman stop fhir-sync && [[ $(podman inspect --format '{{.State.ExitCode}}' fhir-sync) == 0 ]]
}

main
