package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

const (
	// rescueWait is how often a voter that makes an offer says that it is still at work: it reads the whole state through.
	rescueWait = 2 * time.Second
	// rescueChunk is read and sent at once.
	rescueChunk = 256 << 10
	// rescueBusy is when to come back to a voter that helps somebody else.
	rescueBusy = 5 * time.Second
)

// rescueServer gives members whose files are damaged the state of this voter, one at a time: each offer is a checkpoint on
// the disk and a read of everything.
type rescueServer struct {
	n    *Node
	busy chan struct{} // holds a token while somebody is served
}

func (s *rescueServer) serve(ctx context.Context, c *peer.Conn) {
	conn := blobConn{Conn: c}
	conn.moving()
	log := s.n.component("rescue").With("peer", c.Peer().NodeID)
	kind, payload, err := peer.ReadFrame(c, nil)
	if err != nil {
		log.Debug("a rescue was not asked for", "error", err)
		return
	}
	var args wire.RescueArgs
	if err = peer.Decode(payload, &args); err == nil && kind != wire.RescueAsk {
		err = fmt.Errorf("frame type %d", kind)
	}
	if err == nil {
		err = s.admitted(c.Peer().NodeID)
	}
	if err != nil {
		s.refuse(conn, err)
		return
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		s.refuse(conn, &kv.Error{Code: kv.CodeOverloaded, RetryAfter: rescueBusy, Message: "this voter helps another member just now"})
		return
	}
	o, err := s.offer(ctx, conn, args)
	switch {
	case err != nil:
		log.Warn("a damaged member could not be helped", "error", err)
		return
	case o.err != nil:
		log.Info("a damaged member cannot be helped by this one", "error", o.err)
		s.refuse(conn, o.err)
		return
	}
	err = errors.Join(s.send(ctx, conn, o), o.archive.Close())
	log.Info("the state was given to a damaged member", "bytes", o.size, "error", err)
}

// admitted says whether a node may have the state: the members may.
func (s *rescueServer) admitted(id string) error {
	if !s.n.store.Membership().Has(id) {
		return kv.Errorf(kv.CodeRefused, "node %s is no member of the central store (any more): move its data directory aside and start it again as a new node", id)
	}
	return nil
}

// refuse tells why not. The other side may be gone.
func (s *rescueServer) refuse(conn blobConn, err error) {
	f := &wire.RescueFailure{Code: string(kv.CodeOf(err)), Message: err.Error()}
	if e := asKVError(err); e != nil {
		f.Message, f.Leader, f.RetryAfterMs = e.Message, e.Leader, e.RetryAfter.Milliseconds()
	}
	if err := conn.send(wire.RescueError, f); err != nil {
		s.n.component("rescue").Debug("a member that asked for help is gone", "error", err)
	}
}

// offer is what raftstore.Store.Offer gives.
type offer struct {
	meta    []byte
	archive io.ReadCloser
	size    int64
	err     error
}

// offer makes the offer, and has the other side know meanwhile that somebody is at work. Its own error says that the other
// side is gone.
func (s *rescueServer) offer(ctx context.Context, conn blobConn, args wire.RescueArgs) (offer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	made := make(chan offer, 1)
	go func() { // ends with ctx, and is waited for
		var o offer
		o.meta, o.archive, o.size, o.err = s.n.store.Offer(ctx, raftstore.RescueRequest{
			Cluster: args.Cluster, Lineage: args.Lineage, Term: args.Term, Least: args.Least, Leader: args.Leader,
		})
		made <- o
	}()
	tick := time.NewTicker(rescueWait)
	defer tick.Stop()
	for {
		select {
		case o := <-made:
			return o, nil
		case <-tick.C:
		}
		conn.moving()
		if err := peer.WriteFrame(conn, wire.RescueWait, nil); err != nil {
			cancel()
			if o := <-made; o.err == nil {
				err = errors.Join(err, o.archive.Close())
			}
			return offer{}, err
		}
	}
}

// send sends an offer.
func (s *rescueServer) send(ctx context.Context, conn blobConn, o offer) error {
	if err := conn.send(wire.RescueHead, &wire.RescueStart{Meta: o.meta, Size: o.size}); err != nil {
		return err
	}
	chunk := make([]byte, rescueChunk)
	var pace pacer
	for left := o.size; left > 0; {
		k, err := io.ReadFull(o.archive, chunk[:min(left, rescueChunk)])
		if err != nil {
			return fmt.Errorf("%d bytes are left: %w", left, err)
		}
		conn.moving()
		if _, err := conn.Write(chunk[:k]); err != nil {
			return err
		}
		left -= int64(k)
		pace.after(ctx, k)
	}
	return nil
}

// askRescue asks one voter for what it can offer. The caller closes the archive.
func askRescue(ctx context.Context, dialer *peer.Dialer, id string, req raftstore.RescueRequest) (meta []byte, archive io.ReadCloser, err error) {
	c, err := dialer.Dial(ctx, id, peer.ALPNRescue)
	if err != nil {
		return nil, nil, err
	}
	conn := blobConn{c, context.AfterFunc(ctx, c.Abort)}
	defer func() {
		if err != nil {
			conn.hangUp()
		}
	}()
	err = conn.send(wire.RescueAsk, &wire.RescueArgs{
		Cluster: req.Cluster, Lineage: req.Lineage, Term: req.Term, Least: req.Least, Leader: req.Leader,
	})
	if err != nil {
		return nil, nil, err
	}
	for {
		conn.moving()
		kind, payload, err := peer.ReadFrame(conn, nil)
		if err != nil {
			return nil, nil, err
		}
		switch kind {
		case wire.RescueWait:
		case wire.RescueHead:
			var head wire.RescueStart
			if err := peer.Decode(payload, &head); err != nil {
				return nil, nil, err
			}
			if head.Size < 0 {
				return nil, nil, fmt.Errorf("an archive of %d bytes", head.Size)
			}
			return head.Meta, &remoteBlob{conn, head.Size}, nil
		case wire.RescueError:
			var f wire.RescueFailure
			if err := peer.Decode(payload, &f); err != nil {
				return nil, nil, err
			}
			return nil, nil, &kv.Error{
				Code: kv.Code(f.Code), Message: f.Message, Leader: f.Leader, RetryAfter: time.Duration(f.RetryAfterMs) * time.Millisecond,
			}
		default:
			return nil, nil, fmt.Errorf("rescue protocol: unexpected frame %d", kind)
		}
	}
}
