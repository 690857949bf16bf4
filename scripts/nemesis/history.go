//go:build linux

package main

import (
	"fmt"
	"sync"
	"time"
)

// action is what an operation does to one of the two keys of its pair.
type action uint8

const (
	nothing action = iota
	look           // read it
	write          // replace it
	remove         // delete it
	check          // only compare it
)

// demand is the condition under which an operation is carried out.
type demand uint8

const (
	always demand = iota
	whenAbsent
	whenPresent
	whenRevision
)

// touch is an operation's effect on one key, and what was learned of it.
type touch struct {
	does   action
	demand demand
	expect uint64 // the revision of whenRevision
	// value names who wrote what was read or is written: the number of an operation, 0 for no value.
	value uint32
	// rev is the revision that was read, that the write took, or that a failed condition met. 0: none, or not known.
	rev uint64
	// failed says that the condition did not hold, and at rev.
	failed bool
}

// outcome is what the client knows about an operation.
type outcome uint8

const (
	done     outcome = iota // acknowledged, or a read that was answered
	conflict                // the condition did not hold; nothing was written
	refused                 // the answer, or its absence before anything was sent, promises that nothing was or will be written
	unknown                 // it may have been carried out, or may be at any later time
)

// op is one operation of one client. Times are nanoseconds of one monotonic clock.
type op struct {
	id      uint32 // from 1 on; the value that it writes
	client  int
	pair    int
	keys    [2]touch
	outcome outcome
	code    string // of a refusal
	node    string
	// epoch and asOf are the answer's bookmark, when it has one: the state that was looked at.
	epoch string
	asOf  uint64
	call  int64
	ret   int64
	open  bool   // set by the checker: it may be carried out at any later time, or never
	turn  uint16 // of an open operation, among those that are alike
	// Of reads that are not strong.
	cached    bool
	tier      string
	staleness int64 // ns, the bound that was stated; -1 = none
	bookmark  uint64
}

// isWrite says whether the operation is one that changes something.
func (o *op) isWrite() bool {
	return o.keys[0].does == write || o.keys[0].does == remove || o.keys[1].does == write || o.keys[1].does == remove
}

func (o *op) String() string {
	s := fmt.Sprintf("op %d by client %d at %s [%v, %v]", o.id, o.client, o.node,
		time.Duration(o.call).Round(time.Microsecond), time.Duration(o.ret).Round(time.Microsecond))
	for i, k := range o.keys {
		if k.does == nothing {
			continue
		}
		s += fmt.Sprintf(" key %d:", i)
		switch k.demand {
		case whenAbsent:
			s += " if absent"
		case whenPresent:
			s += " if present"
		case whenRevision:
			s += fmt.Sprintf(" if revision %d", k.expect)
		}
		switch k.does {
		case look:
			if o.cached {
				s += fmt.Sprintf(" cached (%s, %v old)", o.tier, time.Duration(o.staleness))
			}
			s += fmt.Sprintf(" read value %d, revision %d", k.value, k.rev)
		case write:
			s += fmt.Sprintf(" put value %d, revision %d", k.value, k.rev)
		case remove:
			s += fmt.Sprintf(" delete, revision %d", k.rev)
		case check:
			s += " compare"
		}
		if k.failed {
			s += fmt.Sprintf(", which failed at revision %d", k.rev)
		}
	}
	return s + " -> " + [...]string{"done", "conflict", "refused", "unknown"}[o.outcome] + " " + o.code
}

// recorder collects what the clients did. It is safe for concurrent use.
type recorder struct {
	start time.Time

	mu     sync.Mutex // guards all below
	nextID uint32
	ops    []*op
	acks   []int64  // when writes were acknowledged, of the probes as well
	odd    []string // answers that no fault explains
	oddN   int
}

const maxOdd = 20

func newRecorder() *recorder { return &recorder{start: time.Now()} }

func (r *recorder) now() int64 { return int64(time.Since(r.start)) }

// begin numbers an operation and notes its beginning.
func (r *recorder) begin(o *op) {
	r.mu.Lock()
	r.nextID++
	o.id = r.nextID
	r.mu.Unlock()
	for i := range o.keys {
		if o.keys[i].does == write {
			o.keys[i].value = o.id
		}
	}
	o.call = r.now()
}

// end keeps an operation. Reads that failed say nothing and are not kept.
func (r *recorder) end(o *op) {
	o.ret = r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.outcome != done && o.outcome != conflict && !o.isWrite() {
		return
	}
	r.ops = append(r.ops, o)
	if o.outcome == done && o.isWrite() {
		r.acks = append(r.acks, o.ret)
	}
}

// oddf notes an answer that should not be: it fails the run.
func (r *recorder) oddf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.oddN++; len(r.odd) < maxOdd {
		r.odd = append(r.odd, fmt.Sprintf(format, args...))
	}
}

// oddities returns what was noted, and how often in all.
func (r *recorder) oddities() ([]string, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.odd...), r.oddN
}

// history is everything so far.
func (r *recorder) history() []*op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*op(nil), r.ops...)
}

// ackedSince reports whether a write was acknowledged that had been sent after t.
func (r *recorder) ackedSince(t int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.ops) - 1; i >= 0 && r.ops[i].ret > t; i-- {
		if o := r.ops[i]; o.call > t && o.outcome == done && o.isWrite() {
			return true
		}
	}
	return false
}

// longestGap is the longest time within [from, to] in which no write was acknowledged.
func (r *recorder) longestGap(from, to int64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, longest := from, int64(0)
	for _, t := range r.acks { // appended in about the order of time; what is a little out of order changes nothing
		if t <= last || t > to {
			continue
		}
		longest = max(longest, t-last)
		last = t
	}
	return time.Duration(max(longest, to-last))
}
