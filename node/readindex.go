package node

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"kvmesh/cache"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// readIndexInFlight questions may be on their way to the leader.
const readIndexInFlight = 4

// readIndex lets a member of the store that does not lead answer strong reads from its own state: it asks the leader for a
// confirmed revision, and waits until its state has applied it (Ongaro, "Consensus: Bridging Theory and Practice", §6.4).
// Whoever comes while a question is being sent off shares it; nobody shares one that has been sent, because what the
// leader answers may be older than the read.
type readIndex struct {
	call func(context.Context) (wire.ProbeResult, error) // asks whoever leads
	ctx  context.Context                                 // done when the node closes
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex  // guards what follows
	next   *indexRound // not sent yet
	sent   *indexRound // the one sent last, which nobody may join (mutant_on.go does)
	flying int
}

// indexRound is one question and those who wait for its answer.
type indexRound struct {
	done chan struct{}
	res  wire.ProbeResult
	err  error
}

func newReadIndex(call func(context.Context) (wire.ProbeResult, error)) *readIndex {
	r := &readIndex{call: call}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

func (r *readIndex) close() {
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	r.wg.Wait()
}

// ask returns what the leader has confirmed after the call began.
func (r *readIndex) ask(ctx context.Context) (wire.ProbeResult, error) {
	r.mu.Lock()
	if r.ctx.Err() != nil {
		r.mu.Unlock()
		return wire.ProbeResult{}, kv.Errorf(kv.CodeUnavailable, "the node is shutting down")
	}
	if r.next == nil {
		r.next = &indexRound{done: make(chan struct{})}
		if r.flying < readIndexInFlight {
			r.flying++
			r.wg.Go(r.run)
		}
	}
	round := r.next
	if mutReadIndexShared && r.sent != nil {
		round = r.sent
	}
	r.mu.Unlock()
	select {
	case <-round.done:
		return round.res, round.err
	case <-ctx.Done():
		return wire.ProbeResult{}, context.Cause(ctx)
	}
}

// run asks for whoever waits until nobody does.
func (r *readIndex) run() {
	for {
		runtime.Gosched() // who is about to ask comes along
		r.mu.Lock()
		round := r.next
		if round == nil {
			r.flying--
			r.mu.Unlock()
			return
		}
		r.next, r.sent = nil, round
		r.mu.Unlock()
		round.res, round.err = r.question()
		close(round.done)
	}
}

// question is one call, with a limit of its own: the first of those who wait may go away before the others.
func (r *readIndex) question() (wire.ProbeResult, error) {
	ctx, cancel := context.WithTimeout(r.ctx, probeCall)
	defer cancel()
	res, err := r.call(ctx)
	if err == nil && !res.Leader {
		err = kv.Errorf(kv.CodeNotLeader, "the node that was asked cannot confirm that it leads")
	}
	return res, err
}

// confirmed asks the leader for a probe.
func (n *Node) confirmed(ctx context.Context) (wire.ProbeResult, error) {
	leader, _ := n.dir.Leader()
	if leader == n.id.nodeID {
		return n.answerer.probe(ctx, nil)
	}
	var res wire.ProbeResult
	reply, err := n.rpc.Call(ctx, leader, peer.Call{Method: wire.MethodProbe, Args: &wire.ProbeArgs{}, Idempotent: true})
	if err == nil {
		err = peer.Decode(reply.Result, &res)
	}
	return res, err
}

// errNotHere says that the own state cannot answer a strong read just now: the leader can.
var errNotHere = errors.New("the own state is not there yet")

// strongHere answers a strong read from the own state of a member that does not lead.
func (a *asker) strongHere(ctx context.Context, hop cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	idx, err := a.index.ask(ctx)
	if err != nil {
		return cache.FillAnswer{}, err
	}
	if idx.Epoch != req.Epoch {
		return cache.FillAnswer{}, errNotHere
	}
	res, body, err := a.n.answerer.upTo(ctx, fillArgs(hop, req), idx.Revision)
	if err != nil {
		return cache.FillAnswer{}, err
	}
	return a.openOwn(ctx, req, res, body)
}

// upTo answers from the state once it has applied a revision, which it is given applyWait for.
func (a *answerer) upTo(ctx context.Context, args *wire.FillArgs, rev kv.Revision) (wire.FillResult, []byte, error) {
	wait, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	st := a.store.State()
	if err := st.WaitRevision(wait, rev); err != nil && !mutReadIndexUnapplied {
		return wire.FillResult{}, nil, errNotHere
	}
	return a.read(ctx, st, args)
}

// openOwn opens an answer of the own state. A large value that is damaged here is fetched from another voter.
func (a *asker) openOwn(ctx context.Context, req cache.FillRequest, res wire.FillResult, body []byte) (cache.FillAnswer, error) {
	ans, err := a.open(req, res, body)
	if errors.Is(err, seal.ErrDamaged) && res.HasBody && !res.Blob.IsZero() {
		return a.openOther(ctx, req, res, err)
	}
	return ans, err
}

// openOther opens another voter's copy of a blob that lies here and could not be opened. That it can be opened proves that
// the own one is damaged.
func (a *asker) openOther(ctx context.Context, req cache.FillRequest, res wire.FillResult, why error) (cache.FillAnswer, error) {
	ref := blob.Ref{Namespace: req.Namespace, ID: res.Blob}
	for _, voter := range a.n.dir.Voters() {
		r, size, err := a.n.blobs.ask(ctx, voter, ref, 0, true)
		if err != nil {
			continue
		}
		body, err := readBlob(r, size, seal.SealedSize(res.Size))
		if err != nil {
			continue
		}
		if ans, err := a.open(req, res, body); err == nil {
			a.n.blobs.keeper.Report(ref.Namespace, ref.ID, true)
			return ans, nil
		}
	}
	return cache.FillAnswer{}, why
}
