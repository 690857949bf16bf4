package peer

import (
	"context"
	"fmt"
	"net"
	"sync"

	"kvmesh/node/certs"
)

// StreamLayer is the transport of Raft on the peer port: a net.Listener of the connections that chose kvmesh-raft/1, and a
// dialler by node id. Only voters and learners get in; an edge that holds the mesh key could make itself any certificate,
// but one with a certificate from an operator's CA could not.
type StreamLayer struct {
	addr   net.Addr
	dialer *Dialer
	queue  chan net.Conn

	close  sync.Once
	closed chan struct{}
}

// NewStreamLayer registers Raft's protocol with s, which must not serve yet.
func NewStreamLayer(s *Server, d *Dialer) *StreamLayer {
	l := &StreamLayer{addr: s.Addr(), dialer: d, queue: make(chan net.Conn), closed: make(chan struct{})}
	s.Handle(ALPNRaft, MaySpeakRaft, l.serve)
	return l
}

// MaySpeakRaft allows voters and learners.
func MaySpeakRaft(id certs.Identity) bool {
	return id.Role == certs.RoleVoter || id.Role == certs.RoleLearner
}

// serve hands c to Accept and keeps it alive until Raft has closed it, or the server drains: a node that shuts down has
// given up its leadership before.
func (l *StreamLayer) serve(ctx context.Context, c *Conn) {
	s := &stream{Conn: c, done: make(chan struct{})}
	select {
	case l.queue <- s:
	case <-l.closed:
		return
	case <-c.Draining():
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-s.done:
	case <-l.closed: // Raft is gone; its connections go with it
	case <-c.Draining():
	case <-ctx.Done():
	}
}

// Accept waits for the next connection. After Close it returns net.ErrClosed.
func (l *StreamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, fmt.Errorf("accept %s: %w", ALPNRaft, net.ErrClosed)
	}
}

// Close ends Accept, and the connections that it returned. The Server goes on.
func (l *StreamLayer) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

// Addr is the address of the peer port.
func (l *StreamLayer) Addr() net.Addr { return l.addr }

// DialNode opens a Raft connection to a node.
func (l *StreamLayer) DialNode(ctx context.Context, nodeID string) (net.Conn, error) {
	return l.dialer.Dial(ctx, nodeID, ALPNRaft)
}

// stream tells its handler when Raft has closed it.
type stream struct {
	*Conn
	once sync.Once
	done chan struct{}
}

func (s *stream) Close() error {
	err := s.Conn.Close()
	s.once.Do(func() { close(s.done) })
	return err
}
