#!/usr/bin/env bash
# What the tests talk to. On Debian as root it installs and starts what is missing; elsewhere it names it, and the tests
# that need it skip themselves by name (internal/testbed). What SWITCHYARD_REQUIRE lists must be there in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each component: Debian's packages, its command if that has another name, and what becomes of its absence. All but docker
# are there if their command is; a Docker client without an engine is of no use.
names=(git git-lfs bash docker busybox zip unzip zstd sshd ssh iproute2 iptables postgresql gcc)
declare -A packages=([git]=git [bash]=bash [docker]='docker.io iptables iproute2' [busybox]=busybox-static
	[git-lfs]=git-lfs [zip]=zip [unzip]=unzip [zstd]=zstd [sshd]=openssh-server [ssh]=openssh-client
	[iproute2]=iproute2 [iptables]=iptables [postgresql]=postgresql
	[gcc]='gcc libc6-dev')
declare -A commands=([iproute2]=ip [postgresql]=initdb)
declare -A without=([gcc]='the tests run without the race detector')

engine_log=build/dockerd.log
engine_start=60s

answers() { go run ./internal/testbed/answer docker "$@"; }

# Debian keeps PostgreSQL's programs out of PATH.
have() { command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null; }

missing() {
	local name
	for name in "${names[@]}"; do
		if [[ $name == docker ]]; then
			answers 2>/dev/null || echo docker
		else
			have "${commands[$name]:-$name}" || echo "$name"
		fi
	done
}

# Removes a file with a process's number if that process has ended: the engine takes whatever bears the number, and even a
# zombie, for a living one and does not start.
forget_dead() {
	local pid name state
	[[ -f $1 ]] && read -r pid <"$1" || [[ -n ${pid:-} ]] || return 0
	if [[ -f /proc/$pid/stat ]] && read -r _ name state _ <"/proc/$pid/stat" && [[ $name == "($2)" && $state != Z ]]; then
		return 0
	fi
	rm -f "$1"
}

# Starts an engine at the default socket and waits until it answers. It outlives this script.
start_engine() {
	if [[ -d /run/systemd/system ]]; then
		echo 'testbed: starting docker.service'
		systemctl start docker || true
	else
		mkdir -p build
		forget_dead /var/run/docker.pid dockerd
		forget_dead /var/run/docker/containerd/containerd.pid containerd
		echo "testbed: starting dockerd in a session of its own; it logs to $engine_log"
		setsid --fork dockerd </dev/null >"$engine_log" 2>&1
	fi
	answers "$engine_start" || { [[ ! -f $engine_log ]] || tail -n 20 "$engine_log" >&2; }
}

mapfile -t absent < <(missing)
if ((${#absent[@]})) && command -v apt-get >/dev/null && [[ $(id -u) == 0 ]]; then
	install=()
	for name in "${absent[@]}"; do
		if [[ $name == docker ]] && command -v dockerd >/dev/null; then continue; fi
		read -ra more <<<"${packages[$name]}"
		install+=("${more[@]}")
	done
	if ((${#install[@]})); then
		echo "testbed: installing ${install[*]}"
		export DEBIAN_FRONTEND=noninteractive
		apt-get -q update && apt-get -q install -y --no-install-recommends "${install[@]}" ||
			echo 'testbed: apt-get failed' >&2
	fi
	# An engine elsewhere, at DOCKER_HOST, is not ours to start.
	if [[ " ${absent[*]} " == *' docker '* && -z ${DOCKER_HOST:-} ]] && command -v dockerd >/dev/null; then
		answers 2>/dev/null || start_engine
	fi
	mapfile -t absent < <(missing)
fi

status=0
for name in "${absent[@]}"; do
	if [[ ,${SWITCHYARD_REQUIRE:-}, == *,"$name",* ]]; then
		echo "testbed: $name is missing, and SWITCHYARD_REQUIRE lists it" >&2
		status=1
	else
		echo "testbed: $name is missing: ${without[$name]:-its tests skip}"
	fi
done
((${#absent[@]})) || echo "testbed: ${names[*]}: all there"
exit "$status"
