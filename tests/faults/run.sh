#!/usr/bin/env bash
# Kills and errors in the middle of the real program; see sweep.py. Needs strace and Python 3.11.
#   tests/faults/run.sh PROGRAM [PER_CALL]
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
command -v strace >/dev/null || { echo "strace is not installed" >&2; exit 1; }
readers=$("$here/../interop/install.sh" readers)
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/sweep.py" "$@"
