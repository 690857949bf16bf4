//go:build linux

package main

import (
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
)

// cell is one key: who wrote its value, and the revision of that write. A value of 0 is an absent key; a revision of 0
// beside a value is not known, because the write's answer was lost and nobody has read it: it is only known to be above
// floor.
type cell struct {
	rev, floor uint64
	value      uint32
}

// pairState is the state of the model: two keys that may be written together. last is the highest revision that was given
// to either: revisions only ever grow.
type pairState struct {
	cells [2]cell
	last  uint64
	taken int // how many operations have been carried out that are not open
	used  [alikes]uint16
}

// unseen stands for a value that was never read: whose it is makes no difference.
const unseen = math.MaxUint32

// Open writes that nobody has seen are alike when they do the same to the same key without a condition: then the one that
// began first may as well come first. pairState.used counts them, so that the checker tries one order of them only.
const alikes = 4

// alike is the kind of an open operation, -1 when it is like no other.
func alike(o *op) int {
	for i, t := range o.keys {
		if o.keys[1-i].does != nothing || t.demand != always {
			continue
		}
		switch t.does {
		case write:
			return 2 * i
		case remove:
			return 2*i + 1
		}
	}
	return -1
}

// spec is the sequential specification of one pair of keys. The operations carry their outcomes themselves.
//
// Revisions are dense, so a write whose answer was lost has taken one that no answer has told, or none. That says where in
// the order it can stand, and keeps the checker from trying everything else.
type spec struct {
	untold []uint64 // the revisions that no answer has told, up to the highest that was told
	top    uint64
}

// newSpec collects the untold revisions of a whole history, of all keys.
func newSpec(history []*op) *spec {
	told := make(map[uint64]bool)
	p := &spec{}
	for _, o := range history {
		for _, t := range o.keys {
			if o.outcome == done && (t.does != remove || t.rev != 0) {
				told[t.rev] = true
				p.top = max(p.top, t.rev)
			}
		}
	}
	for rev := uint64(1); rev <= p.top; rev++ {
		if !told[rev] {
			p.untold = append(p.untold, rev)
		}
	}
	return p
}

// after is the lowest revision above rev that a write of unknown outcome can have taken.
func (p *spec) after(rev uint64) uint64 {
	i, found := slices.BinarySearch(p.untold, rev)
	if found {
		i++
	}
	if i < len(p.untold) {
		return p.untold[i]
	}
	return max(rev, p.top) + 1
}

// model is the specification for a history with the given number of operations that are not open.
func (p *spec) model(closed int) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return pairState{} },
		Step: func(state, input, _ any) (bool, any) {
			return p.step(state.(pairState), input.(*op), closed)
		},
	}
}

func (p *spec) step(s pairState, o *op, closed int) (bool, pairState) {
	switch {
	case o.open && s.taken == closed:
		return true, s // nobody can tell any more whether it was carried out
	case !o.open:
		s.taken++
	}
	kind := -1
	if o.open {
		kind = alike(o)
	}
	if kind >= 0 && s.used[kind] != o.turn {
		return false, s
	}
	if o.outcome == conflict {
		return s.conflicts(o)
	}
	for i := range o.keys {
		if !s.holds(i, &o.keys[i]) {
			return false, s
		}
	}
	ok, after := p.apply(s, o)
	// What changes nothing can as well come last. To try it everywhere would take for ever.
	if o.open && after.cells == s.cells {
		return false, s
	}
	if kind >= 0 {
		after.used[kind]++
	}
	return ok, after
}

// holds says whether a key fulfils the condition.
func (s *pairState) holds(i int, t *touch) bool {
	c := s.cells[i]
	switch t.demand {
	case whenAbsent:
		return c.value == 0
	case whenPresent:
		return c.value != 0
	case whenRevision:
		// Conditions are only made of revisions that came with a value, so the one of a write that nobody has read never
		// fits.
		return c.value != 0 && c.rev == t.expect
	}
	return true
}

// conflicts says whether the state explains that just those conditions failed that the answer named, and at the revisions
// that it named.
func (s pairState) conflicts(o *op) (bool, pairState) {
	before := s
	for i := range o.keys {
		t, c := &o.keys[i], &s.cells[i]
		switch {
		case s.holds(i, t) == t.failed:
			return false, before
		case !t.failed:
		case c.value == 0:
			if t.rev != 0 {
				return false, before
			}
		case c.rev == 0: // now it is known
			if t.rev <= c.floor {
				return false, before
			}
			c.rev = t.rev
		case c.rev != t.rev:
			return false, before
		}
	}
	return true, s
}

// apply carries an operation out.
func (p *spec) apply(s pairState, o *op) (bool, pairState) {
	before := s
	for i := range o.keys {
		t, c := &o.keys[i], &s.cells[i]
		rev := t.rev
		switch t.does {
		case look:
			if c.value != t.value || c.value != 0 && c.rev != 0 && c.rev != t.rev {
				return false, before
			}
			continue
		case write:
			if rev == 0 {
				rev = p.after(s.last)
			}
			*c = cell{rev: t.rev, floor: before.last, value: t.value}
			if o.open {
				c.value = unseen
			}
		case remove:
			if o.outcome == done && (rev == 0) != (c.value == 0) {
				return false, before
			}
			if rev == 0 && c.value != 0 {
				rev = p.after(s.last)
			}
			*c = cell{}
		}
		if rev != 0 { // within a transaction the keys may take theirs in any order
			if rev <= before.last {
				return false, before
			}
			s.last = max(s.last, rev)
		}
	}
	return true, s
}
