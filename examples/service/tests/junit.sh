#!/usr/bin/env bash
# Makes a JUnit report of the tests' output.
set -euo pipefail

printf '<testsuite name="greeter" tests="%s">\n' "$(grep -c '^ok: ' "$1")"
sed -n 's/^ok: \(.*\)$/  <testcase classname="greeter" name="\1"\/>/p' "$1"
printf '</testsuite>\n'
