#!/usr/bin/env bash
# Syncs and maintains tables on an object store that runs here, behind a proxy that loses the responses to commits, lets
# other writers commit first, is busy, or breaks connections. Each time the log, and what delta-rs reads, must be the
# same as without it.
#   tests/interop/stores.sh STORE PROGRAM [PART...]
# STORE is s3 (moto), versity (S3 with files, strict about signatures), azure (azurite) or gcs (fake-gcs-server).
# PROGRAM is built with `cargo build`; just interop-store does both. PART is one of whole, commits, outages, pods,
# machines, duckdb; without any all of them run, which takes 20 minutes. `requests` counts requests instead (latency.py).
set -euo pipefail

if (($# < 2)); then
  sed -n '2,8s/^# //p' "$0" >&2
  exit 2
fi
store=$1
program=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
export PYTHONDONTWRITEBYTECODE=1
python=$("$here/install.sh" s3)/bin/python
case $store in
  s3) server=moto ;;
  versity) server=$("$here/install.sh" versity)/bin/versitygw ;;
  azure) server=$("$here/install.sh" azure)/node_modules/.bin/azurite-blob ;;
  gcs) server=$("$here/install.sh" gcs)/bin/fake-gcs-server ;;
  *)
    echo "unknown store $store" >&2
    exit 2
    ;;
esac
if [[ ${1:-} == requests ]]; then
  shift
  exec "$python" "$here/latency.py" "$store" "$server" "$program" "$@"
fi
"$python" "$here/on_store.py" "$store" "$server" "$program" "$@"
