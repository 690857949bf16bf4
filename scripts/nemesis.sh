#!/usr/bin/env bash
# Breaks a mesh of real processes in every way that is known and proves from what its clients saw that nothing acknowledged
# was lost and that strong reads were linearizable.
#
#   scripts/nemesis.sh [MINUTES] [flags of scripts/nemesis]
#
# MINUTES is about how long it takes (default 4, planted bugs included): every fault once by itself, then two at a time
# until the time is over. -seed N makes the same choices again, -only PART,... picks faults by name, -dir NEW keeps data and
# logs there. It needs Linux, strace and iproute2 (which are installed where it may: as root, with apt-get), and namespaces
# of its own; without these it puts proxies between the nodes, and says so. It reaches nothing but loopback addresses and
# the network that it makes for itself, and ends only processes that it started.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
minutes=4
if (($#)) && [[ $1 != -* ]]; then
	minutes=$1
	shift
fi
[[ $(uname -s) == Linux ]] || { echo "nemesis.sh: Linux is needed, for strace and network namespaces" >&2 && exit 2; }

missing=()
command -v strace >/dev/null || missing+=(strace)
command -v ip >/dev/null || missing+=(iproute2)
if ((${#missing[@]})) && ((EUID == 0)) && command -v apt-get >/dev/null; then
	log=$(mktemp)
	{ timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install -y --no-install-recommends "${missing[@]}"; } \
		>"$log" 2>&1 || echo "${missing[*]} cannot be installed: $(tail -n 1 "$log")" >&2
	rm -f -- "$log"
fi
command -v strace >/dev/null || { echo "nemesis.sh: strace is not installed; without it no disk can be made to fail" >&2 && exit 2; }

work=$(mktemp -d)
driver=""
trap 'rm -rf -- "$work"' EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP

go -C "$root" build -o "$work/kvmesh" .
go -C "$root" build -tags mutants -o "$work/kvmesh-mutants" .
go -C "$root" build -o "$work/nemesis" ./scripts/nemesis

# In the background, so that a signal to this script reaches the driver at once; it ends its nodes before it exits.
"$work/nemesis" -kvmesh "$work/kvmesh" -mutant "$work/kvmesh-mutants" -minutes "$minutes" "$@" &
driver=$!
rc=0
wait "$driver" || rc=$?
while kill -0 "$driver" 2>/dev/null; do # a trapped signal ended the wait, not the driver
	rc=0
	wait "$driver" || rc=$?
done
exit "$rc"
