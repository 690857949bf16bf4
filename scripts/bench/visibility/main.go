// Command visibility measures how fast a change becomes visible: how long after the leader committed a write, and after
// its client had the acknowledgement, a GET at every edge returns it. It runs a mesh with real-world delays between three
// regions in its own process, writes over HTTP through random nodes, and reads over HTTP at all edges; while the mesh is
// healthy, while a tenth of its streams and packets is disturbed, and while all feeds are cut. The stated bound of every
// answer is checked against what was acknowledged. scripts/bench/visibility.sh builds it and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the program's flags.
type options struct {
	writes int           // of each round
	rate   int           // writes a second
	poll   time.Duration // between two reads of a hot key that has been written and is not visible yet
	rounds []string
	seed   uint64
	logs   string // the least level of what the nodes log, "" = nothing
}

func main() {
	var o options
	rounds := flag.String("rounds", strings.Join(allRounds, ","), "comma-separated `LIST` of the rounds to play")
	flag.IntVar(&o.writes, "writes", 2000, "`N` writes in each round, half of them of hot keys")
	flag.IntVar(&o.rate, "rate", 30, "`N` writes a second")
	flag.DurationVar(&o.poll, "poll", 5*time.Millisecond, "pause between two reads that wait for a hot key's new value")
	flag.Uint64Var(&o.seed, "seed", 1, "of the choice of nodes and disturbances")
	flag.StringVar(&o.logs, "log", "", "least `LEVEL` that the nodes log: debug, info, warn or error (default: nothing)")
	flag.Parse()
	o.rounds = strings.Split(*rounds, ",")
	if err := o.check(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "visibility: %v\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "visibility: FAILED: %v\n", err)
		os.Exit(1)
	}
}

func (o options) check(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q; there are flags only, see -help", args[0])
	}
	if o.writes < 2 || o.rate < 1 || o.poll <= 0 {
		return errors.New("-writes must be at least 2, -rate at least 1, -poll more than 0")
	}
	if _, err := o.logger(io.Discard); err != nil {
		return fmt.Errorf("-log: %w", err)
	}
	for _, r := range o.rounds {
		if !slices.Contains(allRounds, r) {
			return fmt.Errorf("-rounds: there is no round %q; there are %s", r, strings.Join(allRounds, ", "))
		}
	}
	return nil
}

// logger is what the nodes log to.
func (o options) logger(w io.Writer) (*slog.Logger, error) {
	if o.logs == "" {
		return slog.New(slog.DiscardHandler), nil
	}
	var level slog.Level
	err := level.UnmarshalText([]byte(o.logs))
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), err
}

// The rounds.
const (
	healthy   = "healthy"
	disturbed = "disturbed"
	feedCut   = "feed-cut"
)

var allRounds = []string{healthy, disturbed, feedCut}

// run plays the rounds in one mesh and prints a table for each. Its error is a broken promise, or a mesh that could not be
// run; a figure is never one.
func run(ctx context.Context, o options, out, log io.Writer) (err error) {
	b := &bench{options: o, out: out, history: newHistory(), rng: rand.New(rand.NewPCG(o.seed, 0)), calm: 3 * time.Second}
	if b.mesh, err = startMesh(ctx, o, log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.mesh.stop()) }()
	b.clients = newClients(b.mesh)
	defer b.clients.close()
	b.commits = watchCommits(b.mesh)
	defer b.commits.stop()

	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, name := range o.rounds {
		b.mesh.weather.set(name)
		if !pause(ctx, b.calm) {
			return context.Cause(ctx)
		}
		r, err := b.play(ctx, name)
		if err != nil {
			return fmt.Errorf("round %s: %w", name, err)
		}
		b.report(r)
		b.mesh.weather.set(healthy)
	}
	return b.history.err()
}

// pause waits for d. It reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
