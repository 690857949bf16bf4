package gossip

import (
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"kvmesh/raftstore/kv"
)

// delegate is what memberlist calls. Most calls come under memberlist's node lock or from its only packet goroutine, so
// nothing here blocks, logs, or calls memberlist (Members within NotifyJoin would deadlock): each call copies what it was
// given into something bounded.
type delegate Gossip

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.PingDelegate     = (*delegate)(nil)
	_ memberlist.MergeDelegate    = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.encoded
}

// NotifyMsg implements memberlist.Delegate.
func (d *delegate) NotifyMsg(b []byte) { d.receive(b, packetBytes) }

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.hints.broadcasts(overhead, limit, d.table.snapshot().reachable)
}

// LocalState implements memberlist.Delegate: recent hints travel with every full state exchange, so that one whose
// packets were all lost still arrives.
func (d *delegate) LocalState(bool) []byte { return d.hints.recentHints(time.Now()) }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(b []byte, _ bool) { d.receive(b, maxStateBytes) }

func (d *delegate) receive(b []byte, limit int) {
	if len(b) == 0 {
		return
	}
	if len(b) > limit {
		d.metrics.dropped.WithLabelValues("hint_size").Inc()
		return
	}
	d.hints.receive(message{buf: append([]byte(nil), b...)})
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.changed(n, joined) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.changed(n, joined) }

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.changed(n, gone) }

func (d *delegate) changed(n *memberlist.Node, k changeKind) {
	if n.Name == d.opts.ID {
		return
	}
	m, err := decodeMeta(n.Meta)
	if err != nil { // NotifyAlive has counted it
		return
	}
	d.table.note(change{kind: k, id: n.Name, addr: nodeAddr(n), meta: m})
}

// AckPayload implements memberlist.PingDelegate.
func (d *delegate) AckPayload() []byte { return nil }

// NotifyPingComplete implements memberlist.PingDelegate. memberlist's own probes are free measurements.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	d.rtts.sample(n.Name, d.table.snapshot().region(n.Name), rtt)
	d.table.doubt(n.Name, false)
}

var (
	errForeign   = errors.New("belongs to another mesh")
	errDuplicate = errors.New("the same node id is in use at two addresses")
)

// NotifyAlive implements memberlist.AliveDelegate: it refuses nodes that do not belong here, from whomever they are heard
// of.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.opts.ID {
		return nil
	}
	m, err := decodeMeta(n.Meta)
	if err == nil && (len(n.Name) > maxIDBytes || !printable(n.Name)) {
		err = errMeta
	}
	if err != nil {
		d.metrics.refused.WithLabelValues("meta").Inc()
		d.tell(note{err: err, id: n.Name, addr: nodeAddr(n)})
		return err
	}
	if own := (*Gossip)(d).cluster(); foreign(own, m.cluster) {
		d.refuse(n, m, own)
		return errForeign
	}
	return nil
}

// NotifyMerge implements memberlist.MergeDelegate: a pool that knows members of another mesh and none of ours is that
// mesh. Single strays within a pool are NotifyAlive's.
func (d *delegate) NotifyMerge(peers []*memberlist.Node) error {
	own := (*Gossip)(d).cluster()
	var stray *memberlist.Node
	var strayMeta meta
	for _, n := range peers {
		m, err := decodeMeta(n.Meta)
		switch {
		case err != nil || n.Name == d.opts.ID || n.State != memberlist.StateAlive:
		case foreign(own, m.cluster):
			stray, strayMeta = n, m
		case m.cluster == own:
			return nil
		}
	}
	if stray == nil {
		return nil
	}
	d.refuse(stray, strayMeta, own)
	return errForeign
}

func (d *delegate) refuse(n *memberlist.Node, m meta, own kv.ClusterID) {
	d.metrics.refused.WithLabelValues("cluster").Inc()
	d.table.note(change{kind: strayed, id: n.Name})
	d.tell(note{err: errForeign, id: n.Name, addr: nodeAddr(n), theirs: clusterHex(m.cluster), ours: clusterHex(own)})
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.metrics.refused.WithLabelValues("conflict").Inc()
	d.tell(note{err: errDuplicate, id: existing.Name, addr: nodeAddr(existing), theirs: nodeAddr(other)})
}

func (d *delegate) tell(n note) {
	select {
	case d.notes <- n:
	default:
		d.metrics.dropped.WithLabelValues("note").Inc()
	}
}

func nodeAddr(n *memberlist.Node) string {
	return net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
}
