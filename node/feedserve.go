package node

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// feedServer streams change records and the control state to other nodes, from the ring, and on voters from the change
// index when the ring no longer reaches back. Every node has one: an edge that is a relay feeds its region.
type feedServer struct {
	depth   func() (depth int, connected bool)
	ring    *feed.Ring
	state   *state.State           // the lower rungs of the ladder, nil on edges
	noticed func(error)            // told of errors of state; nil on edges
	ladder  *prometheus.CounterVec // rung
	control *controlState
	dir     *directory
	clock   *meshClock
	log     *slog.Logger
}

const (
	feedTick = 200 * time.Millisecond
	// feedStall is how long a reader may leave the stream unread before it is cut off; it comes back with its watermark
	// and goes down the ladder. Nothing else ever waits for it.
	feedStall = 10 * time.Second
	// feedBurst is how many records are read at once.
	feedBurst = 256
)

// serve runs one subscription until the connection ends.
func (s *feedServer) serve(ctx context.Context, c *peer.Conn) {
	_ = c.SetDeadline(time.Now().Add(feedStall))
	kind, payload, err := peer.ReadFrame(c, nil)
	var sub wire.Subscribe
	if err == nil && kind == wire.FeedSubscribe {
		err = peer.Decode(payload, &sub)
	}
	if err != nil || kind != wire.FeedSubscribe {
		s.log.Debug("feed subscription refused", "peer", c.Peer().NodeID, "frame", kind, "error", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = c.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() { // the client says nothing more: anything read is its end
		defer close(gone)
		defer cancel()
		_, _ = c.Read(make([]byte, 1))
	}()
	err = s.stream(ctx, c, sub)
	_ = c.Close()
	<-gone
	if err != nil && ctx.Err() == nil {
		s.log.Info("feed reader cut off", "peer", c.Peer().NodeID, "error", err)
	}
}

// feedWriter writes frames with the stall limit.
type feedWriter struct{ c *peer.Conn }

func (w feedWriter) frame(kind byte, payload []byte) error {
	_ = w.c.SetWriteDeadline(time.Now().Add(feedStall))
	return peer.WriteFrame(w.c, kind, payload)
}

func (w feedWriter) msg(kind byte, v any) error {
	b, err := peer.Encode(v)
	if err != nil {
		return err
	}
	return w.frame(kind, b)
}

func (s *feedServer) stream(ctx context.Context, c *peer.Conn, sub wire.Subscribe) error {
	w := feedWriter{c}
	epoch, pos := sub.Epoch, sub.Revision
	var sentControl kv.Control
	tick := time.NewTicker(feedTick)
	defer tick.Stop()
	for due := true; ; {
		ringEpoch, last := s.ring.Position()
		if !ringEpoch.IsZero() && (epoch != ringEpoch || pos == 0 || pos > last) {
			epoch, pos = ringEpoch, last
			if err := w.msg(wire.FeedPosition, &wire.Position{Epoch: epoch, Revision: pos}); err != nil {
				return err
			}
		}
		control, controlChanged := s.control.current()
		if control.Epoch != sentControl.Epoch || control.Revision != sentControl.Revision {
			for _, part := range wire.FromControl(control, controlPart) {
				if err := w.msg(wire.FeedControl, &part); err != nil {
					return err
				}
			}
			sentControl = control
		}
		if depth, connected := s.depth(); due && connected {
			leader, _ := s.dir.Leader()
			t := &wire.Tick{MeshTime: s.clock.Told(), Leader: leader, Members: s.dir.Members(), Depth: depth, Epoch: ringEpoch, Revision: last}
			if err := w.msg(wire.FeedTick, t); err != nil {
				return err
			}
		}
		records, changed, err := s.next(epoch, pos, sub.Any)
		if err != nil {
			return err
		}
		for _, rec := range records {
			if err := w.frame(wire.FeedRecord, feed.Append(nil, rec)); err != nil {
				return err
			}
			pos = rec.To
		}
		if due = false; len(records) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-controlChanged:
		case <-tick.C:
			due = true
		case <-c.Draining(): // the reader finds another source
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// The rungs of the ladder, from the most exact one down.
const (
	rungRing       = "ring"
	rungIndex      = "index"      // the change index
	rungNamespaces = "namespaces" // a floor for each namespace in which something changed
	rungAll        = "all"        // a floor for everything
)

func newLadderMetric(reg prometheus.Registerer) *prometheus.CounterVec {
	return promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "kvmesh_feed_ladder_total",
		Help: "Answers to followers, by where their records came from: ring, index, namespaces, all.",
	}, []string{"rung"})
}

// errTooFarBack is a relay's answer to a reader that a voter, which has more than a ring, can tell more exactly what changed.
var errTooFarBack = errors.New("this relay's records do not reach back that far")

// next goes down the ladder to the first rung that reaches back to pos. Without records it gives the channel to wait on. A
// node without a state has the rung for everything only if the reader wants anything rather than nothing.
func (s *feedServer) next(epoch kv.Epoch, pos kv.Revision, anything bool) ([]kv.Record, <-chan struct{}, error) {
	rung := rungRing
	records, changed, err := s.ring.After(epoch, pos, feedBurst)
	if errors.Is(err, feed.ErrTooOld) {
		ringEpoch, last := s.ring.Position()
		if ringEpoch != epoch || pos >= last {
			// The position has to be looked at anew: at once, unless the ring holds nothing yet.
			if !ringEpoch.IsZero() {
				moved := make(chan struct{})
				close(moved)
				changed = moved
			}
			return nil, changed, nil
		}
		if s.state == nil && !anything {
			return nil, nil, errTooFarBack
		}
		rung, records, err = s.older(epoch, pos, last)
	}
	if err != nil {
		return nil, nil, err
	}
	if len(records) > 0 {
		s.ladder.WithLabelValues(rung).Inc()
	}
	return records, changed, nil
}

// older finds the records after pos when the ring, which ends at last, no longer reaches back to it.
func (s *feedServer) older(epoch kv.Epoch, pos, last kv.Revision) (rung string, records []kv.Record, err error) {
	all := []kv.Record{{Epoch: epoch, Prev: pos, To: last, Kind: kv.RecordAll}}
	if s.state == nil {
		return rungAll, all, nil
	}
	records, err = s.state.Changes(pos, feedBurst)
	if err != nil && !errors.Is(err, state.ErrTrimmed) {
		s.noticed(err)
		return "", nil, err
	}
	// The state may have begun an epoch that the reader has not heard of.
	if len(records) > 0 && records[0].Epoch == epoch {
		return rungIndex, records, nil
	}
	floors, at, ok, err := s.state.FloorsAfter(pos, feed.MaxFloors)
	if err != nil {
		s.noticed(err)
		return "", nil, err
	}
	// They reach as far as the view they were read from, which may lie behind or ahead of last.
	if ok && at.Epoch == epoch && at.Revision > pos {
		return rungNamespaces, []kv.Record{{Epoch: epoch, Prev: pos, To: at.Revision, Kind: kv.RecordFloors, Floors: floors}}, nil
	}
	return rungAll, all, nil
}

// servePull answers another node's pull.
func (s *feedServer) servePull(_ context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.PullArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	epoch, last := s.ring.Position()
	res := &wire.PullResult{Epoch: epoch, Revision: last}
	if epoch != args.Epoch || args.Revision >= last {
		return &peer.Response{Result: res}, nil
	}
	records, _, err := s.next(epoch, args.Revision, args.Any)
	if errors.Is(err, errTooFarBack) {
		res.TooFarBack = true
		return &peer.Response{Result: res}, nil
	}
	if err != nil {
		return nil, err
	}
	var body []byte
	for _, rec := range records {
		at := len(body)
		body = feed.Append(append(body, 0, 0, 0, 0), rec)
		binary.BigEndian.PutUint32(body[at:], uint32(len(body)-at-4))
		if len(body) > maxPull/2 {
			break
		}
	}
	return &peer.Response{Result: res, Body: body}, nil
}

// maxPull bounds the answer of one pull.
const maxPull = 2 << 20
