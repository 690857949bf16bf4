//go:build linux

package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// simulate runs clients against a correct register with random delays. fault may change what an operation is told.
func simulate(rng *rand.Rand, n int, fault func(i int, o *op, before pairState)) []*op {
	s := &story{}
	state, free := pairState{}, make([]int64, 8)
	told := [2]uint64{1 << 40, 1 << 40} // the newest revision of each key that a client has seen
	for i := range n {
		c := rng.IntN(len(free))
		at := int64(i) * 100
		call := max(free[c], at-rng.Int64N(600))
		ret := at + 1 + rng.Int64N(600)
		free[c] = ret + 1
		o := op{client: c, node: "n"}
		k := rng.IntN(2)
		t := &o.keys[k]
		switch dice := rng.IntN(10); {
		case dice < 4:
			t.does = look
		case dice < 7:
			t.does = write
		case dice < 8:
			t.does, t.demand, t.expect = write, whenRevision, told[k]
		case dice < 9:
			t.does = remove
		default:
			o.keys[0].does, o.keys[1].does = write, write
			t.demand, t.expect = demand(rng.IntN(4)), told[k]
		}
		if call > at {
			continue // this client is busy
		}
		p := s.add(o, 0, 0)
		p.call, p.ret = call, ret
		before := state
		carry(&state, p)
		if rng.IntN(12) == 0 && p.isWrite() && p.outcome == done {
			p.outcome = unknown
			for j := range p.keys {
				p.keys[j].rev = 0
			}
		}
		for j, t := range p.keys {
			if p.outcome == done && (t.does == write || t.does == look) && t.rev != 0 {
				told[j] = t.rev
			}
		}
		if fault != nil {
			fault(i, p, before)
		}
	}
	return s.ops
}

// carry is a register that does as it should, and tells the operation so.
func carry(s *pairState, o *op) {
	for i := range o.keys {
		if t := &o.keys[i]; !s.holds(i, t) {
			o.outcome, t.failed, t.rev = conflict, true, s.cells[i].rev
		}
	}
	if o.outcome == conflict {
		return
	}
	for i := range o.keys {
		t, c := &o.keys[i], &s.cells[i]
		switch t.does {
		case look:
			t.value, t.rev = c.value, c.rev
		case write:
			s.last++
			*c = cell{rev: s.last, value: o.id}
			t.rev = s.last
		case remove:
			if c.value != 0 {
				s.last++
				t.rev = s.last
			}
			*c = cell{}
		}
	}
	o.asOf = s.last
}

// A correct register passes with any delays and any answers lost; one whose state is put back once does not.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 7))
		ops := simulate(rng, 250, nil)
		if v := newSpec(ops).checkPair(0, ops, time.Minute); v.result != porcupine.Ok {
			t.Fatalf("seed %d: %s (%s)", seed, v.result, v.why)
		}
		if found := audit(ops); len(found) > 0 {
			t.Fatalf("seed %d: %v", seed, found)
		}
	}
	caught, planted := 0, 0
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 8))
		var old pairState
		bad := false
		ops := simulate(rng, 250, func(i int, o *op, before pairState) {
			if i == 100 {
				old = before
			}
			// A read long after is answered from the state of then.
			if k := slices.IndexFunc(o.keys[:], func(t touch) bool { return t.does == look }); i > 150 && k >= 0 && !bad &&
				old.cells[k].value != 0 && old.cells[k] != before.cells[k] {
				o.keys[k].value, o.keys[k].rev, o.asOf, bad = old.cells[k].value, old.cells[k].rev, old.last, true
			}
		})
		if bad {
			planted++
			if newSpec(ops).checkPair(0, ops, time.Minute).result == porcupine.Illegal {
				caught++
			}
		}
	}
	if planted < 30 || caught != planted {
		t.Errorf("%d of %d stale reads were found", caught, planted)
	}
}
