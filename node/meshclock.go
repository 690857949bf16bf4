package node

import (
	"context"
	"sync"
	"time"

	"kvmesh/raftstore/kv"
)

// meshClock is mesh time at this node: what the voters agreed on when it was last heard, carried on by the own clocks. It
// never goes back. All expiry is judged by it, so a node whose wall clock is wrong expires nothing early.
//
// Between two words from the mesh there are two ways to carry it on, which differ only after the wall clock has run ahead
// of the monotonic one: either the machine slept, and mesh time has gone on meanwhile, or somebody set the wall clock, and
// it has not. A node cannot tell which until it hears of the mesh again. So Now goes by the monotonic clock alone, which
// is never ahead of mesh time, and whoever must know better waits for the next word (Settled, expired).
type meshClock struct {
	mono func() time.Duration // the machine's monotonic clock, which stands still while it sleeps
	own  func() time.Duration // the node's own clock, which counts sleep, and a wall clock set forward

	mu     sync.Mutex    // guards the fields below
	base   int64         // mesh time in unix milliseconds at the readings at and ownAt
	at     time.Duration // of mono
	ownAt  time.Duration // of own
	said   int64         // the latest time that was given out: while the mesh is behind it, the clock stands
	agreed bool          // base came from the mesh, not from the own wall clock
	first  chan struct{} // closed when agreed
	heard  chan struct{} // closed by the next Observe; nil while nobody waits
	silent bool          // somebody waited for that in vain: nobody else does
}

// settleTime is how long somebody waits for a word from the mesh while mesh time is in doubt. A node that is connected
// hears one every feedTick.
const settleTime = time.Second

func newMeshClock(mono, own func() time.Duration, wall time.Time) *meshClock {
	return &meshClock{mono: mono, own: own, base: wall.UnixMilli(), at: mono(), ownAt: own(), first: make(chan struct{})}
}

// Now is mesh time in unix milliseconds.
func (c *meshClock) Now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked()
}

func (c *meshClock) nowLocked() int64 {
	c.said = max(c.said, c.base+int64((c.mono()-c.at)/time.Millisecond))
	return c.said
}

// span is the earliest and the latest that mesh time can be, and the channel that is closed at the next word: nil when
// waiting for it was in vain before.
func (c *meshClock) span() (from, to int64, heard <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from = c.nowLocked()
	to = max(from, c.base+int64((c.own()-c.ownAt)/time.Millisecond))
	if c.silent {
		return from, to, nil
	}
	if c.heard == nil {
		c.heard = make(chan struct{})
	}
	return from, to, c.heard
}

// before reports whether a moment, in unix seconds of mesh time, is certainly still to come. It does not wait.
func (c *meshClock) before(at int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := c.nowLocked()
	return at*1000 > max(from, c.base+int64((c.own()-c.ownAt)/time.Millisecond))
}

// wait looks at the span until done says that it will do, and waits for the mesh as long as it does not. It reports false
// when the mesh is silent for settleTime, or was before.
func (c *meshClock) wait(ctx context.Context, done func(from, to int64) bool) (from int64, ok bool) {
	from, to, heard := c.span()
	if done(from, to) {
		return from, true
	}
	timeout := time.NewTimer(settleTime)
	defer timeout.Stop()
	for heard != nil {
		select {
		case <-heard:
		case <-ctx.Done():
			return from, false
		case <-timeout.C:
			c.mu.Lock()
			c.silent = true
			c.mu.Unlock()
		}
		if from, to, heard = c.span(); done(from, to) {
			return from, true
		}
	}
	return from, false
}

// Settled is mesh time for what is going to last. While it is in doubt it waits for the mesh, for up to settleTime.
func (c *meshClock) Settled() time.Time {
	from, _ := c.wait(context.Background(), func(from, to int64) bool { return to-from <= int64(maxDrift/time.Millisecond) })
	return time.UnixMilli(from)
}

// Told is mesh time for another node, in unix milliseconds: 0 as long as it is only the own wall clock's, so that nobody
// takes a wrong clock's word for the mesh's.
func (c *meshClock) Told() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.agreed {
		return 0
	}
	return c.nowLocked()
}

// Agreed is closed once the mesh has been heard.
func (c *meshClock) Agreed() <-chan struct{} { return c.first }

// Time is mesh time.
func (c *meshClock) Time() time.Time { return time.UnixMilli(c.Now()) }

// expired reports whether a moment, in unix seconds of mesh time, has passed. When that is in doubt it waits for the mesh,
// for up to settleTime, and fails rather than guess.
func (c *meshClock) expired(ctx context.Context, at int64) (bool, error) {
	from, ok := c.wait(ctx, func(from, to int64) bool { return at*1000 <= from || at*1000 > to })
	if !ok {
		return false, &kv.Error{
			Code: kv.CodeUnavailable, RetryAfter: time.Second,
			Message: "this node's clock has jumped, and until it hears of the mesh it cannot tell whether the key has expired; retry",
		}
	}
	return at*1000 <= from, nil
}

// Observe takes a mesh time heard just now. The first word from the mesh replaces the own wall clock altogether, because
// until then this node has judged nothing that anybody else could have judged differently before.
func (c *meshClock) Observe(millis int64) {
	if millis <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.agreed {
		c.said, c.agreed = 0, true
		close(c.first)
	}
	c.base, c.at, c.ownAt, c.silent = millis, c.mono(), c.own(), false
	if c.heard != nil {
		close(c.heard)
		c.heard = nil
	}
}
