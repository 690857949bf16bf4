package node

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"kvmesh/cache"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// prober proves again and again that this node is current: it notes the own clock, asks upstream, and once the feed has
// been applied up to the answer, F is that moment (DESIGN.md of cache, "The bound"). No two clocks are ever compared.
type prober struct {
	self     string
	cache    *cache.Cache
	dir      *directory
	rpc      *peer.Client
	clock    *meshClock
	upstream func() string // the feed's server, "" = none
	local    *answerer     // nil on edges
	log      *slog.Logger
}

const (
	probeEvery   = 250 * time.Millisecond
	probeTimeout = 2 * time.Second
	// probeCall bounds one question, so that a leader that is silent leaves time for the feed's server.
	probeCall = time.Second
)

// run probes until ctx ends.
func (p *prober) run(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		if err := p.once(ctx); err != nil && ctx.Err() == nil {
			p.log.Debug("probe", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *prober) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	epoch, _ := p.cache.Position()
	t0 := p.cache.Now()
	res, err := p.ask(ctx, epoch)
	if err != nil {
		return err
	}
	p.clock.Observe(res.MeshTime)
	if res.Epoch != epoch || res.AgeNs < 0 {
		return nil // the feed will tell of the new epoch
	}
	if mutProbeAtArrival {
		t0 = p.cache.Now()
	}
	if res.Leader {
		p.cache.SetLeast(res.Epoch, res.Revision)
	}
	return p.cache.Prove(ctx, res.Epoch, res.Revision, t0-time.Duration(res.AgeNs))
}

// ask asks the leader where that is needed (a voter, a relay, and any node that has just started), else the feed's
// server; and that one too when the leader cannot be reached.
func (p *prober) ask(ctx context.Context, epoch kv.Epoch) (wire.ProbeResult, error) {
	up := p.upstream()
	leader, _ := p.dir.Leader()
	if p.local != nil || !p.cache.Ready() || up == "" || p.dir.IsRelay() {
		if leader == p.self && p.local != nil {
			return p.local.probe(ctx, &wire.ProbeArgs{Epoch: epoch})
		}
		res, err := p.call(ctx, leader, epoch)
		if err == nil || up == "" {
			return res, err
		}
	}
	return p.call(ctx, up, epoch)
}

func (p *prober) call(ctx context.Context, id string, epoch kv.Epoch) (wire.ProbeResult, error) {
	if id == "" {
		return wire.ProbeResult{}, errors.New("nobody is known who could be asked")
	}
	ctx, cancel := context.WithTimeout(ctx, probeCall)
	defer cancel()
	reply, err := p.rpc.Call(ctx, id, peer.Call{Method: wire.MethodProbe, Args: &wire.ProbeArgs{Epoch: epoch}, Idempotent: true})
	if err != nil {
		return wire.ProbeResult{}, err
	}
	var res wire.ProbeResult
	err = peer.Decode(reply.Result, &res)
	return res, err
}

// serveProbe answers another node's probe: a voter from its Raft, an edge by its own F, which was read together with the
// W that belongs to it, and before the clock.
func (n *Node) serveProbe(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.ProbeArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	var res wire.ProbeResult
	var err error
	if n.answerer != nil {
		res, err = n.answerer.probe(ctx, &args)
	} else {
		res, err = proofOf(n.cache, n.clock)
	}
	if err != nil {
		return nil, err
	}
	return &peer.Response{Result: &res}, nil
}

// proofOf is what a node can say by its own F.
func proofOf(c *cache.Cache, clock *meshClock) (wire.ProbeResult, error) {
	epoch, rev, f, proven := c.Proof()
	if !proven {
		return wire.ProbeResult{}, kv.Errorf(kv.CodeStaleBeyondLimit, "this node has not been proven current yet")
	}
	res := wire.ProbeResult{Epoch: epoch, Revision: rev, AgeNs: int64(c.Now() - f), MeshTime: clock.Told()}
	if mutProofAgeZero {
		res.AgeNs = 0
	}
	if mutProofNoW {
		res.Revision = 0
	}
	return res, nil
}
