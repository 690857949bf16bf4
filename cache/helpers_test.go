package cache

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

var (
	epoch1 = kv.Epoch{7: 1} // without random bits, so that hashes and shards are the same in every run
	epoch2 = kv.Epoch{7: 2}
	nsA    = kv.NamespaceID{0xa}
	nsB    = kv.NamespaceID{0xb}
)

var errDown = errors.New("nobody answers")

// rig is a cache in epoch1 with a clock moved by hand and an Asker that does as the test says.
type rig struct {
	t     *testing.T
	c     *Cache
	reg   *prometheus.Registry
	clock atomic.Int64
	onNow func() // runs whenever the clock is read
	route func() // runs whenever a fill has read its S and is about to ask
	hops  []Hop
	ask   func(ctx context.Context, hop Hop, req FillRequest) (FillAnswer, error)
	asked atomic.Int64
}

func (r *rig) Route(uint64, int) []Hop {
	if r.route != nil {
		r.route()
	}
	return r.hops
}

func (r *rig) Ask(ctx context.Context, hop Hop, req FillRequest) (FillAnswer, error) {
	r.asked.Add(1)
	return r.ask(ctx, hop, req)
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	r := &rig{t: t, reg: prometheus.NewRegistry(), hops: []Hop{{"v1", TierCentral}}}
	r.ask = func(context.Context, Hop, FillRequest) (FillAnswer, error) { return FillAnswer{}, errDown }
	r.clock.Store(int64(1000 * time.Second))
	opts := Options{
		Bytes: 1 << 20, Asker: r, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: r.reg,
		Clock: func() Mono {
			if r.onNow != nil {
				r.onNow()
			}
			return r.now()
		},
	}
	for _, f := range change {
		f(&opts)
	}
	r.c = New(opts)
	t.Cleanup(r.c.Close)
	r.c.Adopt(epoch1, 0)
	return r
}

func (r *rig) now() Mono            { return Mono(r.clock.Load()) }
func (r *rig) pass(d time.Duration) { r.clock.Add(int64(d)) }

// answers makes every tier answer with ans, the epoch and a value filled in.
func (r *rig) answers(ans FillAnswer) {
	r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
		ans := ans
		if ans.Epoch.IsZero() {
			ans.Epoch = req.Epoch
		}
		if ans.Value == nil && !ans.Absent {
			ans.Value = []byte("v")
		}
		return ans, nil
	}
}

// apply applies a record of the feed that covers everything after W up to to.
func (r *rig) apply(to kv.Revision, keys ...string) {
	r.t.Helper()
	_, w := r.c.Position()
	if err := r.c.Apply(r.record(w, to, keys...)); err != nil {
		r.t.Fatalf("Apply(%d): %v", to, err)
	}
}

func (r *rig) record(prev, to kv.Revision, keys ...string) kv.Record {
	epoch, _ := r.c.Position()
	rec := kv.Record{Epoch: epoch, Prev: prev, To: to, Kind: kv.RecordKeys}
	for _, k := range keys {
		rec.Hashes = append(rec.Hashes, r.c.Hash(nsA, k))
	}
	return rec
}

func (r *rig) prove(rev kv.Revision, at Mono) {
	r.t.Helper()
	epoch, _ := r.c.Position()
	if err := r.c.Prove(r.t.Context(), epoch, rev, at); err != nil {
		r.t.Fatalf("Prove: %v", err)
	}
}

// hold puts an entry of nsA into the cache as it is.
func (r *rig) hold(e State) {
	e.Namespace = nsA
	if e.Epoch.IsZero() {
		e.Epoch, _ = r.c.Position()
	}
	h := r.c.Hash(nsA, e.Key)
	sh := r.c.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.put(r.c, h, newEntry(&e))
}

func (r *rig) held(key string) *Entry {
	v := r.c.view.Load()
	return r.c.lookup(v, nsA, key)
}

// standing is how the held entry of key is judged now; ok is false when nothing is held.
func (r *rig) standing(key string) (s standing, ok bool) {
	v := r.c.view.Load()
	e := r.c.lookup(v, nsA, key)
	if e == nil {
		return s, false
	}
	return v.judge(e), true
}

func (r *rig) noted(key string) kv.Revision {
	h := r.c.Hash(nsA, key)
	sh := r.c.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return max(sh.noted[h], sh.notedAll)
}

func (r *rig) evictAll() {
	for r.c.evictOne(false) || r.c.evictOne(true) {
	}
}

const minute = time.Minute

func (r *rig) get(key string, change ...func(*Read)) (Answer, error) {
	rd := Read{Namespace: nsA, Key: key, Limit: minute}
	for _, f := range change {
		f(&rd)
	}
	return r.c.Get(r.t.Context(), rd)
}

func (r *rig) mustGet(key string, change ...func(*Read)) Answer {
	r.t.Helper()
	ans, err := r.get(key, change...)
	if err != nil {
		r.t.Fatalf("Get(%s): %v", key, err)
	}
	return ans
}

func within(d time.Duration) func(*Read) { return func(rd *Read) { rd.Limit, rd.Explicit = d, true } }
func ttl(d time.Duration) func(*Read)    { return func(rd *Read) { rd.Limit = d } }
func strong(rd *Read)                    { rd.Strong = true }

func bookmark(rev kv.Revision) func(*Read) {
	return func(rd *Read) { rd.Bookmark = kv.Bookmark{Epoch: epoch1, Revision: rev} }
}

func wantCode(t *testing.T, err error, code kv.Code) {
	t.Helper()
	if kv.CodeOf(err) != code {
		t.Errorf("error %v, want code %s", err, code)
	}
}

// count is the sum of a metric's values over its labels.
func (r *rig) count(name string) (sum float64) {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
