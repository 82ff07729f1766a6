#!/usr/bin/env bash
# What is shipped, tried where it runs: the size, start and memory of a program, its Debian package under systemd, its
# image.
#   tests/ops/all.sh PROGRAM
# Needs root, cargo-deb and the Debian packages debootstrap, systemd-container, buildah, podman, runc and lintian.
set -euo pipefail

program=$(realpath "$1")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT

failed=0
echo "== size and start"
# What is too large can still be installed: the rest is tried as well.
"$here/start.py" "$program" || failed=1
echo "== memory"
"$here/memory.py" "$program" || failed=1
echo "== package"
package=$("$here/../../deploy/deb.sh" "$program" "$folder")
lintian --allow-root --fail-on error,warning "$package"
echo "== systemd"
"$here/systemd.sh" "$package"
echo "== image"
"$here/image.sh" "$program"
exit "$failed"
