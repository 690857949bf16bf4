#!/usr/bin/env bash
# Steady reads: an edge of a real mesh, with authorisation, asked at half of the rate that it can answer (open loop, latencies
# from the moment at which a request was due), alone and while 1 % of the keys are rewritten every second; what a large cache
# costs in memory and pauses; and how often a full one answers by itself.
#
#   scripts/bench/steady.sh [--seconds N] [--rounds N] [--keys N] [--size BYTES] [--entries N] [--entry-size BYTES]
#                           [--connections N] [--no-policy]
#
# Quiet and busy rounds take turns, N of each (3) of N seconds (60), with one more of nginx and a file for each key, asked for
# at the same rate: what this machine allows. Then the edge takes N entries (1,000,000), and is asked again. It fails when an
# answer is wrong, whatever the figures are. The server that is asked has a core of its own; the voter and the load have the
# other one. The server's is kept busy with work that gives way to any other (SCHED_IDLE): a virtual processor that sleeps may
# be woken milliseconds late, which would be the whole figure. With the defaults it takes about fifteen minutes, five of them
# for the table of hits. It needs Go, curl, and nginx, which it installs where it may, and 2 GB of memory and of disk for a
# million entries.
set -euo pipefail
exec </dev/null

seconds=60 rounds=3 keys=10000 size=1024 entries=1000000 entry_size=288 connections=32 policy=1
while (($#)); do
	case $1 in
	--seconds) seconds=$2 && shift ;;
	--rounds) rounds=$2 && shift ;;
	--keys) keys=$2 && shift ;;
	--size) size=$2 && shift ;;
	--entries) entries=$2 && shift ;;
	--entry-size) entry_size=$2 && shift ;;
	--connections) connections=$2 && shift ;;
	--no-policy) policy=0 ;;
	*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	esac
	shift
done
((keys >= 100 && size >= 64 && entry_size >= 64)) || { echo "use 100 keys and 64 bytes or more" >&2 && exit 2; }
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
(($(nproc) >= 2)) || { echo "this needs two cores: one for the edge, one for all else" >&2 && exit 1; }

if ! command -v nginx >/dev/null; then
	((EUID == 0)) && command -v apt-get >/dev/null || { echo "nginx is not installed" >&2 && exit 1; }
	# RUNLEVEL=1: the service that comes with the package is not to be started.
	RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx >/dev/null
fi

work=$(mktemp -d)
pids=()
masters=() # nginx's, which ends its worker when it is told to end
cleanup() {
	for pid in "${masters[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
fail() { echo "$*" >&2 && exit 1; }

if [[ -n ${KVMESH-} ]]; then cp -- "$KVMESH" "$work/kvmesh"; else go -C "$root" build -o "$work/kvmesh" .; fi

# A voter, and the edge that is measured.
base=$((20000 + RANDOM % 10000))
token=0123456789abcdef0123456789abcdef
printf '%s\n' "$token" >"$work/token"
"$work/kvmesh" mesh-key new >"$work/mesh.key"
chmod 600 "$work/mesh.key" "$work/token"
room=$((keys * (size + 300) + entries * (entry_size + 300)))
node() { # NAME ROLE OFFSET CORE ARGUMENT...
	local name=$1 role=$2 p=$((base + $3)) core=$4
	shift 4
	GODEBUG=gctrace=1 GOMAXPROCS=1 taskset -c "$core" "$work/kvmesh" serve --name "$name" --role "$role" --region here \
		--data-dir "$work/$name" --mesh-key "$work/mesh.key" --api-token-file "$work/token" --http "127.0.0.1:$p" \
		--peer "127.0.0.1:$((p + 1))" --gossip "127.0.0.1:$((p + 2))" --admin "127.0.0.1:$((p + 3))" "$@" >"$work/$name.log" 2>&1 &
	pids+=($!)
}
node voter voter 0 1 --bootstrap-expect 1 --cache-size 8MiB
node edge edge 10 0 --join "127.0.0.1:$((base + 2))" --cache-size "$((room > 16777216 ? room : 16777216))B"
edge=${pids[1]}
voter_url=http://127.0.0.1:$base edge_url=http://127.0.0.1:$((base + 10)) admin=http://127.0.0.1:$((base + 13))
auth="Authorization: Bearer $token"
chrt --idle 0 taskset -c 0 bash -c 'while :; do :; done' &
pids+=($!)
for p in $((base + 3)) $((base + 13)); do
	for ((try = 0; ; try++)); do
		curl -fsS -o /dev/null "http://127.0.0.1:$p/readyz" 2>/dev/null && break
		((try < 300)) || { tail -n 20 "$work"/*.log >&2 && fail "a node does not become ready"; }
		sleep 0.1
	done
done

# value KEY GENERATION BYTES prints the value that a key has after a generation of rewriting; -1 is the first.
value() { awk -v k="$1" -v g="$2" -v n="$3" 'BEGIN { s = k "." g "."; printf "%s", s; for (i = length(s); i < n; i++) printf "x" }'; }
# body PREFIX FROM COUNT MODULUS GENERATION BYTES prints a bulk call that puts keys FROM to FROM+COUNT-1, modulo MODULUS.
body() {
	awk -v p="$1" -v from="$2" -v count="$3" -v mod="$4" -v g="$5" -v n="$6" 'BEGIN {
		for (i = 0; i < n; i++) pad = pad "x"
		printf "{\"put\":["
		for (i = 0; i < count; i++) {
			k = sprintf("%s-%08d", p, (from + i) % mod); s = k "." g "."
			printf "%s{\"key\":\"%s\",\"value\":\"%s%s\"}", i ? "," : "", k, s, substr(pad, 1, n - length(s))
		}
		printf "]}"
	}'
}
# put URL writes what comes on standard input, with the other core's time.
put() {
	taskset -c 1 curl -fsS --max-time 120 -o "$work/put" -H "$auth" -H 'Content-Type: application/json' --data-binary @- "$1/v1/kv/default" ||
		fail "a bulk call fails"
}
# fill PREFIX COUNT BYTES writes keys through the edge, which keeps them.
fill() {
	local at
	for ((at = 0; at < $2; at += 5000)); do
		body "$1" "$at" $(($2 - at < 5000 ? $2 - at : 5000)) "$2" -1 "$3" | put "$edge_url"
	done
}
# check PREFIX NUMBER GENERATION BYTES reads a key at the edge and fails if it is not what it must be.
check() {
	local key
	key=$(printf '%s-%08d' "$1" "$2")
	value "$key" "$3" "$4" >"$work/want"
	curl -fsS --max-time 10 -H "$auth" -o "$work/got" "$edge_url/v1/kv/default/$key" || fail "$key cannot be read"
	cmp -s "$work/got" "$work/want" || fail "$key is $(head -c 40 "$work/got")…, not $(head -c 40 "$work/want")…"
}
# nginx_start serves the keys, and what kvmesh bench asks a node first, as files.
nginx_url=http://127.0.0.1:$((base + 20))
nginx_start() {
	local files # as many descriptors as it may have, up to what a file of each key needs
	files=$(ulimit -Hn)
	[[ $files != unlimited ]] && ((files <= keys + 3000)) || files=$((keys + 3000))
	((files > 4000)) || fail "this needs more than 4000 descriptors: see ulimit -Hn"
	mkdir -p "$work/files/v1/kv/default" "$work/files/v1/namespaces"
	curl -fsS -H "$auth" -o "$work/files/v1/namespaces/default" "$edge_url/v1/namespaces/default"
	(cd "$work/files/v1/kv/default" && awk -v count="$keys" -v n="$size" 'BEGIN {
		for (i = 0; i < n; i++) pad = pad "x"
		for (i = 0; i < count; i++) { f = sprintf("bench-%08d", i); s = f ".-1."; printf "%s", s substr(pad, 1, n - length(s)) >f; close(f) }
	}')
	chmod -R a+rX "$work/files" && chmod 711 "$work"
	cat >"$work/nginx.conf" <<-CONF
		worker_processes 1; worker_cpu_affinity 01; daemon off; pid $work/nginx.pid; error_log $work/nginx.log;
		worker_rlimit_nofile $files;
		events { worker_connections 1024; }
		http {
			access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; default_type application/octet-stream;
			open_file_cache max=$((files - 2000)) inactive=1h; open_file_cache_valid 1h;
			client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work; uwsgi_temp_path $work; scgi_temp_path $work;
			server { listen ${nginx_url#http://}; root $work/files; }
		}
	CONF
	nginx -c "$work/nginx.conf" -e "$work/nginx.log" >/dev/null 2>&1 &
	masters+=($!)
	for ((try = 0; try < 100; try++)); do
		curl -fsS -o /dev/null "$nginx_url/v1/namespaces/default" 2>/dev/null && return
		sleep 0.1
	done
	fail "nginx does not answer: $(tail -n 3 "$work/nginx.log")"
}

# ask URL ARGUMENT... has kvmesh bench read from a server, and leaves its report in $work/report.
ask() {
	local url=$1
	shift
	GOMAXPROCS=1 taskset -c 1 "$work/kvmesh" bench --token-file "$work/token" --no-fill --mix C --keys "$keys" \
		--connections "$connections" -o json "$@" "$url" >"$work/report" 2>"$work/bench.log" || {
		cat "$work/bench.log" "$work/report" >&2
		fail "kvmesh bench fails"
	}
	! grep -q '"failed": *{ *"' <(tr -d '\n' <"$work/report") || fail "reads fail: $(tr -d '\n' <"$work/report")"
}
field() { grep -o "\"$1\": *[0-9.e+-]*" "$work/report" | head -n 1 | sed 's/.*: *//'; }
metric() { curl -fsS -H "$auth" "$admin/metrics" | awk -v n="$1" '$1 == n { printf "%.0f\n", $2 }'; }
anon() { awk '/^RssAnon/ { print $2 * 1024 }' "/proc/$edge/status"; }
# live has the edge collect its garbage, and prints the bytes that are left.
live() {
	curl -fsS -H "$auth" -o /dev/null "$admin/debug/pprof/heap?gc=1"
	curl -fsS -H "$auth" -o /dev/null "$admin/debug/pprof/heap?gc=1"
	metric go_memstats_heap_alloc_bytes
}
median() { sort -n | awk '{ v[NR] = $1 } END { printf "%.2f %.2f %.2f\n", v[int((NR + 1) / 2)], v[1], v[NR] }'; }
row() { printf '%-50s %12s %22s   %s\n' "$@"; }

empty=$(live)
fill bench "$keys" "$size"
for ((i = 0; i < 20; i++)); do check bench $((RANDOM % keys)) -1 "$size"; done

nginx_start

ask "$edge_url" --duration 5s --warmup 2s
maximum=$(field per_second)
rate=$(awk -v r="$maximum" 'BEGIN { printf "%.0f", r / 2 }')

# Every second the next 1 % of the keys is written to the voter, so that the edge hears of it by the feed.
per=$((keys / 100)) generation=0
rewrite() { # FROM UNTIL: generations, one a second
	local g start wait
	start=${EPOCHREALTIME/[.,]/}
	for ((g = $1; g < $2; g++)); do
		wait=$((start + (g - $1) * 1000000 - ${EPOCHREALTIME/[.,]/}))
		((wait <= 0)) || sleep "$((wait / 1000000)).$(printf %06d $((wait % 1000000)))"
		put "$voter_url" <"$work/generation.$g"
	done
}
warmup=2
for ((round = 0; round < rounds; round++)); do
	ask "$edge_url" --rate "$rate" --duration "${seconds}s" --warmup "${warmup}s"
	field p99 >>"$work/quiet"
	field unsent >>"$work/unsent"
	ask "$nginx_url" --rate "$rate" --duration "${seconds}s" --warmup "${warmup}s"
	field p99 >>"$work/nginx"
	until=$((generation + seconds + warmup))
	for ((g = generation; g < until; g++)); do body bench $((g * per)) "$per" "$keys" "$g" "$size" >"$work/generation.$g"; done
	rewrite "$generation" "$until" &
	writer=$!
	ask "$edge_url" --rate "$rate" --duration "${seconds}s" --warmup "${warmup}s"
	wait "$writer" || fail "the rewriting fails"
	generation=$until
	rm -f -- "$work"/generation.*
	field p99 >>"$work/busy"
	field unsent >>"$work/unsent"
	sleep 2 # the last change has come to the edge by then
	for ((i = 0; i < 50; i++)); do
		k=$((RANDOM % keys)) g=-1
		# The last generation before $generation that wrote the key: its turn comes every keys/per generations.
		turns=$((keys / per)) block=$((k / per))
		((k >= turns * per || generation <= block)) || g=$((block + (generation - 1 - block) / turns * turns))
		((keys % per)) || check bench "$k" "$g" "$size"
	done
done

# A large cache.
before=$(live) held=$(metric kvmesh_cache_entries)
fill entry "$entries" "$entry_size"
after=$(live) holds=$(metric kvmesh_cache_entries) says=$(metric kvmesh_cache_bytes)
for ((i = 0; i < 50; i++)); do check entry $(((RANDOM * 32768 + RANDOM) % entries)) -1 "$entry_size"; done
collected=$(grep -c '^gc ' "$work/edge.log" || true)
ask "$edge_url" --rate "$rate" --duration "${seconds}s" --warmup "${warmup}s"
large=$(field p99)
for ((i = 0; i < 20; i++)); do live >"$work/live"; done # an idle cache is seldom collected: pauses of 40 more collections
rss=$(anon)
# "gc 7 @1.2s 1%: 0.01+2.3+0.02 ms clock, …": the world stands still in the first and in the last part.
pause=$(awk -v from="$collected" '/^gc / && n++ >= from { split($5, t, "+"); print t[1]; print t[3] }' "$work/edge.log" | sort -n |
	awk '{ v[NR] = $1 } END { printf "%s %s %d", v[int(0.99 * (NR - 1)) + 1], v[NR], NR }')
read -r pause99 pausemax pauses <<<"$pause"

read -r quiet quiet_least quiet_most < <(median <"$work/quiet")
read -r nginx nginx_least nginx_most < <(median <"$work/nginx")
read -r busy busy_least busy_most < <(median <"$work/busy")
unsent=$(awk '{ n += $1 } END { print n + 0 }' "$work/unsent")
row figure measured range aim
row "maximum, reads a second ($connections connections)" "$(printf %.0f "$maximum")" "" ""
row "p99 at $rate a second, quiet, ms" "$quiet" "$quiet_least to $quiet_most" "< 1"
row "p99 while 1 % of the keys change each second, ms" "$busy" "$busy_least to $busy_most" "< 1"
row "p99 of nginx with files, ms" "$nginx" "$nginx_least to $nginx_most" ""
row "ratio of the busy p99 to the quiet one" "$(awk -v a="$busy" -v b="$quiet" 'BEGIN { printf "%.2f", a / b }')" "" "<= 1.2"
row "ratio of the quiet p99 to nginx's" "$(awk -v a="$quiet" -v b="$nginx" 'BEGIN { printf "%.2f", a / b }')" "" ""
row "requests that were due and not sent" "$unsent" "" "0"
row "entries" "$holds" "" ""
row "p99 beside them, quiet, ms" "$large" "" "< 1"
row "GC pause, p99 of $pauses, ms" "$pause99" "at most $pausemax" "< 1"
row "RssAnon of the process, MiB" "$((rss >> 20))" "" ""
row "live heap, MiB" "$((after >> 20))" "" ""
row "bytes an entry beyond key and value" \
	"$(awk -v b="$before" -v a="$after" -v n=$((holds - held)) -v kv=$((14 + entry_size)) 'BEGIN { printf "%.0f", (a - b) / n - kv }')" "" "<= 200"
row "growth of the live heap, of what the cache weighs" "$(awk -v e="$empty" -v a="$after" -v s="$says" 'BEGIN { printf "%.1f %%", 100 * (a - e) / s }')" "" "95 to 105 %"
if ((policy)); then
	printf '\nhits, in percent\n'
	"$root/scripts/bench/policy.sh"
fi
