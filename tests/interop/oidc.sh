#!/usr/bin/env bash
# Syncs with tokens of oidc-provider, an independent token server: clients that sign by ES384 and RS384, a revoked
# token, a narrowed scope; and assertions that it must refuse: for another audience, expired, used before.
#   tests/interop/oidc.sh PROGRAM
# Needs Node.js. A minute.
set -euo pipefail

program=$1
here=$(dirname "${BASH_SOURCE[0]}")
readers=$("$here/install.sh" readers)
oidc=$("$here/install.sh" oidc)
PYTHONDONTWRITEBYTECODE=1 "$readers/bin/python" "$here/oidc.py" "$program" "$oidc"
