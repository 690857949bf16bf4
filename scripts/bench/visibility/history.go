package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// history is the truth as clients know it: what was written, and what was acknowledged when. All times are of the one
// clock of this process. Values are unique, so a value tells which write made it.
type history struct {
	mu       sync.Mutex // guards all below; held for memory operations only
	keys     map[string]*keyHistory
	checked  int // answers that stated a bound
	violated int
	shown    []string // the first few violations
}

type keyHistory struct {
	sent   map[string]bool   // values
	values map[uint64]string // by revision, as acknowledged
	acked  []ack             // by time
}

// ack says that everything up to rev of a key was acknowledged when at.
type ack struct {
	at  time.Time
	rev uint64
}

// maxShown is how many violations are printed; all are counted.
const maxShown = 20

func newHistory() *history { return &history{keys: make(map[string]*keyHistory)} }

func (h *history) key(name string) *keyHistory {
	k := h.keys[name]
	if k == nil {
		k = &keyHistory{sent: make(map[string]bool), values: make(map[uint64]string)}
		h.keys[name] = k
	}
	return k
}

// sending notes a write before it is sent: from now on its value may be seen.
func (h *history) sending(key, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.key(key).sent[value] = true
}

// acknowledged notes a write whose client has just got its answer.
func (h *history) acknowledged(key, value string, rev uint64, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.key(key)
	k.values[rev] = value
	if n := len(k.acked); n > 0 {
		rev = max(rev, k.acked[n-1].rev)
	}
	k.acked = append(k.acked, ack{now, rev})
}

// read holds one answer against the truth: a state with the bound b must be at least as new as the newest write that was
// acknowledged before the read began minus b.
func (h *history) read(a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.key(a.key)
	fail := func(format string, args ...any) {
		if h.violated++; len(h.shown) < maxShown {
			h.shown = append(h.shown, fmt.Sprintf("%s at %s, a %q of revision %d: %s", a.key, a.edge, a.tier, a.rev, fmt.Sprintf(format, args...)))
		}
	}
	if a.rev > 0 && !k.sent[a.value] {
		fail("%q was never written to this key", a.value)
	}
	if want, known := k.values[a.rev]; known && want != a.value {
		fail("revision %d was acknowledged as %q and served as %q", a.rev, want, a.value)
	}
	if !a.bounded {
		return
	}
	h.checked++
	since := a.start.Add(-a.bound)
	for i := len(k.acked) - 1; i >= 0; i-- {
		if x := k.acked[i]; x.at.Before(since) {
			if x.rev > a.rev {
				fail("revision %d was acknowledged %v before the read began, the stated bound is %v", x.rev, a.start.Sub(x.at), a.bound)
			}
			break
		}
	}
}

// err is nil when every answer was true.
func (h *history) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.violated == 0 {
		return nil
	}
	return errors.New(fmt.Sprintf("%d of %d answers were not true:\n  ", h.violated, h.checked) + strings.Join(h.shown, "\n  "))
}
