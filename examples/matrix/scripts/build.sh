#!/usr/bin/env bash
set -euo pipefail
: "${OS:?is set by the matrix}" "${ARCH:?is set by the matrix}"
printf 'building for %s/%s with %s\n' "$OS" "$ARCH" "$FLAGS"
