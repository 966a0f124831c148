# Adds two amounts.
set -eu
echo "$1 + $2 = $(($1 + $2))"
test "$(($1 + $2))" -eq 7
