#!/usr/bin/env bash
# Installs what the test of the status page needs, each version once, and prints the folder of its node modules:
# playwright-core and axe-core from npm, below ~/.cache/fhir-sync. A browser is not among them: CHROMIUM names one, else
# it is `chromium`, which is installed by apt where that is allowed.
set -euo pipefail

packages=(playwright-core@1.65.1 axe-core@4.14.1)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync
folder=$cache/page-$(printf '%s ' "${packages[@]}" | cksum | cut -d' ' -f1)
mkdir -p "$cache"
exec {lock}>"$folder.lock"
flock "$lock"

if ! command -v npm >/dev/null; then
  echo "the status page is tested in a browser that Node.js steers: install Node.js 20 with npm" >&2
  exit 1
fi
if [[ ! -e $folder/installed ]]; then
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" "${packages[@]}" >&2
  touch "$folder/installed"
fi

if ! command -v "${CHROMIUM:-chromium}" >/dev/null; then
  as_root=()
  if ((EUID)); then
    as_root=(sudo --non-interactive)
  fi
  if [[ -n ${CHROMIUM:-} ]] || ! "${as_root[@]}" apt-get install --quiet --yes --no-install-recommends chromium fonts-dejavu-core >&2; then
    echo "the status page is tested in a browser: install Chromium, or name one with CHROMIUM" >&2
    exit 1
  fi
fi
echo "$folder"
