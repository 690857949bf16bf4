package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

// changeTimeout bounds one change of the membership over all nodes that have to be asked.
const changeTimeout = 20 * time.Second

// serveMembers tells who is a member. Only the leader's answer, once it has confirmed that it leads, is authority.
func (n *Node) serveMembers(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	res := &wire.MembersResult{Members: n.dir.Members()}
	res.Leader, _ = n.dir.Leader()
	if n.store == nil {
		return &peer.Response{Result: res}, nil
	}
	if _, self := n.store.Leader(); self {
		if _, err := n.store.Confirm(ctx); err != nil {
			return nil, err
		}
		n.fillMembers(res, req.From.NodeID)
	}
	return &peer.Response{Result: res}, nil
}

// fillMembers is what a leader that is confirmed says.
func (n *Node) fillMembers(res *wire.MembersResult, asker string) {
	m := membersOf(n.store)
	res.Leader, res.Confirmed, res.Lineage, res.Members = n.id.nodeID, true, n.store.Lineage(), m
	res.Refused = n.members.refusal(asker)
	for _, id := range slices.Concat(m.Voters, m.Learners) {
		p, _ := n.store.Progress(id)
		res.Progress = append(res.Progress, wire.MemberProgress{
			ID: id, Match: p.Match, Behind: p.Behind, HeardMs: p.Heard.Milliseconds(), WellMs: p.Well.Milliseconds(),
			Stable: p.Stable, Dead: p.Dead,
		})
	}
}

// members asks the leader who is a member.
func (n *Node) clusterMembers(ctx context.Context) (wire.MembersResult, error) {
	if n.store != nil {
		if _, self := n.store.Leader(); self {
			res := wire.MembersResult{}
			_, err := n.store.Confirm(ctx)
			if err == nil {
				n.fillMembers(&res, n.id.nodeID)
			}
			return res, err
		}
	}
	return findMembers(ctx, n.rpc, n.dir, n.id.nodeID)
}

// clusterAdmin is what the HTTP surface asks about the membership.
type clusterAdmin struct{ n *Node }

var _ api.ClusterAdmin = clusterAdmin{}

// Members describes all voters and learners, and the nodes that would be.
func (a clusterAdmin) Members(ctx context.Context) (*api.Membership, error) {
	n := a.n
	status, err := n.clusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.Membership{Members: []api.MembershipRow{}}
	res, err := n.clusterMembers(ctx)
	if err != nil {
		res.Members = n.dir.Members()
		out.Error = "no leader could be asked, this is what this node has heard: " + err.Error()
	}
	out.Leader, out.Index = res.Leader, res.Members.Index
	if res.Confirmed {
		out.Generation = res.Lineage.Generation
	}
	seen := make(map[string]bool)
	for _, m := range status.Members {
		row := api.MembershipRow{ID: m.ID, Name: m.Name, Role: m.Role, Region: m.Region, State: m.State, Peer: m.Peer}
		isMember := slices.Contains(res.Members.Voters, m.ID) || slices.Contains(res.Members.Learners, m.ID)
		if m.Role == certs.RoleEdge || !isMember && (m.State == string(gossip.Left) || m.State == string(gossip.Failed)) {
			continue
		}
		seen[m.ID] = true
		row.Note, row.MissingBlobs = m.Why, m.MissingBlobs
		out.Members = append(out.Members, row)
	}
	for _, id := range slices.Concat(res.Members.Voters, res.Members.Learners) {
		if !seen[id] {
			out.Members = append(out.Members, api.MembershipRow{ID: id, State: "unknown", Note: "no node of this id has been seen"})
		}
	}
	for i := range out.Members {
		describeVote(&out.Members[i], res)
	}
	return out, nil
}

// describeVote completes a row by what Raft says.
func describeVote(row *api.MembershipRow, res wire.MembersResult) {
	row.HeardMs = -1
	switch {
	case slices.Contains(res.Members.Voters, row.ID):
		row.Vote = api.VoteYes
	case !slices.Contains(res.Members.Learners, row.ID):
		row.Vote = api.VoteNone
	case row.Role == certs.RoleVoter:
		row.Vote = api.VotePending
	default:
		row.Vote = api.VoteLearner
	}
	for _, p := range res.Progress {
		if p.ID == row.ID {
			row.Behind, row.HeardMs, row.Well = p.Behind, p.HeardMs, p.WellMs > 0
		}
	}
}

// Join makes a node a member again, or gives a learner its vote.
func (a clusterAdmin) Join(ctx context.Context, node string, vote bool) (*api.MembershipChange, error) {
	return a.n.changeMember(ctx, wire.ChangeArgs{Action: wire.ActionJoin, Node: node, Vote: vote})
}

// Remove takes a member out.
func (a clusterAdmin) Remove(ctx context.Context, node string) (*api.MembershipChange, error) {
	return a.n.changeMember(ctx, wire.ChangeArgs{Action: wire.ActionRemove, Node: node})
}

// TransferLeader hands leadership over, to the voter that is furthest ahead when no node is named.
func (a clusterAdmin) TransferLeader(ctx context.Context, node string) (*api.MembershipChange, error) {
	return a.n.changeMember(ctx, wire.ChangeArgs{Action: wire.ActionTransfer, Node: node})
}

// changeMember brings a change to the leader, wherever it is and while it changes. Taking a node in or out may be repeated,
// so it is when nobody knows whether it was done; leadership is not handed over twice.
func (n *Node) changeMember(ctx context.Context, args wire.ChangeArgs) (*api.MembershipChange, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		leader, changed := n.dir.Leader()
		if leader == "" && n.store == nil {
			leader = n.proposer.anyVoter()
		}
		res, err := n.tryChange(ctx, leader, args)
		if err == nil {
			return &api.MembershipChange{Node: res.ID, Name: res.Name, Done: res.Done}, nil
		}
		call := new(peer.CallError)
		unknown := errors.As(err, &call) && call.MaybeSent || kv.CodeOf(err) == kv.CodeOutcomeUnknown
		switch {
		case unknown && args.Action == wire.ActionTransfer:
			return nil, kv.Errorf(kv.CodeOutcomeUnknown, "the leader did not answer, and may have done it or not: look at \"kvmesh cluster members\" (%v)", err)
		case !unknown && !retryable(err):
			return nil, err
		}
		noteNotLeader(n.dir, leader, err)
		if now, _ := n.dir.Leader(); now != "" && now != leader {
			continue
		}
		if noQuorum := n.proposer.noQuorum(); noQuorum != nil {
			return nil, n.quorumGone(noQuorum)
		}
		select {
		case <-changed:
		case <-time.After(leaderPoll):
		case <-ctx.Done():
			return nil, noLeader(err)
		}
	}
}

// quorumGone says what can be done when no change of the membership is possible any more.
func (n *Node) quorumGone(err error) error {
	return kv.Errorf(kv.CodeNoQuorum, "%v; nothing can change while a majority is away. Start the missing voters; when they are lost for good, "+
		"stop this mesh's voters and run \"kvmesh cluster recover\" on the best one that is left", asKVError(err).Message)
}

func (n *Node) tryChange(ctx context.Context, leader string, args wire.ChangeArgs) (*wire.ChangeResult, error) {
	switch leader {
	case "":
		return nil, kv.Errorf(kv.CodeNoLeader, "no leader is known")
	case n.id.nodeID:
		return n.leaderChange(ctx, args)
	}
	reply, err := n.rpc.Call(ctx, leader, peer.Call{Method: wire.MethodChangeMember, Args: &args})
	if err != nil {
		return nil, err
	}
	res := &wire.ChangeResult{}
	return res, peer.Decode(reply.Result, res)
}

func (n *Node) serveChangeMember(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.ChangeArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	res, err := n.leaderChange(ctx, args)
	if err != nil {
		return nil, err
	}
	return &peer.Response{Result: res}, nil
}

// leaderChange carries a change out, on the leader.
func (n *Node) leaderChange(ctx context.Context, args wire.ChangeArgs) (*wire.ChangeResult, error) {
	if n.store == nil {
		return nil, kv.Errorf(kv.CodeNotLeader, "an edge does not lead")
	}
	if leader, self := n.store.Leader(); !self {
		return nil, &kv.Error{Code: kv.CodeNotLeader, Leader: leader, Message: "this node does not lead"}
	}
	if args.Action == wire.ActionTransfer && args.Node == "" {
		return n.transfer(ctx, gossip.Member{})
	}
	m, err := n.members.resolve(args.Node)
	if err != nil {
		return nil, err
	}
	switch args.Action {
	case wire.ActionJoin:
		return n.members.join(ctx, m, args.Vote)
	case wire.ActionRemove:
		return n.removeMember(ctx, m)
	case wire.ActionTransfer:
		return n.transfer(ctx, m)
	}
	return nil, kv.Errorf(kv.CodeInvalidParameter, "unknown action %q", args.Action)
}

func changed(m gossip.Member, format string, a ...any) *wire.ChangeResult {
	return &wire.ChangeResult{ID: m.ID, Name: m.Name, Done: fmt.Sprintf(format, a...)}
}

// transfer hands leadership to a voter, m.ID "" = to the one that is furthest ahead.
func (n *Node) transfer(ctx context.Context, m gossip.Member) (*wire.ChangeResult, error) {
	if m.ID == n.id.nodeID {
		return changed(m, "it leads already"), nil
	}
	if m.ID != "" && !m.Reachable() {
		return nil, kv.Errorf(kv.CodeRefused, "%s is not reachable, and cannot lead", n.members.describe(m.ID))
	}
	if len(n.store.Membership().Voters) < 2 {
		return nil, kv.Errorf(kv.CodeRefused, "there is no other voter that could lead")
	}
	if err := n.store.TransferLeadership(ctx, m.ID); err != nil {
		return nil, err
	}
	if m.ID == "" {
		return &wire.ChangeResult{Done: "the leadership was handed over"}, nil
	}
	return changed(m, "it has been given the leadership"), nil
}

// removeMember takes a member out; the leader itself hands over first, and its successor does it.
func (n *Node) removeMember(ctx context.Context, m gossip.Member) (*wire.ChangeResult, error) {
	members := n.store.Membership()
	if m.Role == certs.RoleEdge {
		return nil, kv.Errorf(kv.CodeRefused, "%s is an edge, which nobody has to remove: stop it", n.members.describe(m.ID))
	}
	if !members.Has(m.ID) {
		return changed(m, "it is no member"), nil
	}
	err := n.members.remove(ctx, m.ID)
	if loss := new(raftstore.QuorumLossError); errors.As(err, &loss) {
		return nil, n.members.explainLoss(loss)
	}
	if errors.Is(err, raftstore.ErrLeaderStays) {
		if err := n.store.TransferLeadership(ctx, ""); err != nil {
			return nil, err
		}
		return nil, kv.Errorf(kv.CodeNotLeader, "this node has handed the leadership over, so that it can be removed")
	}
	if err != nil {
		return nil, err
	}
	return changed(m, "it is no member any more; %d voters remain", len(n.store.Membership().Voters)), nil
}

// explainLoss says who is down and what to do.
func (d *memberDuty) explainLoss(loss *raftstore.QuorumLossError) error {
	if len(loss.Remain) == 0 {
		return kv.Errorf(kv.CodeRefused, "%s is the only voter: without it there is no mesh. Add another voter first: start one with --role voter and --join",
			d.describe(loss.Node))
	}
	var down []string
	for _, id := range loss.Down {
		down = append(down, d.describe(id))
	}
	return kv.Errorf(kv.CodeRefused, "without %s only %d of %d voters would answer, which is no quorum. Not answering: %s. Start these again, or remove "+
		"them first, or add a new voter and wait until \"kvmesh cluster members\" shows its vote",
		d.describe(loss.Node), len(loss.Remain)-len(loss.Down), len(loss.Remain), strings.Join(down, ", "))
}

// resolve finds the node that a user means: by its id, the beginning of its id (4 characters or more), or its name.
func (d *memberDuty) resolve(ref string) (gossip.Member, error) {
	var byName, byPrefix []gossip.Member
	all := slices.Clone(d.gossip.Members())
	members := d.store.Membership()
	for _, id := range slices.Concat(members.Voters, members.Learners) {
		if _, ok := d.gossip.Member(id); !ok {
			all = append(all, gossip.Member{ID: id, Role: certs.RoleVoter, State: gossip.Failed})
		}
	}
	for _, m := range all {
		switch {
		case m.ID == ref:
			return m, nil
		case m.Name == ref && (members.Has(m.ID) || m.Reachable()): // not one whose place another has taken
			byName = append(byName, m)
		case len(ref) >= 4 && strings.HasPrefix(m.ID, ref):
			byPrefix = append(byPrefix, m)
		}
	}
	found := slices.Concat(byName, byPrefix)
	switch len(found) {
	case 0:
		return gossip.Member{}, kv.FieldErrorf(kv.CodeInvalidParameter, "node",
			"no node is called %q; name one by its id, by the first characters of it (at least 4), or by its name, as \"kvmesh cluster members\" shows them", ref)
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, m := range found {
		ids[i] = m.ID + " (" + string(m.State) + ")"
	}
	return gossip.Member{}, kv.FieldErrorf(kv.CodeInvalidParameter, "node", "%d nodes are called %q: %s; name one by its id", len(found), ref, strings.Join(ids, ", "))
}

// join takes a node back that was removed, and gives a learner its vote when the operator says so.
func (d *memberDuty) join(ctx context.Context, m gossip.Member, vote bool) (*wire.ChangeResult, error) {
	if m.Role == certs.RoleEdge {
		return nil, kv.Errorf(kv.CodeRefused, "%s is an edge, which belongs to the mesh without being joined; a voter or learner is started with --role", d.describe(m.ID))
	}
	members := d.store.Membership()
	if slices.Contains(members.Voters, m.ID) {
		return changed(m, "it is a voter already"), nil
	}
	if !m.Reachable() {
		return nil, kv.Errorf(kv.CodeRefused, "%s is not reachable: start it first", d.describe(m.ID))
	}
	if !members.Has(m.ID) {
		st, err := d.status(ctx, m.ID)
		if err != nil {
			return nil, kv.Errorf(kv.CodeRefused, "%s does not answer: %v", d.describe(m.ID), err)
		}
		if why := d.foreign(st); why != "" {
			return nil, kv.Errorf(kv.CodeRefused, "%s cannot join: %s", d.describe(m.ID), why)
		}
		if err := d.store.AddMember(ctx, m.ID); err != nil {
			return nil, err
		}
		d.log.Info("a node was joined by command", "node", m.ID, "name", m.Name)
	}
	switch {
	case vote:
		return d.vote(ctx, m)
	case m.Role == certs.RoleVoter:
		return changed(m, "it is a member; it gets its vote once it has caught up and followed for a while"), nil
	}
	return changed(m, "it is a learner"), nil
}

// vote gives a member its vote, as soon as it is ready.
func (d *memberDuty) vote(ctx context.Context, m gossip.Member) (*wire.ChangeResult, error) {
	tick := time.NewTicker(100 * time.Millisecond) // nobody announces that a member has followed for a while
	defer tick.Stop()
	for {
		why := d.unready(ctx, m.ID)
		if why == "" {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, kv.Errorf(kv.CodeRefused, "%s cannot have a vote yet: %s; try again later", d.describe(m.ID), why)
		}
	}
	if err := d.store.Promote(ctx, m.ID); err != nil {
		return nil, err
	}
	d.log.Info("a member has got its vote by command", "node", m.ID, "name", m.Name)
	return changed(m, "it has a vote"), nil
}
