#!/usr/bin/env bash
# Tests the greeter with no name, and with each name of a file.
set -euo pipefail
cd "$(dirname "$0")/.."

check() {
  local want=$1 got
  shift
  got=$(bash bin/greeter.sh "$@")
  if [ "$got" != "$want" ]; then
    printf 'FAIL: greeter %s: got "%s", want "%s"\n' "$*" "$got" "$want" >&2
    exit 1
  fi
  printf 'ok: greeter %s\n' "$*"
}

check 'Hello, world!'
while read -r name; do
  check "Hello, $name!" "$name"
done <"${1:-tests/names.txt}"
