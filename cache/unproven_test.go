package cache

import (
	"context"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// TestUnproven restarts a node with a store in an outage: default reads of what the store holds are answered without a
// bound, and nothing that demands more is.
func TestUnproven(t *testing.T) {
	const state = 7 // the store's revision
	r := newRig(t, func(o *Options) {
		o.Restarted = true
		o.Local = func(_ context.Context, req FillRequest) (FillAnswer, error) {
			switch req.Key {
			case "absent":
				return FillAnswer{Epoch: req.Epoch, AsOf: state, Absent: true}, nil
			case "of another epoch":
				return FillAnswer{Epoch: epoch2, AsOf: state, Revision: 3, Value: []byte("v")}, nil
			case "broken":
				return FillAnswer{}, errDown
			}
			return FillAnswer{Epoch: req.Epoch, AsOf: state, Revision: 3, Value: []byte("v")}, nil
		}
	})
	ok := func(ans Answer) bool {
		return string(ans.Entry.Value()) == "v" && ans.Age < 0 && ans.Tier == TierStale && ans.Reason != "" && ans.AsOf == state
	}
	for name, change := range map[string]func(*Read){"default": ttl(minute), "a bookmark it has reached": bookmark(state)} {
		if ans := r.mustGet("k", change); !ok(ans) {
			t.Errorf("%s: %+v", name, ans)
		}
	}
	for name, change := range map[string]func(*Read){
		"a bookmark beyond it": bookmark(state + 1), "a limit": within(time.Hour), "strong": strong,
		"a bookmark of another epoch": func(rd *Read) { rd.Bookmark = kv.Bookmark{Epoch: epoch2, Revision: 1} },
	} {
		if ans, err := r.get("k", change); err == nil {
			t.Errorf("%s: %+v", name, ans)
		}
	}
	for _, key := range []string{"absent", "of another epoch", "broken"} {
		if ans, err := r.get(key); kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("%s: %+v, %v", key, ans, err)
		}
	}
	if r.held("k") != nil {
		t.Error("an answer that nobody can date is kept")
	}

	// What this life has shown is not taken back.
	w := r.c.BeginWrite(nsA, "mine")
	if err := w.Done(State{Epoch: epoch1, Revision: state + 2, AsOf: state + 2, Value: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	r.evictAll()
	if ans, err := r.get("mine"); err == nil {
		t.Errorf("older than what was shown: %+v", ans)
	}

	// Once something is proven the store has to prove as well.
	r.c.SetLeast(epoch1, 1)
	r.prove(0, r.now())
	if ans, err := r.get("k"); err == nil {
		t.Errorf("with a proof: %+v", ans)
	}
}

// An edge has no store.
func TestUnprovenEdge(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Restarted = true })
	if ans, err := r.get("k"); kv.CodeOf(err) != kv.CodeUnavailable {
		t.Errorf("%+v, %v", ans, err)
	}
}
