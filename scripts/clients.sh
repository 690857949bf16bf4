#!/usr/bin/env bash
# Clients for Workers KV that nobody here wrote, against two edges of a mesh: wrangler with and without an account id,
# Cloudflare's SDKs for TypeScript (three majors) and Go, unstorage with both of its drivers, and Workers in workerd and in
# Miniflare. Their versions are pinned by scripts/clients/package-lock.json and scripts/clients/gosdk/go.mod, and
# scripts/clients/cases.txt names every case of each: one that fails, is left out or is not listed fails the script.
#
#   scripts/clients.sh [--newest] [--only CLIENT]...
#
# --newest installs the newest versions instead of the pinned ones; --only, which can be repeated, runs these clients alone.
# It needs Go and npm (which it installs with apt-get where it is root), and Linux. It asks for nothing, can be started from
# any directory, and leaves nothing behind: everything lives in a temporary directory, and what it started is ended.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
cd -- "$root"
exec </dev/null

newest=""
only=()
while (($# > 0)); do
	case $1 in
	--newest) newest=1 ;;
	--only)
		(($# > 1)) || { echo "--only needs the name of a client, as in scripts/clients/cases.txt" >&2; exit 2; }
		grep -q "^$2 " scripts/clients/cases.txt || { echo "no client has the name $2: see scripts/clients/cases.txt" >&2; exit 2; }
		only+=("$2")
		shift
		;;
	*)
		echo "usage: scripts/clients.sh [--newest] [--only CLIENT]..." >&2
		exit 2
		;;
	esac
	shift
done

# What a developer has set for his own mesh, account or Node must not reach the clients.
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(KVMESH|CLOUDFLARE|CF|WRANGLER|MINIFLARE|WORKERD|XDG)_' || true)
unset NODE_OPTIONS NODE_PATH NODE_ENV

# Limits, in seconds, far above what a busy machine needs: a client that hangs must not hang the caller.
install_limit=600 # one try of three
sync_limit=120
build_limit=900
ready_limit=180
run_limit=900

work=$(mktemp -d)
here=$work/clients
mkdir "$work/bin" "$work/runs" "$work/tmp"
declare -A children=() # process ids of what runs in the background

finish() {
	local rc=$? pid left
	trap '' INT TERM HUP
	for pid in "${!children[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${!children[@]}"; do
		for ((left = 100; left > 0; left--)); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.2
		done
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	if ((rc != 0)) && [[ -s $work/mesh.log ]]; then
		printf '\n== the last lines of the mesh\n' >&2
		tail -n 40 -- "$work/mesh.log" >&2
	fi
	rm -rf -- "$work"
	((rc == 0)) || printf 'clients.sh: FAILED (exit status %d)\n' "$rc" >&2
	exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# limited SECONDS COMMAND... runs a command with a limit, in a process group of its own. Waiting for it as a background job
# lets signals through to the traps.
limited() {
	local rc=0 pid
	timeout --kill-after=10 "$@" &
	pid=$!
	children[$pid]=1
	wait "$pid" || rc=$?
	unset "children[$pid]"
	return "$rc"
}

# thrice WHAT COMMAND... is for what comes over the network. It prints what the command says only when that was in vain.
thrice() {
	local what=$1 try
	shift
	for try in 1 2 3; do
		if "$@" >"$work/thrice-$what.log" 2>&1; then return; fi
		printf "%s failed (try %d of 3):\n%s\n" "$what" "$try" "$(tail -n 40 -- "$work/thrice-$what.log")" >&2
		sleep "$try" # a registry that is busy is not asked again at once
	done
	return 1
}

apt_install() {
	limited "$install_limit" apt-get update &&
		DEBIAN_FRONTEND=noninteractive limited "$install_limit" apt-get install -y --no-install-recommends "$@"
}

# with_npm gets npm where there is none. Its Node only runs npm; the clients have one of their own.
with_npm() {
	! command -v npm >/dev/null || ! command -v node >/dev/null || return 0
	if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
		echo "npm is not installed (Debian: nodejs and npm)" >&2
		return 1
	fi
	thrice apt-get apt_install nodejs npm
}

# newest_versions writes a package.json with the newest version of each client: of its major, where an older one is meant.
newest_versions() {
	node -e '
		const fs = require("fs");
		const [file] = process.argv.slice(1);
		const it = JSON.parse(fs.readFileSync(file, "utf8"));
		for (const [name, range] of Object.entries(it.dependencies)) {
			// Miniflare 5 has other options, and no remote for each binding.
			if (!range.startsWith("npm:") && name !== "miniflare") it.dependencies[name] = "latest";
		}
		delete it.dependencies.esbuild; // comes with wrangler, in the version that it works with
		fs.writeFileSync(file, JSON.stringify(it));
	' "$here/package.json"
	rm -f -- "$here/package-lock.json"
}

# install_clients installs the packages, in a subshell. Nothing of them is run meanwhile: their binaries are packages too.
# (npm leaves packages out of a new lock file that are for other systems and cannot be had, and npm ci then refuses the lock
# file: they have to be added to it by hand, like workerd-darwin-64.)
install_clients() {
	children=()
	trap 'kill -TERM "${!children[@]}" 2>/dev/null; exit 143' TERM
	cd -- "$here"
	local command=ci
	[[ -z $newest ]] || command=install
	thrice npm limited "$install_limit" npm "$command" --ignore-scripts --no-audit --no-fund --no-progress --no-update-notifier \
		--loglevel=error
}

# ended PID waits for a process in the background and returns its exit status.
ended() {
	local rc=0
	wait "$1" || rc=$?
	unset "children[$1]"
	return "$rc"
}

free_port() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# start_mesh starts two edges and a voter, and sets near and far to the edges' addresses. One voter, because a machine that
# is busy with the clients may hold up the heartbeats of several until they elect another leader, which fails a write; other
# tests are about that. Ports lie below those that systems give out by themselves.
start_mesh() {
	local base port until taken mesh
	for base in 21580 22580 23580 24580 25580; do
		taken=""
		for port in {0..2}{00..03}; do free_port $((base + 10#$port)) || taken=1; done
		[[ -z $taken ]] || continue
		mkdir "$work/mesh-$base"
		"$work/bin/kvmesh" dev --json --voters 1 --regions us-east,eu-west --http-port "$base" --data-dir "$work/mesh-$base" \
			>"$work/mesh.out" 2>"$work/mesh.log" &
		mesh=$!
		children[$mesh]=1
		until=$((SECONDS + ready_limit))
		while [[ ! -s $work/mesh.out ]] && kill -0 "$mesh" 2>/dev/null && ((SECONDS < until)); do sleep 0.2; done
		if [[ -s $work/mesh.out ]]; then
			near=127.0.0.1:$base far=127.0.0.1:$((base + 100))
			return
		fi
		kill -TERM "$mesh" 2>/dev/null || true
		ended "$mesh" || true
		grep -q 'address already in use' "$work/mesh.log" || break
	done
	echo "the mesh did not become ready within $ready_limit s" >&2
	return 1
}

names=() edges=() versions=() commands=() statuses=() # of the runs, in the order of their start

# add CLIENT EDGE VERSION COMMAND... notes one run of a client.
add() {
	local name=$1 edge=$2 version=$3 it
	shift 3
	if ((${#only[@]} > 0)); then
		for it in "${only[@]}"; do [[ $it != "$name" ]] || break; done
		[[ $it == "$name" ]] || return 0
	fi
	names+=("$name") edges+=("$edge") versions+=("$version")
	commands+=("$(printf '%q ' "$@")")
}

version() { node -p 'require(process.argv[1]).version' "$here/node_modules/$1/package.json"; }

plan() {
	local pkg edge wrangler go_version
	wrangler=$(version wrangler)
	add wrangler us-east "$wrangler" node "$here/rest/wrangler.mjs" "$here/node_modules/.bin/wrangler" "http://$near/client/v4" mesh
	add wrangler-no-account eu-west "$wrangler" node "$here/rest/wrangler.mjs" "$here/node_modules/.bin/wrangler" "http://$far/client/v4"
	add workerd us-east "$(version workerd)" node "$here/workerd/run.mjs" workerd config.capnp "kv=$near" "none=$near" "far=$far" "bounded=$far"
	add workerd eu-west "$(version workerd)" node "$here/workerd/run.mjs" workerd config.capnp "kv=$far" "none=$far" "far=$near" "bounded=$near"
	add miniflare us-east "$(version miniflare)" node "$here/workerd/miniflare.mjs" "$near" "$far"
	add miniflare eu-west "$(version miniflare)" node "$here/workerd/miniflare.mjs" "$far" "$near"
	go_version=$(go -C "$here/gosdk" list -m -f '{{.Version}}' github.com/cloudflare/cloudflare-go/v6)
	for edge in "us-east $near" "eu-west $far"; do
		set -- "${edge% *}" "${edge#* }"
		for pkg in cloudflare-v4 cloudflare-v5 cloudflare; do
			add "$pkg" "$1" "$(version "$pkg")" node "$here/rest/cloudflare.mjs" "$pkg" "http://$2/client/v4"
		done
		add cloudflare-go "$1" "${go_version#v}" "$work/bin/gosdk" "http://$2/client/v4"
		add unstorage-http "$1" "$(version unstorage)" node "$here/rest/unstorage.mjs" "http://$2"
		add unstorage-binding "$1" "$(version unstorage)" node "$here/workerd/run.mjs" unstorage-binding unstorage.capnp "kv=$2"
	done
}

# run_all carries out all runs, as many at once as there are processors (at least two: a client waits now and then).
run_all() {
	local -A run_of=() since=()
	local i=0 run pid rc at_once
	at_once=$(nproc)
	at_once=$((at_once < 2 ? 2 : at_once > 4 ? 4 : at_once))
	while ((i < ${#names[@]} || ${#run_of[@]} > 0)); do
		if ((i < ${#names[@]} && ${#run_of[@]} < at_once)); then
			mkdir "$work/runs/$i"
			(
				cd -- "$work/runs/$i"
				eval "exec timeout --kill-after=10 $run_limit ${commands[i]}"
			) >"$work/runs/$i.out" 2>"$work/runs/$i.err" &
			pid=$!
			children[$pid]=1 run_of[$pid]=$i since[$pid]=$SECONDS
			i=$((i + 1))
			continue
		fi
		rc=0
		wait -n -p pid "${!run_of[@]}" || rc=$?
		run=${run_of[$pid]}
		statuses[run]=$rc
		unset "children[$pid]" "run_of[$pid]"
		printf '%-20s %-8s %4d s, exit status %d\n' "${names[run]}" "${edges[run]}" $((SECONDS - since[$pid])) "$rc"
	done
}

# judge prints the table and, for each run that is not as listed, why.
judge() {
	local i n name out listed passed_all=0 failed_all=0 problems why=()
	printf '\n%-20s %-18s %-8s %7s / %s\n' client version edge passed listed
	for i in "${!names[@]}"; do
		name=${names[i]} out=$work/runs/$i
		sed -n "s/^$name //p" scripts/clients/cases.txt | sort >"$out.listed"
		sed -n "s/^ok $name //p" "$out.out" | sort >"$out.passed"
		listed=$(wc -l <"$out.listed")
		comm -12 "$out.listed" "$out.passed" >"$out.both"
		n=$(wc -l <"$out.both")
		printf '%-20s %-18s %-8s %7d / %d\n' "$name" "${versions[i]}" "${edges[i]}" "$n" "$listed"
		{
			comm -23 "$out.listed" "$out.passed" | sed 's/^/listed, not passed: /'
			comm -13 "$out.listed" "$out.passed" | sed 's/^/passed, not listed: /'
			((listed > 0)) || echo "no case is listed"
			((statuses[i] == 0)) || echo "exit status ${statuses[i]}$( ((statuses[i] < 124)) || echo ': it took too long, or was ended')"
		} >"$out.problems"
		passed_all=$((passed_all + n))
		if [[ -s $out.problems ]]; then
			problems=$(wc -l <"$out.problems")
			failed_all=$((failed_all + problems))
			why+=("$i")
		fi
	done
	for i in "${why[@]}"; do
		printf '\n== %s at %s\n' "${names[i]}" "${edges[i]}"
		cat -- "$work/runs/$i.problems"
		printf -- '-- the last lines of its output and of its errors\n'
		tail -n 5 -- "$work/runs/$i.out"
		tail -n 80 -- "$work/runs/$i.err"
	done
	printf '\nclients: %d passed, %d failed\n' "$passed_all" "$failed_all"
	((failed_all == 0))
}

export LC_ALL=C # comm and sort compare bytes
command -v go >/dev/null || { echo "go is not installed: see https://go.dev/doc/install" >&2; exit 1; }
with_npm
cp -R -- scripts/clients "$here"
rm -rf -- "$here/node_modules"
[[ -z $newest ]] || newest_versions

echo "== installing the clients and building kvmesh"
install_clients &
installing=$!
children[$installing]=1
limited "$build_limit" go build -o "$work/bin/kvmesh" .
if [[ -n $newest ]]; then
	thrice go-get limited "$install_limit" go -C "$here/gosdk" get github.com/cloudflare/cloudflare-go/v6@latest
	thrice go-mod-tidy limited "$install_limit" go -C "$here/gosdk" mod tidy
fi
thrice go-mod-download limited "$install_limit" go -C "$here/gosdk" mod download
limited "$build_limit" go -C "$here/gosdk" build -o "$work/bin/gosdk" .
ended "$installing"

node_bin=""
for dir in "$here"/node_modules/node-linux-*/bin; do [[ ! -x $dir/node ]] || node_bin=$dir; done
[[ -n $node_bin ]] || { echo "npm has installed no Node for this kind of machine ($(uname -sm))" >&2; exit 1; }
export PATH=$node_bin:$PATH
export TMPDIR=$work/tmp # what the clients leave there goes with it
export NODE_COMPILE_CACHE=$work/compiled # wrangler is started a hundred times
node --version
# The clients talk to this machine only.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
# What was installed is on its way to the disk; the mesh's writes would wait for it.
limited "$sync_limit" sync -f "$work" || echo "sync failed; going on"

echo "== starting a mesh"
near="" far=""
start_mesh
plan
echo "== running ${#names[@]} clients ($SECONDS s so far)"
run_all
judge
printf 'clients.sh: all clients passed after %d s\n' "$SECONDS"
