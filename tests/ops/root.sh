#!/usr/bin/env bash
# Makes a Debian root folder, once, under ~/.cache/fhir-sync, and prints its path. Copy it before you change it.
#   tests/ops/root.sh systemd | base
# Needs root and debootstrap. `systemd` can boot; `base` has only what a container with TLS needs.
set -euo pipefail

case ${1:-} in
  systemd) packages=systemd,systemd-sysv,dbus,ca-certificates,procps ;;
  base) packages=ca-certificates ;;
  *)
    sed --quiet '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac
root=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync/ops-root-$1
if [[ ! -e $root.complete ]]; then
  rm -rf "$root"
  debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$root.log" 2>&1 || { tail "$root.log" >&2; exit 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  touch "$root.complete"
fi
echo "$root"
