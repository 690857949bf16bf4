#!/usr/bin/env bash
# Many idle connections: what memory a node takes for each (RssAnon), what they do to another client, and what those beyond the
# limit are told.
#
#   scripts/bench/connections.sh [--connections N] [--rounds N] [--seconds N] [--rate N]
#
# One node, which is a mesh of its own, one process that holds N connections (10,000), each of which has asked for a value once,
# and kvmesh bench as the other client: RATE (2,000) reads a second of a value of 1 KiB for N seconds (8), latencies from the
# moment at which each was due. ROUNDS (3) times without and with the connections in turn; the medians are compared. At last
# another process opens connections until the node has more than its limit. It fails when a connection is not answered within
# ten seconds, or when none beyond the limit is refused with 503; the ratio of the p99 (aim: 2) decides nothing. It needs Go and
# curl. A node's limit is three quarters of its descriptors (ulimit -n), and at most 16,384.
set -euo pipefail
exec </dev/null

count=10000 rounds=3 seconds=8 rate=2000
while (($#)); do
	case $1 in
	--connections) count=$2 && shift ;;
	--rounds) rounds=$2 && shift ;;
	--seconds) seconds=$2 && shift ;;
	--rate) rate=$2 && shift ;;
	*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	esac
	shift
done
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
ulimit -n "$(ulimit -Hn)"
files=$(ulimit -n)
[[ $files != unlimited ]] && ((files <= 1 << 20)) || files=$((1 << 20))
limit=$((files - files / 4))
((limit <= 16384)) || limit=16384
((count + 200 <= limit)) || { echo "$count connections do not fit: with $files descriptors a node takes $limit" >&2 && exit 1; }

work=$(mktemp -d)
pids=()
cleanup() {
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

[[ -n ${KVMESH-} ]] && cp -- "$KVMESH" "$work/kvmesh" || go -C "$root" build -o "$work/kvmesh" .
go -C "$root" build -o "$work/connections" ./scripts/bench/connections
base=$((20000 + RANDOM % 10000))
"$work/kvmesh" mesh-key new >"$work/mesh.key"
chmod 600 "$work/mesh.key"
"$work/kvmesh" serve --name node --role voter --region here --data-dir "$work/node" --mesh-key "$work/mesh.key" --bootstrap-expect 1 \
	--http "127.0.0.1:$base" --peer "127.0.0.1:$((base + 1))" --gossip "127.0.0.1:$((base + 2))" --admin "127.0.0.1:$((base + 3))" \
	>"$work/node.log" 2>&1 &
node=$!
pids+=("$node")
for ((try = 0; ; try++)); do
	curl -fsS -o /dev/null "http://127.0.0.1:$((base + 3))/readyz" 2>/dev/null && break
	((try < 300)) || { echo "the node does not become ready" >&2 && tail -n 20 "$work/node.log" >&2 && exit 1; }
	sleep 0.1
done
head -c 1024 /dev/urandom >"$work/value"
curl -fsS -o /dev/null -T "$work/value" "http://127.0.0.1:$base/v1/kv/default/held"

rss() { awk '/^RssAnon:/ { print $2 }' "/proc/$node/status"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# hold N opens N connections, says in $held, $refused and $failed what became of them, and holds them until drop.
mkfifo "$work/open"
exec 3<>"$work/open" # never ends
hold() {
	rm -f "$work/held"
	"$work/connections" "127.0.0.1:$base" /v1/kv/default/held "$1" <&3 >"$work/held" &
	holding=$!
	pids+=("$holding")
	until [[ -s $work/held ]]; do # it is written at once
		kill -0 "$holding"
		sleep 0.1
	done
	read -r held refused failed <"$work/held"
}
drop() {
	kill -KILL "$holding"
	wait "$holding" 2>/dev/null || true
}

# other prints the p50 and the p99 of the other client, in milliseconds.
other() {
	"$work/kvmesh" bench --url "http://127.0.0.1:$base" --mix C --keys 1000 --value-size 1024 --spread 0 --connections 16 --rate "$rate" \
		--warmup 2s --duration "${seconds}s" -o json >"$work/bench.json"
	tr -d ' \n' <"$work/bench.json" | sed -E 's/.*"read":\{[^{]*"latency_ms":\{([^}]*)\}.*/\1/; s/.*"p50":([0-9.e+-]+),.*"p99":([0-9.e+-]+),.*/\1 \2/'
	echo
}

other >/dev/null # warms up
printf '%-28s %12s %10s %10s\n' '' 'RssAnon KiB' 'p50 ms' 'p99 ms'
for ((round = 1; round <= rounds; round++)); do
	idle=$(rss)
	read -r p50 p99 < <(other)
	echo "$p50 $p99" >>"$work/without"
	printf '%-28s %12d %10s %10s\n' 'without' "$idle" "$p50" "$p99"
	hold "$count"
	((failed == 0 && refused == 0)) || { echo "of $count connections $refused were refused, $failed failed" >&2 && exit 1; }
	loaded=$(rss)
	read -r p50 p99 < <(other)
	echo "$p50 $p99" >>"$work/with"
	printf '%-28s %12d %10s %10s\n' "with $held connections" "$loaded" "$p50" "$p99"
	echo "$(((loaded - idle) * 1024 / count))" >>"$work/each"
	drop
done
printf 'each idle connection takes %s bytes; p99 with them is %s x what it is without (aim: 2)\n' \
	"$(head -n 1 "$work/each")" "$(awk -v a="$(cut -d ' ' -f 2 "$work/with" | median)" -v b="$(cut -d ' ' -f 2 "$work/without" | median)" \
		'BEGIN { printf "%.2f", a / b }')"

hold "$count"
((failed == 0 && refused == 0)) || { echo "of $count connections $refused were refused, $failed failed" >&2 && exit 1; }
first=$holding
hold $((limit - count + 200))
printf 'beyond the limit of %d: %d more connections were held, %d refused with 503, %d failed\n' "$limit" "$held" "$refused" "$failed"
kill -KILL "$first"
((refused > 0 && failed == 0))
