package node

import (
	"context"
	"errors"
	"time"

	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
)

const (
	// homeEvery is how often an edge that a voter feeds looks for a relay that could do it.
	homeEvery = 10 * time.Second
	// homeFresh is how recent a relay's proof must be, so that nobody leaves a voter for a relay that is cut off itself.
	homeFresh = 2 * time.Second
)

// errHome ends a subscription at a voter because a relay is there.
var errHome = errors.New("a relay of the region can feed this node")

// goHome leads an edge back to the relays of its region. It follows a voter because it began before it knew the others
// of its region, or because the relays had failed; without this it would stay there, and voters would carry one stream an
// edge instead of two a region. The relay is asked first: one that is silent, or cut off, is no reason to leave.
func (f *follower) goHome(ctx context.Context) {
	tick := time.NewTicker(homeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		u := f.upstream.Load()
		if u == nil || f.dir.isEdge(u.id) {
			continue
		}
		if sources := f.dir.FeedSources(); len(sources) > 0 && f.dir.isEdge(sources[0]) && f.isFresh(ctx, sources[0]) {
			u.home.Store(true)
		}
	}
}

// isFresh reports whether a node can prove that it is current.
func (f *follower) isFresh(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeCall)
	defer cancel()
	epoch, _ := f.cache.Position()
	reply, err := f.rpc.Call(ctx, id, peer.Call{Method: wire.MethodProbe, Args: &wire.ProbeArgs{Epoch: epoch}, Idempotent: true})
	if err != nil {
		return false
	}
	var res wire.ProbeResult
	return peer.Decode(reply.Result, &res) == nil && res.Epoch == epoch && time.Duration(res.AgeNs) < homeFresh
}

// isEdge reports whether a node is known to be an edge.
func (d *directory) isEdge(id string) bool {
	m, ok := d.Member(id)
	return ok && m.Role == certs.RoleEdge
}
