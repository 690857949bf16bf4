package sim

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// history is what clients did and saw, from outside. All times are of the bubble, which every client shares, whatever the
// nodes' own clocks say. Values are unique, so a value tells which write made it. Revisions go on counting when an epoch
// begins, so they alone put everything in order.
type history struct {
	mu       sync.Mutex // guards all below; held for memory operations only
	keys     map[string]*keyHistory
	written  map[string]string // key by value
	shown    map[nodeKey][]shown
	hits     map[nodeKey][]moment // ascending in both, of one epoch: what hits were current at
	existed  []moment             // ascending in both: what certainly had been committed by when
	violated []string
	dropped  int
}

type nodeKey struct{ node, key string }

type keyHistory struct {
	acked   []acked   // ascending by revision
	reads   []reading // of late, in the order of done, for writes whose acknowledgement comes after them
	unknown int       // deletes of unknown outcome, those under way included
}

// acked is an acknowledged write. rev is where it stands in the history; a delete that changed nothing has none.
type acked struct {
	at    time.Time // by then it had been committed
	epoch kv.Epoch
	rev   kv.Revision
	value string // "" = deleted
}

// demand is what a reader wants.
type demand struct {
	api.Consistency
	ttl time.Duration // cache_ttl
}

// reading is one finished answer.
type reading struct {
	node, key   string
	start, done time.Time
	asked       demand
	tier        string
	epoch       kv.Epoch
	rev, asOf   kv.Revision // rev 0 = absent
	absent      bool
	certain     bool // no delete was under way or of unknown outcome
	bound       time.Duration
	value       string
}

// shown is what one finished answer of a node showed of a key.
type shown struct {
	done   time.Time
	epoch  kv.Epoch
	rev    kv.Revision // of the value; 0 = absent
	asOf   kv.Revision
	absent bool
}

// moment says that everything up to rev had been committed by done: it was acknowledged, or an answer knew of it.
type moment struct {
	done  time.Time
	epoch kv.Epoch
	rev   kv.Revision
}

const (
	// maxViolations are kept; when more is wrong, the first ones tell.
	maxViolations = 50
	// recent is longer than any operation takes.
	recent = 3 * opTimeout
)

func newHistory() *history {
	return &history{
		keys: make(map[string]*keyHistory), written: make(map[string]string), shown: make(map[nodeKey][]shown),
		hits: make(map[nodeKey][]moment),
	}
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
	h.written[value] = key
}

// wrote notes the outcome of a write, and looks again at what was read while it was under way.
func (h *history) wrote(node, key, value string, res api.WriteResult, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil { // a delete may still land
		return
	}
	now := time.Now()
	kh := h.key(key)
	if value == "" {
		kh.unknown--
	}
	h.exists(moment{now, res.Epoch, max(res.Revision, res.AsOf)})
	h.show(nodeKey{node, key}, shown{now, res.Epoch, res.Revision, res.AsOf, value == ""})
	if res.Revision == 0 {
		return
	}
	a := acked{h.since(res.Revision), res.Epoch, res.Revision, value}
	kh.acked = slices.Insert(kh.acked, kh.from(a.rev), a)
	old, _ := slices.BinarySearchFunc(kh.reads, now.Add(-recent), func(r reading, t time.Time) int { return r.done.Compare(t) })
	kh.reads = kh.reads[old:] // append moves the rest when it needs room, so what was cut off does not stay
	for i := range kh.reads {
		h.compare(&kh.reads[i], a)
		h.absence(kh, &kh.reads[i])
	}
}

// from is where the acknowledged writes of a revision and later ones begin.
func (kh *keyHistory) from(rev kv.Revision) int {
	i, _ := slices.BinarySearchFunc(kh.acked, rev, func(a acked, rev kv.Revision) int { return cmp.Compare(a.rev, rev) })
	return i
}

// hit holds a hit against earlier ones: what is held unmarked is current at W, and W never goes back within an epoch.
func (h *history) hit(nk nodeKey, r *reading) {
	list := h.hits[nk]
	if n := len(list); n > 0 && list[n-1].epoch != r.epoch {
		list = nil
	}
	if m, ok := before(list, r.start); ok && r.asOf < m.rev {
		h.fail("I5", r, "as of %d, after a hit as of %d here %v before", r.asOf, m.rev, r.start.Sub(m.done))
	}
	if n := len(list); n > 0 && r.done.Sub(list[0].done) > 2*recent {
		list = slices.Clone(list[n/2:])
	}
	h.hits[nk] = later(list, moment{r.done, r.epoch, r.asOf})
}

// exists notes that everything up to a revision has been committed by now.
func (h *history) exists(m moment) { h.existed = later(h.existed, m) }

// later adds a moment at which more was known.
func later(list []moment, m moment) []moment {
	if n := len(list); n == 0 || m.rev > list[n-1].rev {
		list = append(list, m)
	}
	return list
}

// since is the earliest moment by which a revision is known to have been committed.
func (h *history) since(rev kv.Revision) time.Time {
	i, _ := slices.BinarySearchFunc(h.existed, rev, func(m moment, rev kv.Revision) int { return cmp.Compare(m.rev, rev) })
	return h.existed[i].done
}

// before is what was known before a moment.
func before(list []moment, t time.Time) (m moment, ok bool) {
	i, _ := slices.BinarySearchFunc(list, t, func(m moment, t time.Time) int { return m.done.Compare(t) })
	if i == 0 {
		return m, false
	}
	return list[i-1], true
}

func (h *history) fail(kind string, r *reading, format string, args ...any) {
	h.violate(fmt.Sprintf("%s: %s of %s at %s (started %s, %+v): %s", kind, r.tier, r.key, r.node,
		r.start.Format("04:05.000000"), r.asked, fmt.Sprintf(format, args...)))
}

func (h *history) violate(text string) {
	if len(h.violated) == maxViolations {
		h.dropped++
		return
	}
	h.violated = append(h.violated, text)
}

// read checks one answer, and notes it.
func (h *history) read(node, key string, start time.Time, asked demand, v *api.Value, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kh := h.key(key)
	r := reading{
		node: node, key: key, start: start, done: time.Now(), asked: asked, tier: tierOf(v), epoch: v.Epoch, rev: v.Revision,
		asOf: v.AsOf, absent: v.Absent, certain: kh.unknown == 0, bound: v.Staleness, value: value,
	}
	if v.Absent {
		r.rev = 0
	} else if h.written[value] != key {
		h.fail("wrong", &r, "the value %q was never written to this key", value)
	}
	for _, a := range kh.acked[kh.from(r.rev):] {
		h.compare(&r, a)
	}
	h.absence(kh, &r)
	h.asked(&r)
	nk := nodeKey{node, key}
	for _, s := range h.shown[nk] {
		if s.done.Before(start) && r.bound >= 0 && older(&r, s) {
			h.fail("monotonic", &r, "revision %d as of %s.%d, after revision %d as of %s.%d was shown here %v before",
				r.rev, r.epoch, r.asOf, s.rev, s.epoch, s.asOf, start.Sub(s.done))
			break
		}
	}
	if v.Tier == api.TierHit {
		h.hit(nk, &r)
	}
	h.exists(moment{r.done, r.epoch, max(r.rev, r.asOf)})
	if r.bound >= 0 {
		h.show(nk, shown{r.done, r.epoch, r.rev, r.asOf, r.absent})
	}
	kh.reads = append(kh.reads, r)
}

// compare holds an answer against one acknowledged write of its key.
func (h *history) compare(r *reading, a acked) {
	switch {
	case a.rev == r.rev && a.value != r.value:
		h.fail("wrong", r, "revision %d was acknowledged as %q, served as %q", a.rev, a.value, r.value)
	case !r.absent && a.rev > r.rev && a.rev <= r.asOf:
		h.fail("I1", r, "revision %d claims to be current at %d, but %d was acknowledged", r.rev, r.asOf, a.rev)
	case a.rev > r.asOf && r.bound >= 0 && a.at.Before(r.start.Add(-r.bound)):
		h.fail("bound", r, "revision %d existed %v before the start, the answer is as of %d and its bound %v",
			a.rev, r.start.Sub(a.at), r.asOf, r.bound)
	}
}

// absence holds an absence against the newest acknowledged write that it claims to know.
func (h *history) absence(kh *keyHistory, r *reading) {
	if !r.absent || !r.certain {
		return
	}
	i := kh.from(r.asOf + 1)
	if i > 0 && kh.acked[i-1].value != "" {
		last := kh.acked[i-1]
		h.fail("I1", r, "absent as of %d, but revision %d has %q and nobody deleted it", r.asOf, last.rev, last.value)
		r.certain = false // said once
	}
}

// asked holds an answer against what the reader demanded.
func (h *history) asked(r *reading) {
	const swr = time.Second // may be added to cache_ttl while somebody fetches the newest state
	if r.asked.Bounded && (r.bound < 0 || r.bound > r.asked.MaxStaleness) ||
		r.tier == string(api.TierHit) && r.bound > r.asked.ttl || r.tier == string(api.TierStale) && r.bound > r.asked.ttl+swr {
		h.fail("limit", r, "the bound is %v", r.bound)
	}
	if b := r.asked.Bookmark; b.Revision > 0 && (r.epoch.Compare(b.Epoch) < 0 || r.asOf < b.Revision) {
		h.fail("bookmark", r, "the answer is as of %s.%d", r.epoch, r.asOf)
	}
	if !r.asked.Strong {
		return
	}
	if m, ok := before(h.existed, r.start); ok && (r.epoch.Compare(m.epoch) < 0 || r.asOf < m.rev) {
		h.fail("linearizable", r, "as of %s.%d, but %s.%d had been shown or acknowledged %v before",
			r.epoch, r.asOf, m.epoch, m.rev, r.start.Sub(m.done))
	}
}

// older reports whether r certainly shows an older state than s.
func older(r *reading, s shown) bool {
	if r.epoch.Compare(s.epoch) < 0 {
		return true
	}
	switch {
	case !r.absent && !s.absent:
		return r.rev < s.rev
	case r.absent && !s.absent:
		return r.asOf < s.rev
	case !r.absent: // absent at s.asOf, a value since before it
		return r.rev <= s.asOf
	}
	return false
}

// show notes what was shown, when that is news: of two answers that show the same, the earlier one demands more. Of
// everything that was done long before any read that can still be under way, only the newest counts.
func (h *history) show(nk nodeKey, s shown) {
	list := h.shown[nk]
	for i := len(list) - 1; i >= 0; i-- {
		if x := list[i]; x.epoch == s.epoch && x.absent == s.absent && x.rev >= s.rev && (!s.absent || x.asOf >= s.asOf) {
			return
		}
	}
	past := 0
	for past < len(list) && s.done.Sub(list[past].done) > recent {
		past++
	}
	if past > 1 {
		newest := list[0]
		for _, x := range list[1:past] {
			if older(&reading{epoch: newest.epoch, rev: newest.rev, asOf: newest.asOf, absent: newest.absent}, x) {
				newest = x
			}
		}
		list = append([]shown{newest}, list[past:]...)
	}
	h.shown[nk] = append(list, s)
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
	h.violate(text)
}

func (h *history) broken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.violated) > 0
}

func (h *history) violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.violated)
	if h.dropped > 0 {
		out = append(out, fmt.Sprintf("and %d more", h.dropped))
	}
	return out
}
