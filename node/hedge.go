package node

import (
	"context"
	"slices"
	"sync"
	"time"
)

// hedger sends a second request when the first takes longer than its node usually does (Dean and Barroso, "The Tail at
// Scale", CACM 2013): after the 95th percentile of the node's recent answers, and for at most hedgeShare of all requests,
// so that a slow store is not made slower.
type hedger struct {
	mu     sync.Mutex // guards all below; held for arithmetic only
	nodes  map[string]*latencies
	budget float64 // second requests that may be sent now
}

const (
	hedgeShare     = 0.05
	hedgeBurst     = 5   // second requests that may be saved up
	hedgeSamples   = 128 // answers remembered of a node
	hedgeMinimum   = 20  // answers needed before anything is known of a node
	hedgeNodes     = 64  // nodes remembered
	hedgeRecompute = 16  // answers between two computations of the percentile
)

// latencies are a node's recent answer times.
type latencies struct {
	ring []time.Duration
	next int
	seen int
	p95  time.Duration
}

func newHedger() *hedger { return &hedger{nodes: make(map[string]*latencies)} }

// observe takes the time of one successful answer.
func (h *hedger) observe(node string, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.nodes[node]
	if l == nil {
		if len(h.nodes) >= hedgeNodes {
			clear(h.nodes)
		}
		l = &latencies{}
		h.nodes[node] = l
	}
	if len(l.ring) < hedgeSamples {
		l.ring = append(l.ring, d)
	} else {
		l.ring[l.next] = d
		l.next = (l.next + 1) % hedgeSamples
	}
	if l.seen++; l.seen%hedgeRecompute == 0 || l.seen == hedgeMinimum {
		sorted := slices.Sorted(slices.Values(l.ring))
		l.p95 = sorted[len(sorted)*95/100]
	}
}

// begin counts a request to a node and says after what time it may be hedged; ok is false when too little is known.
func (h *hedger) begin(node string) (after time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget = min(h.budget+hedgeShare, hedgeBurst)
	l := h.nodes[node]
	if l == nil || l.seen < hedgeMinimum {
		return 0, false
	}
	return l.p95, true
}

// spend takes one second request out of the budget.
func (h *hedger) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.budget < 1 {
		return false
	}
	h.budget--
	return true
}

// hedged runs first, and second beside it when first has not answered after a while and may says so. The first success
// wins and the other is cancelled; with no success it returns first's error. Both have ended when it returns.
func hedged[T any](ctx context.Context, after time.Duration, may func() bool, first, second func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		v     T
		err   error
		first bool
	}
	results := make(chan result, 2)
	run := func(fn func(context.Context) (T, error), isFirst bool) {
		v, err := fn(ctx)
		results <- result{v, err, isFirst}
	}
	running := 1
	go run(first, true)
	timer := time.NewTimer(after)
	defer timer.Stop()
	var won, failed *result
	for running > 0 {
		select {
		case <-timer.C:
			if won == nil && failed == nil && may() {
				running++
				go run(second, false)
			}
		case r := <-results:
			running--
			switch {
			case r.err == nil && won == nil:
				won = &r
				cancel()
			case r.err != nil && (failed == nil || r.first):
				failed = &r
			}
		}
	}
	cancel()
	if won != nil {
		return won.v, nil
	}
	return failed.v, failed.err
}
