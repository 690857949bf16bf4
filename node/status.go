package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// statusTimeout bounds the questions to all other nodes of one status page.
const statusTimeout = 2 * time.Second

// Position is the epoch and the watermark W of this node: every change up to W has been applied to its cache, and on a
// voter to its state.
func (n *Node) Position() (kv.Epoch, kv.Revision) { return n.cache.Position() }

// WaitPosition waits until W has reached rev in epoch. Errors: ctx's, and cache.ErrForeignEpoch once a greater epoch has
// begun.
func (n *Node) WaitPosition(ctx context.Context, epoch kv.Epoch, rev kv.Revision) error {
	return n.cache.WaitPosition(ctx, epoch, rev)
}

// ownStatus is what this node says of itself.
func (n *Node) ownStatus() *wire.Status {
	epoch, w, f, proven := n.cache.Proof()
	stats := n.cache.Stats()
	st := &wire.Status{
		ID: n.id.nodeID, Role: n.opts.Role, Region: n.opts.Region, Version: n.opts.Version, Epoch: epoch, W: w,
		FAgeMs: -1, Entries: stats.Entries + stats.AbsentEntries, Bytes: stats.Bytes,
		UptimeMs: time.Since(n.started).Milliseconds(), Expect: n.opts.BootstrapExpect,
	}
	if proven {
		st.FAgeMs = (n.cache.Now() - f).Milliseconds()
	}
	control, _ := n.control.current()
	st.Cluster = control.Cluster
	st.Leader, _ = n.dir.Leader()
	if n.store != nil {
		raft := n.store.Status()
		st.Raft, st.Leader, st.Voters = raft.Raft, raft.Leader, raft.Voters
		st.Revision = n.store.State().Applied().Revision
		st.Bootstrapped = len(raft.Voters) > 0
		st.Lineage, st.WasMember, st.MissingBlobs = n.store.Lineage(), n.id.member.Load(), n.MissingBlobs()
		st.Standing, st.Why = n.standing.now()
		if err := n.store.Writable(); err != nil && st.Why == "" {
			st.Why = err.Error()
		}
	}
	return st
}

func (n *Node) serveStatus(context.Context, *peer.Request) (*peer.Response, error) {
	return &peer.Response{Result: n.ownStatus()}, nil
}

// clusterStatus asks every member how far it is.
func (n *Node) clusterStatus(ctx context.Context) (*api.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members := n.gossip.Members()
	rows := make([]api.MemberStatus, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		row := &rows[i]
		*row = api.MemberStatus{
			ID: m.ID, Name: m.Name, Role: m.Role, Region: m.Region, State: string(m.State),
			HTTP: m.HTTP, Peer: m.Peer, Gossip: m.Gossip, Version: m.Version, RTTMs: -1, FAgeMs: -1,
		}
		if rtt, ok := n.gossip.RTT(m.ID); ok {
			row.RTTMs = float64(rtt.Microseconds()) / 1000
		}
		if !m.Self && !m.Reachable() {
			row.Error = "not reachable"
			continue
		}
		wg.Go(func() {
			st, err := n.askStatus(ctx, m.ID)
			if err != nil {
				row.Error = err.Error()
				return
			}
			row.Raft, row.W, row.FAgeMs = st.Raft, uint64(st.W), st.FAgeMs
			row.Entries, row.Bytes, row.UptimeMs = st.Entries, st.Bytes, st.UptimeMs
			row.Why, row.MissingBlobs = st.Why, st.MissingBlobs
		})
	}
	wg.Wait()
	own := n.ownStatus()
	out := &api.ClusterStatus{
		Cluster: own.Cluster.String(), Epoch: own.Epoch.String(), Revision: max(own.W, own.Revision), Leader: own.Leader,
		MeshTime: n.clock.Time(), Self: n.id.nodeID, Members: rows,
	}
	for _, r := range rows {
		out.Revision = max(out.Revision, kv.Revision(r.W))
	}
	return out, nil
}

func (n *Node) askStatus(ctx context.Context, id string) (*wire.Status, error) {
	if id == n.id.nodeID {
		return n.ownStatus(), nil
	}
	return askStatus(ctx, n.rpc, id)
}

// askStatus asks another node.
func askStatus(ctx context.Context, rpc *peer.Client, id string) (*wire.Status, error) {
	reply, err := rpc.Call(ctx, id, peer.Call{Method: wire.MethodStatus, Idempotent: true})
	if err != nil {
		return nil, err
	}
	st := &wire.Status{}
	return st, peer.Decode(reply.Result, st)
}

// askControl asks for the control state: the own store, the leader, or any voter.
func (n *Node) askControl(ctx context.Context, least kv.Control) (kv.Control, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	targets := n.dir.Voters()
	if leader, _ := n.dir.Leader(); leader != "" {
		targets = slices.Insert(slices.DeleteFunc(targets, func(id string) bool { return id == leader }), 0, leader)
	}
	args := &wire.ControlArgs{Epoch: least.Epoch, Least: least.Revision}
	var last error = kv.Errorf(kv.CodeNoLeader, "no voter is known")
	deadline, _ := ctx.Deadline()
	for i, id := range targets {
		if id == n.id.nodeID {
			c, err := n.ownControl(ctx)
			if err == nil {
				return c, nil
			}
			last = err
			continue
		}
		// One that hangs must leave time for the others.
		hop, done := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(targets)-i))
		reply, err := n.rpc.Call(hop, id, peer.Call{Method: wire.MethodControl, Args: args, Idempotent: true, MaxReply: maxControl})
		done()
		var c kv.Control
		if err == nil {
			c, err = readControl(reply.Body)
		}
		if err == nil {
			return c, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	return kv.Control{}, last
}

// ownControl is the state's control state, current as of now when this node leads.
func (n *Node) ownControl(ctx context.Context) (kv.Control, error) {
	if _, self := n.store.Leader(); self {
		if _, err := n.store.Confirm(ctx); err != nil {
			return kv.Control{}, err
		}
	}
	return n.store.State().Control(), nil
}

func (n *Node) serveControl(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var c kv.Control
	var err error
	if n.opts.Role == certs.RoleEdge {
		c, _ = n.control.current()
	} else if c, err = n.ownControl(ctx); err != nil {
		return nil, err
	}
	body, err := appendControl(nil, c)
	return &peer.Response{Body: body}, err
}
