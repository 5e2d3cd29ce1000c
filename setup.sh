#!/usr/bin/env bash
# Installs what stasis needs on a fresh Debian or Ubuntu machine, then does one
# thing:
#
#   ./setup.sh demo   shows a container checkpointed, killed and going on
#   ./setup.sh test   passes the tests, unit and integration, in both cgroup modes
set -euo pipefail
cd "$(dirname "$0")"

# The Go that builds stasis where the machine has none that knows go.mod's
# `go` line (before 1.21); a newer one fetches what it needs by itself.
go_toolchain=v0.0.1-go1.26.8.linux-amd64

usage() {
	sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

# packages installs those of its arguments that are missing, without starting
# the services that some of them bring: only their programs are wanted.
packages() {
	local missing=() p guard=/usr/sbin/policy-rc.d
	for p in "$@"; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
	done
	[ "${#missing[@]}" -gt 0 ] || return 0
	if [ ! -e "$guard" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$guard"
		chmod +x "$guard"
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# new_enough says whether `go` is one that can fetch toolchains.
new_enough() {
	local v
	v=$(go env GOVERSION 2>/dev/null) || return 1
	[ "$(printf 'go1.21\n%s\n' "${v%%-*}" | sort -V | head -n 1)" = go1.21 ]
}

golang() {
	export PATH="$PATH:/usr/local/go/bin"
	new_enough && return
	packages golang-go
	new_enough && return
	local dir
	(cd / && go mod download "golang.org/toolchain@$go_toolchain")
	dir="$(go env GOMODCACHE)/golang.org/toolchain@$go_toolchain"
	chmod -R u+w "$dir/bin" "$dir/pkg/tool"
	chmod -R +x "$dir/bin" "$dir/pkg/tool"
	export PATH="$dir/bin:$PATH"
}

want="${1:-}"
case "$want" in
demo | test) ;;
*) usage ;;
esac
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=CI,GOPROXY "$0" "$@"
fi

packages ca-certificates git make gcc libc6-dev pkg-config libseccomp-dev runc busybox-static iproute2
golang
if [ "$want" = demo ]; then
	make --no-print-directory demo
	exit
fi
packages crun python3 redis-server redis-tools libcap2-bin
make --no-print-directory test
make --no-print-directory integration
