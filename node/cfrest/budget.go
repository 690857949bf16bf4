package cfrest

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"kvmesh/raftstore/kv"
)

const (
	// bulkMemory is what all bulk calls of a node may hold together, in bytes: two of the largest, or very many small ones.
	bulkMemory = 256 << 20
	// memoryPatience is how long a call waits for room before it is refused.
	memoryPatience = 5 * time.Second
)

// budget bounds the memory of the calls that hold many values at once: a bulk put is checked to its last item before the
// first is written, a bulk get before the first byte is answered.
type budget struct {
	sem  *semaphore.Weighted
	size int64
}

func newBudget(size int64) *budget {
	if size == 0 {
		size = bulkMemory
	}
	return &budget{semaphore.NewWeighted(size), size}
}

// lease is what one call holds. It is for one goroutine.
type lease struct {
	b    *budget
	held int64
}

// grow takes n bytes more. Calls that wait for each other's memory are refused in the end, with nothing written.
func (l *lease) grow(ctx context.Context, n int64) error {
	if n <= 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, memoryPatience)
	defer cancel()
	if l.held+n > l.b.size || l.b.sem.Acquire(wait, n) != nil {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		return &kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: memoryPatience,
			Message: "the bulk calls of this node hold as much memory as they may; nothing was written, send it again later",
		}
	}
	l.held += n
	return nil
}

// release gives everything back. It is deferred.
func (l *lease) release() {
	l.b.sem.Release(l.held)
	l.held = 0
}
