package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

const (
	// forwardInFlight requests with writes may be on their way to one leader. Together with the pool's idle connections it
	// keeps writes from paying for TLS handshakes.
	forwardInFlight = 32
	// forwardGroup writes go in one request at most: their outcomes have to fit into one frame.
	forwardGroup = 128
	// maxForwardBytes of writes may wait, or be on their way, at one node.
	maxForwardBytes = 64 << 20
	// maxProposeBody bounds the writes of one request: what one log entry holds, or several smaller ones together.
	maxProposeBody = kv.MaxBatchBytes + 64<<10
	// proposeHead is the length before each batch.
	proposeHead = 4
)

// forwarder brings writes to the leader. What comes together while a request is being sent off makes up the next one, and
// each write has an outcome of its own; nothing waits for more to come, and no timer runs.
type forwarder struct {
	call  func(ctx context.Context, node string, c peer.Call) (*peer.Reply, error)
	epoch func() kv.Epoch // the newest that this node knows
	// timeout bounds a request, and so the writes in it.
	timeout time.Duration
	ctx     context.Context // done when the node closes
	cancel  context.CancelFunc
	wg      sync.WaitGroup // senders and requests

	mu    sync.Mutex // guards all below
	lanes map[string]*lane
	bytes int // of all lanes, in queues and on their way
}

// lane is what goes to one leader; it exists while there is something to send or on its way. forwarder.mu guards it.
type lane struct {
	leader  string
	queue   []*forwarded
	flying  int  // requests on their way
	sending bool // a goroutine sends what is queued
}

// forwarded is one write.
type forwarded struct {
	batch  []byte // encoded
	ops    int    // of the batch
	weight int    // operations, those in transactions counted
	sent   bool
	done   chan forwardOutcome // buffered: nobody waits for a caller that has gone
}

type forwardOutcome struct {
	res command.Result
	err error
}

func newForwarder(
	call func(context.Context, string, peer.Call) (*peer.Reply, error), epoch func() kv.Epoch, timeout time.Duration,
) *forwarder {
	f := &forwarder{call: call, epoch: epoch, timeout: timeout, lanes: make(map[string]*lane)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// close ends what is on its way, with an unknown outcome, and waits for it.
func (f *forwarder) close() {
	f.mu.Lock()
	f.cancel()
	f.mu.Unlock()
	f.wg.Wait()
}

// propose has ops committed by the leader as one batch. Its errors are those of the leader's Propose, *peer.CallError,
// CodeOverloaded and CodeDeadlineExceeded, after which nothing was written, and CodeOutcomeUnknown.
func (f *forwarder) propose(ctx context.Context, leader string, ops []command.Op) (command.Result, error) {
	w := &forwarded{batch: command.Append(nil, &command.Batch{Ops: ops}), ops: len(ops), done: make(chan forwardOutcome, 1)}
	for i := range ops {
		w.weight += ops[i].Weight()
	}
	if err := f.enqueue(leader, w); err != nil {
		return command.Result{}, err
	}
	select {
	case o := <-w.done:
		return o.res, o.err
	case <-ctx.Done():
	}
	if f.withdraw(leader, w) {
		return command.Result{}, kv.Errorf(kv.CodeDeadlineExceeded, "the write waited for its turn until its deadline; nothing was written")
	}
	select {
	case o := <-w.done:
		return o.res, o.err
	default:
		return command.Result{}, kv.Errorf(kv.CodeOutcomeUnknown,
			"the leader did not answer in time; read the key to see whether the write is there")
	}
}

func (f *forwarder) enqueue(leader string, w *forwarded) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return kv.Errorf(kv.CodeUnavailable, "the node is shutting down")
	}
	if f.bytes+len(w.batch) > maxForwardBytes {
		return &kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: time.Second,
			Message: "too many writes are on their way to the leader already; send it again later",
		}
	}
	f.bytes += len(w.batch)
	l := f.lanes[leader]
	if l == nil {
		l = &lane{leader: leader}
		f.lanes[leader] = l
	}
	l.queue = append(l.queue, w)
	f.wake(l)
	return nil
}

// wake starts a sender when there is something to send and nobody does. The caller holds mu.
func (f *forwarder) wake(l *lane) {
	switch {
	case l.sending:
	case len(l.queue) > 0 && l.flying < forwardInFlight:
		l.sending = true
		f.wg.Go(func() { f.run(l) })
	case len(l.queue) == 0 && l.flying == 0:
		delete(f.lanes, l.leader)
	}
}

// withdraw takes back a write that has not been sent, and reports whether it could.
func (f *forwarder) withdraw(leader string, w *forwarded) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.sent {
		return false
	}
	l := f.lanes[leader]
	for i, q := range l.queue {
		if q == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			break
		}
	}
	f.bytes -= len(w.batch)
	f.wake(l)
	return true
}

// run sends groups until the queue is empty or enough are on their way.
func (f *forwarder) run(l *lane) {
	for {
		runtime.Gosched() // what is about to be enqueued comes along
		f.mu.Lock()
		if len(l.queue) == 0 || l.flying == forwardInFlight {
			l.sending = false
			f.wake(l)
			f.mu.Unlock()
			return
		}
		group := l.take()
		l.flying++
		f.mu.Unlock()
		f.wg.Go(func() {
			f.carry(l.leader, group)
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, w := range group {
				f.bytes -= len(w.batch)
			}
			l.flying--
			f.wake(l)
		})
	}
}

// take removes the next group, at least one write, from the queue. The caller holds forwarder.mu.
func (l *lane) take() []*forwarded {
	n, size, weight := 0, 0, 0
	for n < min(len(l.queue), forwardGroup) {
		w := l.queue[n]
		size += proposeHead + len(w.batch)
		weight += w.weight
		if n > 0 && (size > maxProposeBody || weight > kv.MaxBatchOps) {
			break
		}
		w.sent = true
		n++
	}
	group := l.queue[:n:n]
	l.queue = l.queue[n:]
	return group
}

// carry sends one group and hands out what became of it.
func (f *forwarder) carry(leader string, group []*forwarded) {
	size := 0
	for _, w := range group {
		size += proposeHead + len(w.batch)
	}
	body := make([]byte, 0, size)
	for _, w := range group {
		body = append(binary.BigEndian.AppendUint32(body, uint32(len(w.batch))), w.batch...)
	}
	// Not with the callers' contexts: one that goes away must not take the others' writes with it.
	ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
	defer cancel()
	var res wire.ProposeResult
	reply, err := f.call(ctx, leader, peer.Call{Method: wire.MethodPropose, Args: &wire.ProposeArgs{Epoch: f.epoch()}, Body: body})
	if err == nil {
		if err = peer.Decode(reply.Result, &res); err != nil || len(res.Outcomes) != len(group) {
			err = errUnreadable(err)
		}
	}
	for i, w := range group {
		switch {
		case err != nil:
			w.done <- forwardOutcome{err: err}
		case res.Outcomes[i].Failed:
			w.done <- forwardOutcome{err: res.Outcomes[i].Failure.KV()}
		case len(res.Outcomes[i].Ops) != w.ops:
			w.done <- forwardOutcome{err: errUnreadable(nil)}
		default:
			o := &res.Outcomes[i]
			w.done <- forwardOutcome{res: command.Result{Epoch: o.Epoch, MeshTime: o.MeshTime, Revision: o.Revision, Ops: wire.ToOpResults(o.Ops)}}
		}
	}
}

func errUnreadable(err error) error {
	return kv.Errorf(kv.CodeOutcomeUnknown, "the leader's answer could not be read; read the key to see whether the write is there (%v)", err)
}

// servePropose takes another node's writes. They are proposed side by side, so that they share a log entry.
func (n *Node) servePropose(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.ProposeArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	if err := behindEpoch(n.store, args.Epoch); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, maxProposeBody+1))
	if err != nil {
		return nil, err
	}
	batches, err := readProposals(body)
	if err != nil {
		return nil, kv.Errorf(kv.CodeInternal, "the proposals could not be read: %v", err)
	}
	out := make([]wire.ProposeOutcome, len(batches))
	one := func(i int) {
		res, err := n.store.Propose(ctx, batches[i].Ops)
		if err != nil {
			out[i] = wire.ProposeOutcome{Failed: true, Failure: peer.NewFailure(err)}
			return
		}
		out[i] = wire.ProposeOutcome{Epoch: res.Epoch, MeshTime: res.MeshTime, Revision: res.Revision, Ops: wire.FromOpResults(res.Ops)}
	}
	var wg sync.WaitGroup
	for i := 1; i < len(batches); i++ {
		wg.Go(func() { one(i) })
	}
	one(0)
	wg.Wait()
	return &peer.Response{Result: &wire.ProposeResult{Outcomes: out}}, nil
}

// readProposals reads at least one batch.
func readProposals(body []byte) ([]command.Batch, error) {
	if len(body) > maxProposeBody {
		return nil, errors.New("they are too large")
	}
	var out []command.Batch
	for len(body) > 0 || len(out) == 0 {
		if len(body) < proposeHead || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-proposeHead) || len(out) == forwardGroup {
			return nil, errors.New("they are cut off, or too many")
		}
		size := proposeHead + int(binary.BigEndian.Uint32(body))
		batch, err := command.Decode(body[proposeHead:size])
		if err != nil {
			return nil, err
		}
		out, body = append(out, batch), body[size:]
	}
	return out, nil
}
