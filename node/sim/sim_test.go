package sim

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds   = flag.Int("sim.seeds", 2, "how many seeds to run")
	first   = flag.Uint64("sim.seed", 1, "the first seed")
	minutes = flag.Float64("sim.minutes", 1, "virtual minutes of faults a seed")
	verbose = flag.Bool("sim.log", false, "print the nodes' logs")
	all     = flag.Bool("sim.all", false, "fail when a branch of the protocol was never taken")
)

// bubbleTime is what the bubbles' clock is set to: they begin in 2000, certificates in 2020.
var bubbleTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestSim runs the simulated mesh for some seeds and fails on every promise that is broken. A single seed is replayed by
// -sim.seed N -sim.seeds 1.
func TestSim(t *testing.T) {
	sum := newBranches()
	t.Run("seeds", func(t *testing.T) {
		for i := range *seeds {
			seed := *first + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				sum.merge(simulate(t, seed))
				if t.Failed() {
					t.Logf("replay it with: scripts/sim.sh --seed %d 1", seed)
				}
			})
		}
	})
	if *all {
		sum.print(os.Stdout)
		for _, name := range sum.missing() {
			t.Errorf("never happened in any seed: %s", name)
		}
	}
}

// simulate runs one seed in a bubble of its own.
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
