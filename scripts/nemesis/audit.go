//go:build linux

package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// finding is one broken promise.
type finding struct {
	kind string // lost, stale, phantom, refused, twice, bound, bookmark, back
	text string
}

// The promises that the audit judges. Unlike the checker it needs no search, because revisions say in which order
// everything happened; so it also says which operation is to blame.
const (
	kindLost     = "lost"     // acknowledged, and a later state that must hold it does not
	kindStale    = "stale"    // a strong read, or the state that a write met, is older than what was acknowledged before
	kindPhantom  = "phantom"  // a value that nobody wrote there
	kindRefused  = "refused"  // a write that was refused as not written, and was read
	kindTwice    = "twice"    // one revision for two writes
	kindBound    = "bound"    // a cached read was older than it said
	kindBookmark = "bookmark" // a read did not know what the bookmark covers that it was given, or gave itself
	kindBack     = "back"     // one node's answers for one key went back in time
)

// seen is one moment at which a key is known to have had a revision: rev was reached between call and ret.
type seen struct {
	call, ret int64
	rev       uint64
	o         *op
	write     bool
}

// audit judges the whole history by revisions.
func audit(history []*op) []finding {
	a := &auditor{writers: make(map[uint32]*op), owner: make(map[uint64]*op)}
	for _, o := range history {
		if o.isWrite() {
			a.writers[o.id] = o
		}
	}
	byKey := make(map[[2]int][]*op)
	for _, o := range history {
		a.revisions(o)
		for i, t := range o.keys {
			if t.does == nothing {
				continue
			}
			byKey[[2]int{o.pair, i}] = append(byKey[[2]int{o.pair, i}], o)
			if t.does == look {
				a.value(o, i)
			}
		}
	}
	keys := make([][2]int, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y [2]int) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) })
	for _, k := range keys {
		a.key(k[1], byKey[k])
	}
	return a.found
}

type auditor struct {
	writers map[uint32]*op
	owner   map[uint64]*op // of a revision
	found   []finding
}

func (a *auditor) addf(kind, format string, args ...any) {
	a.found = append(a.found, finding{kind, fmt.Sprintf(format, args...)})
}

// revisions looks for revisions that were given twice, and for acknowledged writes that have none.
func (a *auditor) revisions(o *op) {
	if o.outcome != done {
		return
	}
	for _, t := range o.keys {
		switch {
		case t.does == write && t.rev == 0:
			a.addf(kindLost, "an acknowledged write took no revision: %v", o)
		case (t.does == write || t.does == remove) && t.rev != 0:
			if other := a.owner[t.rev]; other != nil && other != o {
				a.addf(kindTwice, "revision %d was given twice: %v, and %v", t.rev, other, o)
			}
			a.owner[t.rev] = o
		}
	}
}

// value judges where the value of a read came from.
func (a *auditor) value(o *op, i int) {
	t := o.keys[i]
	if t.value == 0 {
		return
	}
	w := a.writers[t.value]
	switch {
	case w == nil || w.pair != o.pair || w.keys[i].does != write:
		a.addf(kindPhantom, "nobody wrote what was read there: %v", o)
	case w.outcome == refused:
		a.addf(kindRefused, "%v was read, although it had been refused: %v", o, w)
	case w.outcome == conflict:
		a.addf(kindRefused, "%v was read, although its condition had failed: %v", o, w)
	case w.outcome == done && w.keys[i].rev != t.rev:
		a.addf(kindTwice, "%v shows another revision than the writer was told: %v", o, w)
	case o.ret < w.call:
		a.addf(kindPhantom, "%v was read before it was written: %v", o, w)
	}
}

// key judges the operations of one key.
func (a *auditor) key(i int, ops []*op) {
	var strong []seen
	removes := false
	for _, o := range ops {
		t := o.keys[i]
		if t.does == remove && o.outcome != refused {
			removes = true
		}
		if o.cached || t.rev == 0 || o.outcome == refused || o.outcome == unknown || o.outcome == conflict && !t.failed {
			continue
		}
		strong = append(strong, seen{o.call, o.ret, t.rev, o, o.outcome == done && (t.does == write || t.does == remove)})
	}
	slices.SortFunc(strong, func(x, y seen) int { return cmp.Compare(x.ret, y.ret) })
	a.forward(strong)
	a.absent(i, ops, strong)
	acked := slices.DeleteFunc(slices.Clone(strong), func(s seen) bool { return !s.write })
	a.cached(i, ops, acked, removes)
	a.perNode(i, ops)
}

// forward checks that what is shown by an operation is not older than what any earlier one, that had ended, showed. The
// slice is sorted by the time of return.
func (a *auditor) forward(all []seen) {
	high := make([]int, len(all)) // the index of the highest revision among all[:i+1]
	for i, s := range all {
		high[i] = i
		if i > 0 && all[high[i-1]].rev > s.rev {
			high[i] = high[i-1]
		}
	}
	lost := make(map[*op]bool)
	for _, s := range all {
		n, _ := slices.BinarySearchFunc(all, s.call, func(x seen, t int64) int { return cmp.Compare(x.ret, t) })
		if n == 0 {
			continue
		}
		if h := all[high[n-1]]; h.rev > s.rev || h.rev == s.rev && s.write {
			a.older(s.o, h, lost)
		}
	}
}

// older reports an operation that saw less than h, which had ended before it began. The bookmark tells how new the state
// was that it looked at: one that is newer than h and yet does not hold it has lost it. Each loss is reported once.
func (a *auditor) older(o *op, h seen, lost map[*op]bool) {
	if !h.write || o.asOf < h.rev {
		a.addf(kindStale, "%v is older than %v", o, h.o)
	} else if !lost[h.o] {
		lost[h.o] = true
		a.addf(kindLost, "%v is not known any more to %v", h.o, o)
	}
}

// absent checks that a strong read that found nothing has a removal to explain it, of an acknowledged write at least.
func (a *auditor) absent(i int, ops []*op, strong []seen) {
	explained := func(r *op, rev uint64) bool {
		return slices.ContainsFunc(ops, func(o *op) bool {
			t := o.keys[i]
			return t.does == remove && o.call < r.ret && (o.outcome == unknown || o.outcome == done && t.rev > rev)
		})
	}
	lost := make(map[*op]bool)
	for _, o := range ops {
		if o.cached || o.outcome != done || o.keys[i].does != look || o.keys[i].value != 0 {
			continue
		}
		n, _ := slices.BinarySearchFunc(strong, o.call, func(x seen, t int64) int { return cmp.Compare(x.ret, t) })
		var high seen
		for _, s := range strong[:n] {
			if s.rev > high.rev && s.o.keys[i].does == write && s.write {
				high = s
			}
		}
		if high.o != nil && !explained(o, high.rev) {
			a.older(o, high, lost)
		}
	}
}

// cached judges the reads that may be answered from a cache by what they state: the bound, and the bookmark they were
// given. An absence shows no revision; where keys are deleted it is not judged.
func (a *auditor) cached(i int, ops []*op, acked []seen, removes bool) {
	best := make([]uint64, len(acked)+1) // the highest revision among the first n
	for n, s := range acked {
		best[n+1] = max(best[n], s.rev)
	}
	revs := make([]uint64, 0, len(acked))
	for _, s := range acked {
		revs = append(revs, s.rev)
	}
	slices.Sort(revs)
	for _, o := range ops {
		t := o.keys[i]
		if !o.cached || t.does != look || o.outcome != done || t.value == 0 && removes {
			continue
		}
		if o.staleness >= 0 {
			since := o.call - o.staleness
			n, _ := slices.BinarySearchFunc(acked, since, func(x seen, t int64) int { return cmp.Compare(x.ret, t) })
			if best[n] > t.rev {
				a.addf(kindBound, "%v is older than it says: revision %d had been acknowledged %v before it began",
					o, best[n], time.Duration(o.call-a.owner[best[n]].ret))
			}
		}
		if covers := max(o.bookmark, o.asOf); covers > 0 {
			n, exact := slices.BinarySearch(revs, covers)
			if exact {
				n++
			}
			if n > 0 && revs[n-1] > t.rev {
				a.addf(kindBookmark, "%v had or gave the bookmark %d, which covers revision %d", o, covers, revs[n-1])
			}
		}
	}
}

// perNode checks that one node's answers never go back, but for copies without a bound.
func (a *auditor) perNode(i int, ops []*op) {
	byNode := make(map[string][]*op)
	for _, o := range ops {
		if o.outcome == done && o.keys[i].rev != 0 && o.tier != "stale" {
			byNode[o.node] = append(byNode[o.node], o)
		}
	}
	for _, list := range byNode {
		slices.SortFunc(list, func(x, y *op) int { return cmp.Compare(x.ret, y.ret) })
		high := make([]*op, len(list))
		for n, o := range list {
			high[n] = o
			if n > 0 && high[n-1].keys[i].rev > o.keys[i].rev {
				high[n] = high[n-1]
			}
		}
		for _, o := range list {
			n, _ := slices.BinarySearchFunc(list, o.call, func(x *op, t int64) int { return cmp.Compare(x.ret, t) })
			if o.cached && n > 0 && high[n-1].keys[i].rev > o.keys[i].rev {
				a.addf(kindBack, "%v is older than the same node's %v", o, high[n-1])
			}
		}
	}
}
