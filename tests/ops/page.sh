#!/usr/bin/env bash
# The status page in a browser: while the first load is in progress, healthy, and failing; at 360, 768 and 1280 px, light
# and dark. axe finds nothing, the browser reports nothing, and nothing is wider than the screen.
#   tests/ops/page.sh PROGRAM [PICTURES]
# Pictures of all of them are left in the folder PICTURES. PAGE_RUNS is how many runs the healthy page shows (3).
set -euo pipefail

if (($# < 1 || $# > 2)); then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
modules=$("$here/page_modules.sh")
NODE_PATH=$modules/node_modules nice -n 10 node "$here/page.cjs" "$@"
