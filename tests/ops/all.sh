#!/usr/bin/env bash
# What is shipped, tried where it runs: the size and start of a program, its Debian package under systemd, its image.
#   tests/ops/all.sh PROGRAM
# Needs root, cargo-deb and the Debian packages debootstrap, systemd-container, buildah, podman, runc and lintian.
set -euo pipefail

program=$(realpath "$1")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT

echo "== size and start"
"$here/start.py" "$program"
echo "== package"
package=$("$here/../../deploy/deb.sh" "$program" "$folder")
lintian --allow-root --fail-on error,warning "$package"
echo "== systemd"
"$here/systemd.sh" "$package"
echo "== image"
"$here/image.sh" "$program"
