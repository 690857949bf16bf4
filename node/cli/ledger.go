package cli

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// maxWindow bounds how many items may be dealt with ahead of the oldest one that is still under way: they are all named in the
// state.
const maxWindow = 1 << 14

// ledger knows up to where a transfer has come, however its items overtake each other: every item up to mark has been dealt
// with, and those of failed in vain. A transfer that is resumed begins behind the mark, and tries those that failed again.
//
// Items are begun in the order of their source, which is the same each time; each has a mark that tells it from the others:
// its key, its path, or its number.
type ledger struct {
	moved chan struct{} // has an element when the oldest item was settled

	mu     sync.Mutex // guards all below
	open   []openItem // from the oldest that is not settled on
	first  int64      // number of open[0]
	mark   string     // of the last item before open[0]
	begun  bool       // mark is that of an item
	failed map[string]bool
	ahead  map[string]bool // what an earlier run has moved behind its mark, as far as it was not found again yet
	// saved are the totals of earlier runs.
	saved totals
}

type openItem struct {
	mark    string
	again   bool // it lies before the mark that an earlier run has reached, and failed there
	settled bool
}

// totals are what was moved, in all runs of a transfer.
type totals struct {
	Items   int64 `json:"items"`
	Bytes   int64 `json:"bytes"`
	Skipped int64 `json:"skipped"`
}

func newLedger() *ledger {
	return &ledger{moved: make(chan struct{}, 1), failed: map[string]bool{}, ahead: map[string]bool{}}
}

// begin enters an item and returns its number. It waits while the oldest one holds too many up. One goroutine calls it.
func (l *ledger) begin(ctx context.Context, mark string, again bool) (int64, error) {
	for {
		l.mu.Lock()
		if len(l.open) < maxWindow {
			l.open = append(l.open, openItem{mark: mark, again: again})
			n := l.first + int64(len(l.open)) - 1
			l.mu.Unlock()
			return n, nil
		}
		l.mu.Unlock()
		select {
		case <-l.moved:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// settle notes that an item has been dealt with.
func (l *ledger) settle(n int64, failed bool) {
	l.mu.Lock()
	it := &l.open[n-l.first]
	it.settled = true
	if failed {
		l.failed[it.mark] = true
	} else {
		delete(l.failed, it.mark)
	}
	gone := l.advance()
	if mutMarkAhead {
		l.mark, l.begun = it.mark, true
	}
	l.mu.Unlock()
	if gone {
		select {
		case l.moved <- struct{}{}:
		default: // there is one already
		}
	}
}

// advance moves the mark behind all that is settled. The caller holds mu.
func (l *ledger) advance() bool {
	gone := 0
	for gone < len(l.open) && l.open[gone].settled {
		if !l.open[gone].again {
			l.mark, l.begun = l.open[gone].mark, true
		}
		gone++
	}
	l.open, l.first = l.open[gone:], l.first+int64(gone)
	return gone > 0
}

// resume sets the ledger to where an earlier run has come.
func (l *ledger) resume(st *state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark, l.begun, l.saved = string(st.Mark), st.Begun, st.Totals
	for _, mark := range st.Failed {
		l.failed[string(mark)] = true
	}
	for _, mark := range st.Ahead {
		l.ahead[string(mark)] = true
	}
}

// due says whether an item has to be moved, and whether that is another attempt. behind tells whether it comes after the mark
// that an earlier run has reached. It is asked for each item once, in the order of the source.
func (l *ledger) due(mark string, behind bool) (yes, again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !behind {
		return l.failed[mark] && !mutForgetFailed, true
	}
	if !l.ahead[mark] {
		return true, false
	}
	delete(l.ahead, mark)
	l.open = append(l.open, openItem{mark: mark, settled: true})
	l.advance()
	return false, false
}

// write copies to st how far the transfer is.
func (l *ledger) write(st *state, run totals) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Mark, st.Begun = []byte(l.mark), l.begun
	st.Totals = totals{l.saved.Items + run.Items, l.saved.Bytes + run.Bytes, l.saved.Skipped + run.Skipped}
	st.Failed, st.Ahead = nil, nil
	for _, it := range l.open {
		if it.settled && !it.again && !l.failed[it.mark] {
			st.Ahead = append(st.Ahead, []byte(it.mark))
		}
	}
	for _, mark := range slices.Sorted(maps.Keys(l.ahead)) {
		st.Ahead = append(st.Ahead, []byte(mark))
	}
	for _, mark := range slices.Sorted(maps.Keys(l.failed)) {
		st.Failed = append(st.Failed, []byte(mark))
	}
}
