package node

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"kvmesh/cache"
	"kvmesh/gossip"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
)

// directory says whom to ask for what: who is alive, who votes, who leads, who is near.
type directory struct {
	self, region string
	gossip       *gossip.Gossip

	mu      sync.Mutex    // guards the fields below
	leader  string        // as last heard, "" = unknown
	members wire.Members  // the Raft configuration, as last heard
	changed chan struct{} // closed when the leader changes
}

func newDirectory(self, region string, g *gossip.Gossip) *directory {
	return &directory{self: self, region: region, gossip: g, changed: make(chan struct{})}
}

// heard takes over who leads and who is a member, as a voter said it, or somebody who had heard it of one. Whoever knows an
// older membership than this node was cut off, or is no member any more, and does not know who leads.
func (d *directory) heard(leader string, m wire.Members) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.members
	known := len(held.Voters) > 0
	order := cmp.Or(m.Epoch.Compare(held.Epoch), cmp.Compare(m.Index, held.Index))
	if known && (m.Epoch.Compare(held.Epoch) < 0 || m.Index != 0 && order < 0) {
		return
	}
	if len(m.Voters) > 0 && (!known || order >= 0 && m.Index != 0) {
		d.members = m
	}
	if leader != "" && leader != d.leader {
		d.setLeader(leader)
	}
}

// observed takes over who leads, "" included, and who is a member, from a source above doubt: the own Raft, or a leader
// that has been confirmed.
func (d *directory) observed(leader string, m wire.Members) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = m
	d.setLeader(leader)
}

// Members is the membership as last heard.
func (d *directory) Members() wire.Members {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.members
}

// disproved says that id did not lead after all.
func (d *directory) disproved(id, instead string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leader == id || instead != "" {
		d.setLeader(instead)
	}
}

func (d *directory) setLeader(id string) {
	if id == d.leader {
		return
	}
	d.leader = id
	close(d.changed)
	d.changed = make(chan struct{})
}

// Leader is the leader as far as this node knows, and the channel that is closed when that changes.
func (d *directory) Leader() (string, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leader, d.changed
}

// doubt lets gossip look at a node that could not be asked, before its turn.
func (d *directory) doubt(id string, err error) {
	if call := new(peer.CallError); errors.As(err, &call) {
		d.gossip.Doubt(id)
	}
}

// Addr resolves a node id to its peer address.
func (d *directory) Addr(id string) (string, bool) {
	for _, m := range d.gossip.Members() {
		if m.ID == id && m.Peer != "" {
			return m.Peer, true
		}
	}
	return "", false
}

// Member finds a member by id.
func (d *directory) Member(id string) (gossip.Member, bool) {
	for _, m := range d.gossip.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return gossip.Member{}, false
}

// reachable reports whether gossip believes that a node can be asked; this node always can.
func (d *directory) reachable(id string) bool {
	m, ok := d.Member(id)
	return ok && (m.Self || m.Reachable())
}

// Configured is the voters of the Raft configuration as last heard; when none was heard yet, those that gossip knows.
func (d *directory) Configured() []string {
	if voters := d.Members().Voters; len(voters) > 0 {
		return voters
	}
	var ids []string
	for _, m := range d.gossip.Members() {
		if m.Role == certs.RoleVoter {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// QuorumAlive reports whether gossip believes a majority of the voters to be reachable. With no configuration heard it
// gives the benefit of the doubt.
func (d *directory) QuorumAlive() (alive, of int, ok bool) {
	voters := d.Configured()
	for _, m := range d.gossip.Members() {
		if (m.Self || m.Reachable()) && slices.Contains(voters, m.ID) {
			alive++
		}
	}
	return alive, len(voters), len(voters) == 0 || alive > len(voters)/2
}

// Voters lists the voters and learners that can be asked, nearest first: the own region, then by measured round trip. A
// node that is no member any more, or not yet, is not among them, unless none of the members that this node knows of can be
// asked: it may know an old membership.
func (d *directory) Voters() []string {
	known := d.Members()
	var members, others []ranked
	for _, m := range d.gossip.Members() {
		switch {
		case m.Self || !m.Reachable() || m.Role == certs.RoleEdge:
		case slices.Contains(known.Voters, m.ID) || slices.Contains(known.Learners, m.ID):
			members = append(members, ranked{m.ID, d.distance(m)})
		default:
			others = append(others, ranked{m.ID, d.distance(m)})
		}
	}
	if len(members) == 0 {
		return order(others)
	}
	return order(members)
}

type ranked struct {
	id   string
	dist time.Duration
}

func order(r []ranked) []string {
	slices.SortStableFunc(r, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.dist, b.dist), strings.Compare(a.id, b.id))
	})
	ids := make([]string, len(r))
	for i := range r {
		ids[i] = r[i].id
	}
	return ids
}

// farAway ranks what was not measured behind what was.
const farAway = time.Hour

// distance is 0 within the region, else the region's round trip.
func (d *directory) distance(m gossip.Member) time.Duration {
	if m.Region == d.region {
		return 0
	}
	if rtt, ok := d.gossip.RegionRTT()[m.Region]; ok {
		return rtt
	}
	return farAway
}

// Owner is the key's owner among the edges of one region, and how many edges live there.
func (d *directory) Owner(hash uint64, region string) (id string, edges int) {
	var candidates []cache.Candidate
	for _, m := range d.gossip.Members() {
		if m.Role == certs.RoleEdge && m.Region == region && (m.Self || m.Reachable()) {
			candidates = append(candidates, cache.Candidate{ID: m.ID})
		}
	}
	return cache.Owner(hash, candidates), len(candidates)
}

// relaysPerRegion edges of a region follow the voters; the others follow them, so that voters carry two streams a region,
// however many edges live there.
const relaysPerRegion = 2

// relays of the own region, by rendezvous over the node ids, the first one first.
func (d *directory) relays() []string {
	var candidates []cache.Candidate
	for _, m := range d.gossip.Members() {
		if m.Role == certs.RoleEdge && m.Region == d.region && (m.Self || m.Reachable()) {
			candidates = append(candidates, cache.Candidate{ID: m.ID})
		}
	}
	var out []string
	for len(out) < relaysPerRegion && len(candidates) > 0 {
		id := cache.Owner(relaySalt, candidates)
		out = append(out, id)
		candidates = slices.DeleteFunc(candidates, func(c cache.Candidate) bool { return c.ID == id })
	}
	return out
}

// relaySalt takes the place of a key's hash in the choice of relays.
const relaySalt = 0x72656c6179

// IsRelay reports whether this edge feeds others of its region.
func (d *directory) IsRelay() bool { return slices.Contains(d.relays(), d.self) }

// FeedSources lists whom to follow, best first: a relay follows the voters; others one of the relays, which they choose
// by their own id, then the other relay, then the voters.
func (d *directory) FeedSources() []string {
	relays := d.relays()
	if slices.Contains(relays, d.self) {
		return d.Voters()
	}
	if len(relays) == relaysPerRegion && len(d.self) > 0 && d.self[len(d.self)-1]%2 == 1 {
		slices.Reverse(relays)
	}
	return append(relays, d.Voters()...)
}

// StillSource reports whether id is someone this node may go on following: an edge only while it is a relay and this
// node is none, a voter or learner while it is a member.
func (d *directory) StillSource(id string) bool {
	m, ok := d.Member(id)
	if !ok {
		return true
	}
	if m.Role != certs.RoleEdge {
		known := d.Members()
		return len(known.Voters) == 0 || slices.Contains(known.Voters, id) || slices.Contains(known.Learners, id) ||
			slices.Contains(d.Voters(), id)
	}
	relays := d.relays()
	return slices.Contains(relays, id) && !slices.Contains(relays, d.self)
}

// PullSources lists whom to ask for records when the feed is cut: the edges of the region, then the voters.
func (d *directory) PullSources() []string {
	var out []string
	for _, m := range d.gossip.Members() {
		if m.Role == certs.RoleEdge && m.Region == d.region && !m.Self && m.Reachable() {
			out = append(out, m.ID)
		}
	}
	return append(out, d.Voters()...)
}

// NearestOtherRegion is the nearest other region that has edges, if it is nearer than the nearest voter.
func (d *directory) NearestOtherRegion() (string, bool) {
	best, bestRTT := "", farAway
	voter := farAway
	rtts, voters := d.gossip.RegionRTT(), d.Voters()
	for _, m := range d.gossip.Members() {
		if m.Self || !m.Reachable() {
			continue
		}
		if m.Role != certs.RoleEdge {
			if slices.Contains(voters, m.ID) {
				voter = min(voter, d.distance(m))
			}
			continue
		}
		if rtt, ok := rtts[m.Region]; ok && m.Region != d.region && rtt < bestRTT {
			best, bestRTT = m.Region, rtt
		}
	}
	return best, best != "" && bestRTT < voter
}
