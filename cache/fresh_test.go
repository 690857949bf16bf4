package cache

import (
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// TestTable walks the table of DESIGN.md, each row just before, at, and just after its limit.
func TestTable(t *testing.T) {
	const (
		limit = 10 * time.Second
		base  = 1000 * time.Second // the rig's clock at the start
		tick  = time.Nanosecond
	)
	plain := State{AsOf: 5, ProvenAt: base}
	marked := State{AsOf: 5, ProvenAt: base, Marked: true, Newer: 9, MarkedAt: base + 5*time.Second}
	explicit := func(rd *Read) { rd.Explicit = true }
	for _, tc := range []struct {
		name  string
		entry State
		at    time.Duration // after base
		read  func(*Read)
		tier  Tier // "" = not served without a fill
		asOf  kv.Revision
	}{
		{"unmarked at its limit", plain, limit, nil, TierHit, 7},
		{"unmarked beyond it", plain, limit + tick, nil, TierStale, 7},
		{"unmarked at limit and swr", plain, limit + swr, nil, TierStale, 7},
		{"unmarked beyond both", plain, limit + swr + tick, nil, "", 0},
		{"explicit at its limit", plain, limit, explicit, TierHit, 7},
		{"explicit limits are never stretched", plain, limit + tick, explicit, "", 0},
		{"marked for less than swr", marked, 6*time.Second - tick, nil, TierStale, 5},
		{"marked for swr", marked, 6 * time.Second, nil, TierStale, 5},
		{"marked for longer", marked, 6*time.Second + tick, nil, "", 0},
		{"marked, explicit, within its limit", marked, 6 * time.Second, explicit, TierStale, 5},
		{"just marked, but at an age beyond the limit", State{AsOf: 5, ProvenAt: base - limit, Marked: true, MarkedAt: base}, tick, nil, "", 0},
		{"just marked, at the limit", State{AsOf: 5, ProvenAt: base - limit, Marked: true, MarkedAt: base}, 0, nil, TierStale, 5},
		{"unmarked counts for W", plain, 0, bookmark(7), TierHit, 7},
		{"a bookmark above W", plain, 0, bookmark(8), "", 0},
		{"marked counts for its AsOf", marked, 5 * time.Second, bookmark(5), TierStale, 5},
		{"marked, a bookmark above its AsOf", marked, 5 * time.Second, bookmark(6), "", 0},
		{"an AsOf beyond W", State{AsOf: 12, ProvenAt: base}, 0, bookmark(12), TierHit, 12},
		{"of unknown age", State{AsOf: 12, ProvenAt: void, Marked: true, Unknown: true, MarkedAt: base}, 0, nil, "", 0},
		{"of another epoch", State{AsOf: 12, ProvenAt: base, Epoch: epoch2}, 0, nil, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(7)
			tc.entry.Key = "k"
			r.hold(tc.entry)
			r.pass(tc.at)
			rd := Read{Namespace: nsA, Key: "k", Limit: limit}
			if tc.read != nil {
				tc.read(&rd)
			}
			v := r.c.view.Load()
			ans, ok := r.c.fresh(v, r.c.lookup(v, nsA, "k"), rd)
			if ok != (tc.tier != "") || ans.Tier != tc.tier || ans.AsOf != tc.asOf {
				t.Fatalf("served %v by %q as of %d, want %q as of %d", ok, ans.Tier, ans.AsOf, tc.tier, tc.asOf)
			}
			if tc.read == nil {
				if again, held := r.c.Fresh(r.c.Look(nsA, []byte("k")), limit); held != ok || again != ans {
					t.Errorf("Fresh gives %+v, %v, want what Get gives: %+v", again, held, ans)
				}
			}
			if want := r.now() - tc.entry.ProvenAt; ok && ans.Age != want {
				t.Errorf("age %v, want %v", ans.Age, want)
			}
		})
	}
}

// TestProof: F carries what is unmarked, and stops doing so at the mark.
func TestProof(t *testing.T) {
	r := newRig(t)
	start := r.now()
	r.hold(State{Key: "k", AsOf: 5, ProvenAt: start - minute})
	r.apply(7)
	r.prove(7, start)
	if s, _ := r.standing("k"); s.marked || s.proven != start {
		t.Fatalf("%+v, want unmarked and proven at F", s)
	}
	r.apply(8, "k")
	r.prove(8, start+time.Second)
	if s, _ := r.standing("k"); !s.marked || s.proven != start {
		t.Errorf("%+v, want marked and frozen at the F before the mark", s)
	}
	frozen := r.held("k")
	r.apply(9, "k") // a marked entry is not frozen again
	if e := r.held("k"); e.ProvenAt != frozen.ProvenAt || e.known().at != frozen.known().at || e.known().newer != 9 {
		t.Errorf("marked again: %+v, before %+v", e, frozen)
	}
	r.hold(State{Key: "k", AsOf: 9, ProvenAt: start})
	r.apply(9, "k") // I4
	if s, _ := r.standing("k"); s.marked {
		t.Error("a record at an entry's AsOf marked it")
	}
	r.prove(9, start) // older than what is proven
	if _, _, f, _ := r.c.Proof(); f != start+time.Second {
		t.Errorf("F went back to %v", f)
	}
}

// TestFloors: the proof of what lies below floors ends at the smallest F, whatever order they come in.
func TestFloors(t *testing.T) {
	r := newRig(t)
	start := r.now()
	floorAt := func(ns *kv.NamespaceID, to kv.Revision, f Mono) {
		t.Helper()
		_, w := r.c.Position()
		rec := kv.Record{Epoch: epoch1, Prev: min(w, to-1), To: to, Kind: kv.RecordAll}
		if ns != nil {
			rec.Kind, rec.Namespace = kv.RecordNamespace, *ns
		}
		r.prove(0, f)
		r.pass(time.Second)
		if err := r.c.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	at := func(asOf kv.Revision) Mono {
		t.Helper()
		v := r.c.view.Load()
		s := v.judge(newEntry(&State{Namespace: nsA, AsOf: asOf, Epoch: epoch1, ProvenAt: void}))
		if !s.marked {
			return -1
		}
		return s.proven - start
	}
	want := func(what string, asOf kv.Revision, f Mono) {
		t.Helper()
		if got := at(asOf); got != f {
			t.Errorf("%s: what is as of %d is proven until %d, want %d", what, asOf, got, f)
		}
	}
	floorAt(&nsA, 10, start+1)
	floorAt(&nsA, 20, start+2)
	floorAt(&nsB, 30, start+3)
	want("two floors", 5, 1)
	want("one floor", 10, 2)
	want("the other namespace's", 20, -1)
	floorAt(&nsA, 10, start+4)
	floorAt(&nsA, 20, start+4)
	want("applied again", 5, 1)
	want("applied again", 15, 2)
	floorAt(&nsA, 15, start+5)
	want("a late one in between", 12, 2)
	floorAt(nil, 40, start+6)
	want("for everything", 25, 6)
	for i := kv.Revision(5); i < 12; i++ {
		floorAt(&nsA, 10*i, start+Mono(i)*10)
	}
	want("merged", 5, 1)
	want("merged, the smallest F stays", 41, 1)
	want("the newest are kept apart", 85, 90)
	if n := len(r.c.view.Load().floors.ns[nsA]); n > maxFloors {
		t.Errorf("%d floors in one scope", n)
	}
}

// TestNamespaceFloors: one record sets floors for the namespaces it lists, all before W. Hits in other namespaces, and of
// what was read after the last change in a listed one, go on and count for the new W.
func TestNamespaceFloors(t *testing.T) {
	r := newRig(t)
	start := r.now()
	hold := func(ns kv.NamespaceID, key string, asOf kv.Revision) {
		h := r.c.Hash(ns, key)
		sh := r.c.shard(h)
		sh.mu.Lock()
		defer sh.mu.Unlock()
		sh.put(r.c, h, newEntry(&State{Namespace: ns, Key: key, Epoch: epoch1, AsOf: asOf, ProvenAt: start - minute}))
	}
	nsC := kv.NamespaceID{0xc}
	r.apply(5)
	r.prove(5, start)
	hold(nsA, "old", 5)
	hold(nsA, "new", 8)
	hold(nsB, "old", 5)
	hold(nsC, "old", 5)
	r.pass(time.Second)
	rec := kv.Record{
		Epoch: epoch1, Prev: 5, To: 20, Kind: kv.RecordFloors,
		Floors: []kv.Floor{{Namespace: nsA, Revision: 8}, {Namespace: nsC, Revision: 20}},
	}
	during := 0
	r.onNow = func() { // the clock is read for the floors
		r.onNow = nil
		during++
		if v := r.c.view.Load(); v.w != 5 || v.s != 20 || len(v.floors.ns) != 0 {
			t.Errorf("before the floors: W %d, S %d, %+v", v.w, v.s, v.floors)
		}
	}
	must(t, r.c.Apply(rec))
	if during != 1 {
		t.Fatal("the clock was not read")
	}
	for _, tc := range []struct {
		ns   kv.NamespaceID
		key  string
		tier Tier
		asOf kv.Revision
	}{
		{nsA, "old", TierStale, 5},
		{nsC, "old", TierStale, 5},
		{nsA, "new", TierHit, 20},
		{nsB, "old", TierHit, 20},
	} {
		v := r.c.view.Load()
		ans, ok := r.c.fresh(v, r.c.lookup(v, tc.ns, tc.key), Read{Namespace: tc.ns, Key: tc.key, Limit: minute})
		if !ok || ans.Tier != tc.tier || ans.AsOf != tc.asOf || ans.Age != time.Second {
			t.Errorf("%x %s: %v by %q as of %d, age %v; want %q as of %d", tc.ns[0], tc.key, ok, ans.Tier, ans.AsOf, ans.Age, tc.tier, tc.asOf)
		}
	}
	// Later proofs carry what has no floor above it, and nothing else; the same record again changes nothing.
	r.prove(20, start+time.Second)
	must(t, r.c.Apply(rec))
	for ns, want := range map[kv.NamespaceID]Mono{nsA: start, nsB: start + time.Second, nsC: start} {
		v := r.c.view.Load()
		if s := v.judge(r.c.lookup(v, ns, "old")); s.proven != want {
			t.Errorf("%x: proven until %v, want %v", ns[0], s.proven-start, want-start)
		}
	}
	if _, w := r.c.Position(); w != 20 {
		t.Errorf("W is %d", w)
	}
}

// TestManyScopes: when the scopes overflow, what was below any floor is still below one, with no later proof.
func TestManyScopes(t *testing.T) {
	fl := floors{}.withAll(floor{rev: 10, f: 5, at: 5}).withAll(floor{rev: 5000, f: 5000, at: 5000})
	for i := range maxScopes + 1 {
		ns := kv.NamespaceID{1, byte(i >> 8), byte(i)}
		fl = fl.withNamespace(ns, floor{rev: kv.Revision(100 + i), f: Mono(100 + i), at: Mono(100 + i)})
	}
	if len(fl.ns) != 0 {
		t.Fatalf("%d scopes are left", len(fl.ns))
	}
	for i := range maxScopes + 1 {
		ns := kv.NamespaceID{1, byte(i >> 8), byte(i)}
		if x, ok := fl.above(ns, kv.Revision(99+i)); !ok || x.f > Mono(100+i) {
			t.Fatalf("scope %d: %+v, %v: later than its own floor", i, x, ok)
		}
	}
	if _, ok := fl.above(nsA, 5000); ok {
		t.Error("a floor above all floors")
	}
	// The same from one list, beside floors that were there before.
	list := make([]kv.Floor, maxScopes)
	for i := range list {
		list[i] = kv.Floor{Namespace: kv.NamespaceID{1, byte(i >> 8), byte(i)}, Revision: kv.Revision(100 + i)}
	}
	fl = floors{}.withNamespace(nsA, floor{rev: 7, f: 5, at: 5})
	if fit := fl.withNamespaces(list[1:], 50, 60); len(fit.ns) != maxScopes || len(fit.all) != 0 || len(fl.ns) != 1 {
		t.Errorf("%d scopes, %d floors for everything", len(fit.ns), len(fit.all))
	}
	fl = fl.withNamespaces(list, 50, 60)
	want := floor{rev: list[maxScopes-1].Revision, f: 5, at: 5}
	if len(fl.ns) != 0 || len(fl.all) != 1 || fl.all[0] != want {
		t.Errorf("%d scopes, %+v; want %+v", len(fl.ns), fl.all, want)
	}
}

// TestGap: records are dense; a hole, or another history, is refused and changes nothing.
func TestGap(t *testing.T) {
	r := newRig(t)
	r.apply(7)
	if err := r.c.Apply(r.record(8, 9)); err != ErrGap {
		t.Errorf("a gap: %v", err)
	}
	if err := r.c.Apply(kv.Record{Epoch: epoch2, To: 9, Kind: kv.RecordAll}); err != ErrForeignEpoch {
		t.Errorf("another epoch: %v", err)
	}
	if r.c.Adopt(epoch1, 3) || r.c.Adopt(kv.Epoch{}, 3) {
		t.Error("an epoch was adopted that is not greater")
	}
	if err := r.c.Apply(r.record(2, 4)); err != nil { // late: harmless
		t.Error(err)
	}
	if epoch, w := r.c.Position(); epoch != epoch1 || w != 7 {
		t.Errorf("position %s.%d", epoch, w)
	}
}

// TestPublishOrder reads between the two publications of a record, at the moment the clock is read for the marks: W must
// not count yet, or the entry that is about to be marked would be served as current at it.
func TestPublishOrder(t *testing.T) {
	r := newRig(t)
	r.hold(State{Key: "k", AsOf: 5, ProvenAt: r.now()})
	r.apply(5)
	var seen []kv.Revision
	r.onNow = func() {
		r.onNow = nil
		seen = append(seen, r.mustGet("k").AsOf)
	}
	r.apply(6, "k")
	if len(seen) != 1 || seen[0] != 5 {
		t.Errorf("served as of %d while revision 6 was being applied, want 5", seen)
	}
	if s, _ := r.standing("k"); !s.marked {
		t.Error("not marked")
	}
}
