package cache

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/kv"
)

// TestHotKeyNeverWaits: a key is written every 200 ms and read all the time; a fill takes 60 ms. After the first one no
// read waits for a fill, and none is more than one change and one fill behind.
func TestHotKeyNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		var newest atomic.Uint64
		newest.Store(1)
		r.apply(1)
		r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
			rev := kv.Revision(newest.Load())
			time.Sleep(60 * time.Millisecond)
			return FillAnswer{Epoch: req.Epoch, AsOf: rev, Revision: rev, Age: 60 * time.Millisecond, Value: fmt.Append(nil, rev)}, nil
		}
		r.mustGet("k")
		before := r.count("kvmesh_reads_waiting_on_fill_total")
		for range 300 { // a minute
			rev := kv.Revision(newest.Add(1))
			r.apply(rev, "k")
			for range 40 {
				time.Sleep(5 * time.Millisecond)
				if ans := r.mustGet("k"); ans.AsOf+1 < rev {
					t.Fatalf("as of %d while the store is at %d", ans.AsOf, rev)
				}
			}
		}
		if n := r.count("kvmesh_reads_waiting_on_fill_total") - before; n != 0 {
			t.Errorf("%v reads of a hot key waited for a fill", n)
		}
	})
}

// TestRefillOnChange: what was read is fetched as soon as it changes, what was not read since its last change is left
// alone, and a hint does as well as a record.
func TestRefillOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		g := r.gated()
		hold := func(rev kv.Revision) {
			r.hold(State{Key: "k", AsOf: rev, Revision: rev, ProvenAt: r.c.Now(), Value: []byte("v")})
		}
		hold(1)
		r.mustGet("k")
		r.apply(2, "k")
		synctest.Wait()
		if n := len(g.questions); n != 1 {
			t.Fatalf("%d fills for a hot key that changed", n)
		}
		<-g.questions
		g.answers <- FillAnswer{AsOf: 2, Revision: 2, Value: []byte("w")}
		synctest.Wait()
		r.apply(3, "k") // nobody has read it since
		synctest.Wait()
		if n := len(g.questions); n != 0 {
			t.Fatalf("%d fills for a key that nobody reads", n)
		}
		r.mustGet("k") // stale, and fills
		synctest.Wait()
		<-g.questions
		g.answers <- FillAnswer{AsOf: 3, Revision: 3, Value: []byte("x")}
		synctest.Wait()
		r.mustGet("k")
		r.c.Hint(r.record(3, 4, "k"))
		synctest.Wait()
		if n := len(g.questions); n != 1 {
			t.Fatalf("%d fills for a hot key that a hint named", n)
		}
		<-g.questions
		g.answers <- FillAnswer{AsOf: 4, Revision: 4}
	})
}

// TestLastResort: with no quorum the voters' state is older than cache_ttl. A default read of a key that is not held gets
// it all the same, with its true age; one that named its limit does not.
func TestLastResort(t *testing.T) {
	r := newRig(t)
	r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
		if req.MaxAge < time.Hour {
			return FillAnswer{}, kv.Errorf(kv.CodeStaleBeyondLimit, "too old")
		}
		return FillAnswer{Epoch: req.Epoch, AsOf: 7, Revision: 7, Age: time.Hour, Value: []byte("v")}, nil
	}
	ans := r.mustGet("k", ttl(minute))
	if ans.Age < time.Hour || ans.Tier != TierStale || ans.Reason == "" || string(ans.Entry.Value()) != "v" {
		t.Errorf("%+v", ans)
	}
	_, err := r.get("other", within(minute))
	if kv.CodeOf(err) == "" {
		t.Error("a read that named its limit was answered beyond it")
	}
	r.ask = func(context.Context, Hop, FillRequest) (FillAnswer, error) { return FillAnswer{}, errDown }
	if ans, err := r.get("third"); err == nil {
		t.Errorf("answered by nobody: %+v", ans)
	}
}
