#!/usr/bin/env bash
# Tests the tests: breaks one rule of DESIGN.md at a time and shows which tests notice.
#
#   scripts/mutants.sh [--seeds N] [--minutes M] [NAME...]
#
# The deliberate faults stand in mutant_on.go of the packages that own them, behind the build tag "mutants"; NAME... picks
# some of them. Each is shown to the tests of its package, and then to the simulator of the whole mesh (node/sim): N seeds
# (default 6) of M virtual minutes (default 3), until the first broken promise. A fault that nothing notices fails the
# script, and so does a test that is red without any fault. It takes up to 20 minutes on two cores, and nothing else
# should run beside it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec </dev/null

seeds=6 minutes=3 chosen=()
while (($#)); do
	case $1 in
	--seeds) seeds=$2 && shift ;;
	--minutes) minutes=$2 && shift ;;
	-*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	*) chosen+=("$1") ;;
	esac
	shift
done

tmp=$(mktemp -d)
trap 'rm -rf -- "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The faults, and the packages that own them, as the source has them: none can be forgotten here.
declare -A owner=()
names=()
while IFS=: read -r file name; do
	owner[$name]=$(dirname -- "$file")
	names+=("$name")
done < <(grep -roP --include=mutant_on.go 'mutating\("\K[^"]+' cache gossip node raftstore | sort)
((${#names[@]})) || { echo "no faults found" >&2 && exit 1; }
for name in "${chosen[@]}"; do
	[[ -n ${owner[$name]-} ]] || { printf 'no fault is called %s; there are:\n' "$name" >&2 && printf '  %s\n' "${names[@]}" >&2 && exit 2; }
done
((${#chosen[@]})) && names=("${chosen[@]}")

# limits PACKAGE names what of a package's tests is run: all, but for what takes long and looks at something else.
limits() {
	case $1 in
	raftstore) echo -test.run=Confirm\|Quorum\|FullDisk\|Recover\|Remov ;;
	node) echo -test.skip=^TestNewEpoch$ ;;
	esac
}

build() {
	go test -c -tags mutants -o "$tmp/${1//\//-}.test" "./$1"
}

# directed PACKAGE FAULT shows a fault to its package's tests. It must be killed by them within two minutes.
directed() {
	local out=$tmp/out bin=$tmp/${1//\//-}.test limit
	limit=$(limits "$1")
	(cd -- "$1" && KVMESH_MUTANT=$2 "$bin" -test.timeout=120s ${limit:+"$limit"}) >"$out" 2>&1
}

# simulated FAULT shows a fault to the whole mesh.
simulated() {
	(cd node/sim && KVMESH_MUTANT=$1 "$tmp/node-sim.test" -test.run='^TestSim$' -test.timeout=200s \
		-sim.seeds="$seeds" -sim.minutes="$minutes") >"$tmp/out" 2>&1
}

# reds names the first tests that have failed.
reds() {
	local found
	found=$(sed -nE 's/^--- FAIL: ([^ ]+).*/\1/p' "$tmp/out" | sort -u)
	[[ -n $found ]] || found=$(sed -nE 's/^panic: (.{1,40}).*/panic: \1/p' "$tmp/out" | head -n 1)
	summed 3 "${found:-red}"
}

# kinds names the promises that were broken.
kinds() {
	local found
	found=$(sed -nE 's/^ *sim_test\.go:[0-9]+: ([A-Za-z0-9]+):.*/\1/p' "$tmp/out" | sort | uniq -c | sort -rn | awk '{ print $2 }')
	[[ -n $found ]] || found=$(sed -nE 's/^panic: (.{1,40}).*/panic: \1/p' "$tmp/out" | head -n 1)
	summed 3 "${found:-red}"
}

# summed N LINES joins the first N lines and counts the rest.
summed() {
	local lines=()
	mapfile -t lines <<<"$2"
	local text=${lines[0]} i
	for ((i = 1; i < ${#lines[@]} && i < $1; i++)); do text+=", ${lines[i]}"; done
	((${#lines[@]} <= $1)) || text+=", +$((${#lines[@]} - $1))"
	printf '%s' "$text"
}

packages=()
while IFS= read -r p; do packages+=("$p"); done < <(for n in "${names[@]}"; do echo "${owner[$n]}"; done | sort -u)
for p in "${packages[@]}" node/sim; do build "$p"; done

for p in "${packages[@]}"; do
	directed "$p" none || { cat "$tmp/out" && echo "$p is red without any fault" >&2 && exit 1; }
done
simulated none || { cat "$tmp/out" && echo "the simulator is red without any fault" >&2 && exit 1; }
printf 'without a fault everything is green (%d s)\n\n' "$SECONDS"

printf '%-22s %-11s %-34s %s\n' fault package 'caught by the simulator' 'caught by tests of the package'
missed=()
for name in "${names[@]}"; do
	tests="-" sim="-"
	directed "${owner[$name]}" "$name" || tests=$(reds)
	simulated "$name" || sim=$(kinds)
	printf '%-22s %-11s %-34s %s\n' "$name" "${owner[$name]}" "$sim" "$tests"
	[[ $tests == - && $sim == - ]] && missed+=("$name")
done
printf '\n%d faults, %d s\n' "${#names[@]}" "$SECONDS"
if ((${#missed[@]})); then
	printf 'caught by nothing: %s\n' "${missed[*]}" >&2
	exit 1
fi
