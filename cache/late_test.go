package cache

import (
	"context"
	"fmt"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// The late-fill races of I3, forced: while a fill asks, or a write is under way, the script runs what the feed, gossip,
// eviction or another epoch would do at that moment.

// lateCase is one script. The answer, or the write's result, is the state at revision 7.
type lateCase struct {
	name   string
	before *State // held when it begins
	during func(r *rig)
	kept   bool // something is held afterwards
	marked bool
	asOf   kv.Revision
	newer  kv.Revision
	noted  kv.Revision
}

var old = &State{AsOf: 4, Revision: 4, Marked: true, Newer: 7, fed: 7}

func lateCases() []lateCase {
	record := func(r *rig) { r.apply(8, "k") }
	hint := func(r *rig) { r.c.Hint(r.record(0, 9, "k")) }
	wipe := func(r *rig) {
		must(r.t, r.c.Apply(kv.Record{Epoch: epoch1, Prev: 5, To: 8, Kind: kv.RecordNamespace, Namespace: nsA}))
	}
	floors := func(ns kv.NamespaceID, rev kv.Revision) func(*rig) {
		return func(r *rig) {
			must(r.t, r.c.Apply(kv.Record{
				Epoch: epoch1, Prev: 5, To: 9, Kind: kv.RecordFloors, Floors: []kv.Floor{{Namespace: ns, Revision: rev}},
			}))
		}
	}
	evict := (*rig).evictAll
	return []lateCase{
		{name: "nothing happens", during: func(*rig) {}, kept: true, asOf: 7},
		{name: "a record below the answer", during: func(r *rig) { r.apply(7, "k") }, kept: true, asOf: 7},
		{name: "a record of another key", during: func(r *rig) { r.apply(8, "other") }, kept: true, asOf: 7},
		{name: "a record above it, nothing held", during: record, noted: 0},
		{name: "a record above it, an old entry held", before: old, during: record, kept: true, marked: true, asOf: 7, newer: 8},
		{name: "a hint above it, nothing held", during: hint, noted: 7},
		{name: "a hint above it, an old entry held", before: old, during: hint, kept: true, marked: true, asOf: 7, newer: 9},
		{name: "a floor above it, nothing held", during: wipe},
		{name: "a floor above it, an old entry held", before: old, during: wipe, kept: true, marked: true, asOf: 7},
		{name: "its namespace's floor above it", during: floors(nsA, 8)},
		{name: "its namespace's floor above it, an old entry held", before: old, during: floors(nsA, 8), kept: true, marked: true, asOf: 7},
		{name: "its namespace's floor at it", during: floors(nsA, 7), kept: true, asOf: 7},
		{name: "another namespace's floor", during: floors(nsB, 8), kept: true, asOf: 7},
		{name: "a newer state was stored", during: func(r *rig) {
			r.hold(State{Key: "k", AsOf: 9, Revision: 9})
		}, kept: true, asOf: 9},
		{name: "a newer state was stored and evicted", during: func(r *rig) {
			r.hold(State{Key: "k", AsOf: 9, Revision: 9})
			evict(r)
		}, noted: 9},
		{name: "a newer absence was stored", during: func(r *rig) { // its Revision is 0
			r.hold(State{Key: "k", AsOf: 9, Absent: true})
		}, kept: true, asOf: 9},
		{name: "marked further above meanwhile", before: old, during: func(r *rig) {
			r.apply(8, "k")
			r.apply(9, "k")
		}, kept: true, marked: true, asOf: 7, newer: 9},
		{name: "evicted, then a record", before: old, during: func(r *rig) {
			evict(r)
			record(r)
		}},
		{name: "something newer was listed", before: old, during: func(r *rig) {
			r.c.Shown(epoch1, nsA, "k", 9)
		}, noted: 9},
	}
}

func (tc lateCase) check(t *testing.T, r *rig) {
	t.Helper()
	e := r.held("k")
	if !tc.kept {
		if e != nil {
			t.Fatalf("%+v is held, want nothing", e)
		}
	} else if s, ok := r.standing("k"); !ok || s.marked != tc.marked || e.AsOf != tc.asOf || (tc.newer > 0 && e.known().newer != tc.newer) {
		t.Fatalf("held: %v, as of %+v, want as of %d, marked %v, newer %d", ok, e, tc.asOf, tc.marked, tc.newer)
	}
	if p := r.noted("k"); p != tc.noted {
		t.Errorf("P = %d, want %d", p, tc.noted)
	}
}

func (tc lateCase) rig(t *testing.T) *rig {
	r := newRig(t)
	r.apply(5)
	if tc.before != nil {
		e := *tc.before
		e.Key, e.ProvenAt, e.MarkedAt = "k", r.now(), r.now()-minute
		r.hold(e)
	}
	return r
}

func TestLateFill(t *testing.T) {
	for _, tc := range lateCases() {
		for _, seam := range []string{"asking", "before asking"} {
			t.Run(tc.name+"/"+seam, func(t *testing.T) {
				r := tc.rig(t)
				if seam == "before asking" { // after S was read
					r.route = func() { tc.during(r) }
				}
				r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
					if seam == "asking" {
						tc.during(r)
					}
					return FillAnswer{Epoch: req.Epoch, AsOf: 7, Revision: 6, Value: []byte("v")}, nil
				}
				f, err := r.c.obtain(t.Context(), r.c.view.Load().target(nsA, "k"), need{maxAge: minute}, nil,
					func(*flight) bool { return true })
				must(t, err)
				if f.entry.AsOf != 7 || f.entry.Marked() { // its readers get it as it was answered
					t.Errorf("the readers got %+v", f.entry)
				}
				tc.check(t, r)
			})
		}
	}
}

func TestLateWrite(t *testing.T) {
	for _, tc := range lateCases() {
		t.Run(tc.name, func(t *testing.T) {
			r := tc.rig(t)
			w := r.c.BeginWrite(nsA, "k")
			sent := r.now()
			r.pass(time.Second)
			tc.during(r)
			must(t, w.Done(State{Epoch: epoch1, AsOf: 7, Revision: 7, Value: []byte("w")}))
			tc.check(t, r)
			if e := r.held("k"); e != nil && e.AsOf == 7 && e.ProvenAt != sent {
				t.Errorf("proven at %v, want the moment it was sent, %v", e.ProvenAt, sent)
			}
		})
	}
}

// TestWriteAcrossEpochs: a registration dies with its epoch, what was acknowledged does not.
func TestWriteAcrossEpochs(t *testing.T) {
	r := newRig(t)
	r.hold(State{Key: "k", AsOf: 5, Revision: 5, ProvenAt: r.now(), Value: []byte("of epoch 1")})
	lost, late, ahead := r.c.BeginWrite(nsA, "k"), r.c.BeginWrite(nsA, "k"), r.c.BeginWrite(nsA, "other")
	r.c.Adopt(epoch2, 3)
	r.hold(State{Key: "k", AsOf: 4, Revision: 2, ProvenAt: r.now(), Value: []byte("of epoch 2")})
	wantCode(t, lost.Done(State{Epoch: epoch1, AsOf: 6, Revision: 6}), kv.CodeOutcomeUnknown)
	if e := r.held("k"); e == nil || e.AsOf != 4 {
		t.Fatalf("held: %+v", e)
	}
	// It committed in the new epoch, but its registration has heard nothing since: not stored, and nothing older served.
	must(t, late.Done(State{Epoch: epoch2, AsOf: 6, Revision: 6}))
	if e := r.held("k"); e != nil {
		t.Errorf("%+v is still held after a write at revision 6 was acknowledged", e)
	}
	if p := r.noted("k"); p != 6 {
		t.Errorf("P = %d, want 6", p)
	}
	epoch3 := kv.Epoch{7: 3}
	must(t, ahead.Done(State{Epoch: epoch3, AsOf: 2, Revision: 2})) // the answer brings the epoch
	if epoch, w := r.c.Position(); epoch != epoch3 || w != 0 {
		t.Errorf("position %s.%d", epoch, w)
	}
	if p := r.noted("k"); p != 0 {
		t.Errorf("P = %d of a superseded epoch", p)
	}
	if epoch, rev := r.c.LeastForList(); epoch != epoch3 || rev != 2 {
		t.Errorf("listings from %s.%d", epoch, rev)
	}
}

// TestEpochUnderFill: an answer of a greater epoch is adopted before it is used, and the fill begins anew; one of a
// smaller epoch is dropped.
func TestEpochUnderFill(t *testing.T) {
	r := newRig(t)
	r.apply(50)
	r.hold(State{Key: "k", AsOf: 40, Revision: 40, ProvenAt: r.now() - time.Hour, Value: []byte("old")})
	var asked []FillRequest
	r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
		asked = append(asked, req)
		return FillAnswer{Epoch: epoch2, AsOf: 30, Revision: 40, Value: []byte("new")}, nil
	}
	ans := r.mustGet("k")
	if string(ans.Entry.Value()) != "new" || len(asked) != 2 {
		t.Fatalf("%q after %d questions", ans.Entry.Value(), len(asked))
	}
	if q := asked[1]; q.Least != 0 || q.Have || q.Epoch != epoch2 {
		t.Errorf("the new epoch was asked %+v", q)
	}
	if e := r.held("k"); e == nil || e.Epoch() != epoch2 {
		t.Errorf("held: %+v", e)
	}
	if n := r.c.Stats().Entries; n != 1 {
		t.Errorf("%d entries: the old one must be gone", n)
	}
	r.pass(time.Hour)
	r.answers(FillAnswer{Epoch: epoch1, AsOf: 60})
	if ans := r.mustGet("k"); string(ans.Entry.Value()) != "new" || ans.Reason == "" {
		t.Errorf("%q, reason %q: an answer of a superseded epoch was taken", ans.Entry.Value(), ans.Reason)
	}
}

// TestLeast: what r is made of.
func TestLeast(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   func(r *rig)
		least kv.Revision
	}{
		{"S", func(*rig) {}, 5},
		{"the held AsOf", func(r *rig) { r.hold(State{Key: "k", AsOf: 7}) }, 7},
		{"its Newer", func(r *rig) { r.hold(State{Key: "k", AsOf: 4, Marked: true, Newer: 8}) }, 8},
		{"P", func(r *rig) { r.c.Shown(epoch1, nsA, "k", 9) }, 9},
		{"a hinted floor", func(r *rig) {
			r.c.Hint(kv.Record{Epoch: epoch1, Prev: 9, To: 10, Kind: kv.RecordNamespace, Namespace: nsA})
		}, 10},
		{"S while a record is being applied", func(r *rig) {
			v := *r.c.view.Load()
			v.s = 6
			r.c.view.Store(&v)
		}, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(5)
			tc.set(r)
			var least kv.Revision
			r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
				least = req.Least
				return FillAnswer{}, errDown
			}
			_, _ = r.get("k", within(time.Second))
			if least != tc.least {
				t.Errorf("asked for revision %d, want %d", least, tc.least)
			}
		})
	}
}

// TestBogusHints: gossip can demand a revision that does not exist; the leader's answer ends it, and nothing that an
// answer or the feed has demanded ends with it.
func TestBogusHints(t *testing.T) {
	const far = kv.Revision(1) << 60
	bogus := func(r *rig) { r.c.Hint(r.record(far-1, far, "k")) }
	floor := func(r *rig) {
		r.c.Hint(kv.Record{Epoch: epoch1, Prev: far - 1, To: far, Kind: kv.RecordNamespace, Namespace: nsA})
	}
	for _, tc := range []struct {
		name string
		hint func(r *rig)
	}{{"keys", bogus}, {"namespace", floor}, {"both", func(r *rig) { bogus(r); floor(r) }}} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.hops = []Hop{{"v1", TierCentral}, {"v2", TierStore}}
			r.apply(5)
			r.hold(State{Key: "k", AsOf: 5, Revision: 5, ProvenAt: r.now()})
			r.answers(FillAnswer{AsOf: 6, Revision: 5})
			tc.hint(r)
			r.pass(2 * swr)
			if ans := r.mustGet("k"); ans.AsOf != 6 {
				t.Fatalf("as of %d from %s", ans.AsOf, ans.Tier)
			}
			if ans := r.mustGet("k"); ans.Tier != TierHit {
				t.Errorf("then %s, want a hit: the hint lives on", ans.Tier)
			}
			r.c.running.Add(maxRefills) // the key is hot, and its refill would change what is looked at
			r.apply(7, "k")             // an honest mark is never lost
			if s, _ := r.standing("k"); !s.marked {
				t.Error("the next record does not mark")
			}
			if n := r.count("kvmesh_hints_disproved_total"); n != 1 {
				t.Errorf("disproved %v hints", n)
			}
		})
	}
	t.Run("what the feed told stays", func(t *testing.T) {
		r := newRig(t)
		r.hops = []Hop{{"v2", TierStore}}
		r.hold(State{Key: "k", AsOf: 3, ProvenAt: r.now() - minute})
		bogus(r)
		r.apply(8, "k") // hidden behind the higher hint
		r.answers(FillAnswer{AsOf: 7})
		if ans, err := r.get("k", within(time.Second)); err == nil {
			t.Fatalf("as of %d, although the feed has told of revision 8", ans.AsOf)
		}
		if e := r.held("k"); e.AsOf != 3 || !e.Marked() || e.known().newer != 8 {
			t.Errorf("held: %+v", e)
		}
	})
	t.Run("a hint that came after the question", func(t *testing.T) {
		r := newRig(t)
		r.hops = []Hop{{"v2", TierStore}}
		r.hold(State{Key: "k", AsOf: 3, ProvenAt: r.now() - time.Hour, Marked: true, Newer: 5})
		r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
			r.c.Hint(r.record(8, 9, "k"))
			return FillAnswer{Epoch: req.Epoch, AsOf: 4}, nil
		}
		_, err := r.c.obtain(t.Context(), r.c.view.Load().target(nsA, "k"), need{maxAge: minute}, nil, func(*flight) bool { return true })
		must(t, err)
		if e := r.held("k"); e.AsOf != 4 || !e.Marked() || e.known().newer != 9 {
			t.Errorf("held: %+v, want the hint of revision 9 kept", e)
		}
	})
	t.Run("nothing from gossip alone", func(t *testing.T) {
		r := newRig(t)
		r.apply(5)
		r.hold(State{Key: "k", AsOf: 2, ProvenAt: r.now()})
		if r.c.Hint(kv.Record{Epoch: epoch1, To: 9, Kind: kv.RecordAll}) ||
			r.c.Hint(kv.Record{Epoch: epoch1, To: 9, Kind: kv.RecordFloors, Floors: []kv.Floor{{Namespace: nsA, Revision: 9}}}) ||
			r.c.Hint(kv.Record{Epoch: epoch2, To: 9, Kind: kv.RecordKeys}) {
			t.Error("a floor for everything, or another epoch, was taken")
		}
		if !r.c.Hint(r.record(2, 3, "k")) { // told by the feed long ago
			t.Error("an old hint was refused")
		}
		for i := range 2 * maxHinted {
			ns := kv.NamespaceID{1, byte(i >> 8), byte(i)}
			r.c.Hint(kv.Record{Epoch: epoch1, To: far, Kind: kv.RecordNamespace, Namespace: ns})
		}
		if n := len(r.c.view.Load().hinted); n > maxHinted {
			t.Errorf("%d hinted floors", n)
		}
		if _, w := r.c.Position(); w != 5 {
			t.Errorf("W = %d", w)
		}
		if ans := r.mustGet("k"); ans.Tier != TierHit {
			t.Errorf("%s, want a hit", ans.Tier)
		}
	})
	t.Run("a bookmark from the future", func(t *testing.T) {
		r := newRig(t)
		r.hops = []Hop{{"v1", TierCentral}, {"v2", TierStore}}
		r.hold(State{Key: "k", AsOf: 3, ProvenAt: r.now()})
		r.answers(FillAnswer{AsOf: 7})
		_, err := r.get("k", bookmark(far))
		wantCode(t, err, kv.CodeInvalidParameter)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCollision: two keys of one hash share a slot and nothing else.
func TestCollision(t *testing.T) {
	r := newRig(t)
	twin := func(asOf kv.Revision) *Entry { // in k's slot
		return newEntry(&State{Namespace: nsB, Key: "twin", Epoch: epoch1, AsOf: asOf, ProvenAt: r.now(), Value: []byte("twin's")})
	}
	h := r.c.Hash(nsA, "k")
	sh := r.c.shard(h)
	sh.put(r.c, h, twin(9))
	release := make(chan struct{})
	sh.flights[h] = &flight{target: target{epoch1, h, nsB, "twin"}, done: release} // and in flight
	r.answers(FillAnswer{AsOf: 7, Value: []byte("k's")})
	if ans := r.mustGet("k"); string(ans.Entry.Value()) != "k's" {
		t.Errorf("served %q", ans.Entry.Value())
	}
	if p := r.noted("k"); p != 9 {
		t.Errorf("P = %d, want the 9 of the entry that was in the way", p)
	}
	r.answers(FillAnswer{AsOf: 9, Value: []byte("k's")})
	for range 2 {
		if ans := r.mustGet("k"); string(ans.Entry.Value()) != "k's" || ans.AsOf != 9 {
			t.Errorf("served %q as of %d", ans.Entry.Value(), ans.AsOf)
		}
	}
	if e := sh.get(h, nsB, "twin"); e != nil {
		t.Errorf("%s is still there", fmt.Sprint(e))
	}
}
