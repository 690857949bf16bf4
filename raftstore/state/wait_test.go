package state

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestObserverComesFirst: the feed hears of a change before a reader can see it or a waiter is woken.
func TestObserverComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newState(t)
		woken := make(chan error, 1)
		go func() { woken <- f.WaitRevision(t.Context(), 2) }()
		synctest.Wait()
		f.Observe(func(c Committed) {
			synctest.Wait()
			if len(woken) != 0 || !f.get(ns1, "k").Absent || f.Applied().Revision != 1 || c.Applied.Revision != 2 {
				t.Error("the change was visible before the observer returned")
			}
		})
		f.at(1, put("k", "1"))
		if err := <-woken; err != nil || f.Applied().Revision != 2 {
			t.Error(err, f.Applied())
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newState(t)
		wait := func(ctx context.Context, index uint64) chan error {
			done := make(chan error, 1)
			go func() { done <- f.WaitIndex(ctx, index) }()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		now, two, cancelled, three, never := wait(t.Context(), 1), wait(t.Context(), 2), wait(ctx, 2), wait(t.Context(), 3), wait(t.Context(), 99)
		synctest.Wait()
		if len(now) != 1 || len(two)+len(three) != 0 {
			t.Fatal("woken too early")
		}
		cancel()
		if err := <-cancelled; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		f.at(1, put("k", "1"))
		synctest.Wait()
		if len(two) != 1 || len(three) != 0 {
			t.Error("the second entry must wake its waiter and no other")
		}
		if err := f.Witness(3, 1); err != nil {
			t.Fatal(err)
		}
		if err := <-three; err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-never; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := f.WaitIndex(t.Context(), 3); err != nil {
			t.Errorf("what was reached before the close: %v", err)
		}
	})
}
