package state

import (
	"container/heap"
	"context"
	"sync"

	"kvmesh/raftstore/kv"
)

// WaitIndex returns nil once the state has applied the log up to index; otherwise ctx's error, or ErrClosed.
func (s *State) WaitIndex(ctx context.Context, index uint64) error {
	return s.index.wait(ctx, index)
}

// WaitRevision returns nil once the state is at rev or above; otherwise ctx's error, or ErrClosed.
func (s *State) WaitRevision(ctx context.Context, rev kv.Revision) error {
	return s.rev.wait(ctx, uint64(rev))
}

// waiters wakes those who wait for a number to be reached, and nobody else: a commit costs nothing per waiter that it does
// not satisfy. The number of waiters is bounded by that of the requests in flight. The zero value is ready.
type waiters struct {
	mu     sync.Mutex // guards what follows
	now    uint64
	closed bool
	heap   waitHeap
}

type waiter struct {
	target uint64
	woken  chan struct{} // closed when reached, or when the state is closed
	pos    int           // in the heap, -1 once removed
}

func (w *waiters) wait(ctx context.Context, target uint64) error {
	w.mu.Lock()
	if w.closed || w.now >= target {
		defer w.mu.Unlock()
		return w.verdict(target)
	}
	me := &waiter{target: target, woken: make(chan struct{})}
	heap.Push(&w.heap, me)
	w.mu.Unlock()

	select {
	case <-me.woken:
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.verdict(target)
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		if me.pos >= 0 {
			heap.Remove(&w.heap, me.pos)
		}
		return ctx.Err()
	}
}

// verdict is the answer to a waiter that has been woken or need not wait. The caller holds mu.
func (w *waiters) verdict(target uint64) error {
	if w.closed && w.now < target {
		return ErrClosed
	}
	return nil
}

// reached sets the number. It may go back, when an older state replaces this one.
func (w *waiters) reached(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = n
	for len(w.heap) > 0 && w.heap[0].target <= n {
		close(heap.Pop(&w.heap).(*waiter).woken)
	}
}

func (w *waiters) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for len(w.heap) > 0 {
		close(heap.Pop(&w.heap).(*waiter).woken)
	}
}

// waitHeap is a container/heap with the smallest target first.
type waitHeap []*waiter

func (h waitHeap) Len() int           { return len(h) }
func (h waitHeap) Less(i, j int) bool { return h[i].target < h[j].target }

func (h waitHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (h *waitHeap) Push(x any) {
	w := x.(*waiter)
	w.pos = len(*h)
	*h = append(*h, w)
}

func (h *waitHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.pos = -1
	return w
}
