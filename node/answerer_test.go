package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// voterRig is the answering half of a voter: a central store of one and the cache that follows it. Run it in a bubble.
type voterRig struct {
	t     *testing.T
	ns    kv.NamespaceID
	store *raftstore.Store
	cache *cache.Cache
	*answerer

	hold  atomic.Bool // applying stops between what the feed hears of and what readers see
	heard chan kv.Record
	let   chan struct{}
}

// alone is the transport of a voter without others.
type alone struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
}

func (a *alone) Accept() (net.Conn, error) { <-a.closed; return nil, net.ErrClosed }
func (a *alone) Close() error              { a.once.Do(func() { close(a.closed) }); return nil }
func (*alone) DialNode(context.Context, string) (net.Conn, error) {
	return nil, net.ErrClosed
}

func newVoterRig(t *testing.T) *voterRig {
	start := time.Now()
	mono := func() time.Duration { return time.Since(start) }
	r := &voterRig{t: t, ns: kv.NamespaceID{9}, heard: make(chan kv.Record, 100), let: make(chan struct{})}
	r.cache = cache.New(cache.Options{
		Bytes: 1 << 20, Metrics: prometheus.NewRegistry(), Clock: mono, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	var err error
	r.store, err = raftstore.Open(t.Context(), raftstore.Options{
		Dir: t.TempDir(), NodeID: "v", Stream: &alone{closed: make(chan struct{})}, Profile: raftstore.ProfileTest,
		MeshNow: func() int64 { return time.Now().UnixMilli() }, Mono: mono, LogStore: raftstore.MemoryLog(), FS: vfs.NewMem(),
		Fatal: func(err error) { t.Error(err) }, Observe: r.observe,
		Init: func() (command.Op, error) {
			return command.Op{Kind: command.KindInit, Cluster: kv.ClusterID{1}, Epoch: firstEpoch, Namespace: r.ns, Title: "default"}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.cache.Close()
		if err := r.store.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := r.store.Bootstrap([]string{"v"}); err != nil {
		t.Fatal(err)
	}
	r.answerer = &answerer{store: r.store, cache: r.cache, clock: newMeshClock(mono, mono, start)}
	r.follow()
	return r
}

func (r *voterRig) observe(c state.Committed) {
	for _, rec := range c.Records {
		r.heard <- rec
	}
	if r.hold.Load() {
		<-r.let
	}
}

// follow applies the next record to the cache, as the voter's own feed does.
func (r *voterRig) follow() kv.Revision {
	r.t.Helper()
	rec := <-r.heard
	r.cache.Adopt(rec.Epoch, 0)
	if err := r.cache.Apply(rec); err != nil {
		r.t.Fatal(err)
	}
	return rec.To
}

// prove makes the cache's F a moment some time ago, with everything that it has applied.
func (r *voterRig) prove(ago time.Duration) {
	r.t.Helper()
	epoch, w := r.cache.Position()
	if err := r.cache.Prove(r.t.Context(), epoch, w, r.cache.Now()-ago); err != nil {
		r.t.Fatal(err)
	}
}

// propose puts a value, and returns when the entry has been applied.
func (r *voterRig) propose(value string) {
	op := putIn(r.ns, "k")
	op.Value = []byte(value)
	if res, err := r.store.Propose(r.t.Context(), []command.Op{op}); err != nil || res.Ops[0].Code != "" {
		r.t.Errorf("%+v %v", res, err)
	}
}

func (r *voterRig) ask(least kv.Revision, maxAge time.Duration) (wire.FillResult, string, error) {
	res, body, err := r.fill(r.t.Context(), &wire.FillArgs{
		Namespace: r.ns, Key: "k", Epoch: firstEpoch, Least: least, MaxAgeNs: int64(maxAge), Tier: string(cache.TierCentral),
	})
	return res, string(body), err
}

// A voter's answer is as old as what its own feed has proven, and is not given to who wants a younger one.
func TestFillStatesItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newVoterRig(t)
		r.propose("1")
		w := r.follow()
		if _, _, err := r.ask(0, time.Hour); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("nothing is proven: %v", err)
		}
		time.Sleep(time.Minute)
		r.prove(3 * time.Second)
		time.Sleep(time.Second)
		res, body, err := r.ask(w, 4*time.Second)
		if err != nil || body != "1" || res.AsOf != w || res.AgeNs != int64(4*time.Second) {
			t.Errorf("%+v %q: %v", res, body, err)
		}
		if _, _, err := r.ask(w, 4*time.Second-1); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("too old: %v", err)
		}
		if _, _, err := r.ask(w+1, time.Hour); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("too far behind: %v", err)
		}
	})
}

// The feed has told of a write, and proven this voter current with it, before readers of the state see it. F speaks of
// that write, so an answer by this F waits until the state has it.
func TestFillWaitsForTheWOfItsF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newVoterRig(t)
		r.propose("1")
		r.follow()
		r.hold.Store(true)
		var wrote sync.WaitGroup
		wrote.Go(func() { r.propose("2") })
		w := r.follow()
		r.prove(0)
		if res, body, err := r.ask(0, time.Hour); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("answered %q as of %d with an age of %v, the feed is at %d: %v", body, res.AsOf, time.Duration(res.AgeNs), w, err)
		}
		page, err := r.list(t.Context(), &wire.ListArgs{Namespace: r.ns, Epoch: firstEpoch, Limit: 10, MaxAgeNs: -1})
		if kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("listed %+v: %v", page, err)
		}
		time.AfterFunc(applyWait/2, func() { close(r.let) })
		if res, body, err := r.ask(0, time.Hour); err != nil || body != "2" || res.AsOf != w {
			t.Errorf("%+v %q: %v", res, body, err)
		}
		wrote.Wait()
	})
}

// What an edge tells of its own proof holds W and F of one moment, and the age of F.
func TestProofOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newReader(t, nil)
		zero := func() time.Duration { return 0 }
		clock := newMeshClock(zero, zero, time.Now())
		clock.Observe(time.Now().UnixMilli())
		if res, err := proofOf(c, clock); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
			t.Errorf("nothing is proven: %+v %v", res, err)
		}
		c.Adopt(firstEpoch, 7)
		if err := c.Prove(t.Context(), firstEpoch, 7, c.Now()-3*time.Second); err != nil {
			t.Fatal(err)
		}
		want := wire.ProbeResult{Epoch: firstEpoch, Revision: 7, AgeNs: int64(3 * time.Second), MeshTime: clock.Now()}
		if res, err := proofOf(c, clock); err != nil || res != want {
			t.Errorf("%+v, want %+v: %v", res, want, err)
		}
	})
}

// However long the answer takes, it says how things were when the question was sent.
func TestProbeCountsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newVoterRig(t)
		for { // until it leads
			if _, err := r.store.Confirm(t.Context()); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		dir := newDirectory("v", "here", nil)
		dir.observed("v", wire.Members{Voters: []string{"v"}})
		p := &prober{
			self: "v", cache: r.cache, dir: dir, clock: r.clock, upstream: func() string { return "" }, local: r.answerer,
		}
		r.hold.Store(true)
		var wrote sync.WaitGroup
		wrote.Go(func() { r.propose("1") })
		r.follow() // the entry is committed, so the probe has to wait for it
		asked := r.cache.Now()
		time.AfterFunc(700*time.Millisecond, func() { close(r.let) })
		if err := p.once(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, _, f, proven := r.cache.Proof()
		if !proven || f != asked {
			t.Errorf("F is %v (%v), asked at %v, answered at %v", f, proven, asked, r.cache.Now())
		}
		wrote.Wait()
	})
}
