package gossip

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
)

const (
	// forgetFailed is how long a failed member is remembered and looked for: longer than any partition somebody will mend.
	forgetFailed = 24 * time.Hour
	// forgetLeft is how long one that said goodbye is shown.
	forgetLeft = 10 * time.Minute
	// maxMembers bounds the table. One pool is meant for a few hundred nodes.
	maxMembers = 4096
	// tidyEvery is how often members are forgotten.
	tidyEvery = 10 * time.Second
	// farewellFor is how long before or after the pool gives a member up its farewell still explains it.
	farewellFor = time.Minute
)

type changeKind uint8

const (
	joined  changeKind = iota // is there, or says something new of itself
	gone                      // left or failed
	strayed                   // now says that it belongs to another mesh
)

// change is what a delegate has heard of a member. The newest one of a member replaces those before it.
type change struct {
	kind changeKind
	id   string
	addr string
	meta meta
}

// snapshot is immutable once published.
type snapshot struct {
	members   []Member // sorted by id
	changed   chan struct{}
	reachable int // alive or suspect, this node included
}

func (s *snapshot) find(id string) (Member, bool) {
	i, ok := slices.BinarySearchFunc(s.members, id, func(m Member, id string) int { return strings.Compare(m.ID, id) })
	if !ok {
		return Member{}, false
	}
	return s.members[i], true
}

func (s *snapshot) region(id string) string {
	m, _ := s.find(id)
	return m.Region
}

// table turns what delegates hear into snapshots. Delegates leave changes here; only tableLoop applies them.
type table struct {
	metrics *metrics
	current atomic.Pointer[snapshot]
	wake    chan struct{} // capacity 1

	mu sync.Mutex // guards what follows; held for map operations only, delegates take it under memberlist's node lock
	// pending keeps one change a member instead of a queue of all: a full queue would lose the last word on somebody.
	pending map[string]change
	doubts  map[string]bool // suspected by own pings
	// farewells: memberlist does not tell its delegates a departure from a death, so nodes that leave say so themselves.
	farewells map[string]time.Time
	self      Member
	cluster   kv.ClusterID
}

func newTable(self Member, m *metrics) *table {
	self.Self, self.Since = true, time.Now()
	t := &table{
		metrics: m, wake: make(chan struct{}, 1),
		pending: make(map[string]change), doubts: make(map[string]bool), farewells: make(map[string]time.Time), self: self,
	}
	t.current.Store(&snapshot{members: []Member{self}, changed: make(chan struct{}), reachable: 1})
	return t
}

func (t *table) snapshot() *snapshot { return t.current.Load() }

// note leaves a change. A stray that goes away stays a stray.
func (t *table) note(c change) {
	t.mu.Lock()
	last, known := t.pending[c.id]
	full := !known && len(t.pending) >= maxMembers
	if !full && (last.kind != strayed || c.kind != gone) {
		t.pending[c.id] = c
	}
	t.mu.Unlock()
	if full {
		t.metrics.dropped.WithLabelValues("member").Inc()
		return
	}
	t.poke()
}

// doubt notes whether own pings suspect a member.
func (t *table) doubt(id string, suspected bool) {
	t.mu.Lock()
	changed := t.doubts[id] != suspected && (!suspected || len(t.doubts) < maxMembers)
	if changed && suspected {
		t.doubts[id] = true
	} else if changed {
		delete(t.doubts, id)
	}
	t.mu.Unlock()
	if changed {
		t.poke()
	}
}

func (t *table) setSelf(m meta) {
	t.mu.Lock()
	old := t.self
	t.self = m.member(old.ID, old.Gossip)
	t.self.Self, t.self.State, t.self.Since = true, old.State, old.Since
	t.cluster = m.cluster
	t.mu.Unlock()
	t.poke()
}

// leave marks this node itself.
func (t *table) leave() {
	t.mu.Lock()
	t.self.State, t.self.Since = Left, time.Now()
	t.mu.Unlock()
	t.poke()
}

// farewell notes that a member has said goodbye. Alone it changes nothing: the packet may be an old one.
func (t *table) farewell(id string) {
	t.mu.Lock()
	if len(t.farewells) < maxMembers {
		t.farewells[id] = time.Now()
	}
	t.mu.Unlock()
	t.poke()
}

func (t *table) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// tableLoop owns the members and publishes snapshots of them.
func (g *Gossip) tableLoop() {
	t := g.table
	t.mu.Lock()
	t.cluster = g.cluster()
	t.mu.Unlock()
	members := make(map[string]Member)
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-t.wake:
		case <-tidy.C:
		}
		now := time.Now()
		news := t.take(members, now)
		for _, c := range news.pending {
			g.apply(members, c, now)
		}
		for id, m := range members {
			if drop := g.settle(&m, news, now); drop {
				delete(members, id)
			} else {
				members[id] = m
			}
		}
		before := t.current.Load()
		t.publish(members, news.self)
		g.tellChanges(before, t.current.Load())
	}
}

// tellChanges logs whose state is another one now. A departure is told once its farewell has been weighed: who left did not
// fail.
func (g *Gossip) tellChanges(before, after *snapshot) {
	if before == after {
		return
	}
	for _, m := range after.members {
		if old, known := before.find(m.ID); m.Self || known && old.State == m.State {
			continue
		}
		g.log.Info("member "+string(m.State), "node", m.ID, "name", m.Name, "role", m.Role, "region", m.Region, "addr", m.Gossip)
	}
}

// news is what the table was told since the last round, and what still holds.
type news struct {
	pending   map[string]change
	doubts    map[string]bool
	farewells map[string]time.Time
	self      Member
	cluster   kv.ClusterID
}

func (t *table) take(members map[string]Member, now time.Time) news {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.doubts {
		if m := members[id]; m.State != Alive && m.State != Suspect {
			delete(t.doubts, id)
		}
	}
	for id, at := range t.farewells {
		if now.Sub(at) > farewellFor || (t.pending[id].id == id && t.pending[id].kind == joined) {
			delete(t.farewells, id)
		}
	}
	n := news{
		pending: t.pending, doubts: maps.Clone(t.doubts), farewells: maps.Clone(t.farewells),
		self: t.self, cluster: t.cluster,
	}
	t.pending = make(map[string]change)
	return n
}

// apply changes one member by what was heard of it.
func (g *Gossip) apply(members map[string]Member, c change, now time.Time) {
	old, known := members[c.id]
	m := c.meta.member(c.id, c.addr)
	switch c.kind {
	case strayed:
		delete(members, c.id)
		return
	case gone:
		if !known {
			return
		}
		m.State = Failed
	case joined:
		if !known && len(members) >= maxMembers {
			g.metrics.dropped.WithLabelValues("member").Inc()
			return
		}
	}
	m.Since = now
	if known && old.State == m.State {
		m.Since = old.Since
	}
	members[c.id] = m
}

// settle applies what follows from time, from the own cluster, from farewells and from own pings; true says that the
// member is to be forgotten.
func (g *Gossip) settle(m *Member, n news, now time.Time) (drop bool) {
	own, doubted := n.cluster, n.doubts[m.ID]
	bye, said := n.farewells[m.ID]
	if theirs, err := kv.ParseClusterID(m.Cluster); err == nil && foreign(own, theirs) {
		g.metrics.refused.WithLabelValues("cluster").Inc()
		(*delegate)(g).tell(note{err: errForeign, id: m.ID, addr: m.Gossip, theirs: m.Cluster, ours: clusterHex(own)})
		return true
	}
	switch {
	case m.State == Failed && now.Sub(m.Since) >= forgetFailed, m.State == Left && now.Sub(m.Since) >= forgetLeft:
		return true
	case m.State == Failed && said && bye.Sub(m.Since).Abs() <= farewellFor:
		m.State = Left
	case m.State == Alive && doubted:
		m.State, m.Since = Suspect, now
	case m.State == Suspect && !doubted:
		m.State, m.Since = Alive, now
	}
	return false
}

func (t *table) publish(members map[string]Member, self Member) {
	next := &snapshot{members: make([]Member, 0, len(members)+1), changed: make(chan struct{})}
	next.members = append(next.members, self)
	for _, m := range members {
		next.members = append(next.members, m)
	}
	slices.SortFunc(next.members, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	count := map[State]int{Alive: 0, Suspect: 0, Failed: 0, Left: 0}
	for _, m := range next.members {
		count[m.State]++
	}
	next.reachable = count[Alive] + count[Suspect]
	old := t.current.Load()
	if slices.Equal(old.members, next.members) {
		return
	}
	t.current.Store(next)
	close(old.changed)
	for state, n := range count {
		t.metrics.members.WithLabelValues(string(state)).Set(float64(n))
	}
}
