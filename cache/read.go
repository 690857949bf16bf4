package cache

import (
	"context"
	"errors"
	"strings"
	"time"

	"kvmesh/raftstore/kv"
)

// Read is one client's demand.
type Read struct {
	Namespace kv.NamespaceID
	Key       string
	// Limit is the age up to which a cached state will do: cache_ttl, or less when MaxStaleness was asked for.
	Limit time.Duration
	// Explicit says that Limit was demanded by name: it is never stretched, and when it cannot be met the read fails.
	Explicit bool
	// Bookmark makes the answer at least that new; the zero value demands nothing.
	Bookmark kv.Bookmark
	// Strong makes the read linearizable.
	Strong bool
	// Waited is told how long the read waited for fills; nil = nobody wants to know.
	Waited *time.Duration
}

// wait counts what passes until the function that it returns is called.
func (c *Cache) wait(waited *time.Duration) (end func()) {
	began := c.Now()
	return func() { *waited += c.Now() - began }
}

// Answer is what a read gives.
type Answer struct {
	Entry *Entry
	AsOf  kv.Revision
	// Age is the proven bound on how long ago the state was current; negative when nothing is known.
	Age  time.Duration
	Tier Tier
	// Reason says why an old entry was served after a fill had failed.
	Reason string
}

// maxTries bounds how often a reader whose needs a joined fill did not meet starts over.
const maxTries = 3

// Get answers one read by the table in DESIGN.md. Errors are *kv.Error values.
func (c *Cache) Get(ctx context.Context, rd Read) (Answer, error) {
	var lastErr error
	var patience patience
	defer patience.stop()
	var past struct { // what could have been served at once, had nothing better been hoped for
		v *view
		e *Entry
	}
	for range maxTries {
		v := c.view.Load()
		if rd.Strong || (rd.Bookmark.Revision > 0 && rd.Bookmark.Epoch != v.epoch) {
			return c.strong(ctx, rd)
		}
		e := c.lookup(v, rd.Namespace, rd.Key)
		if ans, ok := c.fresh(v, e, rd); ok {
			return ans, nil
		}
		if _, ok := c.ifError(v, e, rd, nil); ok {
			patience.start()
			past.v, past.e = v, e
		}
		ans, retry, err := c.await(ctx, v, e, rd, patience.expired())
		if err == nil {
			return ans, nil
		}
		lastErr = err
		if !retry {
			break
		}
	}
	// The mesh could not help. What is held now may have changed since: look again.
	v := c.view.Load()
	e := c.lookup(v, rd.Namespace, rd.Key)
	switch {
	case errors.Is(lastErr, errFuture):
		return Answer{}, unavailable(lastErr)
	case rd.Bookmark.Revision > 0 && rd.Bookmark.Epoch != v.epoch: // superseded meanwhile
		return c.strong(ctx, rd)
	}
	if ans, ok := c.fresh(v, e, rd); ok {
		return ans, nil
	}
	if ans, ok := c.ifError(v, e, rd, lastErr); ok {
		return ans, nil
	}
	if past.e != nil { // it was held after this read began; evicted since, it is no older for that
		if ans, ok := c.ifError(past.v, past.e, rd, lastErr); ok {
			return ans, nil
		}
	}
	if ans, ok := c.lastResort(ctx, v, e, rd, lastErr); ok {
		return ans, nil
	}
	if ans, ok := c.unproven(ctx, v, rd, lastErr); ok {
		return ans, nil
	}
	if rd.Explicit && e != nil && !e.unknown() {
		if age := c.Now() - v.judge(e).proven; age > rd.Limit {
			return Answer{}, kv.Errorf(kv.CodeStaleBeyondLimit,
				"the freshest state this node can prove is %d ms old, the request allows %d ms; allow more, or retry when the mesh answers (%v)",
				age.Milliseconds(), rd.Limit.Milliseconds(), lastErr)
		}
	}
	return Answer{}, unavailable(lastErr)
}

// lastResort answers a default read of a key that is not held when the stores can be asked, but none of them is as current
// as cache_ttl wants: with no quorum a voter's state is worth what an old entry is, and its age is as true.
func (c *Cache) lastResort(ctx context.Context, v *view, e *Entry, rd Read, cause error) (Answer, bool) {
	tooOld := errors.Is(cause, errShort) || errors.Is(cause, &kv.Error{Code: kv.CodeStaleBeyondLimit})
	if !tooOld || e != nil || rd.Explicit || rd.Limit >= staleIfError {
		return Answer{}, false
	}
	rd.Limit = staleIfError
	ans, _, err := c.await(ctx, v, nil, rd, nil)
	if err != nil {
		return Answer{}, false
	}
	c.metrics.stale.WithLabelValues("if-error").Inc()
	ans.Tier, ans.Reason = TierStale, errText(cause)
	return ans, true
}

// unproven answers a default read from the own store of a node that was restarted in an outage, until something is proven
// to it. Nobody can tell how old that state is, so the answer states no bound, is not kept, and promises no order with what
// this node showed in an earlier life; a bookmark is met nevertheless. An absence is not given: a key that was created
// since would be denied.
func (c *Cache) unproven(ctx context.Context, v *view, rd Read, cause error) (Answer, bool) {
	if c.opts.Local == nil || rd.Explicit || v.f > void || v.epoch.IsZero() {
		return Answer{}, false
	}
	t := v.target(rd.Namespace, rd.Key)
	held, p := c.shard(t.hash).heldAndNoted(t)
	least, _ := c.leastFor(v, t, held, p)
	least = max(least, v.w, rd.Bookmark.Revision)
	req := FillRequest{Namespace: rd.Namespace, Key: rd.Key, Epoch: v.epoch, Least: least}
	ans, err := c.opts.Local(ctx, req)
	if err != nil || ans.Epoch != v.epoch || (ans.AsOf < least && !mutUnprovenIgnoresLeast) || ans.Absent ||
		checkFits(rd.Key, ans.Metadata, ans.Size, int64(len(ans.Value))) != nil {
		return Answer{}, false
	}
	e := ans.entry(req, nil)
	e.ProvenAt, e.mark = void, &mark{unknown: true}
	c.metrics.stale.WithLabelValues("if-error").Inc()
	return Answer{Entry: e, AsOf: e.AsOf, Age: -1, Tier: TierStale, Reason: errText(cause)}, true
}

// patience is how long one read waits for fills, over all its tries, while an old entry could be served instead.
type patience struct{ timer *time.Timer }

func (p *patience) start() {
	if p.timer == nil {
		p.timer = time.NewTimer(staleWait)
	}
}

func (p *patience) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

func (p *patience) expired() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C
}

// lookup finds the entry of a key: of this epoch, else of the one before.
func (c *Cache) lookup(v *view, ns kv.NamespaceID, key string) *Entry {
	h := v.hasher.Key(ns, key)
	if e := c.shard(h).get(h, ns, key); e != nil {
		return e
	}
	if v.past == nil {
		return nil
	}
	h = v.past.hasher.Key(ns, key)
	return c.shard(h).get(h, ns, key)
}

// fresh answers from e when the table allows it without waiting. The clock is read after the entry was found; the age
// counts to this reading, which is later than the start of the read, so the stated bound is on the safe side.
func (c *Cache) fresh(v *view, e *Entry, rd Read) (Answer, bool) {
	if e == nil || e.unknown() {
		return Answer{}, false
	}
	s := v.judge(e)
	now := c.Now()
	age, asOf := now-s.proven, v.asOf(e, s)
	if asOf < rd.Bookmark.Revision || s.old {
		return Answer{}, false
	}
	ans := Answer{Entry: e, AsOf: asOf, Age: max(age, 0), Tier: TierHit}
	switch {
	case !s.marked && age <= rd.Limit:
		c.metrics.hits.Inc()
		return ans, true
	case s.marked && age <= rd.Limit && now-s.markedAt <= swr,
		!s.marked && !rd.Explicit && age <= rd.Limit+swr:
		ans.Tier = TierStale
		c.metrics.stale.WithLabelValues("while-revalidating").Inc()
		c.refresh(v, e, rd.Limit)
		return ans, true
	}
	return Answer{}, false
}

// refresh starts a fill in the background, unless one runs.
func (c *Cache) refresh(v *view, e *Entry, limit time.Duration) {
	if c.ready.Load() {
		c.fly(v.target(e.Namespace(), e.Key()), need{maxAge: limit, idle: true}, nil)
	}
}

// await waits for a fill that satisfies the reader, joining a running one. retry says that another attempt may help.
func (c *Cache) await(ctx context.Context, v *view, e *Entry, rd Read, expired <-chan time.Time) (ans Answer, retry bool, err error) {
	if !c.ready.Load() {
		return ans, false, kv.Errorf(kv.CodeUnavailable, "this node has just started and waits for its first word from the leader; retry")
	}
	if rd.Waited != nil {
		defer c.wait(rd.Waited)()
	}
	// The reader's own least revision: the entry it found, the held entry and P first, W last.
	t := v.target(rd.Namespace, rd.Key)
	held, p := c.shard(t.hash).heldAndNoted(t)
	now := c.view.Load()
	if now.epoch != v.epoch {
		return ans, true, ErrForeignEpoch
	}
	_, least := c.leastFor(now, t, held, p)
	if e != nil && e.Epoch() == v.epoch {
		_, found := c.leastFor(now, t, e, p)
		least = max(least, found)
	}
	least = max(least, now.w, rd.Bookmark.Revision)

	c.metrics.waits.Inc()
	n := need{least: rd.Bookmark.Revision, maxAge: rd.Limit}
	f, err := c.obtain(ctx, t, n, expired, func(f *flight) bool {
		if f.entry.Epoch() != t.epoch || c.view.Load().epoch != t.epoch {
			return false
		}
		// A default read takes what is within its limit when it is given, an explicit one what still is when it arrives.
		inTime := c.Now()-f.entry.ProvenAt <= rd.Limit || (!rd.Explicit && f.need.maxAge <= rd.Limit)
		return (f.entry.AsOf >= least || mutJoinerIgnoresR) && (inTime || mutJoinerIgnoresLimit)
	})
	if err != nil {
		return ans, errors.Is(err, errUnmet) || errors.Is(err, ErrForeignEpoch), err
	}
	age := max(c.Now()-f.entry.ProvenAt, 0)
	return Answer{Entry: f.entry, AsOf: f.entry.AsOf, Age: age, Tier: f.tier}, false, nil
}

// ifError answers a default read from an old entry when the mesh could not help.
func (c *Cache) ifError(v *view, e *Entry, rd Read, cause error) (Answer, bool) {
	if rd.Explicit || e == nil {
		return Answer{}, false
	}
	s := v.judge(e)
	if (s.old && rd.Bookmark.Revision > 0) || v.asOf(e, s) < rd.Bookmark.Revision {
		return Answer{}, false
	}
	ans := Answer{Entry: e, AsOf: v.asOf(e, s), Age: -1, Tier: TierStale}
	if !e.unknown() {
		ans.Age = max(c.Now()-s.proven, 0)
		if ans.Age > staleIfError {
			return Answer{}, false
		}
	}
	if cause != nil {
		c.metrics.stale.WithLabelValues("if-error").Inc()
		ans.Reason = errText(cause)
	}
	return ans, true
}

// strong reads through the leader, past everything that is held. Each read asks for itself: the answer of a fill that
// began earlier could be older than this read.
func (c *Cache) strong(ctx context.Context, rd Read) (Answer, error) {
	if rd.Waited != nil {
		defer c.wait(rd.Waited)()
	}
	for range maxTries {
		t := c.view.Load().target(rd.Namespace, rd.Key)
		f, err := c.obtain(ctx, t, need{maxAge: fillTimeout, leader: true}, nil, func(f *flight) bool {
			return f.entry.Epoch() == c.view.Load().epoch
		})
		if err == nil {
			return Answer{Entry: f.entry, AsOf: f.entry.AsOf, Age: max(c.Now()-f.entry.ProvenAt, 0), Tier: f.tier}, nil
		}
		if !errors.Is(err, errUnmet) && !errors.Is(err, ErrForeignEpoch) {
			return Answer{}, unavailable(err)
		}
	}
	return Answer{}, unavailable(ErrForeignEpoch)
}

// unavailable turns a failed fill into what a client is told: never "not found", never "unauthorized".
func unavailable(err error) error {
	var e *kv.Error
	if errors.As(err, &e) {
		switch e.Code {
		case kv.CodeNoLeader, kv.CodeNoQuorum, kv.CodeOverloaded, kv.CodeUnavailable, kv.CodeDeadlineExceeded,
			kv.CodeInternal, kv.CodeNamespaceNotFound, kv.CodeInvalidParameter:
			return e
		}
	}
	return &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: time.Second,
		Message: "the key is not cached here and no other tier could answer; retry: " + errText(err),
	}
}

func errText(err error) string {
	if err == nil {
		return "no reason known"
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ") // joined errors stand one a line
}

// Serve answers another node's fill: from what is held if that is unmarked, new enough and young enough, else by a fill
// of its own from the next tiers, for no less than was asked. Marked entries are never given to peers.
func (c *Cache) Serve(ctx context.Context, req FillRequest) (FillAnswer, error) {
	if !c.ready.Load() {
		return FillAnswer{}, kv.Errorf(kv.CodeUnavailable, "this node has just started and waits for its first word from the leader")
	}
	v := c.view.Load()
	if v.epoch != req.Epoch {
		return FillAnswer{}, kv.Errorf(kv.CodeEpochChanged, "this node is in epoch %s, the fill in %s", v.epoch, req.Epoch)
	}
	if e := c.lookup(v, req.Namespace, req.Key); e != nil && !e.unknown() {
		s := v.judge(e)
		age, asOf := max(c.Now()-s.proven, 0), v.asOf(e, s)
		if !s.marked && (asOf >= req.Least || mutOwnerIgnoresR) && age <= req.MaxAge {
			return answerFrom(e, req, asOf, age), nil
		}
	}
	if req.Hops+1 >= MaxHops {
		return FillAnswer{}, kv.Errorf(kv.CodeStaleBeyondLimit, "what this node holds is older than was asked for, and %d nodes have passed the request on", req.Hops+1)
	}
	n := need{least: req.Least, maxAge: req.MaxAge, hops: req.Hops + 1}
	if mutOwnerIgnoresR {
		n.least = 0
	}
	var age time.Duration
	f, err := c.obtain(ctx, v.target(req.Namespace, req.Key), n, nil, func(f *flight) bool {
		age = max(c.Now()-f.entry.ProvenAt, 0)
		return f.entry.Epoch() == req.Epoch && (f.entry.AsOf >= req.Least || mutOwnerIgnoresR) && age <= req.MaxAge
	})
	if err != nil {
		return FillAnswer{}, passedOn(err)
	}
	return answerFrom(f.entry, req, f.entry.AsOf, age), nil
}

// passedOn gives a failed fill a code for the node that asked: it asks the next tier, and its client must not be told of
// an internal error because this one was short of something.
func passedOn(err error) error {
	if e := new(kv.Error); errors.As(err, &e) {
		return err
	}
	return kv.Errorf(kv.CodeStaleBeyondLimit, "no tier beyond this node could answer as asked: %s", errText(err))
}

func answerFrom(e *Entry, req FillRequest, asOf kv.Revision, age time.Duration) FillAnswer {
	a := FillAnswer{Epoch: e.Epoch(), AsOf: asOf, Age: age, Absent: e.Absent(), Revision: e.Revision}
	if req.Have && req.HaveAbsent == e.Absent() && req.HaveRev == e.Revision {
		a.NotModified = true
		return a
	}
	a.Expiry, a.Size, a.WriteID, a.Blob, a.Metadata, a.Value = e.Expiry, e.Size(), e.WriteID(), e.Blob(), e.Metadata(), e.Value()
	return a
}
