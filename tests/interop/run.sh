#!/usr/bin/env bash
# Syncs a folder of NDJSON through the embedded server, once in each layout, reads the tables back with Polars, DuckDB
# and delta-rs, and tries the views; then they read the tables during some days of changes and a maintenance. Reads the
# change data feed of synthetic patients with delta-rs, and compares partitioned observations with unpartitioned ones.
#   tests/interop/run.sh PROGRAM [DATA]
# Without DATA it uses a few lines of its own, which are hard to read: repeated ids, characters beyond ASCII, \r\n,
# gzip, and those in `lines/`: nested extensions, decimals of every form, codes in several places. all.sh has more
# engines.
set -euo pipefail

program=$1
data=${2:-}
here=$(dirname "${BASH_SOURCE[0]}")
readers=$("$here/install.sh" readers)
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT
if [[ -z $data ]]; then
  data=$folder/data
  mkdir "$data"
  for i in $(seq 3000); do
    printf '{"resourceType":"Patient","id":"p%d","name":[{"family":"Ünal-%d \\u00e9 😀"}],"multipleBirthInteger":%d}\n' $((i % 2500)) "$i" "$i"
  done >"$data/Patient.ndjson"
  for i in $(seq 500); do
    printf '{"resourceType":"Observation","id":"o-%d","valueQuantity":{"value":%d.10,"unit":"mm[Hg]"}}\r\n' "$i" "$i"
  done | gzip >"$data/Observation.1.ndjson.gz"
  for file in "$here"/lines/*.ndjson; do
    cp "$file" "$data/$(basename "$file" .ndjson).2.ndjson"
  done
fi
# What was rounded in one layout is not in the other: the decimals are compared with what the schema says they can be.
declare -A decimals=([pathling]='decimal(32,6)' [wide]='decimal(38,12)')
for layout in pathling wide; do
  lake=$folder/$layout/lake
  echo "== tables.layout = \"$layout\""
  FHIR_SYNC__TABLES__LAYOUT=$layout "$program" demo --data "$data" --dir "$folder/$layout" >"$folder/output" ||
    { cat "$folder/output"; exit 1; }
  grep --quiet --recursive --fixed-strings "${decimals[$layout]}" "$lake" --include='*.json'
  PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/readback.py" "$lake" "$data"
done
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/views.py" "$folder/pathling/lake" "$program"
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/life.py" "$program"
echo "== tables.change_data_feed = true, without partitions and with them"
"$here/followed.sh" "$program" "$folder/followed"
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/feed.py" delta-rs "$folder"/followed/{plain,partitioned}/lake
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/partitions.py" "$folder"/followed/{plain,partitioned}/lake
