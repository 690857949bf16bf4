package raftstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

const (
	// maxInFlightBytes is what may wait for the log or be on its way through it. The library's own queues are bounded by
	// entries only.
	maxInFlightBytes = 64 << 20
	// overloadedRetry is what a refused client is told to wait: about what a full queue needs to drain.
	overloadedRetry = time.Second
	// entryPace is how long an entry may keep the next one waiting. On one network an entry is committed sooner; across a
	// continent a write that has to wait pays little beside the round trip.
	entryPace = 10 * time.Millisecond
	// handOverWait is how long entries on their way may delay a handing over of the leadership.
	handOverWait = time.Second
	// noLeaderRetry is about the length of an election.
	noLeaderRetry = 500 * time.Millisecond
)

// Propose writes ops as one unit: they stand in one log entry, in their order, though each has an outcome of its own. It
// blocks until they are applied here, and may be called on the leader only.
//
// Errors are *kv.Error. CodeNotLeader, CodeNoLeader, CodeOverloaded, CodeDiskFull, CodeUnavailable, CodeInvalidParameter
// and CodeDeadlineExceeded say that nothing was written and nothing will be. CodeOutcomeUnknown says that the operations may
// have been carried out, or may still be.
func (s *Store) Propose(ctx context.Context, ops []command.Op) (command.Result, error) {
	start := s.mono()
	res, err := s.combiner.propose(ctx, ops)
	s.metrics.proposed(len(ops), s.mono()-start, err)
	return res, err
}

// proposal is one call of Propose.
type proposal struct {
	ops    []command.Op
	weight int // operations, those in transactions counted
	bytes  int
	first  bool         // must come first in its entry: the end of a restore, which begins an epoch
	done   chan outcome // buffered: nobody waits for a caller that has gone
}

type outcome struct {
	res command.Result
	err error
}

// entry is a log entry on its way through Raft.
type entry struct {
	proposals []*proposal
	ops       int
	weight    int
	bytes     int
	begun     bool // its append to the log has begun: from now on it may survive anything
	refused   bool // the disk was full, and nothing of it was written
}

// combiner packs whatever proposals have arrived into one log entry. The next one is handed over when the one before has
// been applied, or after entryPace, or when it is full, but not before that one is durable in the leader's log. So a lone write is never
// delayed, and many of them share entries, each of which costs every voter as much CPU as a dozen writes.
type combiner struct {
	s     *Store
	limit int64
	kick  chan struct{} // holds one token when there is something to do

	mu    sync.Mutex // guards all below
	queue []*proposal
	bytes int64 // in the queue and in flight
	// handed holds the entries that Raft has and has not answered. The first byte of an entry's data names it, wherever
	// the library passes that data on.
	handed    map[*byte]*entry
	appending *entry        // handed over and not durable yet
	last      time.Duration // when the newest was taken off the queue, on the node's clock
	closed    bool
	held      int             // hold without release: the leadership is being handed over
	settled   []chan struct{} // closed when nothing is on its way
}

func newCombiner(s *Store) *combiner {
	return &combiner{s: s, limit: maxInFlightBytes, kick: make(chan struct{}, 1), handed: make(map[*byte]*entry)}
}

func (c *combiner) propose(ctx context.Context, ops []command.Op) (command.Result, error) {
	p := &proposal{ops: ops, bytes: command.BatchOverhead, done: make(chan outcome, 1)}
	for i := range ops {
		if err := ops[i].Validate(); err != nil {
			return command.Result{}, kv.Errorf(kv.CodeInvalidParameter, "operation %d: %v", i, err)
		}
		p.bytes += command.Size(&ops[i])
		p.weight += ops[i].Weight()
		p.first = p.first || ops[i].Kind == command.KindRestoreEnd
	}
	switch {
	case len(ops) == 0:
		return command.Result{}, kv.Errorf(kv.CodeInvalidParameter, "no operations")
	case p.weight > kv.MaxBatchOps:
		return command.Result{}, kv.Errorf(kv.CodeInvalidParameter,
			"%d operations in one write; the limit is %d", p.weight, kv.MaxBatchOps)
	case p.bytes > kv.MaxBatchBytes:
		return command.Result{}, kv.Errorf(kv.CodeInvalidParameter,
			"%d bytes in one write; the limit is %d", p.bytes, kv.MaxBatchBytes)
	}
	if err := c.s.admit(ctx, ops); err != nil {
		return command.Result{}, err
	}
	if err := c.enqueue(p); err != nil {
		return command.Result{}, err
	}
	hung := c.s.dog.stall()
	select {
	case o := <-p.done:
		return o.res, o.err
	case <-ctx.Done():
	case <-c.s.dead:
	case <-hung:
	}
	if c.withdraw(p) {
		if c.s.dog.stalled() {
			return command.Result{}, errHangs()
		}
		return command.Result{}, kv.Errorf(kv.CodeDeadlineExceeded,
			"the write waited for its turn until its deadline; nothing was written")
	}
	select {
	case o := <-p.done:
		return o.res, o.err
	default:
		return command.Result{}, errOutcomeUnknown("no answer came in time while it was on its way through the log")
	}
}

func errOutcomeUnknown(why string) error {
	return kv.Errorf(kv.CodeOutcomeUnknown, "the write may have been carried out, or may still be: %s", why)
}

func (c *combiner) enqueue(p *proposal) error {
	if _, self := c.s.Leader(); !self {
		return c.s.errNotLeader()
	}
	if why := c.s.members.refusal.Load(); why != nil {
		return errDiskFull(*why)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return errClosed()
	case c.held > 0:
		return errHandingOver()
	}
	if c.bytes+int64(p.bytes) > c.limit {
		return &kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: overloadedRetry,
			Message: "too many writes are on their way already; send it again later",
		}
	}
	c.bytes += int64(p.bytes)
	c.queue = append(c.queue, p)
	c.wake()
	return nil
}

// withdraw takes p out of the queue; false when it is no longer there.
func (c *combiner) withdraw(p *proposal) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.queue, p)
	if i < 0 {
		return false
	}
	c.queue = slices.Delete(c.queue, i, i+1)
	c.bytes -= int64(p.bytes)
	return true
}

func (c *combiner) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run hands entries to Raft until ctx ends.
func (c *combiner) run(ctx context.Context) {
	pace := time.NewTimer(entryPace)
	defer pace.Stop()
	for {
		e, wait := c.next()
		if e != nil {
			c.hand(e)
			continue
		}
		if wait > 0 {
			pace.Reset(wait)
		}
		select {
		case <-c.kick:
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

// next takes as many proposals off the queue as fit into one entry, nil when there are none or it is not their turn, which
// comes after wait when it comes by itself.
func (c *combiner) next() (_ *entry, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.appending != nil || len(c.queue) == 0 {
		return nil, 0
	}
	e := &entry{}
	full := false
	for _, p := range c.queue {
		full = e.weight+p.weight > kv.MaxBatchOps || e.bytes+p.bytes > kv.MaxBatchBytes || p.first && len(e.proposals) > 0
		if full {
			break
		}
		e.proposals = append(e.proposals, p)
		e.ops += len(p.ops)
		e.weight += p.weight
		e.bytes += p.bytes
	}
	now := c.s.mono()
	if wait := c.last + entryPace - now; !full && len(c.handed) > 0 && wait > 0 { // what is full gains nothing by waiting
		return nil, wait
	}
	c.last = now
	c.queue = slices.Delete(c.queue, 0, len(e.proposals))
	c.appending = e
	return e, 0
}

func (c *combiner) hand(e *entry) {
	batch := command.Batch{MeshTime: c.s.meshNow(), Ops: make([]command.Op, 0, e.ops)}
	for _, p := range e.proposals {
		batch.Ops = append(batch.Ops, p.ops...)
	}
	data := command.Append(make([]byte, 0, e.bytes), &batch)
	c.mu.Lock()
	c.handed[&data[0]] = e
	c.mu.Unlock()
	c.s.metrics.entry(e.weight)

	var f raft.ApplyFuture
	ok := c.s.futures.run(func() {
		// Nothing bounds this wait: while its disk hangs the library keeps the future. Callers wait for their own ctx.
		f = c.s.raft.Apply(data, 0)
		err := f.Error()
		c.answered(&data[0], f, err)
	})
	if !ok {
		c.answered(&data[0], nil, raft.ErrRaftShutdown)
	}
}

// answered hands out the results by position, or the error.
func (c *combiner) answered(key *byte, f raft.ApplyFuture, err error) {
	c.mu.Lock()
	e := c.handed[key]
	delete(c.handed, key)
	c.bytes -= int64(e.bytes)
	if c.appending == e {
		c.appending = nil
	}
	c.settle()
	c.wake()
	begun, refused := e.begun, e.refused
	c.mu.Unlock()

	var res command.Result
	switch {
	case err == nil:
		res, err = applied(f.Response(), e.ops)
	case refused:
		err = errDiskFull("the disk of the leader is full")
	default:
		err = c.classify(err, begun)
	}
	at := 0
	for _, p := range e.proposals {
		o := outcome{err: err}
		if err == nil {
			o.res = res
			o.res.Ops = res.Ops[at : at+len(p.ops) : at+len(p.ops)]
			at += len(p.ops)
		}
		p.done <- o
	}
}

// applied checks the state machine's answer to a committed entry.
func applied(answer any, ops int) (command.Result, error) {
	switch r := answer.(type) {
	case command.Result:
		if len(r.Ops) == ops {
			return r, nil
		}
		return r, errOutcomeUnknown("it is committed, but its result is not known here")
	case error:
		return command.Result{}, errOutcomeUnknown(r.Error())
	default:
		return command.Result{}, errOutcomeUnknown("the state machine gave no answer")
	}
}

// classify turns Raft's error about an entry into the truth. What decides is whether the append to the own log had begun,
// which the log itself has seen: the same error, ErrRaftShutdown for one, comes both before that and after the commit.
// Before it nothing can have been sent to anybody either, because the leader replicates from its log.
func (c *combiner) classify(err error, begun bool) error {
	switch {
	case begun:
		return errOutcomeUnknown(err.Error())
	case errors.Is(err, raft.ErrRaftShutdown):
		return errClosed()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errHandingOver()
	default: // ErrNotLeader, ErrEnqueueTimeout, ErrLeadershipLost before the entry was taken up
		return c.s.errNotLeader()
	}
}

// storing and stored are called around every append to the log.
func (c *combiner) storing(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if e := c.find(l); e != nil {
			e.begun = true
		}
	}
}

func (c *combiner) stored(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if e := c.find(l); e != nil && e == c.appending {
			c.appending = nil
			c.wake() // e is among handed
		}
	}
}

// refused is called after storing when nothing was written, because the disk is full.
func (c *combiner) refused(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if e := c.find(l); e != nil {
			e.begun, e.refused = false, true
		}
	}
}

func (c *combiner) find(l *raft.Log) *entry {
	if len(c.handed) == 0 || len(l.Data) == 0 {
		return nil
	}
	return c.handed[&l.Data[0]]
}

// hold refuses what comes until release, answers what has not been handed to Raft, and waits until the rest has its
// outcome, for at most handOverWait. Raft hands the leadership over as soon as the next leader has all entries, while a
// majority may not: the writers of those could not know what became of them.
func (c *combiner) hold(ctx context.Context) (release func()) {
	c.mu.Lock()
	c.held++
	settled := make(chan struct{})
	c.settled = append(c.settled, settled)
	c.settle()
	c.mu.Unlock()
	c.refuseQueue(errHandingOver())

	limit := time.NewTimer(handOverWait)
	defer limit.Stop()
	select {
	case <-settled:
	case <-limit.C:
	case <-ctx.Done():
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held--
	}
}

// settle tells those who wait for it that nothing is on its way. The caller holds mu.
func (c *combiner) settle() {
	if c.appending != nil || len(c.handed) > 0 {
		return
	}
	for _, ch := range c.settled {
		close(ch)
	}
	c.settled = nil
}

// close refuses what comes from now on and answers what has not been handed over.
func (c *combiner) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.refuseQueue(errClosed())
}

func (c *combiner) refuseQueue(err error) {
	c.mu.Lock()
	queue := c.queue
	c.queue = nil
	for _, p := range queue {
		c.bytes -= int64(p.bytes)
	}
	c.mu.Unlock()
	for _, p := range queue {
		p.done <- outcome{err: err}
	}
}

func (c *combiner) inFlight() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

func errClosed() error {
	return &kv.Error{Code: kv.CodeUnavailable, RetryAfter: noLeaderRetry, Message: "this node is shutting down; ask another one"}
}

func errHangs() error {
	return errNoLeader("the disk of this node does not answer, another one is being elected")
}

func errNoLeader(why string) error {
	return &kv.Error{Code: kv.CodeNoLeader, RetryAfter: noLeaderRetry, Message: why + "; send it again"}
}

func errHandingOver() error { return errNoLeader("leadership is being handed over") }

// errNotLeader names the leader when it is known to be another node.
func (s *Store) errNotLeader() error {
	if id, self := s.Leader(); id != "" && !self {
		return &kv.Error{Code: kv.CodeNotLeader, Leader: id, Message: "this node is not the leader"}
	}
	return errNoLeader("there is no leader at the moment")
}
