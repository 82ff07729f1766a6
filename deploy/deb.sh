#!/usr/bin/env bash
# Makes a Debian package of a program that is built, and prints where it is.
#   deploy/deb.sh PROGRAM FOLDER [OPTION…]
# PROGRAM prints its own man pages and completions, so it must be one that this machine can run. Needs cargo-deb, which
# gets the OPTIONs: with --fast it compresses less.
set -euo pipefail

if (($# < 2)); then
  sed --quiet '2,5s/^# //p' "$0" >&2
  exit 2
fi
program=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp --directory)
trap 'rm -r "$scratch"' EXIT

# What Cargo.toml calls target/release is searched below CARGO_TARGET_DIR.
export CARGO_TARGET_DIR=$scratch
built=$scratch/release
mkdir -p "$built/man"
strip --output-file="$built/fhir-sync" "$program"
"$program" man --dir "$built/man"
gzip --best --no-name "$built"/man/*
gzip --best --no-name <CHANGELOG.md >"$built/changelog.gz"
for shell in bash zsh fish; do
  "$program" completions "$shell" >"$built/completions.$shell"
done
version=$(sed --quiet 's/^version = "\(.*\)"/\1/p;/^\[lib\]/q' Cargo.toml)
maintainer=$(sed --quiet 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
# The same commit gives the same package.
date=$(git log -1 --format=%cD 2>/dev/null || date --rfc-email)
gzip --best --no-name >"$built/changelog.Debian.gz" <<END
fhir-sync ($version-1) stable; urgency=medium

  * What changed is in changelog.gz.

 -- $maintainer  $date
END
package=$folder/fhir-sync_$version-1_$(dpkg --print-architecture).deb
cargo deb --quiet --locked --no-build --no-strip --output "$package" "$@" >&2
echo "$package"
