#!/usr/bin/env bash
# Hot reads: an edge of a real mesh, with authorisation, against nginx serving a static file (sendfile on and off), a bare
# net/http server and a bare C epoll loop.
#
#   scripts/bench/hit.sh [--sizes "16 288 1024 16384"] [--rounds N] [--seconds N] [--connections N] [--servers "NAME ..."]
#
# One key of each size. One server at a time has a core, wrk has another one; the servers take turns, N rounds (5) of N
# seconds (5) each. For every server it prints the CPU microseconds that its process takes for a request (the median of the
# rounds, and their range), and that as a ratio to the better nginx; and requests a second. It fails when an answer is wrong,
# whatever the ratios are. It needs Go, a C compiler, curl, and wrk and nginx, which it installs where it may.
set -euo pipefail
exec </dev/null

sizes="16 288 1024 16384" rounds=5 seconds=5 connections=32 servers="nginx-on nginx-off loop nethttp kvmesh binding"
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
for tool in wrk nginx; do
	command -v "$tool" >/dev/null && continue
	((EUID == 0)) && command -v apt-get >/dev/null || { echo "$tool is not installed" >&2 && exit 1; }
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$tool" >/dev/null
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

# nginx, once for each setting. Its own Content-Type and a few headers more, so that the heads are alike.
mkdir "$work/files"
nginx_conf() { # NAME PORT SENDFILE
	cat >"$work/$1.conf" <<-CONF
		worker_processes 1; worker_cpu_affinity 01; daemon off; pid $work/$1.pid; error_log $work/$1.log;
		events { worker_connections 4096; }
		http {
			access_log off; sendfile $3; tcp_nodelay on; keepalive_requests 1000000000; default_type application/octet-stream;
			open_file_cache max=1000 inactive=1h; open_file_cache_valid 1h;
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
# The workers must be able to read the files.
chmod 711 "$work" && chmod 755 "$work/files"

# cpu PID prints the CPU time that a process has taken, in clock ticks.
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
hertz=$(getconf CLK_TCK)
worker() { pgrep -P "$(cat "$work/$1.pid")" | head -n 1; }
# median of the numbers on standard input, and the range.
stats() { sort -n | awk '{ v[NR] = $1 } END { printf "%s %s %s\n", v[int((NR + 1) / 2)], v[1], v[NR] }'; }

printf '%-9s %-10s %9s %17s %7s %9s %9s %9s\n' bytes server 'CPU us' range ratio 'requests/s' p50 p99
for size in $sizes; do
	head -c "$size" /dev/urandom >"$work/files/$size"
	chmod 644 "$work/files/$size"
	curl -fsS -o /dev/null -H "$auth" -T "$work/files/$size" "http://127.0.0.1:$((base + 10))/v1/kv/default/$size"
	port=$((base + 30 + RANDOM % 500 * 2))
	taskset -c 0 "$work/loop" "$port" "$size" &
	loop=$!
	taskset -c 0 "$work/nethttp" "$((port + 1))" "$size" &
	nethttp=$!
	pids+=("$loop" "$nethttp")
	sleep 0.3
	headers=()
	declare -A url=() extra=() pid=()
	url[nginx-on]=http://127.0.0.1:$((base + 20))/$size pid[nginx-on]=$(worker nginx-on)
	url[nginx-off]=http://127.0.0.1:$((base + 21))/$size pid[nginx-off]=$(worker nginx-off)
	url[loop]=http://127.0.0.1:$port/$size pid[loop]=$loop
	url[nethttp]=http://127.0.0.1:$((port + 1))/$size pid[nethttp]=$nethttp
	url[kvmesh]=http://127.0.0.1:$((base + 10))/v1/kv/default/$size pid[kvmesh]=$edge
	url[binding]="http://127.0.0.1:$((base + 10))/$size?urlencoded=true" pid[binding]=$edge extra[binding]="Kv-Namespace: default"
	for s in $servers; do
		headers=(-H "$auth")
		[[ -z ${extra[$s]-} ]] || headers+=(-H "${extra[$s]}")
		curl -fsS "${headers[@]}" -o "$work/got" "${url[$s]}"
		case $s in
		loop | nethttp) (($(stat -c %s "$work/got") == size)) || { echo "$s gives the wrong answer" >&2 && exit 1; } ;;
		*) cmp -s "$work/got" "$work/files/$size" || { echo "$s gives the wrong answer" >&2 && exit 1; } ;;
		esac
	done
	: >"$work/rows"
	for ((round = 0; round <= rounds; round++)); do # the first one warms up
		for s in $servers; do
			headers=(-H "$auth")
			[[ -z ${extra[$s]-} ]] || headers+=(-H "${extra[$s]}")
			length=$seconds
			((round)) || length=1
			before=$(cpu "${pid[$s]}")
			taskset -c 1 wrk -t 1 -c "$connections" -d "${length}s" --latency "${headers[@]}" "${url[$s]}" >"$work/wrk"
			after=$(cpu "${pid[$s]}")
			((round)) || continue
			if grep -q 'Non-2xx\|Socket errors' "$work/wrk"; then
				echo "$s: $(grep 'Non-2xx\|Socket errors' "$work/wrk")" >&2
				exit 1
			fi
			awk -v s="$s" -v ticks=$((after - before)) -v hz="$hertz" '
				/requests in/ { n = $1 } /Requests\/sec/ { rate = $2 } $1 == "50%" { p50 = $2 } $1 == "99%" { p99 = $2 }
				END { printf "%s %.3f %.0f %s %s\n", s, ticks * 1e6 / hz / n, rate, p50, p99 }' "$work/wrk" >>"$work/rows"
		done
	done
	best=$(for s in nginx-on nginx-off; do awk -v s="$s" '$1 == s { print $2 }' "$work/rows" | stats; done | sort -n | awk 'NF { print $1; exit }')
	for s in $servers; do
		read -r median least most < <(awk -v s="$s" '$1 == s { print $2 }' "$work/rows" | stats)
		read -r rate _ < <(awk -v s="$s" '$1 == s { print $3 }' "$work/rows" | stats)
		read -r p50 p99 < <(awk -v s="$s" '$1 == s { a = $4; b = $5 } END { print a, b }' "$work/rows")
		printf '%-9s %-10s %9.2f %8.2f %8.2f %7s %9s %9s %9s\n' "$size" "$s" "$median" "$least" "$most" \
			"$(awk -v a="$median" -v b="${best:-0}" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }')" "$rate" "$p50" "$p99"
	done
	kill -KILL "$loop" "$nethttp"
	wait "$loop" "$nethttp" 2>/dev/null || true
done
