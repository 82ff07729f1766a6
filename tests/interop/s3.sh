#!/usr/bin/env bash
# Syncs and maintains tables on an S3 server of its own, moto, behind a proxy that loses the answers to commits, refuses them,
# or lets others go first; each time the log and what delta-rs reads must be as if nothing had been.
#   tests/interop/s3.sh PROGRAM
# PROGRAM is built with `cargo build --features s3`; just interop-s3 does both. Minutes.
set -euo pipefail

program=$1
here=$(dirname "${BASH_SOURCE[0]}")
s3=$("$here/install.sh" s3)
PYTHONDONTWRITEBYTECODE=1 "$s3/bin/python" "$here/s3.py" "$program"
