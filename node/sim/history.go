package sim

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// history is what clients did and saw, from outside. All times are of the bubble, which every client shares, whatever the
// nodes' own clocks say. Values are unique, so a value tells which write made it.
type history struct {
	mu       sync.Mutex // guards all below; held for memory operations only
	keys     map[string]*keyHistory
	written  map[string]write // by value
	shown    map[nodeKey][]shown
	strong   kv.Bookmark // the newest state that a finished strong read, or an acknowledged write, has shown
	strongAt []strongMark
	violated []string
}

type nodeKey struct{ node, key string }

// write is one value that a client sent.
type write struct {
	key, value string
}

type keyHistory struct {
	acked   []acked // by acknowledgement time
	unknown int     // deletes of unknown outcome, those under way included
}

// acked is an acknowledged write. rev is where it stands in the history of its epoch; a delete that changed nothing has
// none.
type acked struct {
	at    time.Time
	epoch kv.Epoch
	rev   kv.Revision
	value string // "" = deleted
}

// shown is what one finished answer of a node showed of a key.
type shown struct {
	done   time.Time
	epoch  kv.Epoch
	rev    kv.Revision // of the value; 0 = absent
	asOf   kv.Revision
	absent bool
}

// strongMark says that everything up to mark had been shown or acknowledged when done.
type strongMark struct {
	done time.Time
	mark kv.Bookmark
}

func newHistory() *history {
	return &history{keys: make(map[string]*keyHistory), written: make(map[string]write), shown: make(map[nodeKey][]shown)}
}

func (h *history) key(k string) *keyHistory {
	if h.keys[k] == nil {
		h.keys[k] = &keyHistory{}
	}
	return h.keys[k]
}

// sending notes a write before it is sent: from now on its value may be seen.
func (h *history) sending(key, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if value == "" {
		h.key(key).unknown++
		return
	}
	h.written[value] = write{key: key, value: value}
}

// wrote notes the outcome of a write.
func (h *history) wrote(node, key, value string, res api.WriteResult, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if err != nil { // a delete may still land
		return
	}
	if value == "" {
		h.key(key).unknown--
	}
	if res.Revision > 0 {
		h.key(key).acked = append(h.key(key).acked, acked{now, res.Epoch, res.Revision, value})
	}
	h.shown[nodeKey{node, key}] = append(h.shown[nodeKey{node, key}], shown{now, res.Epoch, res.Revision, res.AsOf, value == ""})
	h.strongAt = append(h.strongAt, strongMark{now, kv.Bookmark{Epoch: res.Epoch, Revision: max(res.Revision, res.AsOf)}})
}

// read checks one answer, and notes it.
func (h *history) read(node, key string, start time.Time, k api.Consistency, v *api.Value, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	fail := func(kind, format string, args ...any) {
		h.violated = append(h.violated, fmt.Sprintf("%s: %s of %s at %s (started %s, %+v): %s", kind, tierOf(v), key, node,
			start.Format("05.000000"), k, fmt.Sprintf(format, args...)))
	}
	if !v.Absent {
		if w, ok := h.written[value]; !ok || w.key != key {
			fail("wrong", "the value %q was never written to this key", value)
		}
	}
	kh := h.key(key)
	for _, a := range kh.acked {
		if a.epoch != v.Epoch {
			if a.epoch.Compare(v.Epoch) > 0 && v.Staleness >= 0 && a.at.Before(start.Add(-v.Staleness)) {
				fail("bound", "revision %d of the next epoch was acknowledged %v before the start, the bound is %v",
					a.rev, start.Sub(a.at), v.Staleness)
			}
			continue
		}
		switch {
		case a.rev == v.Revision && a.value != value:
			fail("wrong", "revision %d was acknowledged as %q, served as %q", a.rev, a.value, value)
		case !v.Absent && a.rev > v.Revision && a.rev <= v.AsOf:
			fail("I1", "revision %d claims to be current at %d, but %d was acknowledged", v.Revision, v.AsOf, a.rev)
		case a.rev > v.AsOf && v.Staleness >= 0 && a.at.Before(start.Add(-v.Staleness)):
			fail("bound", "revision %d was acknowledged %v before the start, the answer is as of %d and its bound %v",
				a.rev, start.Sub(a.at), v.AsOf, v.Staleness)
		}
	}
	if v.Absent && kh.unknown == 0 {
		if last, ok := lastAt(kh.acked, v.Epoch, v.AsOf); ok && last.value != "" {
			fail("I1", "absent as of %d, but revision %d has %q and nobody deleted it", v.AsOf, last.rev, last.value)
		}
	}
	if k.Bounded && (v.Staleness < 0 || v.Staleness > k.MaxStaleness) {
		fail("limit", "the bound is %v", v.Staleness)
	}
	if b := k.Bookmark; b.Revision > 0 && (v.Epoch.Compare(b.Epoch) < 0 || (v.Epoch == b.Epoch && v.AsOf < b.Revision)) {
		fail("bookmark", "the answer is as of %s.%d", v.Epoch, v.AsOf)
	}
	if k.Strong {
		for _, m := range h.strongAt {
			if m.done.Before(start) && (v.Epoch.Compare(m.mark.Epoch) < 0 || (v.Epoch == m.mark.Epoch && v.AsOf < m.mark.Revision)) {
				fail("linearizable", "as of %d, but %d had been shown or acknowledged %v before", v.AsOf, m.mark.Revision, start.Sub(m.done))
				break
			}
		}
		h.strongAt = append(h.strongAt, strongMark{now, kv.Bookmark{Epoch: v.Epoch, Revision: v.AsOf}})
	}
	nk := nodeKey{node, key}
	for _, s := range h.shown[nk] {
		if s.done.Before(start) && v.Staleness >= 0 && older(v, s) {
			fail("monotonic", "revision %d as of %d, after revision %d as of %d was shown here %v before", v.Revision, v.AsOf, s.rev, s.asOf, start.Sub(s.done))
			break
		}
	}
	if v.Staleness >= 0 {
		h.shown[nk] = append(h.shown[nk], shown{now, v.Epoch, v.Revision, v.AsOf, v.Absent})
	}
	h.trim(nk, now)
}

// older reports whether v certainly shows an older state than s.
func older(v *api.Value, s shown) bool {
	if c := v.Epoch.Compare(s.epoch); c != 0 {
		return c < 0
	}
	switch {
	case !v.Absent && !s.absent:
		return v.Revision < s.rev
	case v.Absent && !s.absent:
		return v.AsOf < s.rev
	case !v.Absent: // absent at s.asOf, a value since before it
		return v.Revision <= s.asOf
	}
	return false
}

// lastAt is the newest acknowledged write at or below a revision.
func lastAt(list []acked, epoch kv.Epoch, rev kv.Revision) (best acked, ok bool) {
	for _, a := range list {
		if a.epoch == epoch && a.rev <= rev && (!ok || a.rev > best.rev) {
			best, ok = a, true
		}
	}
	return best, ok
}

// trim keeps the lists short: of everything that was done long before any read that can still be under way, only the
// newest counts.
func (h *history) trim(nk nodeKey, now time.Time) {
	const longAgo = 30 * time.Second
	if list := h.shown[nk]; len(list) > 200 {
		var newest *shown
		rest := list[:0:0]
		for i, s := range list {
			if now.Sub(s.done) < longAgo {
				rest = append(rest, s)
				continue
			}
			if newest == nil || older(&api.Value{Epoch: newest.epoch, Revision: newest.rev, AsOf: newest.asOf, Absent: newest.absent}, s) {
				newest = &list[i]
			}
		}
		if newest != nil {
			rest = append(rest, *newest)
		}
		h.shown[nk] = rest
	}
	if len(h.strongAt) > 400 {
		h.strongAt = slices.DeleteFunc(h.strongAt, func(m strongMark) bool {
			return now.Sub(m.done) > longAgo && less(m.mark, h.strong)
		})
	}
	for _, m := range h.strongAt {
		if now.Sub(m.done) > longAgo && less(h.strong, m.mark) {
			h.strong = m.mark
		}
	}
}

func less(a, b kv.Bookmark) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c < 0
	}
	return a.Revision < b.Revision
}

func tierOf(v *api.Value) string {
	if v.StaleReason != "" {
		return string(v.Tier) + " (if error)"
	}
	return string(v.Tier)
}

// note records a violation that no answer's check finds.
func (h *history) note(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violated = append(h.violated, text)
}

func (h *history) violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.violated)
}
