package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
)

// Tier names who gave an answer, as the header Kv-Cache shows it.
type Tier string

// The tiers, nearest first.
const (
	TierHit        Tier = "hit"
	TierStale      Tier = "stale"
	TierRegion     Tier = "region"
	TierPeerRegion Tier = "peer-region"
	TierCentral    Tier = "central"
	TierStore      Tier = "store"
)

// MaxHops is how many nodes a fill passes at most.
const MaxHops = 3

// fillTimeout bounds one fill over all its tiers.
const fillTimeout = 10 * time.Second

// Hop is one place to ask.
type Hop struct {
	Node string // node id; the own id is the own store
	Tier Tier
}

// FillRequest asks a tier for one key's state, no older than Least and MaxAge.
type FillRequest struct {
	Namespace kv.NamespaceID
	Key       string
	Epoch     kv.Epoch
	Least     kv.Revision
	MaxAge    time.Duration
	// Have says that the asker holds the key's state with this write's revision (0 and HaveAbsent: the absence), so that
	// an unchanged state needs no body.
	Have       bool
	HaveAbsent bool
	HaveRev    kv.Revision
	// Hops is how many nodes have passed the request on already.
	Hops int
}

// FillAnswer is a tier's answer. Its AsOf is at least the request's Least and its Age at most the request's MaxAge;
// whoever is short of either asks the next tier itself, or fails.
type FillAnswer struct {
	Epoch kv.Epoch
	// NotModified says that the state is the one the asker has; only AsOf and Age are new.
	NotModified bool
	Absent      bool
	Revision    kv.Revision
	AsOf        kv.Revision
	// Age is how long before the answer the state was current at the latest.
	Age      time.Duration
	Expiry   int64
	Size     int64
	WriteID  kv.WriteID
	Blob     kv.BlobID
	Metadata []byte // plaintext
	Value    []byte // plaintext; nil when the value is larger than kv.MaxCachedValueBytes
}

// Asker finds and asks other tiers, the node's own store included.
type Asker interface {
	// Route lists whom to ask for a key, nearest first; hops says how many nodes the request has passed. It does not
	// block. A hop of TierStore must be the leader, and answer only after confirming that it leads and with the state at
	// that moment or later: what it has not heard of does not exist.
	Route(hash uint64, hops int) []Hop
	// Ask asks one of them. An answer of another epoch is given as it is. Errors mean: ask the next one. It blocks until
	// ctx ends at the latest.
	Ask(ctx context.Context, hop Hop, req FillRequest) (FillAnswer, error)
}

// flight is one running fill. What follows done is written before it is closed, and read by all who waited.
type flight struct {
	target target
	need   need        // what it was begun for
	direct atomic.Bool // it asks the store's tiers only
	done   chan struct{}
	entry  *Entry // the result, as it was offered to the cache; never changed
	tier   Tier
	err    error
}

// need is what a reader demands of a fill's result.
type need struct {
	least  kv.Revision // B, or what a peer asked for
	maxAge time.Duration
	hops   int // of the request that caused it, 0 for a client's
	leader bool
	idle   bool // nobody waits: a refill
}

// covers reports whether a fill begun for n meets what m demands.
func (n need) covers(m need) bool { return n.least >= m.least && n.maxAge <= m.maxAge }

var (
	// errShort says that a tier's answer was older than asked for.
	errShort = errors.New("the answer is older than what was asked for")
	// errUnmet says that a fill succeeded, but not as this reader needs it.
	errUnmet = errors.New("the fill's result does not satisfy the reader")
)

// obtain waits for the result of a fill that meets accept: of whatever runs, and if that disappoints, of one that began
// after the caller came, its own or that of somebody who was disappointed as well. So n readers of one key cause one
// fill, and two when a record comes in between, never n. It fails with errUnmet when accept refuses that one too, and with
// what expired says when that comes first.
func (c *Cache) obtain(ctx context.Context, t target, n need, expired <-chan time.Time, accept func(*flight) bool) (*flight, error) {
	var refused *flight
	for {
		f, joined := c.fly(t, n, refused)
		if joined {
			c.metrics.joins.Inc()
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, kv.Errorf(kv.CodeDeadlineExceeded, "the request ended before the fill did: %v", context.Cause(ctx))
		case <-expired:
			return nil, kv.Errorf(kv.CodeDeadlineExceeded, "the fill takes longer than %v", staleWait)
		}
		if f.err == nil && accept(f) {
			return f, nil
		}
		if f.err == nil && joined {
			c.metrics.joinsRefused.Inc()
		}
		if joined && refused == nil { // its needs may have been other ones than ours
			refused = f
			continue
		}
		if f.err != nil {
			return nil, f.err
		}
		return nil, errUnmet
	}
}

// fly returns a running fill of the key, or starts one. A caller who joined must check the result against its own needs.
// With refused, a fill is joined only if it began after that one and was begun for no less than n.
func (c *Cache) fly(t target, n need, refused *flight) (f *flight, joined bool) {
	sh := c.shard(t.hash)
	sh.mu.Lock()
	// The key is compared, because hashes may collide. A peer's request never waits for a fill that asks peers: two nodes
	// that take each other for the owner would wait for each other.
	if f := sh.flights[t.hash]; f != nil && f != refused && f.target == t && !n.leader &&
		(f.need.hops >= n.hops || f.direct.Load()) && (refused == nil || f.need.covers(n)) {
		sh.mu.Unlock()
		return f, true
	}
	f = &flight{target: t, need: n, done: make(chan struct{})}
	if !c.begin() {
		sh.mu.Unlock()
		f.err = kv.Errorf(kv.CodeUnavailable, "this node is shutting down")
		close(f.done)
		return f, false
	}
	if !n.leader {
		sh.flights[t.hash] = f
	}
	sh.mu.Unlock()
	c.running.Add(1)
	go func() {
		defer c.fills.Done()
		defer c.running.Add(-1)
		ctx, cancel := context.WithTimeout(c.ctx, fillTimeout)
		defer cancel()
		deepen()
		f.entry, f.tier, f.err = c.contained(ctx, f)
		sh.mu.Lock()
		if sh.flights[t.hash] == f {
			delete(sh.flights, t.hash)
		}
		sh.mu.Unlock()
		close(f.done)
	}()
	return f, false
}

// deepen grows the stack of a new goroutine once, while there is next to nothing on it. A fill that reads the own store needs
// about this much, and growing step by step, with all frames moved each time, was 6 % of what a strong read costs.
//
//go:noinline
func deepen() {
	var room [12 << 10]byte
	runtime.KeepAlive(&room)
}

// contained runs a fill so that a panic in it fails its waiters and nobody else.
func (c *Cache) contained(ctx context.Context, f *flight) (e *Entry, tier Tier, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.opts.Logger.Error("a fill panicked", "panic", p, "stack", string(debug.Stack()))
			e, err = nil, kv.Errorf(kv.CodeInternal, "the fill failed: %v", p)
		}
	}()
	t, n := f.target, f.need
	for range maxTries { // an epoch that changes under way begins the fill anew
		e, tier, err = c.fill(ctx, t, n, &f.direct)
		if !errors.Is(err, ErrForeignEpoch) {
			break
		}
		n.least = 0 // of the old epoch
		t = c.view.Load().target(t.ns, t.key)
	}
	return e, tier, err
}

// fill asks tier by tier (I3): register, read the held entry and P(key), then S, then ask; store, then unregister.
func (c *Cache) fill(ctx context.Context, t target, n need, direct *atomic.Bool) (*Entry, Tier, error) {
	sh := c.shard(t.hash)
	var reg *registration
	if !mutRegisterAfterS {
		reg = sh.register(t.hash, t.epoch)
		reg.read = !n.idle
		defer sh.unregister(reg)
	}
	held, p := sh.heldAndNoted(t)
	v := c.view.Load() // S after the registration, the held entry and P
	if v.epoch != t.epoch {
		return nil, "", ErrForeignEpoch
	}
	q := question{target: t, held: held, reg: reg}
	q.firm, q.least = c.leastFor(v, t, held, p)
	q.firm = max(q.firm, n.least, v.s)
	q.least = max(q.firm, q.least)
	q.FillRequest = FillRequest{
		Namespace: t.ns, Key: t.key, Epoch: t.epoch, Least: q.least, MaxAge: n.maxAge, Hops: n.hops,
	}
	if held != nil {
		q.Have, q.HaveAbsent, q.HaveRev = true, held.Absent(), held.Revision
	}
	var errs []error
	route := c.opts.Asker.Route(t.hash, n.hops)
	direct.Store(!slices.ContainsFunc(route, func(h Hop) bool { return h.Tier == TierRegion || h.Tier == TierPeerRegion }))
	for _, hop := range route {
		if n.leader && hop.Tier != TierStore {
			continue
		}
		if mutRegisterAfterS && q.reg == nil {
			c.mutant.stall()
			q.reg = sh.register(t.hash, t.epoch)
			q.reg.read = !n.idle
			defer sh.unregister(q.reg)
		}
		shown, err := c.ask(ctx, hop, &q, n)
		if err == nil {
			c.metrics.fills.WithLabelValues(string(hop.Tier), "ok").Inc()
			return shown, hop.Tier, nil
		}
		c.metrics.fills.WithLabelValues(string(hop.Tier), "failed").Inc()
		if errors.Is(err, ErrForeignEpoch) || errors.Is(err, errFuture) {
			return nil, "", err
		}
		errs = append(errs, fmt.Errorf("%s: %w", hop.Tier, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, "", kv.Errorf(kv.CodeNoLeader, "no node is known that could be asked; retry when the mesh has a leader")
	}
	slices.Reverse(errs) // the reason of the tier asked last, the leader's, says most
	return nil, "", errors.Join(errs...)
}

// question is what a fill asks, and what it needs to judge the answers.
type question struct {
	FillRequest
	target target
	held   *Entry // of the epoch, nil when there is none
	reg    *registration
	// firm is the part of least that answers and the feed demand; the rest was hinted.
	firm, least kv.Revision
}

// errFuture says that the leader itself has not reached the revision that a client asked for.
var errFuture = kv.FieldErrorf(kv.CodeInvalidParameter, "bookmark",
	"the bookmark is from the future: the mesh has not reached its revision; send one that this mesh gave")

// ask asks one tier, stores its answer, and returns it as the readers get it.
func (c *Cache) ask(ctx context.Context, hop Hop, q *question, n need) (*Entry, error) {
	sent := c.Now()
	ans, err := c.opts.Asker.Ask(ctx, hop, q.FillRequest)
	if err != nil {
		return nil, err
	}
	if short := ans.Epoch == q.Epoch && ans.AsOf < q.Least; short && hop.Tier == TierStore {
		if n.least > ans.AsOf && n.hops == 0 {
			return nil, errFuture
		}
		c.disprove(q.target, q.reg, ans.AsOf, q.Least)
		c.metrics.hintsDisproved.Inc()
		q.Least = q.firm
	}
	if err := c.check(ans, q.FillRequest); err != nil {
		return nil, err
	}
	e := ans.entry(q.FillRequest, q.held)
	e.ProvenAt = sent - ans.Age
	if mutProvenAtArrival {
		e.ProvenAt = c.Now()
	}
	shown := *e // what the readers get is not touched by storing; its bytes are the same
	c.store(q.reg, e)
	return &shown, nil
}

// leastFor is what P(key) and the held entry demand of an answer: firm for what answers and the feed have told, all with
// what was only hinted.
func (c *Cache) leastFor(v *view, t target, held *Entry, p kv.Revision) (firm, all kv.Revision) {
	firm = max(p, c.least.Load().in(t.epoch))
	all = max(firm, v.hinted[t.ns].rev)
	if held == nil {
		return firm, all
	}
	if !mutNoHeldAsOf {
		firm = max(firm, held.AsOf)
	}
	m := held.known()
	firm = max(firm, m.fed)
	return firm, max(firm, all, m.newer)
}

// check judges an answer before it is used. A greater epoch is adopted first, and begins the fill anew (I5).
func (c *Cache) check(ans FillAnswer, req FillRequest) error {
	switch cmp := ans.Epoch.Compare(req.Epoch); {
	case cmp > 0:
		c.Adopt(ans.Epoch, 0)
		return ErrForeignEpoch
	case cmp < 0:
		return fmt.Errorf("%w: it is of a superseded epoch", errShort)
	case c.view.Load().epoch != req.Epoch:
		return ErrForeignEpoch
	case ans.AsOf < req.Least && !mutOwnerIgnoresR:
		return fmt.Errorf("%w: revision %d, wanted %d", errShort, ans.AsOf, req.Least)
	case ans.Age > req.MaxAge:
		return fmt.Errorf("%w: %v, wanted %v", errShort, ans.Age, req.MaxAge)
	case ans.Age < 0:
		return fmt.Errorf("the answer claims to be of the future, by %v", -ans.Age)
	case ans.NotModified && !req.Have:
		return errors.New("unchanged, says the answer, but nothing was held")
	}
	return checkFits(req.Key, ans.Metadata, ans.Size, int64(len(ans.Value)))
}

// entry makes an Entry of an answer that has passed check; held is what the request said it has.
func (a *FillAnswer) entry(req FillRequest, held *Entry) *Entry {
	if a.NotModified { // renews the entry it was asked for, and no other
		e := *held
		e.AsOf, e.mark = a.AsOf, nil
		return &e
	}
	return newEntry(&State{
		Namespace: req.Namespace, Key: req.Key, Epoch: a.Epoch, AsOf: a.AsOf,
		Absent: a.Absent, Revision: a.Revision, Expiry: a.Expiry, Size: a.Size, WriteID: a.WriteID, Blob: a.Blob,
		Metadata: a.Metadata, Value: a.Value,
	})
}
