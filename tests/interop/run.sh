#!/usr/bin/env bash
# Syncs a folder of NDJSON through the embedded server and reads the tables back with Polars, DuckDB and delta-rs.
#   tests/interop/run.sh PROGRAM DATA
set -euo pipefail

readonly TOOLS=(duckdb==1.5.5 duckdb-extension-delta==1.5.5 polars==2.1.0 deltalake==1.6.6)
program=$1
data=$2
here=$(dirname "${BASH_SOURCE[0]}")
# Named after what is in it, so that a change of versions makes a new one.
venv=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync/interop-$(printf '%s ' "${TOOLS[@]}" | cksum | cut -d' ' -f1)
if ! "$venv/bin/python" -c 'import duckdb, polars, deltalake' 2>/dev/null; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${TOOLS[@]}"
fi
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT
"$program" demo --data "$data" --dir "$folder/demo" >"$folder/output" || { cat "$folder/output"; exit 1; }
"$venv/bin/python" "$here/readback.py" "$folder/demo/lake" "$data"
