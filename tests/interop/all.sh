#!/usr/bin/env bash
# Every engine that we know reads LAKE and is compared with DATA; Pathling also with tables of its own.
#   tests/interop/all.sh LAKE DATA [FOLLOWED]
# DATA is a folder of NDJSON, LAKE the tables that `fhir-sync demo --data DATA` left; `lines/` here is a small DATA with
# what trips typed columns. FOLLOWED are tables that `FHIR_SYNC__TABLES__CHANGE_DATA_FEED=true fhir-sync demo` left; their
# change data feed is compared with what became of their rows. Takes minutes, and the first time 1.3 GB: run.sh is the quick one.
set -euo pipefail

if (($# < 2 || $# > 3)); then
  sed -n '2,6s/^# //p' "$0" >&2
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

run readers readback.py "$1" "$2"
run spark spark.py "$1" "$2"
run pathling pathling.py "$1" "$2"
if [[ -n ${3:-} ]]; then
  run readers feed.py delta-rs "$3"
  run spark feed.py spark "$3"
fi
if ((${#failed[@]})); then
  echo "different: ${failed[*]}" >&2
  exit 1
fi
