# Every link must lead somewhere.
set -eu
cd "$1"
for target in $(sed -n 's/.*href="\([^"]*\)".*/\1/p' ./*.html); do
  test -f "$target"
  echo "$target is there"
done
