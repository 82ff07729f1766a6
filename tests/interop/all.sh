#!/usr/bin/env bash
# Every engine that we know reads LAKE and is compared with DATA; Pathling also with tables of its own.
#   tests/interop/all.sh PROGRAM LAKE DATA [FOLLOWED]
# DATA is a folder of NDJSON, LAKE the tables that `fhir-sync demo --data DATA` left; `lines/` here is a small DATA with
# what trips typed columns. Spark also changes tables, between syncs of PROGRAM. FOLLOWED are tables that
# `FHIR_SYNC__TABLES__CHANGE_DATA_FEED=true fhir-sync demo` left; their change data feed is compared with what became of their
# rows. Takes minutes, and the first time 1.3 GB: run.sh is the quick one.
set -euo pipefail

if (($# < 3 || $# > 4)); then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
program=$1
shift
readers=$("$here/install.sh" readers)
spark=$("$here/install.sh" spark)
pathling=$("$here/install.sh" pathling)
failed=()
run() {
  local script=$2
  echo "== $script"
  PYTHONDONTWRITEBYTECODE=1 nice -n 15 "$1/bin/python" "$here/$script" "${@:3}" || failed+=("$script")
}

run "$readers" readback.py "$1" "$2"
run "$readers" spark.py "$spark/bin/python" "$program" "$1" "$2"
run "$pathling" pathling.py "$1" "$2"
if [[ -n ${3:-} ]]; then
  run "$readers" feed.py delta-rs "$3"
  run "$spark" feed.py spark "$3"
fi
if ((${#failed[@]})); then
  echo "different: ${failed[*]}" >&2
  exit 1
fi
