#!/usr/bin/env bash
# Greets whoever is named.
set -euo pipefail

greet() {
  printf 'Hello, %s!\n' "${1:-world}"
}

greet "$@"
