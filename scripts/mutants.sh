#!/usr/bin/env bash
# Tests the tests: breaks one rule of DESIGN.md at a time and shows which tests notice.
#
#   scripts/mutants.sh [--seeds N] [--minutes M] [--jobs J] [NAME...]
#
# The deliberate faults stand in mutant_on.go of the packages that own them, behind the build tag "mutants"; NAME... picks
# some of them. Each is shown to the tests of its package, and then to the simulator of the whole mesh (node/sim): N seeds
# (default 4) of M virtual minutes (default 3), until the first broken promise. J faults (default 2) are shown side by
# side. A fault that nothing notices fails the script, and so does a test that is red without any fault. On two cores with
# nothing else to do it takes about ten minutes.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec </dev/null

seeds=4 minutes=3 jobs=2 chosen=()
while (($#)); do
	case $1 in
	--seeds) seeds=$2 && shift ;;
	--minutes) minutes=$2 && shift ;;
	--jobs) jobs=$2 && shift ;;
	-*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
	*) chosen+=("$1") ;;
	esac
	shift
done

tmp=$(mktemp -d)
declare -A running=() # by process id: what "show" runs as, each the leader of a process group
# finish ends what still runs of that, and removes the files.
finish() {
	local pid
	for pid in "${!running[@]}"; do
		kill -- "-$pid" 2>/dev/null || true
	done
	wait || true
	rm -rf -- "$tmp"
}
trap finish EXIT
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
	cache) echo -test.skip=^TestBudget$ ;;
	raftstore) echo -test.run=Confirm\|Quorum\|FullDisk\|Recover\|Remov\|Notice\|Rescued\|Kept ;;
	node) echo '-test.skip=^Test(NewEpoch|Backup.*|Restore.*)$' ;;
	esac
}

# slow OUT says that a test has run out of time. That is no proof of anything: the machine may be busy.
slow() { grep -q '^panic: test timed out' "$1"; }

# directed PACKAGE FAULT OUT shows a fault to its package's tests, which take seconds.
directed() {
	local bin=$tmp/${1//\//-}.test limit
	limit=$(limits "$1")
	(cd -- "$1" && KVMESH_MUTANT=$2 exec "$bin" -test.timeout=180s ${limit:+"$limit"}) >"$3" 2>&1
}

# simulated FAULT SEED OUT shows a fault to the whole mesh.
simulated() {
	(cd node/sim && KVMESH_MUTANT=$1 GOGC=400 exec "$tmp/node-sim.test" -test.run='^TestSim$' -test.cpu=1 -test.timeout=600s \
		-sim.seeds=1 -sim.seed="$2" -sim.minutes="$minutes" -sim.hasty) >"$3" 2>&1
}

# reds OUT names the tests that have failed.
reds() {
	local found
	found=$(sed -nE 's/^--- FAIL: ([^ ]+).*/\1/p' "$1" | sort -u)
	[[ -n $found ]] || found=$(sed -nE 's/^panic: (.{1,40}).*/panic: \1/p' "$1" | head -n 1)
	summed 3 "${found:-red}"
}

# kinds OUT names the promises that were broken.
kinds() {
	local found
	found=$(sed -nE 's/^ *sim_test\.go:[0-9]+: ([A-Za-z0-9]+):.*/\1/p' "$1" | sort | uniq -c | sort -rn | awk '{ print $2 }')
	[[ -n $found ]] || found=$(sed -nE 's/^panic: (.{1,40}).*/panic: \1/p' "$1" | head -n 1)
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

# show FAULT OUT writes the fault's line of the table to OUT.row, and OUT.missed when nothing has noticed it.
show() {
	local tests=- sim=- seed
	directed "${owner[$1]}" "$1" "$2" || slow "$2" || tests=$(reds "$2")
	for ((seed = 1; seed <= seeds; seed++)); do
		simulated "$1" "$seed" "$2" || slow "$2" || { sim="seed $seed: $(kinds "$2")" && break; }
	done
	[[ $tests != - || $sim != - ]] || : >"$2.missed"
	printf '%-21s %-9s  %-36s  %s\n' "$1" "${owner[$1]}" "$sim" "$tests" >"$2.row"
}

packages=()
while IFS= read -r p; do packages+=("$p"); done < <(for n in "${names[@]}"; do echo "${owner[$n]}"; done | sort -u)
for p in "${packages[@]}" node/sim; do
	go test -c -tags mutants -o "$tmp/${p//\//-}.test" "./$p"
done

for p in "${packages[@]}"; do
	directed "$p" none "$tmp/none" || { cat "$tmp/none" && echo "$p is red without any fault" >&2 && exit 1; }
done
for ((seed = 1; seed <= seeds; seed++)); do
	simulated none "$seed" "$tmp/none" || { cat "$tmp/none" && echo "seed $seed is red without any fault" >&2 && exit 1; }
done
printf 'without a fault everything is green (%d s)\n\n' "$SECONDS"

printf '%-21s %-9s  %-36s  %s\n' fault package "caught by the simulator (of $seeds seeds)" 'caught by tests of the package'
printed=0
# flush prints the lines that are ready, in the order of the names.
flush() {
	while [[ -e $tmp/$printed.row ]]; do
		cat "$tmp/$printed.row"
		printed=$((printed + 1))
	done
}
# reap waits for one fault to have been shown.
reap() {
	local pid
	wait -n -p pid
	unset "running[$pid]"
	flush
}
for ((i = 0; i < ${#names[@]}; i++)); do
	((${#running[@]} < jobs)) || reap
	set -m # a process group for each, by which it can be ended
	show "${names[i]}" "$tmp/$i" &
	set +m
	running[$!]=$i
done
while ((${#running[@]})); do reap; done
missed=()
for ((i = 0; i < ${#names[@]}; i++)); do
	[[ ! -e $tmp/$i.missed ]] || missed+=("${names[i]}")
done
printf '\n%d faults, %d s\n' "${#names[@]}" "$SECONDS"
if ((${#missed[@]})); then
	printf 'caught by nothing: %s\n' "${missed[*]}" >&2
	exit 1
fi
