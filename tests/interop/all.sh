#!/usr/bin/env bash
# Every supported engine reads LAKE and is compared with DATA; Pathling also with tables that it wrote itself.
#   tests/interop/all.sh PROGRAM LAKE DATA
# DATA is a folder of NDJSON, LAKE the tables that `fhir-sync demo --data DATA` left; `lines/` here is a small DATA that
# is hard for typed columns. Spark also changes tables, between syncs of PROGRAM; delta-rs and Spark read the change data
# feed of tables with and without partitions. At the end PROGRAM keeps tables on each object store (stores.sh), which
# needs Node.js and Go. Takes half an hour, and the first time 2 GB: run.sh is the quick one.
set -euo pipefail

if (($# != 3)); then
  sed -n '2,7s/^# //p' "$0" >&2
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

run "$readers" readback.py "$@"
run "$readers" spark.py "$spark/bin/python" "$program" "$@"
run "$pathling" pathling.py "$@"
followed=$(mktemp --directory)
trap 'rm -r "$followed"' EXIT
"$here/followed.sh" "$program" "$followed"
run "$readers" feed.py delta-rs "$followed"/{plain,partitioned}/lake
run "$spark" feed.py spark "$followed"/{plain,partitioned}/lake
run "$spark" feed.py spark-stream "$followed"/{plain,partitioned}/lake
for store in s3 versity azure gcs; do
  echo "== stores.sh $store"
  nice -n 15 "$here/stores.sh" "$store" "$program" whole || failed+=("stores.sh $store")
done
if ((${#failed[@]})); then
  echo "different: ${failed[*]}" >&2
  exit 1
fi
