package blobkeep

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// What the state names and the disk lacks, or has with another length, is found at the start and fetched.
func TestScan(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b", "c")
		v := newVoter(t, p)
		for n := range 6 {
			v.apply(put(n))
			store(t, p.all[n%2].store, n)
		}
		store(t, v.store, 0)
		store(t, v.store, 1)
		v.end()
		w, err := v.disk.Create(fmt.Sprintf("/blobs/%s/%s", ns, id(2)), vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = w.Write([]byte("cut"))
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		v.open()
		v.missing("before anybody has looked", 1)
		v.run()
		synctest.Wait()
		v.missing("at once", 0)
		v.check("after the scan", 0, 1, 2, 3, 4, 5)
		if v.metric("fetched_total") != 4 || v.metric("damaged_total") != 1 || v.metric("fetch_failures_total") != 0 {
			t.Errorf("fetched %v, damaged %v, failures %v", v.metric("fetched_total"), v.metric("damaged_total"), v.metric("fetch_failures_total"))
		}
	})
}

// A commit that names a blob which did not come here has it fetched; one that is still on its way is waited for; one that is
// released is not looked for any more.
func TestCommits(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		v := newVoter(t, p)
		v.run()
		synctest.Wait()
		v.missing("nothing is named", 0)

		store(t, p.all[0].store, 1)
		store(t, v.store, 2)
		v.apply(put(1), put(2))
		synctest.Wait()
		v.missing("named", 0)
		v.check("named", 1, 2)

		w, err := v.store.Create(ns, id(3))
		if err != nil {
			t.Fatal(err)
		}
		store(t, p.all[0].store, 3)
		v.apply(put(3))
		time.Sleep(10 * uploadPause)
		v.missing("while it is being written", 1)
		if _, err := w.Write(content(3)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * uploadPause)
		v.missing("written", 0)
		if got := p.log(); !slices.Equal(got, []string{"b 1 0"}) {
			t.Errorf("fetched %v", got)
		}

		if w, err = v.store.Create(ns, id(4)); err != nil {
			t.Fatal(err)
		}
		store(t, p.all[0].store, 4)
		v.apply(put(4))
		time.Sleep(2 * uploadPause)
		if err := w.Abort(); err != nil { // the upload to this voter was given up
			t.Fatal(err)
		}
		time.Sleep(2 * uploadPause)
		v.missing("an upload that was given up", 0)
		v.check("an upload that was given up", 1, 2, 3, 4)

		p.set(0, func(p *peer) { p.down = true })
		v.apply(put(5))
		time.Sleep(time.Minute)
		v.missing("nobody has it", 1)
		v.apply(del(5))
		v.missing("it is not needed any more", 0)
		asked := len(p.opened())
		time.Sleep(10 * time.Minute)
		if len(p.opened()) != asked {
			t.Error("still being asked for")
		}
	})
}

// A fetch that breaks goes on where it was: at the next voter, at the next attempt, and after the process was ended.
func TestFetchGoesOn(t *testing.T) {
	virtual(t, func(t *testing.T) {
		const n = 7 // 350,000 bytes
		p := newPeers(t, "lacks it", "breaks", "liar")
		store(t, p.all[1].store, n)
		store(t, p.all[2].store, n)
		p.set(1, func(p *peer) { p.cut = 100_000 })
		p.set(2, func(p *peer) { p.lie = 1 })
		v := newVoter(t, p)
		v.run()
		v.apply(put(n))
		synctest.Wait()
		v.missing("after the first attempt", 1)
		if _, err := v.store.Open(ns, id(n)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("half a blob is visible: %v", err)
		}
		v.end()
		v.open()
		v.run()
		synctest.Wait()
		v.missing("after the restart", 1)
		p.set(2, func(p *peer) { p.lie = 0 })
		time.Sleep(time.Minute)
		v.missing("in the end", 0)
		v.check("in the end", n)
		want := []string{"breaks 7 0", "breaks 7 65536", "breaks 7 131072", "liar 7 196608"}
		if got := p.log(); !slices.Equal(got, want) {
			t.Errorf("asked %v, want %v", got, want)
		}
		if v.metric("resumed_bytes_total") != 196608 {
			t.Errorf("%v bytes were there already", v.metric("resumed_bytes_total"))
		}
	})
}

// A voter whose blob is damaged gives its bytes to nobody; what it had given is good, and others give the rest.
func TestFetchFromDamaged(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "damaged", "other")
		other := newVoter(t, p)
		store(t, other.store, 3)
		other.damage(3)
		p.all[0].store = other.store
		store(t, p.all[1].store, 3)
		v := newVoter(t, p)
		v.run()
		v.apply(put(3))
		synctest.Wait()
		v.check("fetched", 3)
		if got := p.log(); !slices.Equal(got, []string{"damaged 3 0", "other 3 65536"}) {
			t.Errorf("asked %v", got)
		}
	})
}

// While nobody can give a blob the pauses grow, and a few are fetched at a time.
func TestRetries(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.down = true })
		v := newVoter(t, p)
		v.run()
		v.apply(put(1))
		time.Sleep(time.Hour)
		times := p.opened()
		if n := len(times); n < int(time.Hour/(2*lastPause)) || n > int(2*time.Hour/lastPause) {
			t.Errorf("asked %d times in an hour", n)
		}
		for i := 1; i < 5; i++ {
			if gap := times[i].Sub(times[i-1]); gap < firstPause/2 || gap > firstPause<<i {
				t.Errorf("pause %d was %v", i, gap)
			}
		}
		for n := range 20 {
			store(t, p.all[0].store, n)
		}
		p.set(0, func(p *peer) { p.down, p.delay = false, time.Second })
		time.Sleep(2 * lastPause)
		v.missing("when it is back", 0)
		p.mu.Lock()
		p.times = nil
		p.mu.Unlock()
		var ops []command.Op
		for n := range 19 {
			ops = append(ops, put(n+1))
		}
		v.apply(ops[1:]...)
		time.Sleep(500 * time.Millisecond)
		if len(p.opened()) != parallel {
			t.Errorf("%d fetches at once", len(p.opened()))
		}
		v.missing("on their way", 18)
		time.Sleep(10 * time.Second)
		v.missing("all", 0)
	})
}

// The list has bounds; what it has no room for is counted, and found when there is room.
func TestManyMissing(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.down = true })
		v := newVoter(t, p)
		var ops []command.Op
		var want []int
		for n := range 50 {
			ops = append(ops, put(n))
			want = append(want, n)
			store(t, p.all[0].store, n)
		}
		v.apply(ops...)
		v.keeper.limit = 10
		v.run()
		time.Sleep(time.Second)
		v.missing("more than the list holds", 50)
		if len(v.keeper.missing) != 10 {
			t.Errorf("%d are listed", len(v.keeper.missing))
		}
		p.set(0, func(p *peer) { p.down = false })
		time.Sleep(10 * time.Minute)
		v.missing("in the end", 0)
		v.check("in the end", want...)

		v.apply(func() (ops []command.Op) { // more than the queue holds
			for n := range 50 {
				ops = append(ops, put(100+n))
				want = append(want, 100+n)
				store(t, p.all[0].store, 100+n)
			}
			return ops
		}()...)
		time.Sleep(10 * time.Minute)
		v.missing("after a large commit", 0)
		v.check("after a large commit", want...)
	})
}

// A checkpoint that takes the state's place names other blobs: they are missing from the moment it does.
func TestReplaced(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.delay = time.Second })
		v := newVoter(t, p)
		store(t, v.store, 1)
		v.run()
		v.apply(put(1))
		synctest.Wait()
		v.missing("before", 0)

		ahead := newVoter(t, newPeers(t))
		for n := 2; n < 9; n++ {
			store(t, p.all[0].store, n)
			ahead.apply(put(n))
		}
		if _, err := ahead.st.Checkpoint("/checkpoint"); err != nil {
			t.Fatal(err)
		}
		if _, err := vfs.Clone(ahead.disk, v.disk, "/checkpoint", "/checkpoint"); err != nil {
			t.Fatal(err)
		}
		v.st.Observe(func(c state.Committed) {
			v.keeper.Observe(c)
			if n := v.keeper.MissingBlobs(); c.Replaced && n == 0 { // whoever asks in between is told
				t.Error("nothing is missing just after the state was replaced")
			}
			time.Sleep(10 * time.Millisecond) // the keeper looks before readers see it
		})
		if err := v.st.Replace("/checkpoint"); err != nil {
			t.Fatal(err)
		}
		v.index = ahead.index
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		v.missing("after it was replaced", 7)
		time.Sleep(time.Minute)
		v.missing("later", 0)
		v.check("later", 1, 2, 3, 4, 5, 6, 7, 8)
		v.apply(put(9)) // the work goes on
		store(t, p.all[0].store, 9)
		time.Sleep(time.Minute)
		v.missing("in the end", 0)
	})
}

// What a reader finds damaged is looked at, moved aside and fetched again; what it finds missing is fetched.
func TestReports(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		v := newVoter(t, p)
		for n := 1; n <= 4; n++ {
			store(t, v.store, n)
			store(t, p.all[0].store, n)
			v.apply(put(n))
		}
		store(t, v.store, 5) // not named
		v.run()
		synctest.Wait()
		v.damage(1)
		v.damage(5)
		if err := v.store.Delete(ns, id(2)); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 5; n++ {
			v.keeper.Report(ns, id(n), n == 4)
			v.keeper.Report(ns, id(n), false)
		}
		synctest.Wait()
		v.missing("reported", 0)
		v.check("reported", 1, 2, 3, 4)
		if got := p.log(); len(got) != 3 || strings.Contains(strings.Join(got, ","), "b 3") {
			t.Errorf("fetched %v", got)
		}
		aside := func() (refs []blob.Ref) {
			if err := v.store.Damaged(func(r blob.Ref, _ string, _ time.Time) error { refs = append(refs, r); return nil }); err != nil {
				t.Fatal(err)
			}
			return refs
		}
		if got := aside(); len(got) != 3 || !slices.Contains(got, ref(1)) || !slices.Contains(got, ref(4)) || !slices.Contains(got, ref(5)) {
			t.Errorf("moved aside: %v", got)
		}
		time.Sleep(asideAge - time.Hour)
		if got := aside(); len(got) != 3 {
			t.Errorf("after less than a day: %v", got)
		}
		time.Sleep(2 * time.Hour)
		if got := aside(); len(got) != 0 {
			t.Errorf("after a day: %v", got)
		}

		// The last copy is kept, whatever it is worth.
		p.set(0, func(p *peer) { p.down = true })
		v.damage(1)
		v.keeper.Report(ns, id(1), false)
		time.Sleep(3 * asideAge)
		if got := aside(); !slices.Equal(got, []blob.Ref{ref(1)}) {
			t.Errorf("nobody has another copy, and aside are %v", got)
		}
		v.missing("nobody has another copy", 1)
		for range 3 * maxReports {
			v.keeper.Report(ns, kv.NewBlobID(), false)
		}
		v.keeper.mu.Lock()
		waiting := len(v.keeper.reports)
		v.keeper.mu.Unlock()
		if waiting > maxReports {
			t.Errorf("%d reports wait", waiting)
		}
		synctest.Wait()
	})
}
