package wan

import (
	"sync"
	"time"
)

// deadline is a channel that closes when a settable time has come, as in net.Pipe.
type deadline struct {
	mu     sync.Mutex // guards the two below
	timer  *time.Timer
	passed chan struct{} // closed when the deadline has passed
}

func newDeadline() *deadline { return &deadline{passed: make(chan struct{})} }

// set moves the deadline; the zero time means none. Those who wait on a channel that is already closed have seen the old
// one pass.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // the timer fired; let it finish, or it would close the next channel
	}
	d.timer = nil
	closed := isClosed(d.passed)
	switch left := time.Until(t); {
	case t.IsZero():
		if closed {
			d.passed = make(chan struct{})
		}
	case left <= 0:
		if !closed {
			close(d.passed)
		}
	default:
		if closed {
			d.passed = make(chan struct{})
		}
		passed := d.passed
		d.timer = time.AfterFunc(left, func() { close(passed) })
	}
}

// done is closed when the present deadline has passed.
func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}
