#!/usr/bin/env bash
# Durable writes and linearizable reads: three kvmesh voters over HTTP against three etcd nodes over etcd's own Go client,
# on loopback, on the same disk, fsync on, 1 KiB values. The peers take turns; servers and load have a core each. It prints
# ratios and fails on wrong answers only. Flags go to scripts/bench/put: -rounds N, -cell 4s, -large=false, …
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
if ! command -v etcd >/dev/null; then
	if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
		echo "etcd is not installed (Debian: etcd-server)" >&2
		exit 1
	fi
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends etcd-server; } >/dev/null
fi
work=$(mktemp -d)
driver=""
trap 'rm -rf -- "$work"' EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP
go -C "$root" build -o "$work/kvmesh" .
go -C "$root/scripts/bench/put" build -o "$work/put" .
mkdir "$work/data"
"$work/put" -kvmesh "$work/kvmesh" -dir "$work/data" "$@" &
driver=$!
wait "$driver"
