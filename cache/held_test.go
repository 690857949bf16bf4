package cache

import "testing"

// TestLook: what is looked for is found by its bytes, is not kept, and costs no memory.
func TestLook(t *testing.T) {
	r := newRig(t)
	r.hold(State{Key: "a key that is longer than what fits on a stack by itself", AsOf: 5, ProvenAt: r.now()})
	key := []byte("a key that is longer than what fits on a stack by itself")
	if n := testing.AllocsPerRun(100, func() {
		if ans, ok := r.c.Fresh(r.c.Look(nsA, key), minute); !ok || ans.Tier != TierHit || ans.Entry.Key() != string(key) {
			t.Fatal(ans, ok)
		}
	}); n != 0 {
		t.Errorf("%v allocations a look", n)
	}
	if hits := r.count("kvmesh_cache_hits_total"); hits != 101 { // AllocsPerRun runs once more
		t.Errorf("%v hits counted, want 101", hits)
	}
	for _, other := range []Held{r.c.Look(nsB, key), r.c.Look(nsA, key[1:]), r.c.Look(nsA, nil), {}} {
		if other.Entry() != nil {
			t.Errorf("found %v", other.Entry())
		}
	}
	if _, ok := r.c.Fresh(r.c.Look(nsB, key), minute); ok {
		t.Error("what is not held is fresh")
	}
	held := r.c.Look(nsA, key)
	clear(key)
	if held.Entry().Key()[0] != 'a' {
		t.Error("the entry's key changes with the bytes that it was looked for by")
	}
}
