#!/usr/bin/env bash
# Runs Go's own source tree through a mesh of six separate processes: import at one edge, compare at two others, change
# 200 files and see them change at once, SIGKILL everything, compare again. The work is done by scripts/realdata; see
# there for the flags, which are passed on: -dir NEW keeps data and logs in that directory.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
work=$(mktemp -d)
driver=""
trap 'rm -rf -- "$work"' EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP

go -C "$root" build -o "$work/kvmesh" .
go -C "$root" build -o "$work/realdata" ./scripts/realdata

# In the background, so that a signal to this script reaches the driver at once; it ends its six nodes before it exits.
TMPDIR="$work" "$work/realdata" -kvmesh "$work/kvmesh" -source "$(go env GOROOT)/src" "$@" &
driver=$!
rc=0
wait "$driver" || rc=$?
while kill -0 "$driver" 2>/dev/null; do # a trapped signal ended the wait, not the driver
	rc=0
	wait "$driver" || rc=$?
done
exit "$rc"
