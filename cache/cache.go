// Package cache is what makes a node fast and truthful: the entries it holds, the function that says how fresh each is,
// the rules by which change records, hints and fills meet, and the fills themselves. It knows no network and no store:
// where to ask is the Asker's business.
//
// The protocol and its invariants I1–I7 are those of DESIGN.md in this folder; comments refer to them by these names.
package cache

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// ErrGap is returned by Apply when records are missing before the given one: the feed resumes at the watermark.
var ErrGap = errors.New("change records are missing before this one")

// ErrForeignEpoch is returned by Apply for a record of another epoch than the adopted one.
var ErrForeignEpoch = errors.New("the change record is of another epoch")

// Options are what a cache is made of.
type Options struct {
	// Bytes bounds the memory of the entries, keys and bookkeeping included.
	Bytes int64
	// Clock reads the node's own monotonic clock.
	Clock func() Mono
	// Asker finds and asks the next tiers. It must be safe for concurrent use.
	Asker Asker
	// Local reads one key from the node's own store, however old that is: the answer's Age means nothing. It is asked when
	// the mesh cannot prove anything to a node that has just started. nil = there is no store.
	Local func(ctx context.Context, req FillRequest) (FillAnswer, error)
	// Restarted says that this node may have shown things to clients in an earlier life: nothing is served before
	// SetLeast has been called, except stale-if-error.
	Restarted bool
	Logger    *slog.Logger
	Metrics   prometheus.Registerer
}

// Cache holds what a node's users read.
//
// Lock order: mu before a shard's lock. Neither is ever held across I/O.
type Cache struct {
	opts    Options
	metrics *metrics
	cancel  context.CancelFunc
	ctx     context.Context // the parent of all fills
	fills   sync.WaitGroup
	running atomic.Int32 // fills under way

	closing sync.Mutex // guards closed, so that no fill begins once Close waits; taken last
	closed  bool

	mu      sync.Mutex           // serialises whoever replaces the view: records, hints, proofs, adoptions
	view    atomic.Pointer[view] // replaced under mu, loaded by anybody
	changed chan struct{}        // under mu: closed and replaced when (epoch, w) moves

	least atomic.Pointer[position] // least revision after a restart: R of the first probe that the leader answered
	ready atomic.Bool              // least is known, or not needed
	shown atomic.Pointer[position] // the highest revision shown or acknowledged, for lists

	mutant mutant // empty, except in the binary of the mutation tests

	shards [numShards]shard
	main   budget
	absent budget
	large  large
	hand   atomic.Uint32 // the shard that evicts next
}

// position is a revision of one history. An atomic pointer to one cannot be read as the revision of another epoch.
type position struct {
	epoch kv.Epoch
	rev   kv.Revision
}

// in is the revision if p is of epoch, else 0.
func (p *position) in(epoch kv.Epoch) kv.Revision {
	if p == nil || p.epoch != epoch {
		return 0
	}
	return p.rev
}

// absentShare is the part of the memory that known absences may take: 1/16. Random keys cannot push values out.
const absentShare = 16

// New returns an empty cache. Close ends its fills.
func New(opts Options) *Cache {
	c := &Cache{opts: opts, metrics: newMetrics(opts.Metrics), changed: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.absent.max = opts.Bytes / absentShare
	c.large.c, c.large.max, c.large.reads = c, opts.Bytes/largeShare, c.metrics.large
	c.large.values = make(map[LargeKey]*LargeValue)
	for i := range c.shards {
		c.shards[i].init()
	}
	c.view.Store(&view{f: void})
	c.ready.Store(!opts.Restarted || mutNoRestartLeast)
	c.metrics.observe(opts.Metrics, c)
	return c
}

// Close cancels the running fills and waits for them. What is held can still be read afterwards.
func (c *Cache) Close() {
	c.closing.Lock()
	c.closed = true
	c.closing.Unlock()
	c.cancel()
	c.fills.Wait()
}

// begin announces a fill to Close; false when there must be no more.
func (c *Cache) begin() bool {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.closed {
		return false
	}
	c.fills.Add(1)
	return true
}

// Now reads the node's own clock.
func (c *Cache) Now() Mono { return c.opts.Clock() }

// publish replaces the view. The caller holds mu.
func (c *Cache) publish(change func(*view)) *view {
	old := c.view.Load()
	next := *old
	change(&next)
	c.view.Store(&next)
	if next.w != old.w || next.epoch != old.epoch {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	return &next
}

// Apply applies one record of the feed (I2): publish S, mark, publish W. A record that repeats, or whose hint was seen,
// is applied all the same.
func (c *Cache) Apply(rec kv.Record) error {
	v, hot, err := c.apply(rec)
	c.refill(v, hot)
	return err
}

func (c *Cache) apply(rec kv.Record) (v *view, hot []*Entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v = c.view.Load()
	if rec.Epoch != v.epoch {
		return v, nil, ErrForeignEpoch
	}
	if rec.Prev > v.w {
		return v, nil, ErrGap
	}
	// A fill that registers from here on reads S ≥ rec.To and asks for at least that; one that registered before is hit
	// by the marking below. There is no third case, which is why S goes first.
	v = c.publish(func(n *view) {
		n.s = max(n.s, rec.To)
		if mutWBeforeMark {
			n.w = max(n.w, rec.To)
		}
		if mutFBeforeMark {
			n.f = max(n.f, c.mutant.early(rec.To))
		}
	})
	if mutWBeforeMark || mutFBeforeMark {
		c.mutant.linger()
	}
	if !(mutDropRecords && rec.To%100 == 9) {
		hot = c.markAll(v, rec)
	}
	v = c.publish(func(n *view) {
		n.w = max(n.w, rec.To)
		if mutWBack {
			n.w = rec.To
		}
	})
	return v, hot, nil
}

// refill fetches what is being read and has just changed, before anybody asks for it (refresh on change).
func (c *Cache) refill(v *view, hot []*Entry) {
	for _, e := range hot {
		if c.running.Load() >= maxRefills { // whoever reads it next fills it
			c.metrics.refills.WithLabelValues("skipped").Inc()
			continue
		}
		c.metrics.refills.WithLabelValues("started").Inc()
		c.refresh(v, e, refillLimit)
	}
}

const (
	// maxRefills bounds the fills that run when a change starts another one.
	maxRefills = 256
	// refillLimit is the age that a refill asks for: the default cache_ttl.
	refillLimit = time.Minute
)

// Hint applies a record heard by gossip: it marks, and never advances W. It reports false, and does nothing, for a record
// of another epoch and for one of more than one namespace, because gossip carries no authority. A record at
// or below W says nothing that the feed has not told, so an old message that is sent again costs nothing.
//
// What a hint says beyond W lasts until an answer of the leader disproves it; see disprove.
func (c *Cache) Hint(rec kv.Record) bool {
	v, hot, ok := c.hint(rec)
	c.refill(v, hot)
	return ok
}

func (c *Cache) hint(rec kv.Record) (v *view, hot []*Entry, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v = c.view.Load()
	if rec.Epoch != v.epoch || (rec.Kind != kv.RecordKeys && rec.Kind != kv.RecordNamespace) {
		return v, nil, false
	}
	if rec.To <= v.w {
		return v, nil, true
	}
	now := c.Now()
	for _, h := range rec.Hashes {
		if e := c.shard(h).mark(c, v, h, rec.To, now, true); e != nil {
			hot = append(hot, e)
		}
	}
	if rec.Kind == kv.RecordNamespace {
		c.publish(func(n *view) { n.hint(rec.Namespace, floor{rec.To, v.f, now}) })
	}
	if mutHintAdvancesW {
		c.publish(func(n *view) { n.s, n.w = max(n.s, rec.To), max(n.w, rec.To) })
	}
	return v, hot, true
}

// markAll marks what a record of the feed names, and returns what was hot of it. The caller holds mu, so that v's F is the
// F before this record's.
func (c *Cache) markAll(v *view, rec kv.Record) (hot []*Entry) {
	switch rec.Kind {
	case kv.RecordKeys:
		now := c.Now()
		for _, h := range rec.Hashes {
			if e := c.shard(h).mark(c, v, h, rec.To, now, false); e != nil {
				hot = append(hot, e)
			}
		}
	case kv.RecordNamespace:
		x := floor{rec.To, v.f, c.Now()}
		c.publish(func(n *view) { n.floors = n.floors.withNamespace(rec.Namespace, x) })
	case kv.RecordAll:
		x := floor{rec.To, v.f, c.Now()}
		c.publish(func(n *view) { n.floors = n.floors.withAll(x) })
	case kv.RecordFloors:
		now := c.Now()
		c.publish(func(n *view) { n.floors = n.floors.withNamespaces(rec.Floors, v.f, now) })
	}
	return hot
}

// Adopt moves to a greater epoch whose state the feed has told up to rev (0 when it came by another answer): everything
// held becomes old, and a floor lies at rev (I5). It reports false when epoch is not greater than the present one.
func (c *Cache) Adopt(epoch kv.Epoch, rev kv.Revision) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view.Load()
	if epoch.Compare(v.epoch) <= 0 {
		return false
	}
	now := c.Now()
	c.publish(func(n *view) {
		n.past = &past{v.epoch, v.hasher, v.f, v.floors}
		n.epoch, n.hasher = epoch, feed.NewHasher(epoch)
		n.w, n.s = rev, rev
		n.floors, n.hinted = floors{}, nil
		if rev > 0 && !mutNoEpochFloor {
			n.floors = n.floors.withAll(floor{rev, v.f, now})
		}
	})
	for i := range c.shards { // for the memory: whoever comes to a shard first moves it on as well
		c.shards[i].enterLocking(epoch)
	}
	c.metrics.epochs.Inc()
	return true
}

// Prove raises F to at, once every change up to rev has been applied: at that moment the leader's state was rev. It
// returns without effect when the epoch changes or ctx ends first.
func (c *Cache) Prove(ctx context.Context, epoch kv.Epoch, rev kv.Revision, at Mono) error {
	for {
		c.mu.Lock()
		v := c.view.Load()
		if v.epoch != epoch {
			c.mu.Unlock()
			return ErrForeignEpoch
		}
		if v.w >= rev || mutFWithoutW {
			if at > v.f {
				c.publish(func(n *view) { n.f = at })
			}
			c.mu.Unlock()
			return nil
		}
		changed := c.changed
		if mutFBeforeMark {
			c.mutant.wait(rev, at)
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// SetLeast tells a restarted node the revision of the first probe that the leader itself answered: whatever this node
// showed in an earlier life was committed by then (I7). Later calls, and calls for another epoch than the adopted one,
// change nothing.
func (c *Cache) SetLeast(epoch kv.Epoch, rev kv.Revision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready.Load() || epoch != c.view.Load().epoch {
		return
	}
	c.least.Store(&position{epoch, rev})
	c.ready.Store(true)
}

// Ready reports whether the least revision after a restart is known.
func (c *Cache) Ready() bool { return c.ready.Load() }

// Position is the adopted epoch and the watermark, as one value.
func (c *Cache) Position() (kv.Epoch, kv.Revision) {
	v := c.view.Load()
	return v.epoch, v.w
}

// WaitPosition waits until W has reached rev in epoch. It fails with ErrForeignEpoch once a greater epoch is adopted.
func (c *Cache) WaitPosition(ctx context.Context, epoch kv.Epoch, rev kv.Revision) error {
	for {
		c.mu.Lock()
		v := c.view.Load()
		changed := c.changed
		c.mu.Unlock()
		if v.epoch == epoch && v.w >= rev {
			return nil
		}
		if v.epoch.Compare(epoch) > 0 {
			return ErrForeignEpoch
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Proof is F together with the position it was read before: whoever relays a proof needs them in this order.
func (c *Cache) Proof() (epoch kv.Epoch, rev kv.Revision, f Mono, proven bool) {
	v := c.view.Load()
	return v.epoch, v.w, v.f, v.f > void
}

// Hash is the key's hash64 in the adopted epoch.
func (c *Cache) Hash(ns kv.NamespaceID, key string) uint64 { return c.view.Load().hasher.Key(ns, key) }

// LeastForList is the revision that a listing must not be older than: everything this node has seen or shown.
func (c *Cache) LeastForList() (kv.Epoch, kv.Revision) {
	shown, least := c.shown.Load(), c.least.Load()
	v := c.view.Load() // last: nothing is shown of an epoch before it is adopted
	return v.epoch, max(v.s, shown.in(v.epoch), least.in(v.epoch))
}

// noteShown remembers that rev was shown or acknowledged. The newest epoch wins.
func (c *Cache) noteShown(epoch kv.Epoch, rev kv.Revision) {
	next := &position{epoch, rev}
	for {
		old := c.shown.Load()
		if old != nil {
			if newer := epoch.Compare(old.epoch); newer < 0 || (newer == 0 && rev <= old.rev) {
				return
			}
		}
		if c.shown.CompareAndSwap(old, next) {
			return
		}
	}
}

// Stats is how much the cache holds.
type Stats struct {
	Entries, AbsentEntries int64
	Bytes                  int64
}

// Stats counts what is held now.
func (c *Cache) Stats() Stats {
	return Stats{
		Entries: c.main.entries.Load(), AbsentEntries: c.absent.entries.Load(),
		Bytes: c.main.bytes.Load() + c.absent.bytes.Load() + c.large.bytes.Load(),
	}
}
