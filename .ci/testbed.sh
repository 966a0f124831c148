#!/usr/bin/env bash
# What the tests talk to. On Debian as root it installs what is missing; elsewhere it names it, and the tests that
# need it skip themselves by name (internal/testbed). What SWITCHYARD_REQUIRE lists must be there in the end.
set -euo pipefail

# Each component: the command that shows it is there, and Debian's packages.
names=(git git-lfs bash gcc)
declare -A packages=([git]=git [git-lfs]=git-lfs [bash]=bash [gcc]='gcc libc6-dev')
declare -A without=(
	[git]='its tests skip'
	[git-lfs]='its tests skip'
	[bash]='its tests skip'
	[gcc]='the tests run without the race detector'
)

missing() {
	local name
	for name in "${names[@]}"; do
		command -v "$name" >/dev/null || echo "$name"
	done
}

mapfile -t absent < <(missing)
if ((${#absent[@]})) && command -v apt-get >/dev/null && [[ $(id -u) == 0 ]]; then
	install=()
	for name in "${absent[@]}"; do
		read -ra more <<<"${packages[$name]}"
		install+=("${more[@]}")
	done
	echo "testbed: installing ${install[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -q update && apt-get -q install -y --no-install-recommends "${install[@]}" ||
		echo 'testbed: apt-get failed' >&2
	mapfile -t absent < <(missing)
fi

status=0
for name in "${absent[@]}"; do
	if [[ ,${SWITCHYARD_REQUIRE:-}, == *,"$name",* ]]; then
		echo "testbed: $name is missing, and SWITCHYARD_REQUIRE lists it" >&2
		status=1
	else
		echo "testbed: $name is missing: ${without[$name]}"
	fi
done
((${#absent[@]})) || echo "testbed: ${names[*]}: all there"
exit "$status"
