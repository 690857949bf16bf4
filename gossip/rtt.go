package gossip

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// rttSamples: an estimate is the smallest of the last few round trips, the one that met the shortest queues.
	rttSamples = 5
	// hysteresis: a published figure follows the estimate only when they differ by more than a fifth (and by more than
	// rttNoise), so that whoever orders regions by it does not waver between two that are about as far.
	hysteresis = 0.2
	rttNoise   = 500 * time.Microsecond
	// maxPings bounds the pings under way.
	maxPings = 16
	// maxDoubts bounds the queue of Doubt.
	maxDoubts = 64
	// doubtPings is how many pings in a row have to fail before a member is suspect: one packet may get lost.
	doubtPings = 2
)

// rtts measures. It is pure but for its lock.
type rtts struct {
	doubts chan string

	mu      sync.Mutex // guards what follows; held for arithmetic only
	nodes   map[string]*rtt
	regions map[string]*rtt
}

type rtt struct {
	samples   []time.Duration // newest last
	published time.Duration
}

func newRTTs() *rtts {
	return &rtts{doubts: make(chan string, maxDoubts), nodes: make(map[string]*rtt), regions: make(map[string]*rtt)}
}

func (r *rtt) add(d time.Duration) {
	r.samples = append(r.samples, d)
	if len(r.samples) > rttSamples {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
	est := slices.Min(r.samples)
	diff := (est - r.published).Abs()
	if r.published == 0 || (diff > rttNoise && float64(diff) > hysteresis*float64(r.published)) {
		r.published = est
	}
}

// sample notes a round trip; region "" says that the node is unknown.
func (r *rtts) sample(id, region string, d time.Duration) {
	if region == "" {
		return
	}
	d = max(d, time.Microsecond) // clocks are coarse, and 0 is "not measured"
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range []struct {
		in  map[string]*rtt
		key string
	}{{r.nodes, id}, {r.regions, region}} {
		if x.in[x.key] == nil {
			x.in[x.key] = &rtt{}
		}
		x.in[x.key].add(d)
	}
}

// keep forgets nodes and regions that are not in s.
func (r *rtts) keep(s *snapshot) {
	regions := make(map[string]bool)
	for _, m := range s.members {
		regions[m.Region] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.nodes {
		if _, ok := s.find(id); !ok {
			delete(r.nodes, id)
		}
	}
	for region := range r.regions {
		if !regions[region] {
			delete(r.regions, region)
		}
	}
}

// RegionRTT is the round trip to the nearest measured node of each region, the own one included. Regions that were not
// reached yet are missing. The figures change by steps of more than 20 %, so an order by them is stable.
func (g *Gossip) RegionRTT() map[string]time.Duration {
	g.rtts.mu.Lock()
	defer g.rtts.mu.Unlock()
	out := make(map[string]time.Duration, len(g.rtts.regions))
	for region, r := range g.rtts.regions {
		out[region] = r.published
	}
	return out
}

// RTT is the round trip to a node, or that of its region while it was not measured itself.
func (g *Gossip) RTT(id string) (time.Duration, bool) {
	region := g.table.snapshot().region(id)
	g.rtts.mu.Lock()
	defer g.rtts.mu.Unlock()
	r := g.rtts.nodes[id]
	if r == nil {
		r = g.rtts.regions[region]
	}
	if r == nil {
		return 0, false
	}
	return r.published, true
}

// Doubt says that the caller could not reach a member. It is pinged at once; if two pings stay unanswered it is Suspect,
// until it answers or the pool declares it failed. Doubt never blocks.
func (g *Gossip) Doubt(id string) {
	select {
	case g.rtts.doubts <- id:
	default:
		g.metrics.dropped.WithLabelValues("doubt").Inc()
	}
}

// pingLoop measures a random member of every region each g.time.ping, regions not measured yet at once, and looks after
// suspects. Its pings are waited for when it ends.
func (g *Gossip) pingLoop() {
	p := pinger{g: g, results: make(chan pingResult, maxPings), failed: make(map[string]int), busy: make(map[string]bool)}
	all := time.NewTicker(g.time.ping)
	defer all.Stop()
	suspects := time.NewTicker(g.time.doubt)
	defer suspects.Stop()
	for {
		changed := g.Changed() // before p.regions looks at the members
		p.regions(false)
		select {
		case <-g.ctx.Done():
			for len(p.busy) > 0 {
				p.done(<-p.results)
			}
			return
		case r := <-p.results:
			p.done(r)
		case id := <-g.rtts.doubts:
			p.failed[id] += 0 // stays in the list until it has answered, even if it cannot be pinged right now
			p.ping(id)
		case <-all.C:
			g.rtts.keep(g.table.snapshot())
			g.metrics.rtt.Reset()
			clear(p.tried)
			p.regions(true)
		case <-suspects.C:
			clear(p.tried)
			for id := range p.failed {
				p.ping(id)
			}
		case <-changed:
		}
	}
}

// pinger is the state of pingLoop.
type pinger struct {
	g       *Gossip
	results chan pingResult
	busy    map[string]bool
	failed  map[string]int      // pings that failed in a row
	tried   map[string]struct{} // regions without a figure that were tried since the last tick
}

type pingResult struct {
	id  string
	rtt time.Duration
	err error
}

// regions pings one member of every region, or only of those without a figure.
func (p *pinger) regions(all bool) {
	if p.tried == nil {
		p.tried = make(map[string]struct{})
	}
	members := p.g.Members()
	p.g.rtts.mu.Lock()
	measured := make(map[string]bool, len(p.g.rtts.regions))
	for region, r := range p.g.rtts.regions {
		measured[region] = true
		p.g.metrics.rtt.WithLabelValues(region).Set(r.published.Seconds())
	}
	p.g.rtts.mu.Unlock()
	for _, i := range rand.Perm(len(members)) {
		m := members[i]
		if _, tried := p.tried[m.Region]; tried || m.Self || !m.Reachable() || (!all && measured[m.Region]) {
			continue
		}
		p.tried[m.Region] = struct{}{}
		p.ping(m.ID)
	}
}

func (p *pinger) ping(id string) {
	m, ok := p.g.Member(id)
	if !ok || m.Self || (m.State != Alive && m.State != Suspect) {
		delete(p.failed, id)
		return
	}
	to, err := netip.ParseAddrPort(m.Gossip)
	if err != nil || p.busy[id] || len(p.busy) >= maxPings {
		return // asked again at the next tick
	}
	p.busy[id] = true
	p.g.wg.Go(func() {
		d, err := p.g.ml.Ping(id, net.UDPAddrFromAddrPort(to))
		p.results <- pingResult{id, d, err} // has room for maxPings
	})
}

func (p *pinger) done(r pingResult) {
	delete(p.busy, r.id)
	if r.err == nil {
		delete(p.failed, r.id)
		p.g.rtts.sample(r.id, p.g.table.snapshot().region(r.id), r.rtt)
		p.g.table.doubt(r.id, false)
		return
	}
	if p.failed[r.id]++; p.failed[r.id] >= doubtPings {
		p.g.table.doubt(r.id, true)
		return
	}
	if p.g.ctx.Err() == nil {
		p.ping(r.id)
	}
}
