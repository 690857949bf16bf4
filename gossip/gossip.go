// Package gossip knows who is there: it is the membership of one pool of kvmesh nodes, built on hashicorp/memberlist,
// which nothing else imports. It tells the rest of the node who the members are, what they say about themselves (role,
// region, addresses, cluster), how far away their regions are, spreads hints among them, and keeps looking for those it
// has lost.
//
// Nothing learned here is authority. The gossip key is plain membership and packets can be replayed, so a hint may only
// make a cache more careful, and an address is only a place to ask over mutual TLS.
//
// A Gossip value is one pool; a process may have several.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"kvmesh/raftstore/kv"
)

// Gossip is one node's place in one pool. All methods are safe for concurrent use.
type Gossip struct {
	opts    Options
	time    timing
	log     *slog.Logger
	metrics *metrics
	tr      *transport
	ml      *memberlist.Memberlist

	table  *table
	hints  *hints
	rtts   *rtts
	seeds  *seedBook
	notes  chan note       // from delegates, for the log
	resend chan struct{}   // the own meta has changed; capacity 1
	ctx    context.Context // ends with Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows; held for assignments only
	meta    meta
	encoded []byte // meta, ready for NodeMeta
	started bool
	stopped bool
}

// New opens the sockets and answers other nodes from then on; it contacts nobody before Start. Stop must be called even
// if Start never is. The error of a port in use names the address and the flag.
func New(opts Options) (*Gossip, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	times, err := opts.Profile.timings()
	if err != nil {
		return nil, err
	}
	if opts.Network == nil {
		opts.Network = sockets{}
	}
	g := &Gossip{
		opts: opts, time: times, log: opts.Logger,
		rtts:  newRTTs(),
		notes: make(chan note, maxNotes), resend: make(chan struct{}, 1),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.meta = meta{
		name: opts.Name, role: opts.Role, region: opts.Region, version: opts.Version,
		http: opts.HTTP, peer: opts.Peer, expect: opts.Expect,
	}
	if opts.Cluster != "" {
		if g.meta.cluster, err = kv.ParseClusterID(opts.Cluster); err != nil {
			return nil, err
		}
	}
	if g.encoded, err = g.meta.encode(); err != nil {
		return nil, err
	}
	if g.metrics, err = newMetrics(opts.Metrics); err != nil {
		return nil, err
	}
	if g.tr, err = newTransport(opts.Network, opts.Bind, opts.AdvertiseHost, opts.Shaper, g.metrics); err != nil {
		return nil, errors.Join(err, g.metrics.close())
	}
	// Everything a delegate touches exists before Create: memberlist calls them from its first moment on.
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.table = newTable(g.meta.member(opts.ID, g.tr.self.String()), g.metrics)
	g.hints = newHints(g.metrics)
	g.seeds = newSeedBook(opts.Seeds)
	if g.ml, err = memberlist.Create(g.memberlistConfig()); err != nil {
		g.cancel()
		return nil, errors.Join(err, g.tr.Shutdown(), g.metrics.close())
	}
	return g, nil
}

// Start begins to join, to look after members, to measure and to deliver hints. It returns at once: JoinState tells how
// joining goes. Only Stop ends it; ctx is not kept, since one that is cancelled by a signal would end it without a farewell.
func (g *Gossip) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.started || g.stopped {
		return errors.New("gossip: started twice, or after Stop")
	}
	g.started = true
	for _, loop := range []func(){
		g.tableLoop, g.noteLoop, g.announceLoop, g.spreadLoop, g.deliverLoop, g.joinLoop, g.pingLoop,
	} {
		g.wg.Go(loop)
	}
	return nil
}

// farewell bounds what Stop spends on telling the others when its context would allow more.
const farewell = time.Second

// Stop tells the others that this node leaves, so that they need not find out, then closes everything and waits for all
// goroutines of this package. It takes about a second at most, less when ctx ends earlier. Calling it again does nothing.
func (g *Gossip) Stop(ctx context.Context) error {
	g.mu.Lock()
	if g.stopped {
		g.mu.Unlock()
		return nil
	}
	g.stopped = true
	g.mu.Unlock()

	if ctx.Err() == nil {
		limit := farewell
		if d, ok := ctx.Deadline(); ok {
			limit = max(time.Millisecond, min(limit, time.Until(d)))
		}
		g.table.leave()
		g.sendFarewell()
		// Whoever was not reached finds out by probing, which is no error of ours.
		if err := g.ml.Leave(limit); err != nil {
			g.log.Debug("leaving: not everybody was told", "err", err)
		}
	}
	g.cancel()
	err := g.ml.Shutdown()
	g.wg.Wait()
	return errors.Join(err, g.metrics.close())
}

// Addr is the gossip address (IP:port) that other nodes use for this one.
func (g *Gossip) Addr() string { return g.tr.self.String() }

// Members is everybody this node knows of, itself included, sorted by ID. It costs one atomic load; the slice is shared
// and must not be changed.
func (g *Gossip) Members() []Member { return g.table.snapshot().members }

// Changed is closed at the next change of Members. Take it before Members, else a change in between goes unnoticed.
func (g *Gossip) Changed() <-chan struct{} { return g.table.snapshot().changed }

// Member finds one member by id.
func (g *Gossip) Member(id string) (Member, bool) { return g.table.snapshot().find(id) }

// SetCluster tells the pool which mesh this node belongs to. Members that belong to another one are dropped, and refused
// from now on. It does not wait until the others know.
func (g *Gossip) SetCluster(id string) error {
	var c kv.ClusterID
	if id != "" {
		var err error
		if c, err = kv.ParseClusterID(id); err != nil {
			return err
		}
	}
	return g.setMeta(func(m *meta) { m.cluster = c })
}

// SetExpect tells the pool the bootstrap-expect of this voter; 0 once a cluster exists.
func (g *Gossip) SetExpect(n int) error {
	if n < 0 || n > maxExpect {
		return fmt.Errorf("gossip: bootstrap-expect %d: want 0 to %d", n, maxExpect)
	}
	return g.setMeta(func(m *meta) { m.expect = n })
}

func (g *Gossip) setMeta(change func(*meta)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.meta
	change(&m)
	b, err := m.encode()
	if err != nil {
		return err
	}
	if m == g.meta {
		return nil
	}
	g.meta, g.encoded = m, b
	g.table.setSelf(m)
	select {
	case g.resend <- struct{}{}:
	default: // an announcement is due already and will read the newest
	}
	return nil
}

func (g *Gossip) cluster() kv.ClusterID {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.meta.cluster
}

// announceLoop spreads changes of the own meta. UpdateNode waits for its broadcast, so it has a goroutine.
func (g *Gossip) announceLoop() {
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.resend:
			// The broadcast stays queued when the wait ends first; push/pull carries the meta as well.
			if err := g.ml.UpdateNode(g.time.gossipInterval); err != nil {
				g.log.Debug("own meta is still spreading", "err", err)
			}
		}
	}
}

// Hint spreads payload (at most MaxHintBytes, copied) to everybody: at once to a few members of every region, and from
// member to member from then on. It never blocks. Hints are best effort and carry no authority; the same payload is
// spread and delivered only once while it is remembered, however many nodes send it. The sender's own OnHint does not see
// it. What cannot be sent is dropped and counted.
func (g *Gossip) Hint(payload []byte) {
	if len(payload) == 0 || len(payload) > MaxHintBytes {
		g.metrics.dropped.WithLabelValues("hint_size").Inc()
		g.log.Error("hint not sent: wrong size", "bytes", len(payload), "limit", MaxHintBytes)
		return
	}
	g.hints.receive(message{buf: appendHint([]byte{hintVersion}, 0, payload), own: true})
}
