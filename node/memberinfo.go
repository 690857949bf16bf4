package node

import (
	"context"
	"sync"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/command"
)

// infoDuty has the leader know what every member says of itself: whether its disk is full, and which commands it knows. The
// leader refuses writes while too many disks are full, and proposes no command that somebody does not know.
type infoDuty struct {
	self  string
	store *raftstore.Store
	rpc   *peer.Client
}

// infoTimeout bounds one question. It is asked again a moment later.
const infoTimeout = time.Second

// run asks all members, at once when this node begins to lead, and then every memberEvery.
func (d *infoDuty) run(ctx context.Context) {
	tick := time.NewTicker(memberEvery)
	defer tick.Stop()
	for {
		changed := d.store.LeaderChanged()
		if _, self := d.store.Leader(); self {
			d.ask(ctx)
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask asks all members side by side, and takes over each answer as it comes.
func (d *infoDuty) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	var asking sync.WaitGroup
	defer asking.Wait()
	m := d.store.Membership()
	for _, ids := range [][]string{m.Voters, m.Learners} {
		for _, id := range ids {
			if id == d.self {
				continue
			}
			asking.Go(func() {
				reply, err := d.rpc.Call(ctx, id, peer.Call{Method: wire.MethodMemberInfo, Idempotent: true})
				var res wire.MemberInfoResult
				if err == nil {
					err = peer.Decode(reply.Result, &res)
				}
				if err == nil { // else it is asked again, and its silence says that nothing is known of it
					d.store.Heard(id, raftstore.MemberInfo{DiskFull: res.DiskFull, Kinds: command.Kind(res.Kinds)})
				}
			})
		}
	}
}

func (n *Node) serveMemberInfo(context.Context, *peer.Request) (*peer.Response, error) {
	info := n.store.Info()
	return &peer.Response{Result: &wire.MemberInfoResult{DiskFull: info.DiskFull, Kinds: uint8(info.Kinds)}}, nil
}
