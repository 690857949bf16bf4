package node

import (
	"sync"
	"sync/atomic"
	"time"
)

// ownClock is the clock by which this node counts ages. It is the monotonic clock, corrected for its one weakness: it
// stands still while the machine sleeps. So every reading is compared with the wall clock, and when that has run ahead by
// more than maxDrift since the two were last compared, the difference is added to every age from then on: proofs from
// before a sleep are as old as they are. A wall clock that was only set forward costs needless refills; one that is set
// back changes nothing, because the monotonic clock went on.
type ownClock struct {
	mono func() time.Duration
	wall func() time.Time

	first time.Time    // of wall, when the clock was made
	base  atomic.Int64 // the difference wall − mono as last accepted, in ns
	slept atomic.Int64 // what is added to mono, in ns
	mu    sync.Mutex   // serialises changes of base and slept
}

// maxDrift is how far the two clocks may drift apart before it counts as a jump.
const maxDrift = 250 * time.Millisecond

func newOwnClock(mono func() time.Duration, wall func() time.Time) *ownClock {
	c := &ownClock{mono: mono, wall: wall, first: wall().Round(0)}
	c.base.Store(-int64(mono()))
	return c
}

// Now reads the clock. It takes no lock, except when the clocks have jumped.
func (c *ownClock) Now() time.Duration {
	m := c.mono()
	diff := int64(c.wall().Round(0).Sub(c.first) - m)
	if d := diff - c.base.Load(); d > int64(maxDrift) || d < -int64(maxDrift) {
		c.jumped(diff)
	}
	return m + time.Duration(c.slept.Load())
}

func (c *ownClock) jumped(diff int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := diff - c.base.Load()
	if d > int64(maxDrift) {
		c.slept.Add(d)
	}
	if d > int64(maxDrift) || d < -int64(maxDrift) { // else another reader was first
		c.base.Store(diff)
	}
}
