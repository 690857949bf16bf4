package blobkeep

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/command"
)

// later lets both clocks go on: the voter's own, and mesh time.
func (v *voter) later(d time.Duration) {
	v.mesh.Add(d.Milliseconds())
	time.Sleep(d)
	synctest.Wait()
}

// A blob goes a grace after the write that replaced it was applied, whatever kind of write it was, and no other does.
func TestSweepReleased(t *testing.T) {
	virtual(t, func(t *testing.T) {
		v := newVoter(t, newPeers(t))
		for n := range 6 {
			store(t, v.store, n)
			v.apply(put(n))
		}
		v.run()
		v.later(time.Hour)
		v.check("all are named", 0, 1, 2, 3, 4, 5)
		replaced := put(1)
		replaced.Key = "key0"
		replaced.Blob = id(9)
		store(t, v.store, 9)
		expired := put(5)
		expired.Expiry = v.mesh.Load()/1000 - 1
		v.apply(replaced, del(2), command.Op{Kind: command.KindPut, Namespace: ns, Key: "key3", Value: []byte("v"), Size: 1}, expired,
			command.Op{Kind: command.KindSweep, Limit: 10})
		v.later(grace - time.Minute)
		v.check("before the grace has passed", 0, 1, 2, 3, 4, 5, 9)
		v.later(2 * time.Minute)
		v.check("after it", 1, 4, 9)
		if got := v.metric("swept_total"); got != 4 {
			t.Errorf("%v were swept", got)
		}
		v.apply(command.Op{Kind: command.KindDeleteNamespace, Namespace: ns})
		v.later(grace + 2*time.Minute)
		v.check("the namespace is gone")
		v.later(10 * time.Hour)
	})
}

// Whoever holds the blobs of a view finds all of them, however long it takes; what was released before goes.
func TestHold(t *testing.T) {
	virtual(t, func(t *testing.T) {
		v := newVoter(t, newPeers(t))
		for n := range 5 {
			store(t, v.store, n)
			v.apply(put(n))
		}
		store(t, v.store, 50) // never named
		v.run()
		v.apply(del(0))
		v.later(time.Second)
		v.apply(put(60))
		store(t, v.store, 60)
		release := v.keeper.Hold()
		v.apply(del(1))
		v.later(time.Minute)
		v.apply(del(99)) // mesh time goes on with entries only
		again := v.keeper.Hold()
		v.apply(del(2))
		v.later(5 * time.Hour)
		v.check("held", 1, 2, 3, 4, 50, 60)
		release()
		v.later(2 * time.Minute)
		v.check("the first one has gone", 2, 3, 4, 50, 60)
		again()
		again()
		v.later(3 * time.Hour)
		v.check("nobody holds anything", 3, 4, 60)
	})
}

// A blob that nothing ever named goes when it was unnamed for an hour, counted anew with every term and every start, and only
// on a voter that is up to date.
func TestSweepUnnamed(t *testing.T) {
	virtual(t, func(t *testing.T) {
		v := newVoter(t, newPeers(t))
		entry := func() {
			v.apply(command.Op{Kind: command.KindPut, Namespace: ns, Key: "any", Value: []byte("v"), Size: 1})
		}
		turn := walkTurns * sweepEvery
		v.run()
		v.later(turn)
		store(t, v.store, 1)
		store(t, v.store, 2)
		v.later(30 * time.Minute)
		v.apply(put(2)) // late, but in time
		v.later(20 * time.Minute)
		v.check("50 minutes", 1, 2)
		v.later(10*time.Minute + 2*turn)
		v.check("an hour and more", 2)

		store(t, v.store, 3)
		v.later(50 * time.Minute)
		v.term.Store(2) // a new leader, which has committed nothing yet
		v.later(2 * time.Hour)
		v.check("no entry of the new term", 2, 3)
		entry()
		v.later(50 * time.Minute)
		v.check("50 minutes after the first entry of the term", 2, 3)
		v.later(10*time.Minute + 2*turn)
		v.check("an hour after the first entry of the term", 2)

		store(t, v.store, 4)
		v.current.Store(false)
		v.later(5 * time.Hour)
		v.check("cut off", 2, 4)
		v.apply(put(4)) // what it had not heard of
		v.current.Store(true)
		v.later(2 * time.Hour)
		v.check("back again", 2, 4)

		store(t, v.store, 5)
		v.later(50 * time.Minute)
		v.end()
		v.open()
		v.run()
		v.later(2 * time.Hour)
		v.check("restarted, and nothing was applied since", 2, 4, 5)
		entry()
		v.later(50 * time.Minute)
		v.check("restarted", 2, 4, 5)
		v.later(10*time.Minute + 2*turn)
		v.check("an hour after the restart", 2, 4)
		v.later(24 * time.Hour)
		v.check("a day later", 2, 4)
	})
}

// What an interrupted fetch has left goes when the blob is there or not needed any more, and not before.
func TestSweepPartials(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.down = true })
		source, err := newPeers(t, "s"), error(nil)
		v := newVoter(t, p)
		for n := 5; n < 8; n++ {
			store(t, source.all[0].store, n)
			f, err := source.all[0].store.Open(ns, id(n))
			if err != nil {
				t.Fatal(err)
			}
			w, err := v.store.Resume(ns, id(n), f.Size(), f.Sums())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content(n)[:100_000]); err != nil {
				t.Fatal(err)
			}
			if err := w.Abort(); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		v.apply(put(5), put(6)) // not 7
		store(t, v.store, 6)
		v.run()
		v.later(time.Hour)
		var left []string
		err = v.store.Partials(func(r blob.Ref) error { left = append(left, fmt.Sprint(r == ref(5))); return nil })
		if err != nil || len(left) != 1 || left[0] != "true" {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}
