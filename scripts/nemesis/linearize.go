//go:build linux

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// verdict is what the checker says about one pair.
type verdict struct {
	pair   int
	result porcupine.CheckResult
	ops    int
	open   int // operations of unknown outcome that had to be considered
	why    string
}

// checkPair decides whether the history of one pair is linearizable. It works on copies. The reads that are not strong are
// evidence of what was written, but need not be linearizable themselves.
//
// An unknown write that nobody has seen may be left out as long as that gives a linearization: it can always be put behind
// everything else. Only if there is none without them, they are taken in: first those that the failed conditions of others
// have met, then those that remove, then all.
func (p *spec) checkPair(pair int, history []*op, limit time.Duration) verdict {
	v := verdict{pair: pair}
	try := func(seen, open []*op) bool {
		v.ops, v.open = len(seen)+len(open), len(open)
		if v.why = tighten(seen); v.why != "" {
			v.result = porcupine.Illegal
			return false
		}
		v.result = p.linearizable(slices.Concat(seen, open), limit)
		return v.result == porcupine.Ok
	}
	seen, open := prepare(history)
	if try(seen, nil) || len(open) == 0 {
		return v
	}
	seen, open = prepare(history) // the first try has changed the times
	found, rest := met(seen, open)
	seen = append(seen, found...)
	removes := slices.DeleteFunc(slices.Clone(rest), func(o *op) bool { return o.keys[0].does != remove && o.keys[1].does != remove })
	if len(found) > 0 && try(seen, nil) || len(found)+len(removes) > 0 && try(seen, removes) || len(found) > 0 && try(seen, rest) {
		return v
	}
	seen, open = prepare(history) // what was met may have been others
	try(seen, open)
	return v
}

// met finds the open writes that failed conditions have met: a revision of a key that no write is known to have taken is
// that of an open one. Which one makes no difference while they are alike, so the one that began first gets it. It returns
// these, which are not open any more, and the rest.
func met(seen, open []*op) (found, rest []*op) {
	type sight struct {
		rev uint64
		by  int64
	}
	for i := range 2 {
		told := make(map[uint64]bool)
		for _, o := range seen {
			if t := o.keys[i]; o.outcome != conflict && t.does == write {
				told[t.rev] = true
			}
		}
		first := make(map[uint64]int64)
		for _, o := range seen {
			if t := o.keys[i]; o.outcome == conflict && t.failed && t.rev != 0 && !told[t.rev] {
				if by, ok := first[t.rev]; !ok || o.ret < by {
					first[t.rev] = o.ret
				}
			}
		}
		var sights []sight
		for rev, by := range first {
			sights = append(sights, sight{rev, by})
		}
		slices.SortFunc(sights, func(a, b sight) int { return cmp.Compare(a.rev, b.rev) })
		for _, s := range sights {
			for _, o := range open { // in the order in which they began
				if o.open && alike(o) == 2*i && o.call <= s.by {
					o.open, o.keys[i].rev, o.ret = false, s.rev, s.by
					found = append(found, o)
					break
				}
			}
		}
	}
	rest = slices.DeleteFunc(slices.Clone(open), func(o *op) bool { return !o.open })
	number(rest)
	return found, rest
}

// number counts the open operations that are alike, in the order in which they began.
func number(open []*op) {
	var turns [alikes]uint16
	for _, o := range open {
		if kind := alike(o); kind >= 0 {
			o.turn = turns[kind]
			turns[kind]++
		}
	}
}

// explain says where the longest order ends that the checker found, and what could not follow there. It is asked once a
// history is known to be illegal.
func (p *spec) explain(history []*op, limit time.Duration) string {
	seen, open := prepare(history)
	if bad := tighten(seen); bad != "" {
		return bad
	}
	ops := append(seen, open...)
	made, closed := ranked(ops)
	_, info := porcupine.CheckOperationsVerbose(p.model(closed), made, limit)
	var longest []porcupine.Operation
	for _, part := range info.PartialLinearizationsOperations() {
		for _, order := range part {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	state, in := pairState{}, make(map[*op]bool)
	text := ""
	for i, h := range longest {
		o := h.Input.(*op)
		_, state = p.step(state, o, closed)
		in[o] = true
		if i >= len(longest)-8 {
			text += fmt.Sprintf("    then %v\n", o)
		}
	}
	next := int64(math.MaxInt64)
	for _, o := range ops {
		if !in[o] && !o.open {
			next = min(next, o.ret)
		}
	}
	text += fmt.Sprintf("    which gives %+v; none of these can follow:\n", state)
	for _, o := range ops {
		if !in[o] && o.call <= next {
			text += fmt.Sprintf("    %v\n", o)
		}
	}
	return text
}

// prepare copies what is to be checked. An unknown write whose value was read took effect before that read ended, and its
// revision is known from it: it is not open any more.
func prepare(history []*op) (seen, open []*op) {
	type sight struct {
		rev uint64
		by  int64
	}
	sights := [2]map[uint32]sight{{}, {}}
	for _, o := range history {
		for i, t := range o.keys {
			if t.does != look || t.value == 0 {
				continue
			}
			if s, ok := sights[i][t.value]; !ok || o.ret < s.by {
				sights[i][t.value] = sight{t.rev, o.ret}
			}
		}
	}
	for _, o := range history {
		if o.outcome == refused || o.cached {
			continue
		}
		c := *o
		if c.outcome != unknown {
			seen = append(seen, &c)
			continue
		}
		c.ret = math.MaxInt64
		for i := range c.keys {
			if s, ok := sights[i][c.keys[i].value]; ok && c.keys[i].does == write {
				c.keys[i].rev = s.rev
				c.ret = min(c.ret, s.by)
			}
		}
		if c.open = c.ret == math.MaxInt64; c.open {
			open = append(open, &c)
		} else {
			seen = append(seen, &c)
		}
	}
	slices.SortFunc(open, func(a, b *op) int { return cmp.Compare(a.call, b.call) })
	number(open)
	return seen, open
}

// order is the highest revision that an operation is known to have taken; 0 when none.
func order(o *op) uint64 {
	var rev uint64
	if o.outcome == conflict {
		return 0
	}
	for _, t := range o.keys {
		if t.does == write || t.does == remove {
			rev = max(rev, t.rev)
		}
	}
	return rev
}

// tighten narrows the times of writes to what their revisions say: one with a lower revision came before one with a higher
// revision. It keeps the checker from trying all orders of concurrent writes. It fails when that is against the clock.
func tighten(ops []*op) string {
	var writes []*op
	for _, o := range ops {
		if order(o) != 0 {
			writes = append(writes, o)
		}
	}
	slices.SortFunc(writes, func(a, b *op) int { return cmp.Compare(order(a), order(b)) })
	call := make([]int64, len(writes))
	ret := make([]int64, len(writes))
	latest, earliest := int64(math.MinInt64), int64(math.MaxInt64)
	for i, o := range writes {
		latest = max(latest, o.call)
		call[i] = latest
	}
	for i := len(writes) - 1; i >= 0; i-- {
		earliest = min(earliest, writes[i].ret)
		ret[i] = earliest
	}
	for i, o := range writes {
		if call[i] > ret[i] {
			return "its revision is against the order of time, or was given twice: " + o.String()
		}
		if i > 0 && order(o) == order(writes[i-1]) {
			return "one revision for two writes: " + writes[i-1].String() + " and " + o.String()
		}
	}
	for i, o := range writes {
		o.call, o.ret = call[i], ret[i]
	}
	return ""
}

// linearizable asks porcupine.
func (p *spec) linearizable(ops []*op, limit time.Duration) porcupine.CheckResult {
	history, closed := ranked(ops)
	return porcupine.CheckOperationsTimeout(p.model(closed), history, limit)
}

// ranked makes ranks of times, so that of operations that begin at once the one with the lower revision is tried first. It
// also counts the operations that are not open.
func ranked(ops []*op) (history []porcupine.Operation, closed int) {
	type event struct {
		at  int64
		end bool
		rev uint64
		op  int
	}
	events := make([]event, 0, 2*len(ops))
	for i, o := range ops {
		events = append(events, event{o.call, false, order(o), i}, event{o.ret, true, order(o), i})
	}
	slices.SortStableFunc(events, func(a, b event) int {
		if a.at != b.at {
			return cmp.Compare(a.at, b.at)
		}
		if a.end != b.end { // calls before returns
			if b.end {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.rev, b.rev)
	})
	history = make([]porcupine.Operation, len(ops))
	for _, o := range ops {
		if !o.open {
			closed++
		}
	}
	for rank, e := range events {
		h := &history[e.op]
		if e.end {
			h.Return = int64(rank)
			continue
		}
		h.ClientId, h.Input, h.Call = ops[e.op].client, ops[e.op], int64(rank)
	}
	return history, closed
}
