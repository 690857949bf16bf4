//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// session is one mesh with its load, from the first start to the verdict.
type session struct {
	*world
	load   *load
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// begin starts a mesh of three voters and two edges in a new directory, and the load.
func begin(ctx context.Context, o options, net network, dir, binary string, slot int, env ...string) (*session, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	rec := newRecorder()
	call := newCaller(rec)
	m := &mesh{
		binary: binary, dir: dir, profile: o.profile, env: environment(env...), net: net, call: call,
	}
	if o.mounts {
		m.disk = disks(dir)
	}
	if err := m.newKey(ctx); err != nil {
		return nil, err
	}
	if err := m.layout(3, 2, slot); err != nil {
		return nil, err
	}
	s := &session{
		world: &world{mesh: m, net: net, rec: rec, call: call, opts: o, slots: slot + firstExtra},
		load:  &load{mesh: m, call: call, rec: rec, seed: o.seed},
	}
	if err := m.start(ctx); err != nil {
		return nil, errors.Join(err, m.kill())
	}
	load, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	s.wg.Go(func() { s.load.run(load) })
	return s, nil
}

// firstExtra is the distance from a mesh's first slot to those of the voters that are added later.
const firstExtra = 60

// rest ends the load. It may be called again.
func (s *session) rest() {
	s.cancel()
	s.wg.Wait()
}

// end ends everything.
func (s *session) end() error {
	s.rest()
	return s.mesh.kill()
}

// runAll is the whole run: the real one, then the planted ones.
func runAll(ctx context.Context, o options, net network) (err error) {
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "kvmesh-nemesis-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				err = errors.Join(unmountDisks(dir), os.RemoveAll(dir))
			} else {
				fmt.Fprintln(os.Stderr, "nemesis: data and logs are kept in", dir)
			}
		}()
	} else if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fmt.Printf("nemesis   seed %d, %g minutes, profile %s; %s\n", o.seed, o.minutes, o.profile, net.describe())
	began := time.Now()
	budget := time.Duration(o.minutes * float64(time.Minute))
	if o.planted {
		if err := runPlanted(ctx, o, net, dir); err != nil {
			return err
		}
	}
	return runReal(ctx, o, net, filepath.Join(dir, "mesh"), budget-time.Since(began))
}

// runReal breaks a real mesh: first every fault once, by itself, with a mesh that is whole before and after, and then,
// for the rest of the time, two at a time.
func runReal(ctx context.Context, o options, net network, dir string, budget time.Duration) (err error) {
	began := time.Now()
	faults := chosen(o.only)
	s, err := begin(ctx, o, net, dir, o.binary, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	fmt.Printf("mesh      3 voters and 2 edges, %d clients on %d hot keys\n", clients, 2*hotPairs)
	rng := rand.New(rand.NewPCG(o.seed, 1))
	if !pause(ctx, 2*time.Second) {
		return context.Cause(ctx)
	}
	rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, f := range faults {
		if f.last {
			continue
		}
		if err := s.single(ctx, f, rng); err != nil {
			return err
		}
	}
	for !o.once && time.Since(began) < budget-reserve {
		if err := s.mix(ctx, faults, rng); err != nil {
			return err
		}
	}
	s.rest()
	last := s.converge(ctx)
	for _, f := range faults {
		if f.last && last == nil {
			last = s.single(ctx, f, rng)
		}
	}
	kept := keep(filepath.Join(dir, "history"), s.rec.history())
	v := s.judge(faults)
	v.print(os.Stdout)
	return errors.Join(last, kept, v.err(o.only != ""))
}

// reserve is what the end of a run takes: convergence, the check, the tables.
const reserve = 15 * time.Second

// chosen is the catalogue, or the part of it that was asked for.
func chosen(only string) []fault {
	all := catalogue()
	if only == "" {
		return all
	}
	return slices.DeleteFunc(all, func(f fault) bool {
		return !slices.ContainsFunc(strings.Split(only, ","), func(part string) bool { return strings.Contains(f.name, part) })
	})
}

// single strikes with one fault and tells about it.
func (s *session) single(ctx context.Context, f fault, rng *rand.Rand) error {
	e := s.strike(ctx, f, rng, false)
	s.tell(e)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e.err != nil {
		return fmt.Errorf("%s: %w", f.name, e.err)
	}
	return s.crashes()
}

// mix strikes with two faults that overlap; only the answers are judged. Then the mesh must become whole again.
func (s *session) mix(ctx context.Context, faults []fault, rng *rand.Rand) error {
	var pick []fault
	for _, i := range rng.Perm(len(faults)) {
		if f := faults[i]; !f.alone && !f.last && len(pick) < 2 {
			pick = append(pick, f)
		}
	}
	events := make([]event, len(pick))
	var wg sync.WaitGroup
	for i, f := range pick {
		own := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() { events[i] = s.strike(ctx, f, own, true) })
	}
	wg.Wait()
	for _, e := range events {
		s.tell(e)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// One fault may have kept the other from what it wanted to see; what counts is that the mesh heals.
	if err := s.crashes(); err != nil {
		return err
	}
	for _, n := range s.mesh.all() {
		if err := n.start(); err != nil {
			return err
		}
	}
	if err := s.settle(ctx); err != nil {
		return fmt.Errorf("after %s with %s: %w", pick[0].name, pick[len(pick)-1].name, err)
	}
	return nil
}

func (s *session) tell(e event) {
	text := fmt.Sprintf("%7.1f s %s", time.Duration(e.begin).Seconds(), e.name)
	if e.mixed {
		text += " (mixed)"
	}
	text += ": " + e.what
	if e.gap > 0 {
		text += fmt.Sprintf("; longest write gap %v", e.gap.Round(time.Millisecond))
	}
	if !e.mixed {
		text += fmt.Sprintf("; whole again %v after it was undone", time.Duration(e.back-e.undone).Round(time.Millisecond))
	}
	if e.err != nil {
		text += ": " + strings.SplitN(e.err.Error(), "\n", 2)[0]
	}
	fmt.Println(text)
}

// crashes returns an error when a node has ended that nobody ended.
func (s *session) crashes() error {
	for _, n := range s.mesh.all() {
		if err := n.crashed(); err != nil {
			return err
		}
	}
	return nil
}

// converge reads every key strongly, and then at every node with the bookmark of the newest write: all must agree.
func (s *session) converge(ctx context.Context) error {
	if err := s.settleReads(ctx); err != nil {
		return err
	}
	last := make(map[[2]int]bool)
	for _, o := range s.rec.history() {
		for i, t := range o.keys {
			if t.does == write {
				last[[2]int{o.pair, i}] = true
			}
		}
	}
	var bad []string
	var newest string
	truth := make(map[[2]int]touch)
	for key := range last {
		o, err := s.readOnce(ctx, s.mesh.all()[0], key, false, "")
		if err != nil {
			return fmt.Errorf("the last strong read of %s: %w", keyName(key[0], key[1]), err)
		}
		truth[key] = o.keys[key[1]]
		newest = o.epoch
	}
	var top uint64
	for _, t := range truth {
		top = max(top, t.rev)
	}
	bookmark := fmt.Sprintf("%s.%d", newest, top)
	for _, n := range s.mesh.all() {
		for key, want := range truth {
			o, err := s.readOnce(ctx, n, key, true, bookmark)
			if err != nil {
				return fmt.Errorf("the last read of %s at %s: %w", keyName(key[0], key[1]), n.name, err)
			}
			if got := o.keys[key[1]]; got.value != want.value || got.rev != want.rev {
				bad = append(bad, fmt.Sprintf("%s at %s: value %d of revision %d, a strong read said %d of %d",
					keyName(key[0], key[1]), n.name, got.value, got.rev, want.value, want.rev))
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("the nodes do not agree at the end:\n  %s", strings.Join(bad, "\n  "))
	}
	fmt.Printf("converged %d keys, the same at all %d nodes\n", len(truth), len(s.mesh.all()))
	return nil
}

// settleReads waits until every node is ready.
func (s *session) settleReads(ctx context.Context) error {
	if err := s.mesh.ready(ctx); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

// readOnce reads a key for the record, until it is answered.
func (s *session) readOnce(ctx context.Context, n *node, key [2]int, cached bool, bookmark string) (*op, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleWithin, fmt.Errorf("not within %v", settleWithin))
	defer cancel()
	for {
		o := &op{client: clients + 1, pair: key[0], node: n.life(), cached: cached}
		o.keys[key[1]].does = look
		if bookmark != "" {
			_, o.bookmark = (&answer{header: map[string][]string{"Kv-Bookmark": {bookmark}}}).bookmark()
		}
		s.rec.begin(o)
		s.call.read(ctx, o, n.url, key[1], bookmark)
		s.rec.end(o)
		if o.outcome == done {
			return o, nil
		}
		if !pause(ctx, 10*poll) {
			return nil, fmt.Errorf("%w: %v", context.Cause(ctx), o)
		}
	}
}
