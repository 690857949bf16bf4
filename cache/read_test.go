package cache

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/kv"
)

// virtual makes the cache's clock the bubble's.
func virtual(o *Options) {
	start := time.Now()
	o.Clock = func() Mono { return 1000*time.Second + time.Since(start) }
}

// gate lets answers through one by one; an Ask blocks until its turn or its context's end.
type gate struct {
	questions chan FillRequest
	answers   chan FillAnswer
}

func (r *rig) gated() gate {
	g := gate{make(chan FillRequest, 64), make(chan FillAnswer)}
	r.ask = func(ctx context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
		g.questions <- req
		select {
		case ans := <-g.answers:
			ans.Epoch = req.Epoch
			return ans, nil
		case <-ctx.Done():
			return FillAnswer{}, ctx.Err()
		}
	}
	return g
}

type result struct {
	ans Answer
	err error
}

// readers starts n reads; their results arrive on the channel.
func (r *rig) readers(n int, key string, change ...func(*Read)) <-chan result {
	out := make(chan result, n)
	for range n {
		go func() {
			ans, err := r.get(key, change...)
			out <- result{ans, err}
		}()
	}
	synctest.Wait()
	return out
}

func TestOneFillForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		g := r.gated()
		readers := r.readers(100, "k")
		impatient, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := r.c.Get(impatient, Read{Namespace: nsA, Key: "k", Limit: minute})
			gone <- err
		}()
		synctest.Wait()
		cancel() // one waiter's end is nobody else's
		wantCode(t, <-gone, kv.CodeDeadlineExceeded)
		if n := len(g.questions); n != 1 {
			t.Fatalf("%d fills for one key", n)
		}
		g.answers <- FillAnswer{AsOf: 7, Value: []byte("v")}
		for range 100 {
			if res := <-readers; res.err != nil || res.ans.AsOf != 7 || res.ans.Tier != TierCentral {
				t.Fatalf("%+v", res)
			}
		}
	})
}

// TestJoiners: a record between the fill's question and the joiners' arrival makes its answer too old for them. They
// share one further fill.
func TestJoiners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		g := r.gated()
		first := r.readers(1, "k")
		r.apply(8, "k")
		later := r.readers(50, "k")
		g.answers <- FillAnswer{AsOf: 7}
		synctest.Wait()
		if res := <-first; res.err != nil || res.ans.AsOf != 7 {
			t.Fatalf("the first reader: %+v", res)
		}
		if n := len(g.questions); n != 2 || len(later) != 0 {
			t.Fatalf("%d fills, %d joiners answered; want 2 fills, the joiners waiting for the second", n, len(later))
		}
		g.answers <- FillAnswer{AsOf: 8}
		for range 50 {
			if res := <-later; res.err != nil || res.ans.AsOf != 8 {
				t.Fatalf("a joiner: %+v", res)
			}
		}
	})
}

// TestJoinersLimit: a joiner takes a result only within its own limit, at the instant it arrives.
func TestJoinersLimit(t *testing.T) {
	for _, tc := range []struct {
		age   time.Duration
		limit func(*Read)
		fills int
	}{
		{time.Second, within(time.Second), 1},
		{time.Second + 1, within(time.Second), 2},
		{time.Second, ttl(time.Second), 1},
		{time.Second + 1, ttl(time.Second), 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, virtual)
			g := r.gated()
			first := r.readers(1, "k")
			joiner := r.readers(1, "k", tc.limit)
			g.answers <- FillAnswer{AsOf: 7, Age: tc.age}
			synctest.Wait()
			if n := len(g.questions); n != tc.fills {
				t.Errorf("age %v: %d fills, want %d", tc.age, n, tc.fills)
			}
			if len(g.questions) == 2 {
				<-g.questions
				if q := <-g.questions; q.MaxAge != time.Second {
					t.Errorf("the joiner's own fill asks for %v", q.MaxAge)
				}
				g.answers <- FillAnswer{AsOf: 7}
			}
			if res := <-joiner; res.err != nil {
				t.Error(res.err)
			}
			<-first
		})
	}
}

// TestStaleWait: an old entry is served after 200 ms of waiting, not earlier and not later.
func TestStaleWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		g := r.gated()
		r.hold(State{Key: "k", AsOf: 3, ProvenAt: r.c.Now() - time.Hour})
		readers := r.readers(3, "k")
		time.Sleep(staleWait - 1)
		synctest.Wait()
		if len(readers) != 0 {
			t.Fatal("answered before the fill had its time")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if len(readers) != 3 {
			t.Fatalf("%d of 3 answered after %v", len(readers), staleWait)
		}
		if res := <-readers; res.err != nil || res.ans.Tier != TierStale || res.ans.Age != time.Hour+staleWait || res.ans.Reason == "" {
			t.Errorf("%+v", res)
		}
		g.answers <- FillAnswer{AsOf: 5} // the fill ran on, for the next ones
		synctest.Wait()
		if ans := r.mustGet("k"); ans.Tier != TierHit || ans.AsOf != 5 {
			t.Errorf("%+v", ans)
		}
	})
}

// TestWithoutMesh: what is served, and what is said, when nobody answers.
func TestWithoutMesh(t *testing.T) {
	day := staleIfError
	for _, tc := range []struct {
		name string
		age  time.Duration // -1 = nothing held, void = of unknown age
		read func(*Read)
		code kv.Code
		want time.Duration
	}{
		{"old", time.Hour, nil, "", time.Hour},
		{"a day old", day, nil, "", day},
		{"older", day + 1, nil, kv.CodeUnavailable, 0},
		{"of unknown age", void, nil, "", -1},
		{"of unknown age, explicit", void, within(time.Hour), kv.CodeUnavailable, 0},
		{"explicit", time.Hour, within(minute), kv.CodeStaleBeyondLimit, 0},
		{"a bookmark above", time.Hour, bookmark(6), kv.CodeUnavailable, 0},
		{"a bookmark below", time.Hour, bookmark(5), "", time.Hour},
		{"nothing", -1, nil, kv.CodeUnavailable, 0},
		{"strong", time.Hour, strong, kv.CodeNoLeader, 0},
		{"a foreign bookmark", time.Hour, func(rd *Read) { rd.Bookmark = kv.Bookmark{Epoch: epoch2, Revision: 1} }, kv.CodeNoLeader, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			e := State{Key: "k", AsOf: 5, ProvenAt: r.now() - tc.age}
			if tc.age == void {
				e.Marked, e.Unknown, e.ProvenAt = true, true, void
			}
			if tc.age != -1 {
				r.hold(e)
			}
			var changes []func(*Read)
			if tc.read != nil {
				changes = append(changes, tc.read)
			}
			ans, err := r.get("k", changes...)
			if kv.CodeOf(err) != tc.code {
				t.Fatalf("%v, want code %q", err, tc.code)
			}
			if err == nil && (ans.Tier != TierStale || ans.Age != tc.want || ans.Reason == "") {
				t.Errorf("%s, %v old, reason %q", ans.Tier, ans.Age, ans.Reason)
			}
		})
	}
}

// TestWhileRevalidating: one background fill, however many readers.
func TestWhileRevalidating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		g := r.gated()
		r.hold(State{Key: "k", AsOf: 5, Revision: 5, ProvenAt: r.c.Now(), Value: []byte("v")})
		r.apply(6, "k")
		for range 20 {
			if ans := r.mustGet("k"); ans.Tier != TierStale || ans.AsOf != 5 {
				t.Fatalf("%+v", ans)
			}
		}
		synctest.Wait()
		if n := len(g.questions); n != 1 {
			t.Fatalf("%d fills", n)
		}
		if q := <-g.questions; q.Least != 6 || !q.Have || q.HaveRev != 5 {
			t.Errorf("asked %+v", q)
		}
		g.answers <- FillAnswer{AsOf: 6, NotModified: true} // a collision, say
		synctest.Wait()
		if ans := r.mustGet("k"); ans.Tier != TierHit || ans.AsOf != 6 || string(ans.Entry.Value()) != "v" {
			t.Errorf("%+v", ans)
		}
		if n := r.count("kvmesh_reads_waiting_on_fill_total"); n != 0 {
			t.Errorf("%v readers of a hot key waited", n)
		}
	})
}

func TestStrong(t *testing.T) {
	r := newRig(t)
	r.hops = []Hop{{"v1", TierCentral}, {"v2", TierStore}}
	r.hold(State{Key: "k", AsOf: 5, ProvenAt: r.now()})
	var tiers []Tier
	r.ask = func(_ context.Context, hop Hop, req FillRequest) (FillAnswer, error) {
		tiers = append(tiers, hop.Tier)
		return FillAnswer{Epoch: req.Epoch, AsOf: 9}, nil
	}
	for range 2 { // what was just asked counts for nobody else
		if ans := r.mustGet("k", strong); ans.AsOf != 9 || ans.Tier != TierStore {
			t.Errorf("%+v", ans)
		}
	}
	if len(tiers) != 2 || tiers[0] != TierStore {
		t.Errorf("asked %v", tiers)
	}
	if ans := r.mustGet("k"); ans.AsOf != 9 || ans.Tier != TierHit { // I7: what was shown is what is held
		t.Errorf("after a strong read: %+v", ans)
	}
}

func TestPanicIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		release := make(chan struct{})
		r.ask = func(context.Context, Hop, FillRequest) (FillAnswer, error) {
			<-release
			panic("a tier's answer could not be borne")
		}
		readers := r.readers(5, "k")
		close(release)
		for range 5 {
			wantCode(t, (<-readers).err, kv.CodeInternal)
		}
		sh := r.c.shard(r.c.Hash(nsA, "k"))
		if len(sh.regs) != 0 || len(sh.flights) != 0 {
			t.Errorf("left behind: %d registrations, %d fills", len(sh.regs), len(sh.flights))
		}
		r.answers(FillAnswer{AsOf: 1})
		r.mustGet("k")
	})
}

func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		ended := false
		r.ask = func(ctx context.Context, _ Hop, _ FillRequest) (FillAnswer, error) {
			<-ctx.Done()
			time.Sleep(time.Second) // lets go slowly
			ended = true
			return FillAnswer{}, ctx.Err()
		}
		readers := r.readers(2, "k")
		r.c.Close()
		if !ended {
			t.Error("Close returned while a fill was running")
		}
		for range 2 {
			if res := <-readers; res.err == nil {
				t.Errorf("%+v", res)
			}
		}
		_, err := r.get("other")
		wantCode(t, err, kv.CodeUnavailable)
	})
}

// TestServe: to peers goes what is unmarked, new and young enough, and nothing else; what is missing is filled for no
// less than was asked.
func TestServe(t *testing.T) {
	base := 1000 * time.Second
	for _, tc := range []struct {
		name   string
		entry  State
		change func(*FillRequest)
		filled bool
	}{
		{"unmarked", State{AsOf: 5}, func(q *FillRequest) { q.Least = 7 }, false},
		{"short", State{AsOf: 5}, func(q *FillRequest) { q.Least = 8 }, true},
		{"at the limit", State{AsOf: 5, ProvenAt: base - minute}, nil, false},
		{"too old", State{AsOf: 5, ProvenAt: base - minute - 1}, nil, true},
		{"marked", State{AsOf: 5, Marked: true, Newer: 6, MarkedAt: base}, nil, true},
		{"of unknown age", State{AsOf: 5, Marked: true, Unknown: true}, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(7)
			tc.entry.Key, tc.entry.Revision = "k", 4
			if tc.entry.ProvenAt == 0 {
				tc.entry.ProvenAt = base
			}
			r.hold(tc.entry)
			var asked []FillRequest
			r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
				asked = append(asked, req)
				return FillAnswer{Epoch: req.Epoch, AsOf: req.Least, Revision: 4}, nil
			}
			q := FillRequest{Namespace: nsA, Key: "k", Epoch: epoch1, MaxAge: minute, Have: true, HaveRev: 4}
			if tc.change != nil {
				tc.change(&q)
			}
			ans, err := r.c.Serve(t.Context(), q)
			must(t, err)
			if (len(asked) > 0) != tc.filled || ans.AsOf < max(7, q.Least) || !ans.NotModified {
				t.Errorf("filled: %v, answer %+v", asked, ans)
			}
			if tc.filled && len(asked) > 0 && (asked[0].Least < q.Least || asked[0].MaxAge > q.MaxAge || asked[0].Hops != 1) {
				t.Errorf("passed on as %+v", asked[0])
			}
		})
	}
	r := newRig(t)
	_, err := r.c.Serve(t.Context(), FillRequest{Namespace: nsA, Key: "k", Epoch: epoch2})
	wantCode(t, err, kv.CodeEpochChanged)
	if _, err = r.c.Serve(t.Context(), FillRequest{Namespace: nsA, Key: "k", Epoch: epoch1, Hops: MaxHops - 1}); err == nil || r.asked.Load() > 0 {
		t.Errorf("one hop too many: %v", err)
	}
}

// TestOwnersOfEachOther: two nodes that take each other for a key's owner do not wait for each other's fills.
func TestOwnersOfEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var nodes [2]*rig
		for i := range nodes {
			r := newRig(t, virtual)
			r.hops = []Hop{{"peer", TierRegion}, {"v1", TierCentral}}
			r.ask = func(ctx context.Context, hop Hop, req FillRequest) (FillAnswer, error) {
				if hop.Tier == TierRegion && req.Hops == 0 {
					time.Sleep(time.Millisecond) // both ask before either is asked
					return nodes[1-i].c.Serve(ctx, req)
				}
				return FillAnswer{Epoch: req.Epoch, AsOf: 7}, nil
			}
			nodes[i] = r
		}
		start := time.Now()
		a, b := nodes[0].readers(1, "k"), nodes[1].readers(1, "k")
		for _, res := range []result{<-a, <-b} {
			must(t, res.err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestRestarted: nothing is promised before the leader's first word, and nothing older than it afterwards.
func TestRestarted(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Restarted = true })
	r.answers(FillAnswer{AsOf: 7})
	_, err := r.get("k")
	wantCode(t, err, kv.CodeUnavailable)
	if _, err := r.c.Serve(t.Context(), FillRequest{Namespace: nsA, Key: "k", Epoch: epoch1, MaxAge: minute}); err == nil {
		t.Error("served to a peer")
	}
	r.hold(State{Key: "k", AsOf: 3, Marked: true, Unknown: true, ProvenAt: void})
	if ans := r.mustGet("k"); ans.Age != -1 || ans.Tier != TierStale || r.asked.Load() != 0 {
		t.Errorf("%+v", ans)
	}
	r.c.SetLeast(epoch2, 99) // of another epoch
	if r.c.Ready() {
		t.Fatal("ready by another epoch's revision")
	}
	r.c.SetLeast(epoch1, 8)
	r.c.SetLeast(epoch1, 2)
	if _, err := r.get("k", within(minute)); err == nil {
		t.Error("an answer below the least revision was taken")
	}
	r.answers(FillAnswer{AsOf: 8})
	if ans := r.mustGet("k"); ans.AsOf != 8 {
		t.Errorf("%+v", ans)
	}
	if _, rev := r.c.LeastForList(); rev != 8 {
		t.Errorf("listings from %d", rev)
	}
}

// TestProveWaits: a proof counts once W has reached its revision, and dies with its epoch.
func TestProveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, virtual)
		r.hold(State{Key: "k", AsOf: 5, ProvenAt: r.c.Now() - minute})
		at := r.c.Now()
		proofs := make(chan error, 3)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { proofs <- r.c.Prove(t.Context(), epoch1, 8, at) }()
		synctest.Wait()
		r.apply(7)
		synctest.Wait()
		if _, _, _, proven := r.c.Proof(); proven || len(proofs) != 0 {
			t.Fatal("proven before W reached the revision")
		}
		r.apply(8, "k")
		must(t, <-proofs)
		if _, _, f, _ := r.c.Proof(); f != at {
			t.Errorf("F = %v, want %v", f, at)
		}
		if s, _ := r.standing("k"); s.proven != at-minute {
			t.Errorf("what revision 8 changed is proven until %v: F came before the mark", s.proven)
		}
		go func() { proofs <- r.c.Prove(ctx, epoch1, 9, at) }()
		synctest.Wait()
		cancel()
		if err := <-proofs; err != context.Canceled {
			t.Error(err)
		}
		go func() { proofs <- r.c.Prove(t.Context(), epoch1, 9, at) }()
		go func() { proofs <- r.c.WaitPosition(t.Context(), epoch1, 9) }()
		synctest.Wait()
		r.c.Adopt(epoch2, 20)
		for range 2 {
			if err := <-proofs; err != ErrForeignEpoch {
				t.Error(err)
			}
		}
		must(t, r.c.WaitPosition(t.Context(), epoch2, 20))
	})
}

// TestRace lets everything meet on few keys: whatever interleaving there is, a value belongs to its key, and a reader
// never sees a key go back in time.
func TestRace(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Bytes = 4096 })
	var mu sync.Mutex // the truth: revision of each key's last write
	var rev kv.Revision
	state := map[string]kv.Revision{}
	value := func(key string, rev kv.Revision) []byte { return fmt.Appendf(nil, "%s at %d", key, rev) }
	key := func(i int) string { return fmt.Sprintf("k%d", i%6) }
	r.ask = func(_ context.Context, _ Hop, req FillRequest) (FillAnswer, error) {
		mu.Lock()
		defer mu.Unlock()
		at := state[req.Key]
		if req.Have && req.HaveRev == at && !req.HaveAbsent {
			return FillAnswer{Epoch: req.Epoch, AsOf: rev, NotModified: true}, nil
		}
		return FillAnswer{Epoch: req.Epoch, AsOf: rev, Revision: at, Absent: at == 0, Value: value(req.Key, at)}, nil
	}
	var wg sync.WaitGroup
	feed := make(chan kv.Record, 4096)
	wg.Go(func() { // the only writer
		defer close(feed)
		for i := range 1500 {
			k := key(i * 7)
			w := r.c.BeginWrite(nsA, k)
			mu.Lock()
			rev++
			now := rev
			state[k] = now
			mu.Unlock()
			rec := kv.Record{Epoch: epoch1, Prev: now - 1, To: now, Kind: kv.RecordKeys, Hashes: []uint64{r.c.Hash(nsA, k)}}
			r.c.Hint(rec)
			feed <- rec
			if err := w.Done(State{Epoch: epoch1, AsOf: now, Revision: now, Value: value(k, now)}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for rec := range feed {
			if err := r.c.Apply(rec); err != nil {
				t.Error(err)
			}
			if err := r.c.Prove(t.Context(), epoch1, rec.To, r.c.Now()); err != nil {
				t.Error(err)
			}
			r.pass(time.Millisecond)
		}
	})
	for g := range 6 {
		wg.Go(func() {
			seen := map[string]kv.Revision{}
			for i := range 1500 {
				k := key(i * (g + 1))
				ans, err := r.get(k, ttl(time.Duration(i%5)*time.Second))
				if err != nil {
					t.Errorf("%s: %v", k, err)
					return
				}
				e := ans.Entry
				if !e.Absent() && string(e.Value()) != string(value(k, e.Revision)) {
					t.Errorf("%s: %q at revision %d", k, e.Value(), e.Revision)
				}
				if e.Revision < seen[k] {
					t.Errorf("%s went back from %d to %d", k, seen[k], e.Revision)
				}
				seen[k] = e.Revision
			}
		})
	}
	wg.Wait()
	if s := r.c.Stats(); s.Bytes > 4096 {
		t.Errorf("%d bytes", s.Bytes)
	}
	for i := range 6 { // quiet again: the truth, everywhere
		if ans := r.mustGet(key(i), within(time.Hour)); ans.Entry.Revision != state[key(i)] {
			t.Errorf("%s at %d, want %d", key(i), ans.Entry.Revision, state[key(i)])
		}
	}
	r.c.Close() // the background fills
	for i := range r.c.shards {
		if sh := &r.c.shards[i]; len(sh.regs)+len(sh.flights) > 0 {
			t.Errorf("shard %d: %d registrations, %d fills left", i, len(sh.regs), len(sh.flights))
		}
	}
}
