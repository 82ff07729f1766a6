#!/usr/bin/env bash
# Every engine that we know reads LAKE and is compared with DATA; Pathling also with tables of its own.
#   tests/interop/all.sh LAKE DATA
# DATA is a folder of NDJSON, LAKE the tables that `fhir-sync demo --data DATA` left; `lines/` here is a small DATA with
# what trips typed columns. Takes minutes, and the first time 1.3 GB: run.sh is the quick one.
set -euo pipefail

if (($# != 2)); then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
failed=()
run() {
  local engine=$1 script=$2 folder
  shift 2
  folder=$("$here/install.sh" "$engine")
  echo "== $script"
  PYTHONDONTWRITEBYTECODE=1 nice -n 15 "$folder/bin/python" "$here/$script" "$@" || failed+=("$script")
}

run readers readback.py "$@"
run spark spark.py "$@"
run pathling pathling.py "$@"
if ((${#failed[@]})); then
  echo "different: ${failed[*]}" >&2
  exit 1
fi
