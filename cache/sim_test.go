package cache

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

var (
	simSeed = flag.Uint64("sim.seed", 1, "first seed of the simulation")
	simRuns = flag.Int("sim.runs", 30, "how many seeds to simulate")
)

// TestSimulation runs caches, real code throughout, against a history that is known, in virtual time: a leader, a voter
// that lags, a feed that is cut and repeats itself, hints early, late and bogus, probes over a relay, fills over the
// owner, evictions, restarts, new epochs. Everything is asked from outside what the promises say; see serve. A seed draws
// the mix; -sim.seed=N -sim.runs=1 runs one again.
func TestSimulation(t *testing.T) {
	branches := map[string]float64{}
	for i := range *simRuns {
		seed := *simSeed + uint64(i)
		synctest.Test(t, func(t *testing.T) {
			s := newSim(seed)
			s.run()
			for _, bad := range s.w.bad {
				t.Errorf("seed %d: %s", seed, bad)
			}
			for name, n := range s.branches {
				branches[name] += n
			}
		})
		if t.Failed() {
			t.Fatalf("replay: go test ./cache -run TestSimulation -sim.seed=%d -sim.runs=1", seed)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(branches)) {
		t.Logf("%8.0f %s", branches[name], name)
	}
	for _, name := range []string{
		"hits", "stale: while-revalidating", "stale: if-error", "late: marked", "late: dropped", "joins", "joiner refused",
		"epochs", "noted", "hints disproved", "floor", "hinted floor", "hint before feed", "record again", "jump", "restart",
		"served to a peer", "relayed proof", "strong", "bookmark", "foreign bookmark", "explicit limit missed", "list",
		"write acknowledged", "write across an epoch", "of unknown age", "converged hits",
	} {
		if branches[name] == 0 && *simRuns >= 30 {
			t.Errorf("never ran: %s", name)
		}
	}
}

const simNodes = 3 // 0 is the owner and the relay of the other two

type sim struct {
	w    *truth
	seed uint64
	rng  *rand.Rand // of the set-up only; each process has its own
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	// under w.mu
	nodes    [simNodes]*simNode
	voters   [2]simVoter    // the first feeds, the second answers fills
	cut      [simNodes]bool // its feed
	down     bool           // nobody answers fills
	calm     bool           // healed: convergence is being checked
	branches map[string]float64
}

// simVoter is a follower: it lags, and knows how much.
type simVoter struct {
	hist    int // index of its history
	applied kv.Revision
	f       time.Duration // -1: nothing proven
}

// simNode outlives its cache: what was shown counts over restarts.
type simNode struct {
	id    int
	off   time.Duration // of its clock
	bytes int64
	c     *Cache
	reg   *prometheus.Registry
	life  atomic.Int64 // how often it was started
	shown [simKeys]int
}

func newSim(seed uint64) *sim {
	s := &sim{w: newTruth(), seed: seed, branches: map[string]float64{}, voters: [2]simVoter{{f: -1}, {f: -1}}}
	s.rng = s.rand(0)
	s.ctx, s.stop = context.WithCancel(context.Background())
	for i := range s.nodes {
		n := &simNode{id: i, off: time.Duration(s.rng.Int64N(int64(time.Hour))), bytes: []int64{800, 6000, 1 << 20}[s.rng.IntN(3)]}
		s.nodes[i] = n
		s.boot(n, false)
	}
	return s
}

func (s *sim) rand(id uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, id)) }

func (s *sim) note(branch string) { s.branches[branch]++ }

func (s *sim) boot(n *simNode, restarted bool) {
	n.reg = prometheus.NewRegistry()
	n.c = New(Options{
		Bytes: n.bytes, Clock: func() Mono { return n.off + s.w.now() }, Restarted: restarted, Metrics: n.reg,
		Asker: &simAsker{s: s, n: n, rng: s.rand(100 + uint64(n.id) + 10*uint64(n.life.Load()))}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if n.life.Load() == 0 {
		n.c.Adopt(epoch1, 0)
	}
	n.life.Add(1)
}

// live is the node's cache now; dead says whether that life is over, in which case nobody hears what it answers.
func (s *sim) live(i int) (n *simNode, c *Cache, dead func() bool) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	n = s.nodes[i]
	life := n.life.Load()
	return n, n.c, func() bool { return n.life.Load() != life }
}

// every runs step again and again, after pauses of mean duration, until the end. Each process has its own random numbers,
// and pauses have nanoseconds, so that hardly ever two of them run at the same instant.
func (s *sim) every(id uint64, mean time.Duration, step func(*rand.Rand)) {
	rng := s.rand(1000 + id)
	mean = mean * time.Duration(1+rng.IntN(4)) / 2 // the seed's mix
	s.wg.Go(func() {
		for s.pause(s.ctx, rng, mean) == nil {
			step(rng)
		}
	})
}

func (s *sim) pause(ctx context.Context, rng *rand.Rand, mean time.Duration) error {
	t := time.NewTimer(time.Duration(rng.ExpFloat64()*float64(mean)) + time.Duration(rng.IntN(1000)))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *sim) run() {
	s.every(1, 150*time.Millisecond, s.commit)
	s.every(2, 4*time.Second, s.disturb)
	s.every(3, 30*time.Millisecond, s.apply)
	for i := range s.nodes {
		id := uint64(10 * (i + 1))
		s.every(id, 60*time.Millisecond, func(rng *rand.Rand) { s.feed(rng, i) })
		s.every(id+1, 200*time.Millisecond, func(rng *rand.Rand) { s.hint(rng, i) })
		s.every(id+2, 200*time.Millisecond, func(rng *rand.Rand) { s.probe(rng, i) })
		s.every(id+3, 400*time.Millisecond, func(rng *rand.Rand) { s.write(rng, i) })
		s.every(id+4, 900*time.Millisecond, func(rng *rand.Rand) { s.list(rng, i) })
		s.every(id+5, 300*time.Millisecond, func(*rand.Rand) { s.evict(i) })
		for r := range 4 {
			s.every(100*id+uint64(r), 40*time.Millisecond, func(rng *rand.Rand) { s.read(rng, i) })
		}
	}
	time.Sleep(20 * time.Second)
	s.stop()
	s.wg.Wait()
	s.converge()
	for _, n := range s.nodes {
		n.c.Close()
	}
	for _, n := range s.nodes {
		s.harvest(n)
	}
}

// converge heals everything and expects every node to hold the truth.
func (s *sim) converge() {
	s.w.mu.Lock()
	s.calm, s.down, s.cut = true, false, [simNodes]bool{}
	s.w.mu.Unlock()
	rng := s.rand(7)
	s.ctx, s.stop = context.WithTimeout(context.Background(), time.Hour)
	defer s.stop()
	for range 40 {
		s.apply(rng)
		for i := range s.nodes {
			s.feed(rng, i)
		}
	}
	for i, n := range s.nodes {
		for range 4 {
			s.probe(rng, i)
		}
		if epoch, w := n.c.Position(); epoch != s.w.head().id || w != s.w.commit {
			s.w.fail("live: node %d is at %s.%d, the mesh at %d", i, epoch, w, s.w.commit)
			return
		}
		for k := range simKeys {
			for try := range 4 {
				time.Sleep(swr) // a background fill takes its time
				rd := Read{Namespace: simNS(k), Key: simKey(k), Limit: time.Hour, Explicit: true}
				ans, err := n.c.Get(s.ctx, rd)
				s.w.mu.Lock()
				s.healed(n, k, try, ans, err)
				s.w.mu.Unlock()
			}
		}
	}
}

// healed: from the third read on it is the latest state, and a hit where there is room for it.
func (s *sim) healed(n *simNode, k, try int, ans Answer, err error) {
	if err != nil {
		s.w.fail("live: node %d, %s: %v", n.id, simKey(k), err)
		return
	}
	if g, _ := s.w.identify("healed", ans.Entry, ans.AsOf, k); try >= 2 && g != s.w.head().state[s.w.commit][k] {
		s.w.fail("live: node %d, %s: the third read is not the latest", n.id, simKey(k))
	}
	if try == 3 && n.bytes > 6000 {
		if ans.Tier != TierHit {
			s.w.fail("live: node %d, %s: the fourth read is no hit but %s", n.id, simKey(k), ans.Tier)
		}
		s.note("converged hits")
	}
}

// harvest adds up what a closed cache has counted.
func (s *sim) harvest(n *simNode) {
	families, err := n.reg.Gather()
	if err != nil {
		s.w.fail("metrics: %v", err)
	}
	names := map[string]string{
		"kvmesh_cache_hits_total": "hits", "kvmesh_stale_served_total": "stale: ", "kvmesh_fills_late_total": "late: ",
		"kvmesh_fill_joins_total": "joins", "kvmesh_fill_joins_refused_total": "joiner refused", "kvmesh_epochs_adopted_total": "epochs",
		"kvmesh_cache_revisions_noted_total": "noted", "kvmesh_hints_disproved_total": "hints disproved",
	}
	for _, f := range families {
		name, ok := names[f.GetName()]
		for _, m := range f.GetMetric() {
			label := ""
			if l := m.GetLabel(); len(l) == 1 {
				label = l[0].GetValue()
			}
			if ok {
				s.branches[name+label] += m.GetCounter().GetValue()
			}
		}
	}
}

// ---- the mesh ----

func (s *sim) commit(rng *rand.Rand) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	k := rng.IntN(simKeys)
	switch x := rng.IntN(20); {
	case x == 0:
		s.w.empty(simNS(k))
	case x < 5:
		s.w.write(false, k, (k+1)%simKeys)
	default:
		s.w.write(x < 9, k)
	}
}

// disturb cuts, heals, restores and restarts.
func (s *sim) disturb(rng *rand.Rand) {
	s.w.mu.Lock()
	i := rng.IntN(simNodes)
	switch rng.IntN(5) {
	case 0:
		s.w.restore(kv.Revision(rng.IntN(6)))
	case 1:
		s.cut[i] = true
	case 2:
		s.down = true
	case 3:
		s.cut, s.down = [simNodes]bool{}, false
	case 4:
		n := s.nodes[i]
		old := n.c
		s.harvestLater(n)
		s.boot(n, true)
		s.note("restart")
		if epoch, _ := old.Position(); rng.IntN(2) == 0 {
			n.c.Adopt(epoch, 0)
			s.loadDisk(old, n.c, epoch)
		}
	}
	s.w.mu.Unlock()
	_ = s.pause(s.ctx, rng, 2*time.Second)
	s.w.mu.Lock()
	s.cut, s.down = [simNodes]bool{}, false
	s.w.mu.Unlock()
}

// harvestLater closes a cache whose node has died, outside the lock that its fills may want.
func (s *sim) harvestLater(n *simNode) {
	dead := &simNode{id: n.id, c: n.c, reg: n.reg}
	s.wg.Go(func() {
		dead.c.Close()
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.harvest(dead)
	})
}

// loadDisk is what a disk cache would do: entries come back marked, their age unknown.
func (s *sim) loadDisk(from, to *Cache, epoch kv.Epoch) {
	for i := range from.shards {
		from.shards[i].mu.Lock()
		to.shards[i].mu.Lock()
		var held []*Entry
		for sl := range from.shards[i].slots.all() {
			held = append(held, sl.entry)
		}
		slices.SortFunc(held, func(a, b *Entry) int { return cmp.Compare(a.hash, b.hash) })
		for _, e := range held {
			if s := e.state(); s.Epoch == epoch {
				s.Marked, s.Unknown, s.Newer, s.fed, s.ProvenAt, s.MarkedAt = true, true, 0, 0, void, 0
				to.shards[i].put(to, e.hash, newEntry(&s))
			}
		}
		to.shards[i].mu.Unlock()
		from.shards[i].mu.Unlock()
	}
}

// apply lets one of the voters get on.
func (s *sim) apply(rng *rand.Rand) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	v := &s.voters[rng.IntN(2)]
	if v.hist < len(s.w.hist)-1 {
		if s.calm || rng.IntN(5) == 0 {
			v.hist++
			v.applied = s.w.hist[v.hist].base
		}
		return
	}
	if rng.IntN(3) == 0 {
		v.applied = s.w.commit
	} else {
		for _, b := range s.w.head().batches {
			if b.prev == v.applied {
				v.applied = b.to
				break
			}
		}
	}
	if v.applied == s.w.commit { // as a probe that the leader answered at once would prove
		v.f = s.w.now()
	}
}

// source is what feeds node i: the voter, or node 0's cache.
func (s *sim) source(i int) (h *history, applied kv.Revision) {
	if i == 0 {
		return s.w.hist[s.voters[0].hist], s.voters[0].applied
	}
	epoch, w := s.nodes[0].c.Position()
	return s.w.of(epoch), w
}

func (s *sim) record(b batch, h *history, c *Cache) kv.Record {
	rec := kv.Record{Epoch: h.id, Prev: b.prev, To: b.to, Kind: kv.RecordKeys}
	if b.ns != nil {
		rec.Kind, rec.Namespace = kv.RecordNamespace, *b.ns
		s.note("floor")
	}
	for _, k := range b.keys {
		rec.Hashes = append(rec.Hashes, c.Hash(simNS(k), simKey(k)))
	}
	return rec
}

func (s *sim) feed(rng *rand.Rand, i int) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	c := s.nodes[i].c
	h, applied := s.source(i)
	if h == nil || s.cut[i] {
		return
	}
	epoch, w := c.Position()
	if cmp := h.id.Compare(epoch); cmp > 0 {
		c.Adopt(h.id, applied)
		return
	} else if cmp < 0 {
		return
	}
	defer s.w.checkHeld(i, c)
	if w < applied && (w < h.base || rng.IntN(30) == 0) {
		s.note("jump")
		s.applyTo(c, kv.Record{Epoch: h.id, Prev: w, To: applied, Kind: kv.RecordAll})
		return
	}
	for _, b := range h.batches {
		again := b.to <= w && b.to+8 > w && rng.IntN(30) == 0
		if again {
			s.note("record again")
		}
		if (b.to > w && b.to <= applied && b.prev <= w) || again {
			s.applyTo(c, s.record(b, h, c))
			if !s.calm && rng.IntN(2) == 0 {
				break
			}
			_, w = c.Position()
		}
	}
}

func (s *sim) applyTo(c *Cache, rec kv.Record) {
	if err := c.Apply(rec); err != nil {
		s.w.fail("feed: %v", err)
	}
}

func (s *sim) hint(rng *rand.Rand, i int) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	c := s.nodes[i].c
	epoch, w := c.Position()
	h := s.w.of(epoch)
	if h == nil || len(h.batches) == 0 {
		return
	}
	b := h.batches[len(h.batches)-1-min(rng.IntN(12), rng.IntN(len(h.batches)))]
	rec := s.record(b, h, c)
	if b.to > w {
		s.note("hint before feed")
	}
	if rng.IntN(40) == 0 {
		rec.Prev, rec.To = 1<<40, 1<<40+1
	}
	if rec.Kind == kv.RecordNamespace && rec.To > w {
		s.note("hinted floor")
	}
	c.Hint(rec)
	s.w.checkHeld(i, c)
}

func (s *sim) probe(rng *rand.Rand, i int) {
	n, c, dead := s.live(i)
	epoch, _ := c.Position()
	t0 := c.Now()
	relay := i > 0 && c.Ready() && rng.IntN(2) == 0
	if s.pause(s.ctx, rng, 20*time.Millisecond) != nil {
		return
	}
	s.w.mu.Lock()
	if s.cut[i] && rng.IntN(2) == 0 {
		s.w.mu.Unlock()
		return
	}
	source, answered, rev, age := s.nodes[0], s.w.head().id, s.w.commit, time.Duration(0)
	if relay {
		var f Mono
		var proven bool
		if answered, rev, f, proven = source.c.Proof(); !proven {
			s.w.mu.Unlock()
			return
		}
		age = source.c.Now() - f
		s.note("relayed proof")
	}
	s.w.mu.Unlock()
	if s.pause(s.ctx, rng, 20*time.Millisecond) != nil || dead() || answered != epoch {
		return
	}
	if !relay {
		c.SetLeast(answered, rev)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	switch err := c.Prove(ctx, answered, rev, t0-age); {
	case err == nil, errors.Is(err, ErrForeignEpoch), ctx.Err() != nil:
	default:
		s.w.fail("node %d: Prove: %v", n.id, err)
	}
}

func (s *sim) evict(i int) {
	_, c, _ := s.live(i)
	for range 2 {
		c.evictOne(false)
		c.evictOne(true)
	}
}

// simAsker is one node's way to the next tiers.
type simAsker struct {
	s   *sim
	n   *simNode
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func (a *simAsker) Route(_ uint64, hops int) (route []Hop) {
	a.wait(context.Background(), 10*time.Millisecond) // so that much can happen between reading S and asking
	if a.n.id > 0 && hops == 0 {
		route = append(route, Hop{"0", TierRegion})
	}
	return append(route, Hop{"v", TierCentral}, Hop{"l", TierStore})
}

func (a *simAsker) draw(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rng.IntN(n)
}

func (a *simAsker) wait(ctx context.Context, mean time.Duration) {
	a.mu.Lock()
	rng := rand.New(rand.NewPCG(a.rng.Uint64(), 0))
	a.mu.Unlock()
	_ = a.s.pause(ctx, rng, mean)
}

func (a *simAsker) Ask(ctx context.Context, hop Hop, req FillRequest) (FillAnswer, error) {
	s, w := a.s, a.s.w
	a.wait(ctx, 20*time.Millisecond)
	var ans FillAnswer
	var err error
	switch hop.Tier {
	case TierRegion:
		_, c, dead := s.live(0)
		if ans, err = c.Serve(ctx, req); err == nil && dead() {
			err = errDown
		}
	case TierCentral:
		ans, err = a.voter(ctx, req)
	default:
		w.mu.Lock()
		ans = w.answer(w.head(), w.commit, req, int(req.Key[1]-'0'))
		w.mu.Unlock()
	}
	a.wait(ctx, 20*time.Millisecond)
	if a.draw(25) == 0 {
		a.wait(ctx, 600*time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && hop.Tier == TierRegion {
		s.note("served to a peer")
	}
	if !s.calm && (s.down || a.draw(20) == 0) {
		err = errDown
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return ans, err
}

// voter answers from its own state: F first, then the state, then the clock.
func (a *simAsker) voter(ctx context.Context, req FillRequest) (FillAnswer, error) {
	s, w := a.s, a.s.w
	w.mu.Lock()
	f := s.voters[1].f
	w.mu.Unlock()
	a.wait(ctx, 5*time.Millisecond)
	w.mu.Lock()
	h, applied := w.hist[s.voters[1].hist], s.voters[1].applied
	if h.id != req.Epoch {
		w.mu.Unlock()
		return FillAnswer{Epoch: h.id}, nil
	}
	ans := w.answer(h, applied, req, int(req.Key[1]-'0'))
	w.mu.Unlock()
	a.wait(ctx, 5*time.Millisecond)
	ans.Age = w.now() - f
	if f < 0 || applied < req.Least || ans.Age > req.MaxAge {
		return FillAnswer{}, fmt.Errorf("the voter is at %d, %v old", applied, ans.Age)
	}
	return ans, nil
}
