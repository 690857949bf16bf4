package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

const (
	// memberTimeout bounds one change of the membership.
	memberTimeout = 10 * time.Second
	// refusedFor is how long a node that may not come in is not asked again.
	refusedFor = 5 * time.Second
	maxRefused = 64
)

// memberDuty is what a leader does about the members of the central store: it takes new voters and learners in, gives new
// voters their vote once they are stable, and lets a newcomer take the place of a voter that is dead. It decides by what
// Raft's own answers say (raftstore.Progress) and by what the nodes say of themselves; gossip only names whom to ask.
type memberDuty struct {
	self    string
	store   *raftstore.Store
	dir     *directory
	gossip  *gossip.Gossip
	status  func(ctx context.Context, id string) (*wire.Status, error)
	log     *slog.Logger
	cluster func() kv.ClusterID

	mu      sync.Mutex // guards refused
	refused map[string]refusal
}

type refusal struct {
	why   string
	until time.Time
}

func newMemberDuty(n *Node) *memberDuty {
	return &memberDuty{
		self: n.id.nodeID, store: n.store, dir: n.dir, gossip: n.gossip, status: n.askStatus, log: n.component("members"),
		cluster: func() kv.ClusterID { return n.store.State().Applied().Cluster }, refused: make(map[string]refusal),
	}
}

// membersOf is a store's membership, as it is told to others.
func membersOf(s *raftstore.Store) wire.Members {
	m := s.Membership()
	return wire.Members{Epoch: s.State().Applied().Epoch, Index: m.Index, Voters: m.Voters, Learners: m.Learners}
}

// tend does what is due. It is called every second or so while this node leads.
func (d *memberDuty) tend(ctx context.Context) {
	if d.cluster().IsZero() || len(d.store.Membership().Voters) == 0 {
		return
	}
	for _, m := range d.gossip.Members() {
		if m.Role != certs.RoleEdge && m.Reachable() && !d.store.Membership().Has(m.ID) {
			d.takeIn(ctx, m)
		}
	}
	for _, id := range d.store.Membership().Learners {
		if m, ok := d.gossip.Member(id); ok && m.Role == certs.RoleVoter && m.Reachable() {
			d.promote(ctx, m)
		}
	}
	d.dropReplaced(ctx)
}

// takeIn makes a new node a member without a vote.
func (d *memberDuty) takeIn(ctx context.Context, m gossip.Member) {
	if d.refusal(m.ID) != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	st, err := d.status(ctx, m.ID)
	if err != nil {
		return
	}
	why := d.foreign(st)
	if why == "" && st.WasMember {
		why = fmt.Sprintf("it was removed; \"kvmesh cluster join %s\" takes it back", m.ID)
	}
	if why != "" {
		d.refuse(m, why)
		return
	}
	if err := d.store.AddMember(ctx, m.ID); err != nil {
		d.log.Warn("a node could not be taken in yet", "node", m.ID, "name", m.Name, "error", err)
		return
	}
	d.log.Info("a node was taken in, without a vote", "node", m.ID, "name", m.Name, "role", m.Role, "region", m.Region)
}

// foreign says why a node's data must not be mixed with that of the mesh, "" when it may.
func (d *memberDuty) foreign(st *wire.Status) string {
	own := d.store.Lineage()
	switch {
	case !st.Cluster.IsZero() && st.Cluster != d.cluster():
		return fmt.Sprintf("it belongs to mesh %s, this one is %s: give it the right --join, or an empty data directory", st.Cluster, d.cluster())
	case st.Lineage != own && (st.Bootstrapped || st.WasMember):
		return fmt.Sprintf("it holds data of generation %v of the mesh, which goes on as generation %v: move its data directory aside "+
			"and start it again as a new node", st.Lineage, own)
	}
	return ""
}

// refusal is why a node is not taken in, "" when nothing speaks against it or it is time to ask again.
func (d *memberDuty) refusal(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.refused[id]
	if time.Now().After(r.until) {
		return ""
	}
	return r.why
}

func (d *memberDuty) refuse(m gossip.Member, why string) {
	d.mu.Lock()
	news := d.refused[m.ID].why != why
	if len(d.refused) >= maxRefused {
		clear(d.refused)
	}
	d.refused[m.ID] = refusal{why, time.Now().Add(refusedFor)}
	d.mu.Unlock()
	if news {
		d.log.Warn("a node is not taken in", "node", m.ID, "name", m.Name, "why", why)
	}
}

// unready is why a member may not have a vote yet, "" when it may: votes are for those who have followed for a while, and
// have every large value that their log names.
func (d *memberDuty) unready(ctx context.Context, id string) string {
	p, leads := d.store.Progress(id)
	switch {
	case mutVoteAtOnce:
		return ""
	case !leads:
		return "this node does not lead any more"
	case p.Well == 0:
		return fmt.Sprintf("it does not follow well: it is %d entries behind and has last answered %v ago", p.Behind, p.Heard.Round(time.Millisecond))
	case !p.Stable:
		return fmt.Sprintf("it has followed well for %v only", p.Well.Round(time.Millisecond))
	}
	st, err := d.status(ctx, id)
	if err != nil {
		return "it does not say whether it has all large values: " + err.Error()
	}
	if st.MissingBlobs > 0 {
		return fmt.Sprintf("it has %d large values to fetch yet", st.MissingBlobs)
	}
	return ""
}

// promote gives a new voter its vote once it is ready. If there is a dead voter, the newcomer takes its place: the dead one
// goes first, so that whoever leads next, if this node dies in between, finds a newcomer that is due and nothing else. With
// one voter of three dead, either order leaves none to spare in between. While a voter is away and not dead yet, the
// newcomer waits to learn which it is: beside the absent one it would add nothing but a larger quorum.
func (d *memberDuty) promote(ctx context.Context, m gossip.Member) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	if why := d.unready(ctx, m.ID); why != "" {
		d.log.Debug("a new voter has to wait for its vote", "node", m.ID, "why", why)
		return
	}
	dead, why := d.deadVoter(m)
	if away := d.awayVoter(); dead == "" && away != "" {
		d.log.Debug("a new voter has to wait for its vote", "node", m.ID, "why", "voter "+away+" is away")
		return
	}
	if dead != "" {
		if err := d.remove(ctx, dead); err != nil {
			d.log.Warn("a dead voter could not be removed", "node", dead, "replacement", m.ID, "error", err)
			return
		}
		d.log.Warn("a dead voter was removed, a new one takes its place", "node", dead, "why", why, "replacement", m.ID, "name", m.Name)
	}
	if err := d.store.Promote(ctx, m.ID); err != nil {
		d.log.Warn("a new voter could not be given its vote", "node", m.ID, "name", m.Name, "error", err)
		return
	}
	d.log.Info("a new voter has its vote", "node", m.ID, "name", m.Name, "region", m.Region)
}

// deadVoter is a voter whose place the newcomer takes, and why: the one whose address it has, else one that is neither
// heard by Raft for long nor seen by gossip.
func (d *memberDuty) deadVoter(newcomer gossip.Member) (id, why string) {
	for _, v := range d.store.Membership().Voters {
		if d.displaced(v, newcomer) {
			return v, "the new one is at its address"
		}
	}
	for _, v := range d.store.Membership().Voters {
		m, known := d.gossip.Member(v)
		if p, leads := d.store.Progress(v); leads && p.Dead && (!known || !m.Reachable()) {
			return v, fmt.Sprintf("it has not answered for %v", p.Heard.Round(time.Second))
		}
	}
	return "", ""
}

// awayVoter is a voter that does not answer, "" when all do.
func (d *memberDuty) awayVoter() string {
	for _, v := range d.store.Membership().Voters {
		if p, leads := d.store.Progress(v); leads && p.Well == 0 {
			return v
		}
	}
	return ""
}

// displaced reports whether a node that does not answer has lost its address to another: it can never come back there
// under its old id, whose data directory is gone.
func (d *memberDuty) displaced(voter string, by gossip.Member) bool {
	old, known := d.gossip.Member(voter)
	p, leads := d.store.Progress(voter)
	return known && leads && !old.Self && !old.Reachable() && p.Well == 0 && by.ID != voter && by.Reachable() && sameAddr(old.Peer, by.Peer)
}

func sameAddr(a, b string) bool {
	ha, pa, erra := net.SplitHostPort(a)
	hb, pb, errb := net.SplitHostPort(b)
	return erra == nil && errb == nil && ha == hb && pa == pb
}

// dropReplaced removes dead voters whose address another voter has: the leader that promoted that one may have died before it
// came to the removal. An address alone says little between nodes that were voters both, which may have swapped theirs.
func (d *memberDuty) dropReplaced(ctx context.Context) {
	m := d.store.Membership()
	for _, v := range m.Voters {
		if p, leads := d.store.Progress(v); !leads || !p.Dead {
			continue
		}
		i := slices.IndexFunc(m.Voters, func(id string) bool {
			by, ok := d.gossip.Member(id)
			return ok && d.displaced(v, by)
		})
		if i < 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, memberTimeout)
		err := d.remove(ctx, v)
		cancel()
		if err != nil {
			d.log.Debug("a replaced voter could not be removed", "node", v, "error", err)
			continue
		}
		d.log.Warn("a dead voter was removed, another one has its address", "node", v, "replacement", m.Voters[i])
	}
}

// remove takes a member out. No voter goes while a remaining one has large values to fetch: they may be on its disk only.
func (d *memberDuty) remove(ctx context.Context, id string) error {
	for _, v := range d.store.Membership().Voters {
		if v == id {
			continue
		}
		st, err := d.status(ctx, v)
		if err != nil {
			continue // whether enough of them answer is the store's question
		}
		if st.MissingBlobs > 0 {
			return kv.Errorf(kv.CodeRefused, "voter %s has %d large values to fetch yet, perhaps from the one that is to go; wait until it has them "+
				"(\"kvmesh cluster members\" shows it)", d.describe(v), st.MissingBlobs)
		}
	}
	return d.store.RemoveMember(ctx, id)
}

// describe names a node for people.
func (d *memberDuty) describe(id string) string {
	if m, ok := d.gossip.Member(id); ok {
		return fmt.Sprintf("%s in %s (%s)", m.Name, m.Region, id)
	}
	return id
}

// metStream holds Raft's connections back until the lineages of the others are known.
type metStream struct {
	*peer.StreamLayer
	met func(context.Context) error
}

// DialNode opens a Raft connection to a node.
func (s *metStream) DialNode(ctx context.Context, nodeID string) (net.Conn, error) {
	if err := s.met(ctx); err != nil {
		return nil, err
	}
	return s.StreamLayer.DialNode(ctx, nodeID)
}
