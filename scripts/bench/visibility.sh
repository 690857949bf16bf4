#!/usr/bin/env bash
# How long after its commit, and after its acknowledgement, is a write visible at every edge?
#
#   scripts/bench/visibility.sh [-writes N] [-rate N] [-poll D] [-rounds LIST] [-seed N] [-log LEVEL]
#
# A mesh as `kvmesh dev --wan` makes it, in one process: three regions with real-world delays, a voter and an edge in each.
# Clients write over HTTP through random nodes and read at every edge, hot keys and cold ones apart. Three rounds: healthy;
# with 10 % of streams and packets disturbed; with all feeds cut. Every answer's Kv-Staleness-Ms is held against what was
# written: a bound that was not true ends the script with 1. Times and ratios are printed and never fail it: they belong
# to the machine. By default it takes about four minutes and half a core; nothing is left behind.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
work=$(mktemp -d)
driver=""
trap 'rm -rf -- "$work"' EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP

go -C "$root" build -o "$work/visibility" ./scripts/bench/visibility

# In the background, so that a signal to this script reaches the driver at once; it ends its nodes before it exits.
TMPDIR="$work" "$work/visibility" "$@" &
driver=$!
rc=0
wait "$driver" || rc=$?
while kill -0 "$driver" 2>/dev/null; do # a trapped signal ended the wait, not the driver
	rc=0
	wait "$driver" || rc=$?
done
exit "$rc"
