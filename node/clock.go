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

// maxDrift is how far the two clocks may drift apart before it counts as a jump, and so the longest sleep by which a bound
// may be wrong. A wall clock that is being slewed (adjtime(3): 0.5 ms a second) needs most of a minute for it, and costs no
// more than proofs that seem that much older, once.
const maxDrift = 25 * time.Millisecond

func newOwnClock(mono func() time.Duration, wall func() time.Time) *ownClock {
	c := &ownClock{mono: mono, wall: wall, first: wall().Round(0)}
	c.base.Store(-int64(mono()))
	return c
}

// Now reads the clock. It takes no lock, except when the clocks have jumped.
func (c *ownClock) Now() time.Duration {
	m := c.mono()
	if jump(c.ahead(m) - c.base.Load()) {
		c.settle()
	}
	return m + time.Duration(c.slept.Load())
}

// ahead is how far the wall clock has run ahead of a reading of the monotonic one since the clock was made, in ns.
func (c *ownClock) ahead(mono time.Duration) int64 {
	return int64(c.wall().Round(0).Sub(c.first) - mono)
}

func jump(d int64) bool { return d > int64(maxDrift) || d < -int64(maxDrift) }

// settle takes a jump into account, if it still sees one. A goroutine that is held up between its two readings finds the
// wall clock too far ahead, so of two pairs the lesser difference counts; and of several goroutines that see a jump the
// first accounts for it.
func (c *ownClock) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	ahead := min(c.ahead(c.mono()), c.ahead(c.mono()))
	d := ahead - c.base.Load()
	if !jump(d) {
		return
	}
	if d > 0 {
		c.slept.Add(d)
	}
	c.base.Store(ahead)
}
