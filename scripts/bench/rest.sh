#!/usr/bin/env bash
# The Cloudflare REST API at one edge of a mesh of three voters: a bulk put of 10,000 values of 1 KiB against 10,000 single
# PUTs by 64 writers, and a page of 1,000 keys out of 1,000,000 against one out of 10,000. Durable, fsync on, on loopback. It
# prints ratios and fails on wrong answers only. Flags go to scripts/bench/rest: -rounds N, -keys N, -pages N, …
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
work=$(mktemp -d)
driver=""
trap 'rm -rf -- "$work"' EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP

go -C "$root" build -o "$work/kvmesh" .
go -C "$root" build -o "$work/rest" ./scripts/bench/rest
mkdir "$work/data"

# In the background, so that a signal to this script reaches the driver at once; it ends its mesh before it exits.
"$work/rest" -kvmesh "$work/kvmesh" -dir "$work/data" "$@" &
driver=$!
rc=0
wait "$driver" || rc=$?
while kill -0 "$driver" 2>/dev/null; do # a trapped signal ended the wait, not the driver
	rc=0
	wait "$driver" || rc=$?
done
exit "$rc"
