package node

import (
	"context"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"kvmesh/node/api"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

const (
	// maxBulkCalls is how many calls of WriteEach run at a time on one node: each holds a chunk that is being filled.
	maxBulkCalls = 64
	// maxBulkBytes is what all of them may have on the way to the leader, sealed and in plaintext.
	maxBulkBytes = 64 << 20
	// bulkInFlight chunks of one call are on their way at a time. A quarter of a mebibyte each keeps a leader on another
	// continent busy (2 MiB in a round trip), and leaves room for others.
	bulkInFlight = 8
	// bulkChunkBytes of operations make one log entry; bulkKeptBytes bounds what a chunk takes with the plaintext of values
	// that the cache will hold, which can be much larger than the pointers to them.
	bulkChunkBytes = kv.MaxBatchBytes - command.BatchOverhead
	bulkKeptBytes  = 2 << 20
	// bulkPatience is how long a call waits for its turn, and bulkRetry what it is told when that did not come.
	bulkPatience = 5 * time.Second
	bulkRetry    = time.Second
)

// bulkGate bounds the bulk writes of a node.
type bulkGate struct {
	calls chan struct{}
	bytes *semaphore.Weighted
}

func newBulkGate() *bulkGate {
	return &bulkGate{calls: make(chan struct{}, maxBulkCalls), bytes: semaphore.NewWeighted(maxBulkBytes)}
}

// enter waits for a turn.
func (g *bulkGate) enter(ctx context.Context) error {
	turn := time.NewTimer(bulkPatience)
	defer turn.Stop()
	select {
	case g.calls <- struct{}{}:
		return nil
	case <-turn.C:
		return &kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: bulkRetry,
			Message: "this node carries out as many bulk writes as it can already; nothing was written, send it again later",
		}
	case <-ctx.Done():
		return kv.Errorf(kv.CodeDeadlineExceeded, "the call ended before its turn came; nothing was written")
	}
}

// WriteEach packs writes into chunks of one log entry each, several of which are on their way at a time.
func (s *service) WriteEach(ctx context.Context, writes iter.Seq2[api.Write, func(api.WriteResult, error)]) error {
	if err := s.bulk.enter(ctx); err != nil {
		return err
	}
	defer func() { <-s.bulk.calls }()
	b := &bulkWrite{s: s, ctx: ctx, chunk: &bulkChunk{}, slots: make(chan struct{}, bulkInFlight), flying: make(map[bulkKey]*bulkChunk)}
	for w, told := range writes {
		b.add(w, told)
	}
	b.send()
	b.running.Wait()
	return nil
}

// bulkWrite is one call of WriteEach. The goroutine that makes the writes fills chunks, each chunk has one that carries it
// out.
type bulkWrite struct {
	s       *service
	ctx     context.Context
	chunk   *bulkChunk    // being filled
	slots   chan struct{} // one for each chunk on its way
	running sync.WaitGroup

	mu     sync.Mutex             // guards all below
	flying map[bulkKey]*bulkChunk // the last chunk that writes a key, while it is on its way
	// halted is set by a failure that all further writes would meet: they fail with it, untried.
	halted error
}

type bulkKey struct {
	ns  kv.NamespaceID
	key string
}

func (p *pending) bulkKey() bulkKey { return bulkKey{p.op.Namespace, p.op.Key} }

// bulkChunk is what becomes a part of one log entry, or the whole.
type bulkChunk struct {
	writes []*pending
	told   []func(api.WriteResult, error)
	ops    int           // bytes of the operations, as the log counts them
	kept   int           // bytes in memory
	done   chan struct{} // closed once all outcomes are known; nil before the chunk is sent
}

// add takes the next write, and waits while as many chunks are on their way as may be.
func (b *bulkWrite) add(w api.Write, told func(api.WriteResult, error)) {
	if err := b.stopped(); err != nil {
		told(api.WriteResult{}, err)
		return
	}
	p, err := b.s.prepare(w)
	if err != nil {
		told(api.WriteResult{}, err)
		return
	}
	size := command.Size(&p.op)
	if c := b.chunk; len(c.writes) > 0 &&
		(len(c.writes) == kv.MaxBatchOps || c.ops+size > bulkChunkBytes || c.kept+p.bytes() > bulkKeptBytes) {
		b.send()
	}
	b.await(p.bulkKey())
	c := b.chunk
	c.writes, c.told = append(c.writes, p), append(c.told, told)
	c.ops += size
	c.kept += p.bytes()
}

// stopped is why no more writes are tried, nil while they are.
func (b *bulkWrite) stopped() error {
	if err := context.Cause(b.ctx); err != nil {
		return kv.Errorf(kv.CodeDeadlineExceeded, "the call ended before this write was sent; nothing was written (%v)", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.halted
}

// await waits until no chunk that is on its way writes the key: two chunks may reach the log in any order, and the writes
// of one key are to be carried out in theirs. Within a chunk they are.
func (b *bulkWrite) await(k bulkKey) {
	if mutBulkUnordered {
		return
	}
	b.mu.Lock()
	c := b.flying[k]
	b.mu.Unlock()
	if c != nil {
		<-c.done // it has a deadline of its own
	}
}

// send hands the chunk to a goroutine, when there is room for it, and begins the next one.
func (b *bulkWrite) send() {
	c := b.chunk
	b.chunk = &bulkChunk{}
	if len(c.writes) == 0 {
		return
	}
	select {
	case b.slots <- struct{}{}:
	case <-b.ctx.Done():
		c.fail(b.stopped())
		return
	}
	weight := min(int64(c.kept), maxBulkBytes)
	if err := b.s.bulk.bytes.Acquire(b.ctx, weight); err != nil {
		<-b.slots
		c.fail(b.stopped())
		return
	}
	c.done = make(chan struct{})
	b.mu.Lock()
	for _, p := range c.writes {
		b.flying[p.bulkKey()] = c
	}
	b.mu.Unlock()
	b.running.Go(func() {
		b.carryOut(c)
		b.s.bulk.bytes.Release(weight)
		<-b.slots
	})
}

func (b *bulkWrite) carryOut(c *bulkChunk) {
	if err := b.stopped(); err != nil {
		c.fail(err)
	} else {
		for i, w := range b.s.carryOut(b.ctx, c.writes) {
			b.halt(w.err)
			c.told[i](w.res, w.err)
		}
	}
	b.mu.Lock()
	for _, p := range c.writes {
		if b.flying[p.bulkKey()] == c {
			delete(b.flying, p.bulkKey())
		}
	}
	b.mu.Unlock()
	close(c.done)
}

// halt stops the call after an error that says that nothing was written and that the mesh takes no writes just now.
func (b *bulkWrite) halt(err error) {
	switch kv.CodeOf(err) {
	case kv.CodeNoLeader, kv.CodeNoQuorum, kv.CodeDiskFull, kv.CodeOverloaded, kv.CodeUnavailable, kv.CodeDeadlineExceeded:
		b.mu.Lock()
		if b.halted == nil {
			b.halted = err
		}
		b.mu.Unlock()
	}
}

func (c *bulkChunk) fail(err error) {
	for _, told := range c.told {
		told(api.WriteResult{}, err)
	}
}
