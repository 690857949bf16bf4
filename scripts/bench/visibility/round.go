package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

const (
	// hotKeys are read at every edge all the time, each hotReads times a second. One write of a key is under way at a time.
	hotKeys  = 16
	hotReads = 10
	// coldEvery is the pause between two reads of a cold key. Its first read is sent when its write is acknowledged; no edge
	// has read it before.
	coldEvery = 20 * time.Millisecond
	// maxPending bounds the writes that are under way or not visible everywhere yet.
	maxPending = 64
	// seenTimeout is when an acknowledged write is given up.
	seenTimeout = 30 * time.Second
	// fillSamples are the fills by which the time of one is measured, at each edge.
	fillSamples = 40
)

// bench is what the rounds share.
type bench struct {
	options
	out     io.Writer
	mesh    *mesh
	clients *clients
	commits *commits
	history *history
	rng     *rand.Rand
	calm    time.Duration // the mesh is left alone between two rounds, and after the network has changed
	hot     []string
	fill    time.Duration // of a key that is not held, from the nearest voter
}

// prepare writes the hot keys and measures what one fill from the nearest voter takes.
func (b *bench) prepare(ctx context.Context) error {
	var keys []string
	for i := range hotKeys {
		b.hot = append(b.hot, fmt.Sprintf("hot-%02d", i))
	}
	keys = append(keys, b.hot...)
	for i := range fillSamples {
		keys = append(keys, fmt.Sprintf("fill-%02d", i))
	}
	last, err := b.putAll(ctx, keys)
	if err != nil {
		return err
	}
	for _, n := range b.mesh.Nodes {
		epoch, _ := n.Position()
		if err := n.WaitPosition(ctx, epoch, kv.Revision(last)); err != nil {
			return err
		}
	}
	for _, e := range b.clients.edges {
		var took []time.Duration
		for i := range fillSamples {
			a, err := e.get(fmt.Sprintf("fill-%02d", i))
			if err != nil {
				return err
			}
			b.history.read(a)
			if a.tier == "central" {
				took = append(took, a.end.Sub(a.start))
			}
		}
		if len(took) == 0 {
			return fmt.Errorf("no key was filled from the nearest voter at %s", e.region)
		}
		b.fill = max(b.fill, quantile(took, 0.5))
	}
	return nil
}

// putAll writes keys through the voters, so that no edge holds them, and returns the newest revision.
func (b *bench) putAll(ctx context.Context, keys []string) (last uint64, err error) {
	voters := b.mesh.of(certs.RoleVoter)
	revs, errs := make([]uint64, len(keys)), make([]error, len(keys))
	var wg sync.WaitGroup
	for i, key := range keys {
		wg.Go(func() {
			b.history.sending(key, key)
			if revs[i], errs[i] = b.clients.put(ctx, voters[i%len(voters)], key, key); errs[i] == nil {
				b.history.acknowledged(key, key, revs[i], time.Now())
			}
		})
	}
	wg.Wait()
	return slices.Max(revs), errors.Join(errs...)
}

// round is one round's figures.
type round struct {
	*bench
	name   string
	leader string // the leader's region when it began

	mu         sync.Mutex // guards all below
	hotSeries  series
	coldSeries series
	failed     int // writes that were not acknowledged
	reason     error
	bounds     []time.Duration
	unbounded  int // answers with no bound
	unanswered int // reads that failed, and 503
	tiers      map[string]int
}

// series are the times of one kind of keys.
type series struct {
	commit, acked [][]time.Duration // by edge; the last is that of the last edge to show a write
	unseen        int               // acknowledged writes that did not become visible in time
}

func newSeries(edges int) series {
	return series{commit: make([][]time.Duration, edges+1), acked: make([][]time.Duration, edges+1)}
}

// add takes the moments at which the edges showed one write. One that shows it before its client has the acknowledgement
// counts as 0.
func (s *series) add(seen []time.Time, committed, acked time.Time) {
	for i, at := range append(slices.Clone(seen), slices.MaxFunc(seen, time.Time.Compare)) {
		s.commit[i] = append(s.commit[i], max(at.Sub(committed), 0))
		s.acked[i] = append(s.acked[i], max(at.Sub(acked), 0))
	}
}

// play writes and reads until every write is visible everywhere.
func (b *bench) play(ctx context.Context, name string) (*round, error) {
	edges := b.clients.edges
	r := &round{bench: b, name: name, leader: b.mesh.leader(), hotSeries: newSeries(len(edges)), coldSeries: newSeries(len(edges)), tiers: make(map[string]int)}
	reading, stop := context.WithCancel(ctx)
	var readers, writers sync.WaitGroup
	for _, e := range edges {
		readers.Go(func() { r.readHot(reading, e) })
	}
	defer func() {
		writers.Wait()
		stop()
		readers.Wait()
	}()
	slots := make(chan struct{}, maxPending)
	idle := make(chan string, len(b.hot))
	for _, k := range b.hot {
		idle <- k
	}
	tick := time.NewTicker(time.Second / time.Duration(b.rate))
	defer tick.Stop()
	for i := range b.writes {
		w := &write{key: fmt.Sprintf("cold-%s-%d", name, i), value: fmt.Sprintf("%s-%d", name, i), node: b.rng.IntN(len(b.clients.urls))}
		if w.hot = i%2 == 0; w.hot {
			select {
			case w.key = <-idle:
			case <-ctx.Done():
				return r, context.Cause(ctx)
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
		writers.Go(func() {
			r.write(ctx, w)
			<-slots
			if w.hot {
				idle <- w.key
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	writers.Wait()
	return r, context.Cause(ctx)
}

// write is one write and what is known of it.
type write struct {
	key, value string
	node       int
	hot        bool
	rev        atomic.Uint64 // as acknowledged, 0 before
}

// write sends one write and watches all edges until they show it.
func (r *round) write(ctx context.Context, w *write) {
	r.history.sending(w.key, w.value)
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := make([]time.Time, len(r.clients.edges))
	var watchers sync.WaitGroup
	watch := func(every time.Duration) {
		for i, e := range r.clients.edges {
			watchers.Go(func() { seen[i] = r.watch(watching, e, w, every) })
		}
	}
	if w.hot { // it may show before the acknowledgement
		watch(r.poll)
	}
	rev, err := r.clients.put(ctx, w.node, w.key, w.value)
	acked := time.Now()
	if err != nil { // it may have been carried out nevertheless
		cancel()
		watchers.Wait()
		r.mu.Lock()
		r.failed, r.reason = r.failed+1, err
		r.mu.Unlock()
		return
	}
	r.history.acknowledged(w.key, w.value, rev, acked)
	w.rev.Store(rev)
	if !w.hot {
		watch(coldEvery)
	}
	defer time.AfterFunc(seenTimeout, cancel).Stop()
	watchers.Wait()
	committed, ok := r.commits.of(watching, kv.Revision(rev))
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.coldSeries
	if w.hot {
		s = &r.hotSeries
	}
	if !ok || slices.ContainsFunc(seen, time.Time.IsZero) {
		s.unseen++
		return
	}
	s.add(seen, committed, acked)
}

// watch reads a key at one edge until it shows the write, or a later one, and says when it did.
func (r *round) watch(ctx context.Context, e *edge, w *write, every time.Duration) time.Time {
	for ctx.Err() == nil {
		a, ok := r.read(e, w.key)
		if rev := w.rev.Load(); ok && (a.value == w.value || (rev > 0 && a.rev >= rev)) {
			return a.end
		}
		pause(ctx, every)
	}
	return time.Time{}
}

// readHot reads all hot keys in turn until ctx ends.
func (r *round) readHot(ctx context.Context, e *edge) {
	tick := time.NewTicker(time.Second / time.Duration(hotReads*len(r.hot)))
	defer tick.Stop()
	for i := 0; ; i++ {
		r.read(e, r.hot[i%len(r.hot)])
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// read reads a key, checks and counts the answer. ok says that there is a state.
func (r *round) read(e *edge, key string) (a answer, ok bool) {
	a, err := e.get(key)
	if err == nil && a.status != http.StatusOK && a.status != http.StatusNotFound {
		err = errors.New(http.StatusText(a.status))
	}
	if err == nil {
		r.history.read(a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.unanswered++
		return a, false
	case a.bounded:
		r.bounds = append(r.bounds, a.bound)
	default:
		r.unbounded++
	}
	r.tiers[a.tier]++
	return a, true
}
