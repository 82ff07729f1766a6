#!/usr/bin/env bash
# Syncs and maintains tables on a local S3 server (moto) behind a proxy. The proxy loses the responses to commits,
# refuses commits, or lets another writer commit first. Each time the log, and what delta-rs reads, must be the same as
# without it.
#   tests/interop/stores.sh PROGRAM
# PROGRAM is built with `cargo build`; just interop-s3 does both. Minutes.
set -euo pipefail

program=$1
here=$(dirname "${BASH_SOURCE[0]}")
s3=$("$here/install.sh" s3)
PYTHONDONTWRITEBYTECODE=1 "$s3/bin/python" "$here/commits.py" "$program"
