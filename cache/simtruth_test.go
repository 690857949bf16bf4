package cache

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"kvmesh/raftstore/kv"
)

// The true history against which the simulation holds every answer. A period is one state of one key, from the commit
// that made it to the one that ended it; their numbers rise with time, over all epochs, so "older" is a comparison.

const (
	simKeys = 5
	simLast = simKeys - 1 // the only key of nsB
)

func simKey(k int) string { return "k" + strconv.Itoa(k) }

func simNS(k int) kv.NamespaceID {
	if k == simLast {
		return nsB
	}
	return nsA
}

type period struct {
	key    int
	rev    kv.Revision // of the write; 0 if absent
	absent bool
	end    time.Duration // when it was overwritten; forever if it was not
}

const forever = time.Duration(1) << 62

type batch struct {
	prev, to kv.Revision
	keys     []int
	ns       *kv.NamespaceID // emptied
}

type history struct {
	id      kv.Epoch
	base    kv.Revision // restored to; nothing of this epoch is below it
	state   map[kv.Revision][simKeys]int
	batches []batch
}

// truth is guarded by mu; so are the voter and what clients were shown.
type truth struct {
	mu      sync.Mutex
	start   time.Time
	periods []period
	hist    []*history
	commit  kv.Revision
	marks   []kv.Bookmark // given to clients
	bad     []string
}

func newTruth() *truth {
	w := &truth{start: time.Now()}
	h := &history{id: epoch1, state: map[kv.Revision][simKeys]int{}}
	var st [simKeys]int
	for k := range st {
		st[k] = w.period(period{key: k, absent: true})
	}
	h.state[0] = st
	w.hist = []*history{h}
	return w
}

func (w *truth) now() time.Duration { return time.Since(w.start) }

func (w *truth) fail(format string, args ...any) {
	if len(w.bad) < 8 {
		w.bad = append(w.bad, fmt.Sprintf("%v: ", w.now())+fmt.Sprintf(format, args...))
	}
}

func (w *truth) period(p period) int {
	p.end = forever
	w.periods = append(w.periods, p)
	return len(w.periods) - 1
}

func (w *truth) head() *history { return w.hist[len(w.hist)-1] }

func (w *truth) of(id kv.Epoch) *history {
	for _, h := range w.hist {
		if h.id == id {
			return h
		}
	}
	return nil
}

// write commits one batch: a new state for each key, or an absence. Returns the period of the first.
func (w *truth) write(del bool, keys ...int) int {
	h, prev := w.head(), w.commit
	st := h.state[prev]
	for _, k := range keys {
		w.commit++
		w.periods[st[k]].end = w.now()
		p := period{key: k, absent: del}
		if !del {
			p.rev = w.commit
		}
		st[k] = w.period(p)
		h.state[w.commit] = st
	}
	h.batches = append(h.batches, batch{prev: prev, to: w.commit, keys: keys})
	return st[keys[0]]
}

func (w *truth) empty(ns kv.NamespaceID) {
	h, prev := w.head(), w.commit
	st := h.state[prev]
	w.commit++
	for k := range st {
		if simNS(k) == ns {
			w.periods[st[k]].end = w.now()
			st[k] = w.period(period{key: k, absent: true})
		}
	}
	h.state[w.commit] = st
	h.batches = append(h.batches, batch{prev: prev, to: w.commit, ns: &ns})
}

// restore begins an epoch from a state back revisions ago, whose revisions will be used again.
func (w *truth) restore(back kv.Revision) {
	old := w.head()
	rev := max(old.base, w.commit-min(back, w.commit))
	h := &history{id: kv.Epoch{7: byte(len(w.hist) + 1)}, base: rev, state: map[kv.Revision][simKeys]int{}}
	last, st := old.state[w.commit], old.state[rev]
	for k := range st {
		w.periods[last[k]].end = w.now()
		st[k] = w.period(w.periods[st[k]])
	}
	h.state[rev] = st
	w.hist = append(w.hist, h)
	w.commit = rev
}

// value is a period's bytes: its number, so that what is served can be told apart.
func (w *truth) value(g int) []byte { return strconv.AppendInt(nil, int64(g), 10) }

// answer makes a fill's answer of a state.
func (w *truth) answer(h *history, asOf kv.Revision, req FillRequest, k int) FillAnswer {
	g := h.state[asOf][k]
	p := w.periods[g]
	ans := FillAnswer{Epoch: h.id, AsOf: asOf, Absent: p.absent, Revision: p.rev}
	if req.Have && req.HaveAbsent == p.absent && req.HaveRev == p.rev {
		ans.NotModified = true
	} else if !p.absent {
		ans.Value = w.value(g)
	}
	return ans
}

// identify finds the period that an entry holds, by its bytes, and checks that this was the state at asOf.
func (w *truth) identify(what string, e *Entry, asOf kv.Revision, k int) (g int, ok bool) {
	h := w.of(e.Epoch())
	st, known := h.state[asOf]
	if !known {
		w.fail("wrong: %s %s claims revision %d, which does not exist", what, simKey(k), asOf)
		return 0, false
	}
	g = st[k]
	p := w.periods[g]
	// A period that a restore carried over has the bytes of the first.
	if e.Absent() != p.absent || (!p.absent && e.Revision != p.rev) || e.Key() != simKey(p.key) {
		w.fail("I1: %s %s as of %d is period %d (%+v), but revision %d, absent %v is held", what, simKey(k), asOf, g, p, e.Revision, e.Absent())
		return g, false
	}
	if !p.absent {
		was, err := strconv.Atoi(string(e.Value()))
		if err != nil || w.periods[was].key != k || w.periods[was].rev != p.rev {
			w.fail("wrong: %s %s as of %d holds %q", what, simKey(k), asOf, e.Value())
			return g, false
		}
	}
	return g, true
}

// checkHeld holds every entry of a cache against I1, between steps.
func (w *truth) checkHeld(node int, c *Cache) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, held := c.view.Load(), "held by node "+strconv.Itoa(node)
	for i := range c.shards {
		sh := &c.shards[i]
		if sh.main.len.Load()+sh.absent.len.Load() == 0 {
			continue
		}
		sh.mu.Lock()
		for sl := range sh.slots.all() {
			e := sl.entry
			k, _ := strconv.Atoi(e.Key()[1:])
			w.identify(held, e, v.asOf(e, v.judge(e)), k)
		}
		sh.mu.Unlock()
	}
}
