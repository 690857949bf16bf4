#!/usr/bin/env bash
# Which reads a full cache still answers by itself: kvmesh's own beside LRU, otter (W-TinyLFU) and the offline optimum, on
# seeded traces. It measures nothing but hits, so it may run beside anything; about five minutes.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
go -C "$root/scripts/bench/policy" build -o "$work/policy" .
"$work/policy"
