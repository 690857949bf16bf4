package cache

import (
	"fmt"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// TestSieve: new entries in at the head, the hand from the tail to the head, sparing once what was visited.
func TestSieve(t *testing.T) {
	var l sieve
	var all slots
	at := func(hash uint64) *slot {
		_, sl := all.find(hash)
		return sl
	}
	push := func(hashes ...uint64) {
		for _, h := range hashes {
			l.push(&all, all.add(&Entry{hash: h}))
		}
	}
	remove := func(hash uint64) {
		id, _ := all.find(hash)
		l.remove(&all, id)
		all.remove(hash)
	}
	evict := func(want uint64) {
		t.Helper()
		v := l.victim(&all)
		if v == 0 || all.at(v).entry.hash != want {
			t.Fatalf("the victim is slot %d, want that of %d", v, want)
		}
		remove(want)
	}
	if l.victim(&all) != 0 {
		t.Fatal("a victim in an empty list")
	}
	push(1, 2, 3, 4, 5)
	at(1).visited, at(3).visited = true, true
	evict(2) // 1 is spared; the hand stays between 3 and 2
	push(6)
	evict(4) // 3 is spared
	evict(5)
	at(1).visited = true
	evict(6) // the newest, because the hand has got that far: SIEVE is not LRU
	remove(3)
	evict(1) // spared once, and come round again
	if l.head != 0 || l.tail != 0 || l.victim(&all) != 0 {
		t.Error("not empty")
	}
	push(7)
	evict(7)
}

// TestBudget: the memory stays within its bound, absences within their share, and what is read stays.
func TestBudget(t *testing.T) {
	const bytes = 1 << 20
	r := newRig(t, func(o *Options) { o.Bytes = bytes })
	value := make([]byte, 1000)
	hot := func(i int) string { return fmt.Sprintf("hot%d", i%50) }
	for i := range 10_000 {
		r.answers(FillAnswer{AsOf: 1, Value: value})
		r.mustGet(hot(i))
		r.mustGet(fmt.Sprintf("cold%d", i))
		r.answers(FillAnswer{AsOf: 1, Absent: true})
		r.mustGet(fmt.Sprintf("random%d", i))
		if s := r.c.Stats(); s.Bytes > bytes || r.c.absent.bytes.Load() > bytes/absentShare {
			t.Fatalf("%+v, %d of it absences", s, r.c.absent.bytes.Load())
		}
	}
	s := r.c.Stats()
	if s.Bytes < bytes*9/10 || s.AbsentEntries < 100 {
		t.Errorf("%+v: much room is left", s)
	}
	for i := range 50 { // while cold ones of ten times the memory passed through
		if r.held(hot(i)) == nil {
			t.Errorf("%s was evicted", hot(i))
		}
	}
	var sum, entries int64 // the books are right
	for i := range r.c.shards {
		sum += r.c.shards[i].slots.bytes
		for sl := range r.c.shards[i].slots.all() {
			sum += sl.entry.cost()
			entries++
		}
	}
	if sum != s.Bytes || entries != s.Entries+s.AbsentEntries {
		t.Errorf("entries and slots weigh %d (%d), the books say %+v", sum, entries, s)
	}
	h := r.c.Hash(nsA, hot(0)) // a value that becomes an absence moves to the other share, and back
	for _, absent := range []bool{true, false} {
		before := r.c.Stats()
		sh := r.c.shard(h)
		sh.mu.Lock()
		sh.put(r.c, h, newEntry(&State{Namespace: nsA, Key: hot(0), Epoch: epoch1, Absent: absent}))
		sh.mu.Unlock()
		if after := r.c.Stats(); (after.AbsentEntries-before.AbsentEntries == 1) != absent || after.Entries+after.AbsentEntries != before.Entries+before.AbsentEntries {
			t.Errorf("%+v, before %+v", after, before)
		}
	}
	r.answers(FillAnswer{AsOf: 1, Value: make([]byte, 2*bytes)}) // larger than everything
	r.mustGet("huge")
	if s := r.c.Stats(); s.Bytes > bytes {
		t.Errorf("%+v", s)
	}
}

// TestNotedBeforeEviction: an entry beyond W leaves P(key) behind, and nothing older is stored or served after it.
func TestNotedBeforeEviction(t *testing.T) {
	r := newRig(t)
	r.apply(5)
	w := r.c.BeginWrite(nsA, "k")
	must(t, w.Done(State{Epoch: epoch1, AsOf: 9, Revision: 9, Value: []byte("mine")}))
	r.evictAll()
	if e, p := r.held("k"), r.noted("k"); e != nil || p != 9 {
		t.Fatalf("held %+v, P = %d", e, p)
	}
	r.answers(FillAnswer{AsOf: 7, Value: []byte("before mine")})
	if ans, err := r.get("k"); err == nil {
		t.Fatalf("served %q after a write at revision 9 was acknowledged", ans.Entry.Value())
	}
	r.apply(9, "k")
	r.answers(FillAnswer{AsOf: 9, Value: []byte("mine")})
	if ans := r.mustGet("k"); string(ans.Entry.Value()) != "mine" {
		t.Errorf("%q", ans.Entry.Value())
	}
	r.hold(State{Key: "behind W", AsOf: 8})
	r.evictAll()
	if p := r.noted("behind W"); p != 0 {
		t.Errorf("P = %d was noted for what W has passed", p)
	}
}

// TestNotedIsBounded: too many notes become one for all, which demands too much and never too little.
func TestNotedIsBounded(t *testing.T) {
	r := newRig(t)
	s := &r.c.shards[0]
	note := func(hash uint64, rev kv.Revision) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.note(r.c, r.c.view.Load(), hash, rev)
	}
	truth := map[uint64]kv.Revision{}
	for i := range 3 * maxNotedPerShard {
		h, rev := uint64(i), kv.Revision(10+i)
		note(h, rev)
		truth[h] = rev
		if i%100 == 0 {
			r.apply(kv.Revision(i / 2))
		}
		if len(s.noted) > maxNotedPerShard {
			t.Fatalf("%d notes", len(s.noted))
		}
	}
	if s.notedAll == 0 {
		t.Fatal("the notes never became one")
	}
	_, w := r.c.Position()
	for h, rev := range truth {
		if rev > w && max(s.noted[h], s.notedAll) < rev {
			t.Fatalf("P of %d is %d, want at least %d", h, max(s.noted[h], s.notedAll), rev)
		}
	}
	r.apply(1 << 20)
	_, w = r.c.Position()
	note(1, w+1)
	note(1, w)
	note(2, w)
	if s.noted[1] != w+1 || s.noted[2] != 0 {
		t.Errorf("noted %d and %d", s.noted[1], s.noted[2])
	}
	r.c.Adopt(epoch2, 3)
	if len(s.noted) != 0 || s.notedAll != 0 {
		t.Error("notes of a superseded epoch are left")
	}
}

// TestEpochAdopted: entries of the epoch before are good for stale-if-error with their true age, and for nothing else.
func TestEpochAdopted(t *testing.T) {
	r := newRig(t)
	start := r.now()
	r.apply(5)
	r.hold(State{Key: "k", AsOf: 5, Revision: 5, ProvenAt: start - time.Hour})
	r.hold(State{Key: "floored", AsOf: 4, ProvenAt: start - time.Hour})
	must(t, r.c.Apply(kv.Record{Epoch: epoch1, Prev: 4, To: 5, Kind: kv.RecordAll}))
	r.prove(5, start)
	r.pass(time.Second)
	if !r.c.Adopt(epoch2, 3) {
		t.Fatal("not adopted")
	}
	for key, age := range map[string]time.Duration{"k": time.Second, "floored": time.Hour + time.Second} {
		ans := r.mustGet(key)
		if ans.Tier != TierStale || ans.Age != age || ans.Reason == "" {
			t.Errorf("%s: %s, %v old, want stale and %v", key, ans.Tier, ans.Age, age)
		}
		if _, err := r.get(key, within(minute)); err == nil {
			t.Errorf("%s: served to an explicit limit", key)
		}
		if _, err := r.get(key, func(rd *Read) { rd.Bookmark = kv.Bookmark{Epoch: epoch2, Revision: 1} }); err == nil {
			t.Errorf("%s: served to a bookmark of the new epoch", key)
		}
	}
	r.prove(3, r.now())
	if ans := r.mustGet("k"); ans.Age != time.Second {
		t.Errorf("the new epoch's F made an old entry %v old", ans.Age)
	}
}
