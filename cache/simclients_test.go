package cache

import (
	"math/rand/v2"
	"time"

	"kvmesh/raftstore/kv"
)

// The clients of the simulation, and what they hold every answer against.

func (s *sim) read(rng *rand.Rand, i int) {
	n, c, dead := s.live(i)
	k := rng.IntN(simKeys)
	if rng.IntN(2) == 0 {
		k = 0 // a hot one
	}
	rd := Read{Namespace: simNS(k), Key: simKey(k), Limit: []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 5 * time.Second}[rng.IntN(3)]}
	s.w.mu.Lock()
	switch x := rng.IntN(10); {
	case x < 3:
		rd.Explicit = true
	case x == 3:
		rd.Strong = true
	case x < 6 && len(s.w.marks) > 0:
		rd.Bookmark = s.w.marks[len(s.w.marks)-1-rng.IntN(min(8, len(s.w.marks)))]
	}
	start, shown := s.w.now(), n.shown[k]
	latest := s.w.head().state[s.w.commit][k]
	epoch, _ := c.Position()
	s.w.mu.Unlock()

	ans, err := c.Get(s.ctx, rd)

	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if dead() {
		return
	}
	if err != nil {
		s.refused(n, rd, err)
		return
	}
	g, ok := s.w.identify("served", ans.Entry, ans.AsOf, k)
	if !ok {
		return
	}
	where := func() string {
		return simKey(k) + " by node " + string(rune('0'+i)) + ", " + string(ans.Tier) + " " + ans.Reason
	}
	if ans.Age >= 0 && s.w.periods[g].end <= start-ans.Age {
		s.w.fail("bound: %s: %v at %v, but overwritten at %v", where(), ans.Age, start, s.w.periods[g].end)
	}
	if rd.Explicit && (ans.Age < 0 || ans.Age > rd.Limit) {
		s.w.fail("limit: %s: %v, allowed %v", where(), ans.Age, rd.Limit)
	}
	if rd.Strong && g < latest {
		s.w.fail("strong: %s: period %d after %d had committed", where(), g, latest)
	}
	if ans.Entry.Epoch().Compare(epoch) < 0 && ans.Reason == "" {
		s.w.fail("epoch: %s: of a superseded epoch", where())
	}
	if b := rd.Bookmark; b.Revision > 0 {
		s.note("bookmark")
		if b.Epoch != epoch {
			s.note("foreign bookmark")
		}
		if want := s.w.of(b.Epoch).state[b.Revision][k]; g < want {
			s.w.fail("bookmark: %s: period %d, the bookmark means %d", where(), g, want)
		}
	}
	if rd.Strong {
		s.note("strong")
	}
	if ans.Age < 0 {
		s.note("of unknown age") // promises nothing, not even order
		return
	}
	if g < shown {
		s.w.fail("monotonic: %s: period %d after %d was shown or acknowledged", where(), g, shown)
	}
	n.shown[k] = max(n.shown[k], g)
	s.mark(ans.Entry.Epoch(), ans.AsOf)
}

func (s *sim) mark(epoch kv.Epoch, rev kv.Revision) {
	s.w.marks = append(s.w.marks, kv.Bookmark{Epoch: epoch, Revision: rev})
}

// refused: a failure must be one of those that the table knows.
func (s *sim) refused(n *simNode, rd Read, err error) {
	switch kv.CodeOf(err) {
	case kv.CodeStaleBeyondLimit:
		s.note("explicit limit missed")
		if !rd.Explicit {
			s.w.fail("node %d: %v, but no limit was asked for", n.id, err)
		}
	case kv.CodeUnavailable, kv.CodeNoLeader:
	default:
		if s.ctx.Err() == nil {
			s.w.fail("node %d: %v", n.id, err)
		}
	}
}

func (s *sim) write(rng *rand.Rand, i int) {
	n, c, dead := s.live(i)
	k := rng.IntN(simKeys)
	w := c.BeginWrite(simNS(k), simKey(k))
	defer w.Abandon()
	way := 30 * time.Millisecond
	if rng.IntN(4) == 0 {
		way = 600 * time.Millisecond // to a leader that is hard to find
	}
	if s.pause(s.ctx, rng, way) != nil {
		return
	}
	s.w.mu.Lock()
	g := s.w.write(rng.IntN(4) == 0, k)
	p, h, rev := s.w.periods[g], s.w.head(), s.w.commit
	s.w.mu.Unlock()
	if rng.IntN(2) == 0 { // the new record as a hint, before the reply
		s.hint(rng, i)
	}
	if s.pause(s.ctx, rng, 50*time.Millisecond) != nil || rng.IntN(10) == 0 { // or the reply is lost
		return
	}
	before, _ := c.Position()
	e := State{Epoch: h.id, AsOf: rev, Revision: p.rev, Absent: p.absent}
	if !p.absent {
		e.Value = s.w.value(g)
	}
	err := w.Done(e)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if before != h.id {
		s.note("write across an epoch")
	}
	if dead() {
		return
	}
	if err != nil {
		if kv.CodeOf(err) != kv.CodeOutcomeUnknown {
			s.w.fail("node %d: Done: %v", i, err)
		}
		return
	}
	s.note("write acknowledged")
	if now, _ := c.Position(); now == h.id {
		n.shown[k] = max(n.shown[k], g)
	}
	s.mark(h.id, rev)
	s.w.checkHeld(i, c)
}

// list shows every key of a namespace from a state at least as new as the node asks for.
func (s *sim) list(rng *rand.Rand, i int) {
	n, c, dead := s.live(i)
	if !c.Ready() {
		return
	}
	s.w.mu.Lock()
	before := n.shown
	s.w.mu.Unlock()
	epoch, least := c.LeastForList()
	if s.pause(s.ctx, rng, 20*time.Millisecond) != nil {
		return
	}
	s.w.mu.Lock()
	h, asOf := s.w.hist[s.voters[1].hist], s.voters[1].applied
	if h.id != epoch || asOf < least {
		h, asOf = s.w.head(), s.w.commit // the leader
	}
	state := h.state[asOf]
	s.w.mu.Unlock()
	if h.id != epoch || s.pause(s.ctx, rng, 20*time.Millisecond) != nil {
		return
	}
	for k := range simLast {
		p := s.period(state[k])
		rev := p.rev
		if p.absent {
			rev = asOf
		}
		c.Shown(epoch, nsA, simKey(k), rev)
	}
	c.NoteListed(epoch, asOf)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if now, _ := c.Position(); now != epoch || dead() {
		return
	}
	s.note("list")
	for k := range simLast {
		if state[k] < before[k] {
			s.w.fail("monotonic: node %d lists period %d of %s after %d was shown", i, state[k], simKey(k), before[k])
		}
		n.shown[k] = max(n.shown[k], state[k])
	}
	s.w.checkHeld(i, c)
}

func (s *sim) period(g int) period {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.periods[g]
}
