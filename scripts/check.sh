#!/usr/bin/env bash
# The one gate: everything that must hold before a change is committed. It needs Go, a C compiler (for the race detector)
# and, on Linux, strace and iproute2 (which it installs where it is root and has apt-get). It asks for nothing, can be
# started from any directory and leaves nothing behind. Tools are pinned in scripts/tools/go.mod. The first step that
# fails is named, and its exit status is the script's.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
cd -- "$root"
exec </dev/null

# Settings of the developer's own mesh must not reach the tests.
while IFS= read -r name; do unset "$name"; done < <(compgen -e KVMESH_ || true)
export CGO_ENABLED=1 # the race detector is a C library

tmp=$(mktemp -d)
current=""
names=()
seconds=()

finish() {
	local rc=$? i
	if ((rc != 0)) && [[ -s $tmp/tests.log ]]; then # above there are the logs of whole meshes
		printf '\nwhat failed:\n'
		grep -aE '^ *--- FAIL|^ +[a-z0-9_]+\.go:[0-9]+: |^panic: |^fatal error: |^WARNING: DATA RACE|^FAIL' "$tmp/tests.log" |
			grep -av 'the end of the log of' | cut -c 1-600 | tail -n 40 || true
	fi
	rm -rf -- "$tmp"
	[[ -n $current ]] && names+=("$current") seconds+=($((SECONDS - started)))
	printf '\n%-28s %8s\n' step seconds
	for i in "${!names[@]}"; do printf '%-28s %8d\n' "${names[i]}" "${seconds[i]}"; done
	if ((rc == 0)); then
		printf '%-28s %8d\ncheck.sh: all steps passed\n' total "$SECONDS"
	else
		printf 'check.sh: FAILED in step "%s" (exit status %d)\n' "${current:-start}" "$rc" >&2
	fi
	exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# step NAME COMMAND... runs one step. It is called plainly, never inside a condition, because bash would ignore set -e
# in the whole step then.
step() {
	current=$1 started=$SECONDS
	shift
	printf '\n== %s\n' "$current"
	"$@"
	names+=("$current") seconds+=($((SECONDS - started)))
	current=""
}

tools() {
	local cc
	command -v go >/dev/null || { echo "go is not installed: see https://go.dev/doc/install" >&2; return 1; }
	go version
	cc=$(go env CC)
	command -v "${cc%% *}" >/dev/null || {
		echo "no C compiler ($cc), which the race detector needs: install gcc or clang, or set CC" >&2
		return 1
	}
	gofumpt=$(go -C scripts/tools tool -n gofumpt)
	staticcheck=$(go -C scripts/tools tool -n staticcheck)
}

format() {
	local unformatted
	unformatted=$("$gofumpt" -l .)
	[[ -z $unformatted ]] || {
		printf '%s\n' "$unformatted"
		echo "not formatted: run  go -C scripts/tools tool gofumpt -w $root" >&2
		return 1
	}
}

# Modules of their own, so that what they need is no dependency of kvmesh.
programs=(scripts/bench/put scripts/bench/policy scripts/clients/gosdk)
apart=(scripts/tools "${programs[@]}")

tidy() {
	local dir
	go mod tidy -diff
	for dir in "${apart[@]}"; do go -C "$dir" mod tidy -diff; done
}

vet() {
	local dir
	go vet ./...
	for dir in "${programs[@]}"; do go -C "$dir" vet ./...; done
	go vet -tags mutants ./...
	go vet -tags sealidentity ./...
}

shell_scripts() {
	local files=() f
	while IFS= read -r -d '' f; do files+=("$f"); done < <(find scripts .ci -type f \( -name '*.sh' -o -path .ci/run \) -print0)
	for f in "${files[@]}"; do bash -n -- "$f"; done
	# Beyond bash -n, shellcheck counts where it can be had.
	if ! command -v shellcheck >/dev/null && ((EUID == 0)) && command -v apt-get >/dev/null; then
		{ timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install -y --no-install-recommends shellcheck; } \
			>"$tmp/apt.log" 2>&1 || echo "shellcheck cannot be installed: $(tail -n 1 "$tmp/apt.log")"
	fi
	if command -v shellcheck >/dev/null; then
		shellcheck --severity=warning -- "${files[@]}"
	else
		echo "without shellcheck: only bash -n"
	fi
}

statics() {
	local dir faults
	"$staticcheck" ./...
	for dir in "${programs[@]}"; do (cd -- "$dir" && "$staticcheck" ./...); done
	mapfile -t faults < <(find . -name mutant_on.go -printf '%h\n')
	"$staticcheck" -tags mutants "${faults[@]}"
}

imports() {
	go test -count=1 -run '^TestImports' ./node/e2e | tee "$tmp/imports.log"
	if grep -q 'no tests to run' "$tmp/imports.log"; then
		echo "node/e2e has no test whose name begins with TestImports" >&2
		return 1
	fi
}

# race_tests runs all tests with the race detector. node/e2e, with its meshes in real time, has the machine to itself.
# Packages with tests in virtual time get one processor each (two of them run side by side): in Go 1.26 the goroutines of a
# testing/synctest bubble share the race context of the bubble's timers without a lock (runtime.(*timer).unlockAndRun), and
# on two processors the test binary crashes now and then.
race_tests() {
	local virtual=() real=() dir
	while IFS= read -r dir; do
		if [[ $dir == */node/e2e ]]; then continue; fi
		if grep -qs '"testing/synctest"' "$dir"/*_test.go; then virtual+=("$dir"); else real+=("$dir"); fi
	done < <(go list -f '{{.Dir}}' ./...)
	raced "${real[@]}"
	raced ./node/e2e
	raced -cpu=1 "${virtual[@]}"
}

raced() { go test -race -shuffle=on -timeout=30m "$@" 2>&1 | tee -a "$tmp/tests.log"; }

# nemesis breaks real processes for four minutes. What it does it with is Linux's.
nemesis() {
	if [[ $(uname -s) == Linux ]]; then
		bash scripts/nemesis.sh 4
	else
		echo "NOT RUN: no faults are injected into real processes here, that takes Linux; see scripts/nemesis.sh"
	fi
}

# fuzz looks for requests that the hit path answers otherwise than net/http, for a while.
fuzz() { go test -run='^$' -fuzz='^FuzzDifferential$' -fuzztime=20s ./node/hitpath; }

step "tools" tools
step "gofumpt" format
step "go mod tidy" tidy
step "shell scripts" shell_scripts
step "go vet" vet
step "staticcheck" statics
step "imports" imports
step "go test -race" race_tests
step "fuzzing" fuzz
step "simulation" bash scripts/sim.sh 30
step "nemesis" nemesis
step "real data" bash scripts/realdata.sh
