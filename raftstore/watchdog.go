package raftstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The library never notices that its disk hangs: its loop waits for the append, while heartbeats go out from goroutines of
// their own, so that nobody else is elected. Nor can it be asked to hand over. A node whose log does not answer therefore
// takes itself out.
const (
	// stallCut is how long one operation of the log may take before Raft's connections are cut, and the node neither leads
	// nor proves anything any more. Three times the longest pause of a disk that is still of use.
	stallCut = 3 * time.Second
	// stallEnd is how long it may take before the process ends. Only its end gives back what it holds.
	stallEnd = 8 * time.Second
)

// watchdog measures the operations of the log.
type watchdog struct {
	changed func()      // it began or ceased to be stalled; called without locks, must not block
	end     func(error) // the process should end

	stalls atomic.Int64 // operations that take longer than stallCut
	mu     sync.Mutex   // guards hung, and the changes of stalls
	hung   chan struct{}
}

func newWatchdog(changed func(), end func(error)) *watchdog {
	return &watchdog{changed: changed, end: end, hung: make(chan struct{})}
}

// stalled reports whether an operation has been taking longer than stallCut.
func (w *watchdog) stalled() bool { return w.stalls.Load() > 0 }

// stall returns a channel that is closed while stalled.
func (w *watchdog) stall() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hung
}

// watchedOp is one operation under way.
type watchedOp struct {
	w    *watchdog
	name string

	mu    sync.Mutex // guards all below
	timer *time.Timer
	late  bool
	over  bool
}

// begin is called before an operation, and done on its result after it.
func (w *watchdog) begin(name string) *watchedOp {
	o := &watchedOp{w: w, name: name}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer = time.AfterFunc(stallCut, o.cut)
	return o
}

func (o *watchedOp) cut() {
	o.mu.Lock()
	over := o.over
	if !over {
		o.late = true
		o.timer = time.AfterFunc(stallEnd-stallCut, o.expire)
	}
	o.mu.Unlock()
	if !over {
		o.w.count(1)
	}
}

func (o *watchedOp) expire() {
	o.mu.Lock()
	over := o.over
	o.mu.Unlock()
	if !over {
		o.w.end(fmt.Errorf("the disk of the log hangs: %s has not come back for %v", o.name, stallEnd))
	}
}

func (o *watchedOp) done() {
	o.mu.Lock()
	o.over = true
	o.timer.Stop()
	late := o.late
	o.mu.Unlock()
	if late {
		o.w.count(-1)
	}
}

// count notes that an operation is late, or that a late one has come back.
func (w *watchdog) count(by int64) {
	w.mu.Lock()
	n := w.stalls.Add(by)
	switch {
	case n == 1 && by > 0:
		close(w.hung)
	case n == 0:
		w.hung = make(chan struct{})
	}
	w.mu.Unlock()
	if n == 1 && by > 0 || n == 0 {
		w.changed()
	}
}

func (s *Store) stallMayHaveChanged() {
	select {
	case s.stalls <- struct{}{}:
	default: // whoever has the token looks after this change
	}
}

// watchStalls cuts Raft's connections when the log's disk has stopped answering; new ones are refused for as long. The
// others hear nothing any more and elect; when the disk comes back in time, this node follows whoever leads then.
func (s *Store) watchStalls(ctx context.Context) {
	was := false
	for {
		select {
		case <-s.stalls:
		case <-ctx.Done():
			return
		}
		now := s.dog.stalled()
		if now {
			s.streams.cut()
		}
		if now != was {
			s.opts.Logger.Warn("the disk of the log", "stalled", now)
			was = now
		}
		s.leaderMayHaveChanged()
	}
}
