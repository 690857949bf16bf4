package node

import (
	"context"
	"sync"
	"time"

	"kvmesh/cache"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// asker finds and asks the next tiers of a fill: it is the cache's view of the mesh.
type asker struct {
	n     *Node // read when asked: the store is opened after the cache that asks it
	hedge *hedger
	index *readIndex

	mu     sync.Mutex           // guards silent
	silent map[string]time.Time // peers that let a fill time out, and until when they are not asked
}

const (
	// fillHopTimeout bounds one tier of a fill, so that a peer that stopped answering costs one tier and not the fill.
	fillHopTimeout = 3 * time.Second
	// fillPeerTimeout is the same for an owner, which may have to ask the nearest voter and the leader itself.
	fillPeerTimeout = time.Second
	// silentFor is how long an owner that did not answer in time is passed over. Gossip may never find fault with it: where
	// only one direction is cut, others vouch for it.
	silentFor = 5 * time.Second
	maxSilent = 64
)

// Route lists the tiers for a key: its owner in the own region, the nearest voter, the leader. A request that another
// node passed on goes to the store's tiers at once, so that two nodes with different ideas of who lives never send it
// back and forth.
func (a *asker) Route(hash uint64, hops int) []cache.Hop {
	route := make([]cache.Hop, 0, 4)
	member := a.n.answerer != nil && !a.n.standing.outside() // the state of one that is not stands still
	if member {
		route = append(route, cache.Hop{Node: a.n.id.nodeID, Tier: cache.TierCentral})
	} else {
		if hops == 0 && a.n.answerer == nil {
			route = a.routeEdges(route, hash)
		}
		for i, id := range a.n.dir.Voters() {
			if i == 2 { // the nearest, and one more in case it has just died
				break
			}
			route = append(route, cache.Hop{Node: id, Tier: cache.TierCentral})
		}
	}
	if leader, _ := a.n.dir.Leader(); a.n.dir.reachable(leader) {
		route = append(route, cache.Hop{Node: leader, Tier: cache.TierStore})
	}
	return route
}

func (a *asker) routeEdges(route []cache.Hop, hash uint64) []cache.Hop {
	owner, edges := a.n.dir.Owner(hash, a.n.dir.region)
	if owner != "" && owner != a.n.id.nodeID {
		if a.isSilent(owner) {
			return route
		}
		return append(route, cache.Hop{Node: owner, Tier: cache.TierRegion})
	}
	if edges <= 1 { // alone in the region
		if region, nearer := a.n.dir.NearestOtherRegion(); nearer {
			if owner, _ := a.n.dir.Owner(hash, region); owner != "" && !a.isSilent(owner) {
				route = append(route, cache.Hop{Node: owner, Tier: cache.TierPeerRegion})
			}
		}
	}
	return route
}

// isSilent reports whether a peer has let a fill time out just now.
func (a *asker) isSilent(node string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.silent[node])
}

func (a *asker) noteSilent(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent == nil || len(a.silent) >= maxSilent {
		a.silent = make(map[string]time.Time)
	}
	a.silent[node] = time.Now().Add(silentFor)
}

// askPeer asks an owner, which is passed over for a while when it does not answer in time.
func (a *asker) askPeer(ctx context.Context, hop cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	hopCtx, cancel := context.WithTimeout(ctx, fillPeerTimeout)
	defer cancel()
	ans, err := a.call(hopCtx, hop, req)
	if err != nil && hopCtx.Err() != nil && ctx.Err() == nil {
		a.noteSilent(hop.Node)
		a.n.dir.doubt(hop.Node, err)
	}
	return ans, err
}

// Ask asks one tier. A voter that takes unusually long is hedged with the next nearest one.
func (a *asker) Ask(ctx context.Context, hop cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	if hop.Tier == cache.TierRegion || hop.Tier == cache.TierPeerRegion {
		return a.askPeer(ctx, hop, req)
	}
	ctx, cancel := context.WithTimeout(ctx, fillHopTimeout)
	defer cancel()
	if hop.Node == a.n.id.nodeID && a.n.answerer != nil {
		res, body, err := a.n.answerer.fill(ctx, fillArgs(hop, req))
		if err != nil {
			return cache.FillAnswer{}, err
		}
		return a.openOwn(ctx, req, res, body)
	}
	if hop.Tier == cache.TierStore && a.n.answerer != nil && !a.n.standing.outside() {
		ans, err := a.strongHere(ctx, hop, req)
		if err == nil || ctx.Err() != nil {
			return ans, err
		}
		// The leader answers whatever the reason was, or says it better.
	}
	if hop.Tier == cache.TierCentral {
		voters := a.n.dir.Voters()
		if after, ok := a.hedge.begin(hop.Node); ok && len(voters) > 1 && voters[0] == hop.Node {
			other := cache.Hop{Node: voters[1], Tier: cache.TierCentral}
			return hedged(ctx, after, a.hedge.spend,
				func(ctx context.Context) (cache.FillAnswer, error) { return a.call(ctx, hop, req) },
				func(ctx context.Context) (cache.FillAnswer, error) {
					a.n.hedges.Inc()
					return a.call(ctx, other, req)
				})
		}
	}
	return a.call(ctx, hop, req)
}

// local reads the own store of a voter, without any proof of how current it is.
func (a *asker) local(ctx context.Context, req cache.FillRequest) (cache.FillAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, fillHopTimeout)
	defer cancel()
	res, body, err := a.n.answerer.local(ctx, fillArgs(cache.Hop{Node: a.n.id.nodeID, Tier: cache.TierCentral}, req))
	if err != nil {
		return cache.FillAnswer{}, err
	}
	return a.open(req, res, body)
}

// call asks another node.
func (a *asker) call(ctx context.Context, hop cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	began := time.Now()
	reply, err := a.n.rpc.Call(ctx, hop.Node, peer.Call{
		Method: wire.MethodFill, Args: fillArgs(hop, req), Hops: uint8(req.Hops), Idempotent: true, MaxReply: maxFillBody,
	})
	if err != nil {
		if ctx.Err() == nil { // else it was the caller who gave up
			a.n.dir.doubt(hop.Node, err)
		}
		if hop.Tier == cache.TierStore {
			noteNotLeader(a.n.dir, hop.Node, err)
		}
		if kv.CodeOf(err) == kv.CodeDeadlineExceeded { // the hop's, not the client's
			err = &kv.Error{Code: kv.CodeUnavailable, RetryAfter: time.Second, Message: err.Error()}
		}
		return cache.FillAnswer{}, err
	}
	if hop.Tier == cache.TierCentral {
		a.hedge.observe(hop.Node, time.Since(began))
	}
	var res wire.FillResult
	if err := peer.Decode(reply.Result, &res); err != nil {
		return cache.FillAnswer{}, err
	}
	return a.open(req, res, reply.Body)
}

// maxFillBody is the largest body of a fill's answer: a value of kv.MaxCachedValueBytes, sealed.
var maxFillBody = seal.SealedSize(kv.MaxCachedValueBytes) + 4096

func fillArgs(hop cache.Hop, req cache.FillRequest) *wire.FillArgs {
	return &wire.FillArgs{
		Namespace: req.Namespace, Key: req.Key, Epoch: req.Epoch, Least: req.Least, MaxAgeNs: int64(req.MaxAge),
		Have: req.Have, HaveAbsent: req.HaveAbsent, HaveRev: req.HaveRev, Tier: string(hop.Tier),
	}
}

// open turns an answer into plaintext.
func (a *asker) open(req cache.FillRequest, res wire.FillResult, body []byte) (cache.FillAnswer, error) {
	ans := cache.FillAnswer{
		Epoch: res.Epoch, NotModified: res.NotModified, Absent: res.Absent, Revision: res.Revision, AsOf: res.AsOf,
		Age: time.Duration(res.AgeNs), Expiry: res.Expiry, Size: res.Size, WriteID: res.WriteID, Blob: res.Blob,
		Metadata: res.Metadata,
	}
	if res.HasBody {
		ans.Value = body
		if ans.Value == nil {
			ans.Value = []byte{}
		}
	}
	if ans.Age < 0 {
		return ans, kv.Errorf(kv.CodeInternal, "the answer claims an age of %v", ans.Age)
	}
	if !res.Sealed || res.NotModified || res.Absent {
		return ans, nil
	}
	key, err := a.n.control.dataKey(req.Namespace)
	if err != nil {
		return ans, err
	}
	if ans.Metadata, err = openMetadata(key, req.Namespace, req.Key, res.WriteID, res.Metadata); err != nil {
		return ans, err
	}
	if res.HasBody {
		ans.Value, err = openValue(key, req.Namespace, req.Key, res.WriteID, res.Blob, res.Size, body)
	}
	return ans, err
}

// noteNotLeader corrects the directory after an answer that says who leads, or a failure to reach who was thought to.
func noteNotLeader(d *directory, asked string, err error) {
	if kvErr := asKVError(err); kvErr != nil {
		switch kvErr.Code {
		case kv.CodeNotLeader:
			d.disproved(asked, kvErr.Leader)
		case kv.CodeNoLeader:
			d.disproved(asked, "")
		}
	}
}

// serveFill answers another node's fill: from the own store on a voter or learner, from the cache on an edge.
func (n *Node) serveFill(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.FillArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	if n.opts.Role != certs.RoleEdge {
		res, body, err := n.answerer.fill(ctx, &args)
		if err != nil {
			return nil, err
		}
		return &peer.Response{Result: &res, Body: body}, nil
	}
	ans, err := n.cache.Serve(ctx, cache.FillRequest{
		Namespace: args.Namespace, Key: args.Key, Epoch: args.Epoch, Least: args.Least, MaxAge: time.Duration(args.MaxAgeNs),
		Have: args.Have, HaveAbsent: args.HaveAbsent, HaveRev: args.HaveRev, Hops: int(req.Hops),
	})
	if err != nil {
		return nil, err
	}
	return &peer.Response{
		Result: &wire.FillResult{
			Epoch: ans.Epoch, NotModified: ans.NotModified, Absent: ans.Absent, Revision: ans.Revision, AsOf: ans.AsOf,
			AgeNs: int64(ans.Age), Expiry: ans.Expiry, Size: ans.Size, WriteID: ans.WriteID, Blob: ans.Blob,
			Metadata: ans.Metadata, HasBody: ans.Value != nil,
		},
		Body: ans.Value,
	}, nil
}
