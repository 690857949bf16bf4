package node

import (
	"testing"
	"testing/synctest"
	"time"
)

// handClocks are a monotonic and a wall clock moved by hand.
type handClocks struct {
	mono time.Duration
	wall time.Time
}

func (h *handClocks) pass(d time.Duration) { h.mono += d; h.wall = h.wall.Add(d) }

func (h *handClocks) own() *ownClock {
	return newOwnClock(func() time.Duration { return h.mono }, func() time.Time { return h.wall })
}

func TestOwnClockCountsSleep(t *testing.T) {
	h := &handClocks{mono: 5 * time.Second, wall: time.Unix(1_800_000_000, 0)}
	c := h.own()
	before := c.Now()
	h.pass(time.Second)
	h.wall = h.wall.Add(time.Hour) // the machine slept
	if got := c.Now() - before; got != time.Hour+time.Second {
		t.Fatalf("an hour of sleep and a second passed, the clock says %v", got)
	}
	h.pass(time.Second)
	if got := c.Now() - before; got != time.Hour+2*time.Second {
		t.Fatalf("a sleep counts once; the clock says %v", got)
	}
}

func TestOwnClockIgnoresWallSetBack(t *testing.T) {
	h := &handClocks{wall: time.Unix(1_800_000_000, 0)}
	c := h.own()
	before := c.Now()
	h.wall = h.wall.Add(-time.Hour)
	h.pass(time.Second)
	if got := c.Now() - before; got != time.Second {
		t.Fatalf("a second passed, the clock says %v", got)
	}
	h.pass(time.Second)
	h.wall = h.wall.Add(2 * time.Minute) // a sleep after that still counts
	if got := c.Now() - before; got != 2*time.Second+2*time.Minute {
		t.Fatalf("two seconds and two minutes of sleep passed, the clock says %v", got)
	}
}

func TestOwnClockBearsDrift(t *testing.T) {
	h := &handClocks{wall: time.Unix(1_800_000_000, 0)}
	c := h.own()
	h.pass(time.Second)
	h.wall = h.wall.Add(maxDrift)
	if got := c.Now(); got != time.Second {
		t.Fatalf("a drift of %v is no jump; the clock says %v", maxDrift, got)
	}
	h.wall = h.wall.Add(1)
	if got := c.Now(); got != time.Second+maxDrift+1 {
		t.Fatalf("beyond %v it is one; the clock says %v", maxDrift, got)
	}
}

// A goroutine that loses its processor between its two readings has not slept, not even when it happens to it twice.
func TestOwnClockHeldUp(t *testing.T) {
	h := &handClocks{wall: time.Unix(1_800_000_000, 0)}
	heldUp := 0 // of the next readings
	c := newOwnClock(func() time.Duration { return h.mono }, func() time.Time {
		if heldUp > 0 {
			heldUp--
			h.pass(time.Second)
		}
		return h.wall
	})
	var passed time.Duration
	for times := 1; times <= 2; times++ {
		heldUp = times
		if got := c.Now(); got != passed {
			t.Fatalf("read when %v had passed, the clock says %v", passed, got)
		}
		passed += time.Duration(times) * time.Second
		if got := c.Now(); got != passed {
			t.Fatalf("%v have passed, the clock says %v", passed, got)
		}
	}
	const nap = 30 * time.Millisecond
	h.wall = h.wall.Add(nap) // a short sleep still counts
	if got := c.Now(); got != passed+nap {
		t.Fatalf("%v and %v of sleep have passed, the clock says %v", passed, nap, got)
	}
}

func TestMeshClockNeverGoesBack(t *testing.T) {
	h := &handClocks{wall: time.UnixMilli(1_800_000_000_000)}
	c := newMeshClock(func() time.Duration { return h.mono }, h.own().Now, h.wall)
	if got := c.Now(); got != 1_800_000_000_000 {
		t.Fatalf("before the mesh is heard the own wall clock counts, got %d", got)
	}
	if got := c.Told(); got != 0 {
		t.Fatalf("another node is told %d, which is the own wall clock's time", got)
	}
	c.Observe(1_700_000_000_000) // the first word replaces a wrong wall clock, even backwards
	if got := c.Now(); got != 1_700_000_000_000 {
		t.Fatalf("the mesh's first word counts, got %d", got)
	}
	h.pass(time.Second)
	if got := c.Now(); got != 1_700_000_001_000 {
		t.Fatalf("it goes on by the own clock, got %d", got)
	}
	c.Observe(1_700_000_000_500)
	if got := c.Now(); got != 1_700_000_001_000 {
		t.Fatalf("what was said is not taken back, got %d", got)
	}
	h.pass(600 * time.Millisecond)
	if got := c.Now(); got != 1_700_000_001_100 {
		t.Fatalf("the clock goes on once the mesh has caught up, got %d", got)
	}
}

// After the wall clock has run ahead of the monotonic one, mesh time is in doubt until the mesh is heard.
func TestMeshClockDoubtsJumps(t *testing.T) {
	for _, slept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const base = 1_800_000_000
			h := &handClocks{wall: time.Unix(base, 0)}
			c := newMeshClock(func() time.Duration { return h.mono }, h.own().Now, h.wall)
			c.Observe(base * 1000)
			h.wall = h.wall.Add(time.Hour)
			if got := c.Now(); got != base*1000 {
				t.Fatalf("the clock follows the wall clock to %d", got)
			}
			for _, at := range []int64{base, base + 3601} {
				if got, err := c.expired(t.Context(), at); err != nil || got != (at == base) {
					t.Errorf("%d s ahead: expired %v, %v; there is no doubt", at-base, got, err)
				}
			}
			start := time.Now()
			if _, err := c.expired(t.Context(), base+3600); err == nil || time.Since(start) != settleTime {
				t.Errorf("in doubt: %v after %v", err, time.Since(start))
			}
			if _, err := c.expired(t.Context(), base+3600); err == nil || time.Since(start) != settleTime {
				t.Errorf("in doubt again: %v after %v; one who waits in vain is enough", err, time.Since(start))
			}
			c.Observe(base * 1000)
			h.wall = h.wall.Add(time.Hour)
			now := int64(base * 1000)
			if slept {
				now += 3600_000
			}
			time.AfterFunc(settleTime/2, func() { c.Observe(now) })
			if got, err := c.expired(t.Context(), base+3600); err != nil || got != slept {
				t.Errorf("slept %v: expired %v, %v", slept, got, err)
			}
		})
	}
}
