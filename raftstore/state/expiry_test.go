package state

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
)

// TestNextExpiry: what is swept, deleted or moved makes room for the next one, and what is added below it is seen.
func TestNextExpiry(t *testing.T) {
	f := newState(t)
	want := func(what string, at int64) {
		t.Helper()
		for range 2 { // the second one begins where the first one ended
			if got, ok, err := f.NextExpiry(); got != at || ok != (at != 0) || err != nil {
				t.Errorf("%s: %d (%t, %v), want %d", what, got, ok, err, at)
			}
		}
	}
	sweep := func(since int64) command.Op { return command.Op{Kind: command.KindSweep, Limit: 10, Expiry: since} }
	want("nothing", 0)
	if *f.expiry.bound.Load() != never {
		t.Error("the search begins at the front although nothing is there")
	}
	f.at(1, put("never", "1"))
	want("nothing that expires", 0)
	f.at(1, putUntil("a", "1", 100), putUntil("b", "1", 200), putUntil("c", "1", 300))
	want("three", 100)
	f.at(2, putUntil("a", "2", 250))
	want("the first one lives on", 200)
	f.at(3, del("b"))
	want("the second one is deleted", 250)
	f.at(4, putUntil("d", "1", 50))
	want("one that expires before", 50)
	f.at(60, sweep(50))
	want("it is swept", 250)
	f.at(61, putUntil("late", "1", 60)) // expired when it is written
	want("one that has expired already", 60)
	f.at(62, sweep(61))
	want("a sweep that looks behind it", 60)
	f.at(63, sweep(60))
	want("one that looks at it", 250)
	f.at(400, sweep(0))
	want("all are gone", 0)
	f.at(401, create(ns2, "two"), in(ns2, putUntil("x", "1", 500)), drop(ns2))
	want("what a deleted namespace left", 500)
	f.at(501, sweep(500))
	want("and that is swept too", 0)
	f.at(502, putUntil("e", "1", 600))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openOn(t, f.fs)
	want("after a restart", 600)
}

// TestNextExpiryWhileWriting: whoever asks while keys come and go never ends with a bound above the first one.
func TestNextExpiryWhileWriting(t *testing.T) {
	f := openOn(t, vfs.NewMem())
	f.at(0, initOp())
	stop := make(chan struct{})
	var askers sync.WaitGroup
	for range 2 {
		askers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := f.NextExpiry(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 1))
	keys := map[string]int64{}
	for range 2000 {
		k := string(rune('a' + rng.IntN(8)))
		if rng.IntN(3) == 0 {
			f.at(1, del(k))
			delete(keys, k)
		} else {
			keys[k] = 1000 + rng.Int64N(1000)
			f.at(1, putUntil(k, "v", keys[k]))
		}
		want := int64(0)
		for _, e := range keys {
			if want == 0 || e < want {
				want = e
			}
		}
		if got, ok, err := f.NextExpiry(); got != want || ok != (want != 0) || err != nil {
			t.Fatalf("%d (%t, %v), want %d", got, ok, err, want)
		}
	}
	close(stop)
	askers.Wait()
}
