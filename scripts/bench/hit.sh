#!/usr/bin/env bash
# Hot reads: an edge of a real mesh, with authorisation, against nginx serving a static file (sendfile on and off), Varnish in
# front of that nginx, Redis, a bare net/http server and a bare C epoll loop.
#
#   scripts/bench/hit.sh [--sizes "16 288 1024 16384 131072 1048576 zipf"] [--rounds N] [--seconds N] [--connections N]
#                        [--servers "NAME ..."]
#
# One key of each size; "zipf" is 100,000 keys of 1 KiB, asked for by zipf 0.99 (zipf.lua), where nginx has a file for each
# (and keeps as many open as descriptors allow), and which the servers with one canned answer and Redis sit out. One server at
# a time has a core, wrk has another one (redis-benchmark for Redis, which speaks no HTTP); the servers take turns, N rounds (5)
# of N seconds (5) each. For every server it prints the CPU microseconds that its process takes for a request (the median of
# the rounds, and their range), and that as a ratio to the better nginx; requests a second, which say something only where the
# load generator is not the slower one; and for kvmesh the allocations a request, of the whole process. It fails when an
# answer is wrong, whatever the ratios are. It needs Go, a C compiler, curl, and wrk, nginx, varnish and redis, which it
# installs where it may.
set -euo pipefail
exec </dev/null

sizes="16 288 1024 16384 131072 1048576 zipf" rounds=5 seconds=5 connections=32
servers="nginx-on nginx-off varnish redis loop nethttp kvmesh binding"
while (($#)); do
	case $1 in
	--sizes) sizes=$2 && shift ;;
	--rounds) rounds=$2 && shift ;;
	--seconds) seconds=$2 && shift ;;
	--connections) connections=$2 && shift ;;
	--servers) servers=$2 && shift ;;
	*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	esac
	shift
done
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
has() { [[ " $servers " == *" $1 "* ]]; }
tools=("wrk wrk")
if has nginx-on || has nginx-off || has varnish; then tools+=("nginx nginx"); fi
if has varnish; then tools+=("varnishd varnish"); fi
if has redis; then tools+=("redis-server redis-server" "redis-benchmark redis-tools"); fi
for tool in "${tools[@]}"; do
	command -v "${tool% *}" >/dev/null && continue
	((EUID == 0)) && command -v apt-get >/dev/null || { echo "${tool% *} is not installed" >&2 && exit 1; }
	# RUNLEVEL=1: the services that come with the packages are not to be started.
	RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${tool#* }" >/dev/null
done
(($(nproc) >= 2)) || { echo "this needs two cores: one for a server, one for wrk" >&2 && exit 1; }

work=$(mktemp -d)
pids=()
masters=() # nginx's, which end their workers when they are told to end
cleanup() {
	for pid in "${masters[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

[[ -n ${KVMESH-} ]] && cp -- "$KVMESH" "$work/kvmesh" || go -C "$root" build -o "$work/kvmesh" .
go -C "$root" build -o "$work/nethttp" ./scripts/bench/hit
"${CC:-cc}" -O2 -D_GNU_SOURCE -o "$work/loop" "$root/scripts/bench/loop.c"

# A voter, and the edge that is measured.
base=$((20000 + RANDOM % 10000))
token=0123456789abcdef0123456789abcdef
printf '%s\n' "$token" >"$work/token"
"$work/kvmesh" mesh-key new >"$work/mesh.key"
chmod 600 "$work/mesh.key"
node() { # NAME ROLE OFFSET CORE ARGUMENT...
	local name=$1 role=$2 p=$((base + $3)) core=$4
	shift 4
	GOMAXPROCS=1 taskset -c "$core" "$work/kvmesh" serve --name "$name" --role "$role" --region here --data-dir "$work/$name" \
		--mesh-key "$work/mesh.key" --api-token-file "$work/token" --http "127.0.0.1:$p" --peer "127.0.0.1:$((p + 1))" \
		--gossip "127.0.0.1:$((p + 2))" --admin "127.0.0.1:$((p + 3))" "$@" >"$work/$name.log" 2>&1 &
	pids+=($!)
}
node voter voter 0 1 --bootstrap-expect 1
node edge edge 10 0 --join "127.0.0.1:$((base + 2))"
edge=${pids[1]}
for p in $((base + 3)) $((base + 13)); do
	for ((try = 0; ; try++)); do
		curl -fsS -o /dev/null "http://127.0.0.1:$p/readyz" 2>/dev/null && break
		((try < 300)) || { echo "a node does not become ready" >&2 && tail -n 20 "$work"/*.log >&2 && exit 1; }
		sleep 0.1
	done
done
auth="Authorization: Bearer $token"

# As many descriptors as nginx may have, up to what it needs for a file of each key.
files=$(ulimit -Hn)
[[ $files != unlimited ]] && ((files <= 110000)) || files=110000
((files > 4000)) || { echo "this needs more than 4000 descriptors: see ulimit -Hn" >&2 && exit 1; }

# nginx, once for each setting. Its own Content-Type and a few headers more, so that the heads are alike.
mkdir "$work/files"
nginx_conf() { # NAME PORT SENDFILE
	cat >"$work/$1.conf" <<-CONF
		worker_processes 1; worker_cpu_affinity 01; daemon off; pid $work/$1.pid; error_log $work/$1.log;
		worker_rlimit_nofile $files;
		events { worker_connections 1024; }
		http {
			access_log off; sendfile $3; tcp_nodelay on; keepalive_requests 1000000000; default_type application/octet-stream;
			open_file_cache max=$((files - 2000)) inactive=1h; open_file_cache_valid 1h;
			client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work; uwsgi_temp_path $work; scgi_temp_path $work;
			server {
				listen 127.0.0.1:$2 reuseport; root $work/files;
				add_header Kv-Bookmark 00000000000000000000000000000000.1; add_header Kv-Cache hit; add_header Kv-Revision 1;
				add_header Kv-Staleness-Ms 1; add_header X-Content-Type-Options nosniff; add_header Age 0;
			}
		}
	CONF
	nginx -c "$work/$1.conf" -e "$work/$1.log" >/dev/null 2>&1 &
	masters+=($!)
}
nginx_conf nginx-on $((base + 20)) on
nginx_conf nginx-off $((base + 21)) off

# Varnish keeps for an hour what the first nginx gives it, whoever asks.
if has varnish; then
	cat >"$work/varnish.vcl" <<-VCL
		vcl 4.1;
		backend default { .host = "127.0.0.1"; .port = "$((base + 20))"; }
		sub vcl_recv { unset req.http.Authorization; return (hash); }
		sub vcl_backend_response { set beresp.ttl = 1h; }
	VCL
	taskset -c 0 varnishd -F -j none -n "$work/varnish" -f "$work/varnish.vcl" -a "127.0.0.1:$((base + 22))" -T none \
		-s default,1g -p thread_pools=1 -p thread_pool_min=$((connections + 20)) >"$work/varnish.log" 2>&1 &
	varnish=$!
	masters+=("$varnish")
	for ((try = 0; try < 100; try++)); do # it compiles first
		curl -s -o /dev/null "http://127.0.0.1:$((base + 22))/" && break
		sleep 0.1
	done
fi
if has redis; then
	taskset -c 0 redis-server --port $((base + 23)) --bind 127.0.0.1 --save '' --appendonly no --dir "$work" >"$work/redis.log" 2>&1 &
	redis=$!
	pids+=("$redis")
fi
# The workers must be able to read the files.
chmod 711 "$work" && chmod 755 "$work/files"

# cpu PID prints the CPU time that a process has taken, in clock ticks.
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
hertz=$(getconf CLK_TCK)
worker() { pgrep -P "$(cat "$work/$1.pid")" | head -n 1; }
allocations() { curl -fsS -H "$auth" "http://127.0.0.1:$((base + 13))/metrics" | awk '$1 == "go_memstats_mallocs_total" { print $2 }'; }
# median of the numbers on standard input, and the range.
stats() { sort -n | awk '{ v[NR] = $1 } END { printf "%s %s %s\n", v[int((NR + 1) / 2)], v[1], v[NR] }'; }

# ask SERVER SECONDS has a server asked for that long, and prints: requests, requests a second, p50, p99.
ask() {
	local more=() h
	if [[ $1 == redis ]]; then
		# It takes a number of requests, not a time: as many as it made in a second, from the last time.
		local n=$((${redis_rate:-20000} * $2))
		taskset -c 1 redis-benchmark -p $((base + 23)) -c "$connections" -n "$n" --csv GET "$size" >"$work/redis.csv"
		awk -v n="$n" -F, '{ gsub(/"/, "") } END { printf "%d %.0f %.2fms %.2fms\n", n, $2, $5, $7 }' "$work/redis.csv"
		return
	fi
	for h in "$auth" ${extra[$1]:+"${extra[$1]}"}; do more+=(-H "$h"); done
	if [[ $size == zipf ]]; then
		more+=(-s "$root/scripts/bench/zipf.lua" "${url[$1]}" -- "/${url[$1]#http://*/}")
	else
		more+=("${url[$1]}")
	fi
	taskset -c 1 wrk -t 1 -c "$connections" -d "$2s" --timeout 30s --latency "${more[@]}" >"$work/wrk"
	if grep -q 'Non-2xx\|Socket errors' "$work/wrk"; then
		echo "$1: $(grep 'Non-2xx\|Socket errors' "$work/wrk")" >&2
		return 1
	fi
	awk '/requests in/ { n = $1 } /Requests\/sec/ { rate = $2 } $1 == "50%" { p50 = $2 } $1 == "99%" { p99 = $2 }
		END { print n, rate, p50, p99 }' "$work/wrk"
}

# check SERVER fails unless it gives the right answer.
check() {
	if [[ $1 == redis ]]; then
		redis-cli -p $((base + 23)) --raw GET "$size" | head -c "$size" >"$work/got"
		cmp -s "$work/got" "$work/files/$size"
		return
	fi
	local more=() h
	for h in "$auth" ${extra[$1]:+"${extra[$1]}"}; do more+=(-H "$h"); done
	if [[ $size == zipf ]]; then
		if [[ $1 == varnish ]]; then # which has none of them yet
			curl -fsS "${more[@]}" "${url[$1]/@/[00000-99999]}" | cmp -s - "$work/all"
			return
		fi
		curl -fsS "${more[@]}" "${url[$1]/@/[00500-00999]}" | cmp -s - "$work/some"
		return
	fi
	curl -fsS "${more[@]}" -o "$work/got" "${url[$1]}" || return
	case $1 in
	loop | nethttp) (($(stat -c %s "$work/got") == size)) ;;
	*) cmp -s "$work/got" "$work/files/$size" ;;
	esac
}

# load SIZE gives everybody the values of a row.
load() {
	if [[ $1 == zipf ]]; then
		mkdir "$work/files/z"
		head -c $((100000 << 10)) /dev/urandom >"$work/all"
		head -c $((1000 << 10)) "$work/all" | tail -c $((500 << 10)) >"$work/some"
		split -b 1024 -a 5 -d "$work/all" "$work/files/z/"
		chmod -R a+rX "$work/files/z"
		"$work/kvmesh" import --url "http://127.0.0.1:$((base + 10))" --token-file "$work/token" --prefix z/ --parallel 64 \
			"$work/files/z" >/dev/null
		return
	fi
	head -c "$1" /dev/urandom >"$work/files/$1"
	chmod 644 "$work/files/$1"
	curl -fsS -o /dev/null -H "$auth" -T "$work/files/$1" "http://127.0.0.1:$((base + 10))/v1/kv/default/$1"
	if has redis; then redis-cli -p $((base + 23)) -x SET "$1" <"$work/files/$1" >/dev/null; fi
}

printf '%-9s %-10s %9s %17s %7s %9s %9s %9s %7s\n' bytes server 'CPU us' range ratio 'requests/s' p50 p99 allocs
for size in $sizes; do
	load "$size"
	canned=()
	taking=$servers
	if [[ $size == zipf ]]; then
		taking=$(for s in $servers; do case $s in loop | nethttp | redis) ;; *) echo "$s" ;; esac done)
	else
		port=$((base + 30 + RANDOM % 500 * 2))
		taskset -c 0 "$work/loop" "$port" "$size" &
		canned+=($!)
		taskset -c 0 "$work/nethttp" "$((port + 1))" "$size" &
		canned+=($!)
		pids+=("${canned[@]}")
		sleep 0.3
	fi
	path=$size
	[[ $size != zipf ]] || path=z/@
	declare -A url=() extra=() pid=()
	url[nginx-on]=http://127.0.0.1:$((base + 20))/$path pid[nginx-on]=$(worker nginx-on)
	url[nginx-off]=http://127.0.0.1:$((base + 21))/$path pid[nginx-off]=$(worker nginx-off)
	url[varnish]=http://127.0.0.1:$((base + 22))/$path
	if has varnish; then pid[varnish]=$(pgrep -P "$varnish" | head -n 1); fi
	pid[redis]=${redis-}
	url[loop]=http://127.0.0.1:${port-}/$size pid[loop]=${canned[0]-}
	url[nethttp]=http://127.0.0.1:$((${port-0} + 1))/$size pid[nethttp]=${canned[1]-}
	url[kvmesh]=http://127.0.0.1:$((base + 10))/v1/kv/default/$path pid[kvmesh]=$edge
	url[binding]="http://127.0.0.1:$((base + 10))/${path/\//%2F}?urlencoded=true" pid[binding]=$edge extra[binding]="Kv-Namespace: default"
	for s in $taking; do
		check "$s" || { echo "$s gives the wrong answer" >&2 && exit 1; }
	done
	: >"$work/rows"
	redis_rate=
	for ((round = 0; round <= rounds; round++)); do # the first one warms up
		for s in $taking; do
			length=$seconds allocs=-
			((round)) || [[ $size == zipf ]] || length=1
			[[ $s != kvmesh && $s != binding ]] || made=$(allocations)
			before=$(cpu "${pid[$s]}")
			read -r n rate p50 p99 < <(ask "$s" "$length" || echo failed)
			after=$(cpu "${pid[$s]}")
			[[ $n != failed ]] || exit 1
			[[ $s != redis ]] || redis_rate=$rate
			((round)) || continue
			[[ $s != kvmesh && $s != binding ]] || allocs=$(awk -v a="$made" -v b="$(allocations)" -v n="$n" 'BEGIN { printf "%.3f", (b - a) / n }')
			awk -v s="$s" -v ticks=$((after - before)) -v hz="$hertz" -v n="$n" -v rest="$rate $p50 $p99 $allocs" \
				'BEGIN { printf "%s %.3f %s\n", s, ticks * 1e6 / hz / n, rest }' >>"$work/rows"
		done
	done
	best=$(for s in nginx-on nginx-off; do awk -v s="$s" '$1 == s { print $2 }' "$work/rows" | stats; done | sort -n | awk 'NF { print $1; exit }')
	for s in $taking; do
		read -r median least most < <(awk -v s="$s" '$1 == s { print $2 }' "$work/rows" | stats)
		read -r rate _ < <(awk -v s="$s" '$1 == s { print $3 }' "$work/rows" | stats)
		read -r p50 p99 allocs < <(awk -v s="$s" '$1 == s { a = $4; b = $5; c = $6 } END { print a, b, c }' "$work/rows")
		printf '%-9s %-10s %9.2f %8.2f %8.2f %7s %9.0f %9s %9s %7s\n' "$size" "$s" "$median" "$least" "$most" \
			"$(awk -v a="$median" -v b="${best:-0}" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }')" "$rate" "$p50" "$p99" "$allocs"
	done
	if ((${#canned[@]})); then
		kill -KILL "${canned[@]}"
		wait "${canned[@]}" 2>/dev/null || true
	fi
done
