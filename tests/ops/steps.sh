# shellcheck shell=bash
# Steps: one line each; the first that fails ends the script, with what explains it. Sourced by the tests beside it.
# Who sources it may define `logs` afterwards, which prints what is worth reading when a step has failed.

scratch=$(mktemp --directory)

# step SENTENCE COMMAND…
step() {
  local sentence=$1
  shift
  if "$@" >"$scratch/output" 2>&1; then
    echo "ok      $sentence ($(date -u +%H:%M:%S))"
  else
    echo "FAILED  $sentence"
    { tail --lines=60 "$scratch/output" && logs; } 2>&1 | sed 's/^/        /' || true
    exit 1
  fi
}

logs() {
  :
}

fails() {
  ! "$@"
}

# eventually SECONDS COMMAND…
eventually() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < until)) || return 1
    sleep 1
  done
}

# key FILE: a new private key for signing, which only its owner can read.
key() {
  openssl ecparam -name secp384r1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"
  chmod 0600 "$1"
}
