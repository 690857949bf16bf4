package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// follower keeps the cache at the head of the feed: on a voter from the own ring, on an edge by subscriptions. Two edges
// of a region are its relays and follow the nearest voter and the leader; the others follow a relay.
type follower struct {
	cache   *cache.Cache
	ring    *feed.Ring // what was applied, for others
	control *controlState
	dir     *directory
	clock   *meshClock
	dialer  *peer.Dialer
	rpc     *peer.Client
	log     *slog.Logger
	metrics *feedMetrics

	// applying keeps the order of records the same in cache and ring, whichever subscription they come by. It guards
	// nothing else and is held for memory operations only.
	applying sync.Mutex
	upstream atomic.Pointer[upstream] // who feeds this node now, nil = nobody
	heardTo  atomic.Pointer[heardOf]  // the newest revision heard of by hints and ticks, nil = none
	hinted   chan struct{}            // something newer than W was heard of
	before   string                   // who fed this node before; used by run alone
}

// feedMetrics count what happens to a node's feed.
type feedMetrics struct {
	subscriptions    *prometheus.CounterVec
	failovers, early prometheus.Counter
	pulled           prometheus.Counter
}

func newFeedMetrics(reg prometheus.Registerer) *feedMetrics {
	m := &feedMetrics{
		subscriptions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_feed_subscriptions_total", Help: "Feeds that began, by whether a voter or a relay serves them.",
		}, []string{"source"}),
		failovers: prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_feed_failovers_total", Help: "Feeds taken over by another node than before."}),
		early:     prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_hints_early_total", Help: "Hints of changes that the feed had not told yet."}),
		pulled:    prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_feed_pulls_total", Help: "Change records pulled while the feed was cut."}),
	}
	reg.MustRegister(m.subscriptions, m.failovers, m.early, m.pulled)
	return m
}

// upstream is a subscription that works.
type upstream struct {
	id    string
	depth atomic.Int32 // feeds between this node and the store
	last  atomic.Int64 // when its last frame came, unix nanoseconds
	home  atomic.Bool  // a better source is there again: leave
}

const (
	feedRetryMin = 50 * time.Millisecond
	feedRetryMax = 2 * time.Second
	// feedSilence cuts a feed whose server sends nothing: a tick is due every feedTick.
	feedSilence = 700 * time.Millisecond
	// feedDial bounds connecting, which takes several round trips.
	feedDial = 3 * time.Second
	// maxFeedDepth ends chains of relays that feed each other, which differing ideas of who is a relay could make.
	maxFeedDepth = 3
)

// depth is how far this node is from the store, for those that it feeds.
func (f *follower) depth() (int, bool) {
	u := f.upstream.Load()
	if u == nil || time.Since(time.Unix(0, u.last.Load())) > feedSilence {
		return 0, false
	}
	return int(u.depth.Load()), true
}

// run follows until ctx ends: the best source, else the next one that has not failed since the feed last worked.
func (f *follower) run(ctx context.Context) {
	retry := feedRetryMin
	var failed []string
	anything := false // everybody has failed: a relay that knows less than a voter would is better than nothing
	for ctx.Err() == nil {
		if id := firstOther(f.dir.FeedSources(), failed); id == "" {
			failed, anything = nil, true
		} else {
			began := time.Now()
			err := f.follow(ctx, id, true, anything)
			f.upstream.Store(nil)
			if ctx.Err() != nil {
				return
			}
			f.log.Info("the feed was cut", "source", id, "error", err)
			if time.Since(began) > 2*feedSilence { // it had worked
				retry, failed, anything = feedRetryMin, nil, false
			}
			if errors.Is(err, errHome) {
				continue
			}
			failed = append(failed, id)
		}
		select {
		case <-time.After(retry):
			retry = min(2*retry, feedRetryMax)
		case <-f.dir.gossip.Changed():
			retry = feedRetryMin
		case <-ctx.Done():
		}
	}
}

// firstOther is the first of list that is not among others, "" when all are.
func firstOther(list, others []string) string {
	for _, id := range list {
		if !slices.Contains(others, id) {
			return id
		}
	}
	return ""
}

// tailLeader follows the leader beside the nearest voter while this node is a relay: the leader knows of a commit one
// crossing earlier, and of two records the first one wins.
func (f *follower) tailLeader(ctx context.Context) {
	for ctx.Err() == nil {
		leader, changed := f.dir.Leader()
		if leader != "" && f.tails(leader) {
			if err := f.follow(ctx, leader, false, false); err != nil && ctx.Err() == nil {
				f.log.Debug("the leader's feed was cut", "leader", leader, "error", err)
			}
		}
		select {
		case <-changed:
		case <-time.After(feedRetryMax):
		case <-ctx.Done():
		}
	}
}

// tails reports whether this node should follow the leader beside its upstream, or while that is replaced.
func (f *follower) tails(leader string) bool {
	u := f.upstream.Load()
	return f.dir.IsRelay() && (u == nil || u.id != leader)
}

// follow subscribes at one node and applies what comes until the stream ends. primary says that this is the feed that
// counts as this node's upstream; anything is wire.Subscribe.Any.
func (f *follower) follow(ctx context.Context, id string, primary, anything bool) error {
	dialCtx, cancel := context.WithTimeout(ctx, feedDial)
	conn, err := f.dialer.Dial(dialCtx, id, peer.ALPNFeed)
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, conn.Abort)()
	epoch, w := f.cache.Position()
	sub, err := peer.Encode(&wire.Subscribe{Epoch: epoch, Revision: w, Any: anything})
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(feedDial))
	if err := peer.WriteFrame(conn, wire.FeedSubscribe, sub); err != nil {
		return err
	}
	u := &upstream{id: id}
	var buf []byte
	var control controlParts
	for {
		kind, payload, err := peer.ReadFrame(conn, buf)
		if err != nil {
			return err
		}
		buf = payload
		u.last.Store(time.Now().UnixNano())
		depth, err := f.handle(kind, payload, &control)
		if err != nil {
			return err
		}
		if depth > 0 && !primary {
			if leader, _ := f.dir.Leader(); leader != id || !f.tails(id) {
				return nil
			}
		}
		if depth > 0 && primary { // with every tick
			switch {
			case depth > maxFeedDepth:
				return fmt.Errorf("%d feeds lie between this node and the store", depth)
			case !f.dir.StillSource(id):
				return errors.New("another node is this node's source now")
			case u.home.Load():
				return errHome
			}
			u.depth.Store(int32(depth))
			if f.upstream.Swap(u) != u {
				f.began(id, depth)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(feedSilence))
	}
}

// began counts a subscription that works.
func (f *follower) began(id string, depth int) {
	source := "voter"
	if depth > 1 {
		source = "relay"
	}
	f.metrics.subscriptions.WithLabelValues(source).Inc()
	if f.before != "" && f.before != id {
		f.metrics.failovers.Inc()
	}
	f.before = id
}

// handle applies one frame; control collects the parts of a control state. depth is how far this node is from the store by this feed, 0 when the frame does not say.
func (f *follower) handle(kind byte, payload []byte, control *controlParts) (depth int, err error) {
	switch kind {
	case wire.FeedPosition:
		var p wire.Position
		if err := peer.Decode(payload, &p); err != nil {
			return 0, err
		}
		return 0, f.begin(p.Epoch, p.Revision)
	case wire.FeedRecord:
		rec, err := feed.Decode(payload)
		if err != nil {
			return 0, err
		}
		return 0, f.apply(rec)
	case wire.FeedControl:
		c, whole, err := control.add(payload)
		if err == nil && whole {
			err = f.control.take(c)
		}
		return 0, err
	case wire.FeedTick:
		var t wire.Tick
		if err := peer.Decode(payload, &t); err != nil {
			return 0, err
		}
		f.clock.Observe(t.MeshTime)
		f.dir.heard(t.Leader, t.Members)
		f.exists(t.Epoch, t.Revision)
		return max(t.Depth, 0) + 1, nil
	}
	return 0, fmt.Errorf("feed protocol: unexpected frame %d", kind)
}

// begin takes the position at which a stream starts. A greater epoch is adopted; within the present one it means that
// whatever lies between W and the position may have changed.
//
// A fill may adopt the same epoch, with W = 0, at any moment: so adopting is tried first, and W looked at after it.
func (f *follower) begin(epoch kv.Epoch, rev kv.Revision) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	if f.cache.Adopt(epoch, rev) {
		f.ring.Reset(epoch, rev)
		return nil
	}
	switch cur, w := f.cache.Position(); {
	case epoch != cur:
		return errors.New("the source is still in a superseded epoch")
	case rev > w:
		return f.applyLocked(kv.Record{Epoch: epoch, Prev: w, To: rev, Kind: kv.RecordAll})
	}
	return nil
}

func (f *follower) apply(rec kv.Record) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	return f.applyLocked(rec)
}

// applyLocked applies a record to the cache and passes it on. The caller holds applying.
func (f *follower) applyLocked(rec kv.Record) error {
	if err := f.cache.Apply(rec); err != nil {
		return err
	}
	f.ring.Append(rec)
	return nil
}

// runLocal follows the own ring, which the state machine fills, on a voter. applied is told of every record afterwards.
func (f *follower) runLocal(ctx context.Context, applied func(kv.Record)) {
	for ctx.Err() == nil {
		epoch, w := f.cache.Position()
		ringEpoch, last := f.ring.Position()
		if ringEpoch.Compare(epoch) > 0 {
			f.cache.Adopt(ringEpoch, last)
			continue
		}
		records, changed, err := f.ring.After(epoch, w, feedBurst)
		if errors.Is(err, feed.ErrTooOld) && ringEpoch == epoch && w < last {
			records = []kv.Record{{Epoch: epoch, Prev: w, To: last, Kind: kv.RecordAll}}
		}
		for _, rec := range records {
			if err := f.cache.Apply(rec); err != nil {
				f.log.Error("a record of the own state does not fit the cache", "error", err)
				break
			}
			applied(rec)
		}
		if len(records) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}
