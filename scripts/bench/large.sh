#!/usr/bin/env bash
# Eight values of 25 MiB at once, written and read through each voter and through an edge: what memory each process takes for
# it (RssAnon), and whether anybody has to elect a leader.
#
#   scripts/bench/large.sh [--at-once N] [--limit MIB] [--profile lan|wan]
#
# It fails when a process takes more than MIB (300), when the term has changed, or when an answer holds other bytes. All on
# loopback, three voters and an edge, one disk.
set -euo pipefail
exec </dev/null

at=8 limit=300 profile=lan
while (($#)); do
	case $1 in
	--at-once) at=$2 && shift ;;
	--limit) limit=$2 && shift ;;
	--profile) profile=$2 && shift ;;
	*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	esac
	shift
done
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
work=$(mktemp -d)
pids=() # of the nodes
helpers=()
cleanup() {
	for pid in "${helpers[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

go -C "$root" build -o "$work/kvmesh" .
"$work/kvmesh" mesh-key new >"$work/mesh.key"
chmod 600 "$work/mesh.key"
base=$((20000 + RANDOM % 10000))
names=(voter-1 voter-2 voter-3 edge-1)
for i in 0 1 2 3; do
	p=$((base + 10 * i)) role=${names[i]%-*}
	args=(serve --name "${names[i]}" --role "$role" --region here --profile "$profile" --data-dir "$work/${names[i]}"
		--mesh-key "$work/mesh.key" --http "127.0.0.1:$p" --peer "127.0.0.1:$((p + 1))" --gossip "127.0.0.1:$((p + 2))"
		--admin "127.0.0.1:$((p + 3))" --join "127.0.0.1:$((base + 10 * (i == 0) + 2))")
	[[ $role == voter ]] && args+=(--bootstrap-expect 3)
	"$work/kvmesh" "${args[@]}" >"$work/${names[i]}.log" 2>&1 &
	pids+=($!)
done
http() { echo "http://127.0.0.1:$((base + 10 * $1))"; }
admin() { echo "http://127.0.0.1:$((base + 10 * $1 + 3))"; }
for i in 0 1 2 3; do
	for ((try = 0; ; try++)); do
		curl -fsS -o /dev/null "$(admin "$i")/readyz" 2>/dev/null && break
		((try < 300)) || { echo "${names[i]} does not become ready" >&2 && tail -n 20 "$work/${names[i]}.log" >&2 && exit 1; }
		sleep 0.1
	done
done

metric() { curl -fsS "$(admin "$1")/metrics" | awk -v name="$2" '$1 == name { print $2 }'; }
term() { for i in 0 1 2; do metric "$i" kvmesh_raft_term; done | sort -n | tail -n 1; }

# rss PID prints the process's anonymous memory in KiB.
rss() { awk '/^RssAnon:/ { print $2 }' "/proc/$1/status"; }
# watch_memory FILE notes the most of each process until it is ended.
watch_memory() {
	local most=(0 0 0 0) now
	trap 'printf "%s\n" "${most[*]}" >"$1"; exit 0' TERM
	while :; do
		for i in 0 1 2 3; do
			now=$(rss "${pids[i]}")
			((now <= most[i])) || most[i]=$now
		done
		sleep 0.05
	done
}
row() { # LABEL SECONDS KIB…
	local label=$1 seconds=$2 m
	shift 2
	printf '%-28s' "$label"
	for m; do printf ' %7d MiB' $((m >> 10)); done
	printf '  %s\n' "$seconds"
}

for ((i = 0; i < at; i++)); do head -c 26214400 /dev/urandom >"$work/value-$i"; done
before=$(term) worst=0 failed=0
printf '%-28s' "$at x 25 MiB at once"
printf ' %11s' "${names[@]}"
printf '  %s\n' seconds
row idle '' "$(rss "${pids[0]}")" "$(rss "${pids[1]}")" "$(rss "${pids[2]}")" "$(rss "${pids[3]}")"
for via in 0 1 2 3; do
	for verb in PUT GET; do
		watch_memory "$work/most" &
		watcher=$!
		helpers+=("$watcher")
		start=${EPOCHREALTIME/./}
		moves=()
		for ((i = 0; i < at; i++)); do
			target="$(http "$via")/v1/kv/default/large-$via-$i"
			if [[ $verb == PUT ]]; then
				curl -fsS -o /dev/null -T "$work/value-$i" "$target" &
			else
				curl -fsS "$target" | cmp - "$work/value-$i" &
			fi
			moves+=($!)
		done
		for m in "${moves[@]}"; do wait "$m" || failed=$((failed + 1)); done
		took=$((${EPOCHREALTIME/./} - start))
		kill "$watcher"
		wait "$watcher" || true
		read -r -a most <"$work/most"
		for m in "${most[@]}"; do ((m >> 10 <= worst)) || worst=$((m >> 10)); done
		row "$verb through ${names[via]}" "$((took / 1000000)).$((took / 100000 % 10))" "${most[@]}"
	done
done
after=$(term)
printf 'most memory %d MiB (limit %d), term %s before and %s after, %d transfers failed\n' "$worst" "$limit" "$before" "$after" "$failed"
((worst <= limit && failed == 0)) && [[ $before == "$after" ]]
