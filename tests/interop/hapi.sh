#!/usr/bin/env bash
# Syncs from a HAPI FHIR server: a full load, changes, a full refresh after deletions, a process that is killed, a
# group, and the server behind a proxy. Each time the tables have as many rows as the server counts.
#   tests/interop/hapi.sh PROGRAM BASE [TYPE…]
# BASE is the FHIR base of a HAPI FHIR server (R4, with Bulk Export) that already runs, such as
# http://127.0.0.1:8080/fhir, and that this may fill with patients; its JPA starter does with
# `hapi.fhir.bulk_export_enabled: true`. Jobs of HAPI advance once a minute, so that this takes half an hour.
# TYPE is a further type, of which somebody has loaded resources before.
set -euo pipefail

if (($# < 2)); then
  sed -n '2,8s/^# //p' "$0" >&2
  exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
readers=$("$here/install.sh" readers)
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/hapi.py" "$@"
