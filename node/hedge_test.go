package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func answerAfter(d time.Duration, v string, err error) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		select {
		case <-time.After(d):
			return v, err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func TestHedged(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name          string
		first, second func(context.Context) (string, error)
		may           bool
		want          string
		err           error
		took          time.Duration
	}{
		{"fast enough", answerAfter(9, "first", nil), nil, true, "first", nil, 9},
		{"second wins", answerAfter(100, "first", nil), answerAfter(5, "second", nil), true, "second", nil, 15},
		{"first wins after all", answerAfter(20, "first", nil), answerAfter(50, "second", nil), true, "first", nil, 20},
		{"no budget", answerAfter(100, "first", nil), nil, false, "first", nil, 100},
		{"first fails, second saves it", answerAfter(12, "", boom), answerAfter(5, "second", nil), true, "second", nil, 15},
		{"first fails early", answerAfter(3, "", boom), nil, true, "", boom, 3},
		{"both fail", answerAfter(12, "", boom), answerAfter(5, "", errors.New("other")), true, "", boom, 15},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			got, err := hedged(t.Context(), 10, func() bool { return c.may }, c.first, c.second)
			if got != c.want || !errors.Is(err, c.err) || time.Since(began) != c.took {
				t.Errorf("%s: %q, %v after %v; want %q, %v after %v", c.name, got, err, time.Since(began), c.want, c.err, c.took)
			}
		})
	}
}

func TestHedgerKeepsItsBudget(t *testing.T) {
	h := newHedger()
	if _, ok := h.begin("v"); ok {
		t.Fatal("a node of which nothing is known is hedged")
	}
	for i := range 1000 {
		d := time.Millisecond
		if i%10 == 0 {
			d = 50 * time.Millisecond
		}
		h.observe("v", d)
	}
	if after, ok := h.begin("v"); !ok || after != 50*time.Millisecond {
		t.Fatalf("one answer in ten takes 50 ms: hedge after %v, %v", after, ok)
	}
	for h.spend() { // use up what was saved
	}
	sent := 0
	const requests = 10_000
	for range requests {
		h.begin("v")
		if h.spend() {
			sent++
		}
	}
	if sent < requests*4/100 || sent > requests*5/100 {
		t.Errorf("%d second requests for %d first ones; want just under 5 %%", sent, requests)
	}
}
