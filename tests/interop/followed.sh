#!/usr/bin/env bash
# Makes tables with a change data feed, for feed.py: FOLDER/plain/lake, and FOLDER/partitioned/lake where the
# observations are partitioned by the month of their date. The demo changes and removes rows between its two syncs.
#   tests/interop/followed.sh PROGRAM FOLDER
set -euo pipefail

demo() {
  local output
  output=$("$program" demo --patients 20 --dir "$1") || { echo "$output"; exit 1; }
}
program=$1
mkdir -p "$2"
export FHIR_SYNC__TABLES__CHANGE_DATA_FEED=true
demo "$2/plain"
export FHIR_SYNC__TABLES__OBSERVATION__PARTITION_BY=year,month
export FHIR_SYNC__TABLES__OBSERVATION__PARTITION_DATE=effective
demo "$2/partitioned"
