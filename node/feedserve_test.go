package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// storeRig is a state machine with its ring and the feed server in front of it, as on a voter.
type storeRig struct {
	t     *testing.T
	state *state.State
	feeds *feedServer
	reg   *prometheus.Registry // of the feed server
	index uint64
}

var (
	firstEpoch = kv.Epoch{7: 1}
	quiet      = kv.NamespaceID{1} // changes at the beginning only
	busy       = kv.NamespaceID{2}
	doomed     = kv.NamespaceID{3}
)

func newStoreRig(t *testing.T) *storeRig {
	st, err := state.Open(t.TempDir()+"/state", state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &storeRig{t: t, state: st, reg: prometheus.NewRegistry()}
	r.feeds = &feedServer{ring: feed.NewRing(1), state: st, noticed: func(error) {}, ladder: newLadderMetric(r.reg)}
	st.Observe(func(c state.Committed) {
		for _, rec := range c.Records {
			r.feeds.ring.Append(rec) // which holds one record
		}
	})
	r.apply(command.Op{Kind: command.KindInit, Cluster: kv.ClusterID{1}, Epoch: firstEpoch, Namespace: quiet, Title: "default"})
	return r
}

func (r *storeRig) apply(ops ...command.Op) kv.Revision {
	r.t.Helper()
	res, err := r.commit(command.Batch{Ops: ops})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, o := range res.Ops {
		if o.Code != "" {
			r.t.Fatalf("%+v", res)
		}
	}
	return res.Revision
}

// commit applies one batch, whatever becomes of its operations.
func (r *storeRig) commit(b command.Batch) (command.Result, error) {
	r.index++
	res, err := r.state.Apply([]state.Entry{{Index: r.index, Term: 1, Batch: b}})
	if err != nil {
		return command.Result{}, err
	}
	return res[0], nil
}

func putIn(ns kv.NamespaceID, key string) command.Op {
	return command.Op{Kind: command.KindPut, Namespace: ns, Key: key, Value: []byte("v")}
}

func (r *storeRig) trim() { r.apply(command.Op{Kind: command.KindTrim, Revision: 1 << 40}) }

// Route and Ask make the rig the only tier of a cache.
func (r *storeRig) Route(uint64, int) []cache.Hop {
	return []cache.Hop{{Node: "v", Tier: cache.TierStore}}
}

func (r *storeRig) Ask(_ context.Context, _ cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	item, at, err := r.state.Get(req.Namespace, req.Key, false)
	return cache.FillAnswer{
		Epoch: at.Epoch, AsOf: at.Revision, Absent: item.Absent, Revision: item.Revision, Value: item.Value,
	}, err
}

func newReader(t *testing.T, asker cache.Asker) *cache.Cache {
	c := cache.New(cache.Options{
		Bytes: 1 << 20, Asker: asker, Metrics: prometheus.NewRegistry(), Clock: func() cache.Mono { return time.Hour },
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	t.Cleanup(c.Close)
	return c
}

// next asks the server and applies what it gives, as it comes over the wire. It returns the rung that was used.
func (r *storeRig) next(c *cache.Cache) (rung string, recs []kv.Record) {
	r.t.Helper()
	before := r.rungs()
	epoch, w := c.Position()
	recs, _, err := r.feeds.next(epoch, w, true)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rec := range recs {
		got, err := feed.Decode(feed.Append(nil, rec))
		if err == nil {
			err = c.Apply(got)
		}
		if err != nil {
			r.t.Fatalf("%+v: %v", rec, err)
		}
	}
	for x, n := range r.rungs() {
		if n -= before[x]; n != 0 {
			rung += fmt.Sprintf("%s×%v", x, n)
		}
	}
	return rung, recs
}

// rungs reads how often each was used.
func (r *storeRig) rungs() map[string]float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	n := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			n[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	return n
}

// TestLadder: a reader goes down one rung at a time. After the change index was trimmed it learns in which namespaces
// something changed, and keeps its hits in all others.
func TestLadder(t *testing.T) {
	r := newStoreRig(t)
	r.apply(
		command.Op{Kind: command.KindCreateNamespace, Namespace: busy, Title: "busy"},
		command.Op{Kind: command.KindCreateNamespace, Namespace: doomed, Title: "doomed"},
	)
	rev := r.apply(putIn(quiet, "k"), putIn(busy, "k"), putIn(doomed, "k"))
	c := newReader(t, r)
	c.Adopt(firstEpoch, rev)
	read := func(ns kv.NamespaceID) cache.Tier {
		t.Helper()
		ans, err := c.Get(t.Context(), cache.Read{Namespace: ns, Key: "k", Limit: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return ans.Tier
	}
	warm := func() {
		t.Helper()
		for _, ns := range []kv.NamespaceID{quiet, busy, doomed} {
			read(ns)
			if tier := read(ns); tier != cache.TierHit {
				t.Fatalf("%x: %q, want a hit", ns[0], tier)
			}
		}
	}
	warm()

	r.apply(putIn(busy, "other"))
	if rung, recs := r.next(c); rung != "ring×1" {
		t.Errorf("one change behind: %s, %+v", rung, recs)
	}
	r.apply(putIn(busy, "other"))
	r.apply(putIn(busy, "other"))
	if rung, recs := r.next(c); rung != "index×1" {
		t.Errorf("two behind: %s, %+v", rung, recs)
	}
	if rung, recs := r.next(c); rung != "" {
		t.Errorf("at the head: %s, %+v", rung, recs)
	}
	warm()

	_, pos := c.Position()
	changed := r.apply(putIn(busy, "k"))
	deleted := r.apply(command.Op{Kind: command.KindDeleteNamespace, Namespace: doomed})
	r.trim()
	want := []kv.Record{{
		Epoch: firstEpoch, Prev: pos, To: deleted, Kind: kv.RecordFloors,
		Floors: []kv.Floor{{Namespace: busy, Revision: changed}, {Namespace: doomed, Revision: deleted}},
	}}
	r.feeds.ring.Reset(firstEpoch, deleted+3) // the feed hears of a commit before readers of the state do
	if rung, recs := r.next(c); rung != "namespaces×1" || !reflect.DeepEqual(recs, want) {
		t.Errorf("trimmed: %s\ngot  %+v\nwant %+v", rung, recs, want)
	}
	for ns, want := range map[kv.NamespaceID]cache.Tier{quiet: cache.TierHit, busy: cache.TierStale, doomed: cache.TierStale} {
		if tier := read(ns); tier != want {
			t.Errorf("%x: %q, want %q", ns[0], tier, want)
		}
	}
	if _, w := c.Position(); w != deleted {
		t.Errorf("W is %d, want %d", w, deleted)
	}

	r.feeds.state = nil // a relay has no lower rungs, for a reader that finds no voter
	r.feeds.ring.Reset(firstEpoch, deleted+3)
	if rung, recs := r.next(c); rung != "all×1" || len(recs) != 1 || recs[0].Kind != kv.RecordAll || recs[0].To != deleted+3 {
		t.Errorf("on an edge: %s, %+v", rung, recs)
	}
	if tier := read(quiet); tier != cache.TierStale {
		t.Errorf("below a floor for everything: %q", tier)
	}
}

// TestLadderAcrossEpochs: whatever the ring and the state know of a new epoch, a reader in the old one gets no record of
// it, and a reader of the new one none of the old.
func TestLadderAcrossEpochs(t *testing.T) {
	r := newStoreRig(t)
	rev := r.apply(putIn(quiet, "a"), putIn(quiet, "b"), putIn(quiet, "c"))
	second := kv.NewEpoch(0, firstEpoch)
	began := r.apply(command.Op{Kind: command.KindNewEpoch, Epoch: second})
	last := r.apply(putIn(quiet, "d"), putIn(quiet, "e"))

	recs, changed, err := r.feeds.next(firstEpoch, rev, false)
	if err != nil || len(recs) != 0 {
		t.Errorf("old reader, new ring: %+v, %v", recs, err)
	}
	select {
	case <-changed: // the server looks at its position at once
	default:
		t.Error("the reader would wait for the next change")
	}
	ring := r.feeds.ring
	r.feeds.ring = feed.NewRing(1)
	for _, pos := range []kv.Revision{1, rev, began} { // the ring has not heard of it, the state has
		r.feeds.ring.Reset(firstEpoch, last+1)
		recs, _, err := r.feeds.next(firstEpoch, pos, false)
		want := []kv.Record{{Epoch: firstEpoch, Prev: pos, To: last + 1, Kind: kv.RecordAll}}
		if err != nil || !reflect.DeepEqual(recs, want) {
			t.Errorf("old reader at %d, old ring: %+v, %v; want %+v", pos, recs, err, want)
		}
	}
	r.feeds.ring = ring
	c := newReader(t, r)
	c.Adopt(second, 0) // by an answer, before the feed told where it begins
	for {
		_, recs := r.next(c)
		if len(recs) == 0 {
			break
		}
	}
	if e, w := c.Position(); e != second || w != last {
		t.Errorf("at %s.%d, want %s.%d", e, w, second, last)
	}
}

// TestBeginRace: a fill adopts an epoch, at W = 0, while the feed begins in it. Whoever comes first, W and the ring end up
// where the feed begins; were they left behind, nothing would be proven until the next write.
func TestBeginRace(t *testing.T) {
	c := newReader(t, nil)
	f := &follower{cache: c, ring: feed.NewRing(1 << 10)}
	epoch := firstEpoch
	for range 200 {
		epoch = kv.NewEpoch(0, epoch)
		f.applying.Lock() // a record is being applied
		begun := make(chan error)
		go func() { begun <- f.begin(epoch, 10) }()
		for range 100 {
			runtime.Gosched() // let it come as far as it can
		}
		c.Adopt(epoch, 0)
		f.applying.Unlock()
		if err := <-begun; err != nil {
			t.Fatal(err)
		}
		if e, w := c.Position(); e != epoch || w != 10 {
			t.Fatalf("the cache is at %s.%d, want %s.10", e, w, epoch)
		}
		if e, last := f.ring.Position(); e != epoch || last != 10 {
			t.Fatalf("the ring is at %s.%d, want %s.10", e, last, epoch)
		}
	}
	if err := f.begin(firstEpoch, 20); err == nil {
		t.Error("a superseded epoch was accepted")
	}
	if err := f.apply(kv.Record{Epoch: firstEpoch, Prev: 10, To: 11, Kind: kv.RecordAll}); !errors.Is(err, cache.ErrForeignEpoch) {
		t.Errorf("a record of a superseded epoch: %v", err)
	}
}

// TestRelayTooFarBehind: a relay whose ring does not reach back says so instead of telling the reader that everything may
// have changed, which a voter knows better; a reader that finds no voter takes even that.
func TestRelayTooFarBehind(t *testing.T) {
	r := newStoreRig(t)
	pos := r.apply(putIn(quiet, "a"))
	last := r.apply(putIn(quiet, "b"), putIn(quiet, "c"))
	relay := &feedServer{ring: r.feeds.ring, ladder: newLadderMetric(prometheus.NewRegistry())}
	if recs, _, err := relay.next(firstEpoch, pos-1, false); !errors.Is(err, errTooFarBack) || len(recs) != 0 {
		t.Errorf("%+v, %v", recs, err)
	}
	recs, _, err := relay.next(firstEpoch, pos-1, true)
	if want := []kv.Record{{Epoch: firstEpoch, Prev: pos - 1, To: last, Kind: kv.RecordAll}}; err != nil || !reflect.DeepEqual(recs, want) {
		t.Errorf("%+v, %v; want %+v", recs, err, want)
	}
	if recs, _, err := r.feeds.next(firstEpoch, pos-1, false); err != nil || len(recs) == 0 || recs[0].Kind != kv.RecordKeys {
		t.Errorf("at a voter: %+v, %v", recs, err)
	}

	ask := func(anything bool) (res *wire.PullResult, body []byte) {
		t.Helper()
		args, err := peer.Encode(&wire.PullArgs{Epoch: firstEpoch, Revision: pos - 1, Any: anything})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := relay.servePull(t.Context(), &peer.Request{Args: args})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Result.(*wire.PullResult), resp.Body
	}
	if res, body := ask(false); !res.TooFarBack || len(body) != 0 {
		t.Errorf("%+v and %d bytes", res, len(body))
	}
	if res, body := ask(true); res.TooFarBack || len(body) == 0 {
		t.Errorf("%+v and %d bytes", res, len(body))
	}
}
