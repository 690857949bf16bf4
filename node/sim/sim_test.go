package sim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds   = flag.Int("sim.seeds", 2, "how many seeds to run")
	first   = flag.Uint64("sim.seed", 1, "the first seed")
	minutes = flag.Float64("sim.minutes", 1, "virtual minutes of faults a seed")
	verbose = flag.Bool("sim.log", false, "print the nodes' logs")
	hasty   = flag.Bool("sim.hasty", false, "end a seed at the first broken promise")
	all     = flag.Bool("sim.all", false, "fail when a branch of the protocol was never taken")
	counts  = flag.String("sim.counts", "", "a file to write to how often each branch was taken; for a single seed")
)

// bubbleTime is what the bubbles' clock is set to: they begin in 2000, certificates in 2020.
var bubbleTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	// seedTimeout bounds one seed on the real clock. It takes about 15 s on an idle machine, ten times that with the race
	// detector.
	seedTimeout = dear * 10 * time.Minute
	// maxReport bounds what is shown of a seed that failed. What was broken first stands first.
	maxReport = 64 << 10
)

// TestSim runs the simulated mesh for some seeds and fails on every promise that is broken. A single seed, as replayed by
// -sim.seed N -sim.seeds 1, runs here. Of several, each has a process of its own with one processor: a bubble cannot use
// two, and a seed that hangs or panics takes no other with it. As many run side by side as tests may (-parallel).
func TestSim(t *testing.T) {
	if *seeds == 1 {
		sum := simulate(t, *first)
		if *counts != "" {
			sum.save(t, *counts)
		}
		report(t, sum)
		return
	}
	sum := newBranches()
	t.Run("seeds", func(t *testing.T) {
		for i := range *seeds {
			seed := *first + uint64(i)
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				spawn(t, seed, sum)
			})
		}
	})
	report(t, sum)
}

// report prints how often each branch was taken, if none may be missing.
func report(t *testing.T, sum *branches) {
	if !*all {
		return
	}
	sum.print(os.Stdout)
	for _, name := range sum.missing() {
		t.Errorf("never happened in any seed: %s", name)
	}
}

// spawn runs one seed in a process of its own, and adds up what it counts.
func spawn(t *testing.T, seed uint64, sum *branches) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "counts")
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestSim$", "-test.cpu=1", "-test.timeout="+seedTimeout.String(),
		"-sim.seeds=1", fmt.Sprint("-sim.seed=", seed), fmt.Sprint("-sim.minutes=", *minutes), fmt.Sprint("-sim.hasty=", *hasty),
		fmt.Sprint("-sim.log=", *verbose), "-sim.counts="+file)
	// A mesh is small and makes much garbage, and many handshakes.
	cmd.Env = append(os.Environ(), "GOGC=400", "GODEBUG=tlsmlkem=0")
	began, verdict := time.Now(), "ok"
	out, err := cmd.CombinedOutput()
	if *verbose {
		_, _ = os.Stdout.Write(out)
	}
	if err != nil {
		if verdict = "FAILED"; len(out) > maxReport {
			out = append(out[:maxReport:maxReport], "\n..."...)
		}
		t.Errorf("%v; replay it with: scripts/sim.sh --seed %d 1\n%s", err, seed, out)
	}
	if testing.Verbose() { // at once, because what a test logs is shown when all seeds are over
		_, _ = fmt.Printf("seed %d: %s, %v\n", seed, verdict, time.Since(began).Round(time.Second))
	}
	sum.load(t, file)
}

// save writes the counts to a file.
func (b *branches) save(t *testing.T, file string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	text, err := json.Marshal(b.n)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}

// load adds the counts of a file. Only a seed that has failed already may have left none.
func (b *branches) load(t *testing.T, file string) {
	o := newBranches()
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &o.n)
	}
	if err != nil {
		if !t.Failed() {
			t.Error(err)
		}
		return
	}
	b.merge(o)
}

// simulate runs one seed in a bubble.
func simulate(t *testing.T, seed uint64) *branches {
	var out *branches
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(bubbleTime))
		var log io.Writer
		if *verbose {
			log = os.Stdout
		}
		w := newWorld(fullShape, seed, dir, log, func(err error) { t.Errorf("fatal: %v", err) })
		w.enough = func() bool { return *hasty && w.history.broken() }
		out = w.branches
		err := w.run(context.Background(), time.Duration(*minutes*float64(time.Minute)))
		w.stop()
		time.Sleep(30 * time.Second) // memberlist's timers
		for _, v := range w.history.violations() {
			t.Error(v)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return out
}
