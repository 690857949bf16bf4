package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

const (
	// DefaultMaxConns bounds the connections of the peer port: a few hundred nodes with a few dozen each.
	DefaultMaxConns = 8192
	// DefaultHandshakeTimeout bounds a handshake, so that half-open connections do not use up the limit above.
	DefaultHandshakeTimeout = 10 * time.Second

	// acceptRetry and acceptRetryMax pace Accept after an error that passes, such as no more file descriptors.
	acceptRetry    = 5 * time.Millisecond
	acceptRetryMax = time.Second
	// warnEvery limits the warnings about callers that cannot be let in: anybody can make the port log.
	warnEvery = 10 * time.Second
)

// Options make a Server.
type Options struct {
	// Listener to serve. When it is nil, NewServer listens on Addr.
	Listener net.Listener
	Addr     string

	Authority *certs.Authority
	Cert      tls.Certificate

	Logger  *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none

	MaxConns         int           // 0: DefaultMaxConns
	HandshakeTimeout time.Duration // 0: DefaultHandshakeTimeout
}

// Server is the peer port of one node.
type Server struct {
	opts     Options
	ln       net.Listener
	handlers map[string]handler
	metrics  *serverMetrics
	slots    chan struct{} // one token a connection

	drain     context.Context // done when Close begins
	markDrain context.CancelFunc
	hard      context.Context // done when nothing is waited for any longer
	cut       context.CancelFunc
	conns     sync.WaitGroup // a goroutine each; only Serve adds
	served    chan struct{}  // closed when Serve has returned

	mu      sync.Mutex // guards the two below
	started bool
	warned  time.Time // when the last limited warning was logged
}

type handler struct {
	allow func(certs.Identity) bool
	serve func(ctx context.Context, c *Conn)
}

// NewServer takes the listener, or opens one.
func NewServer(o Options) (*Server, error) {
	if o.Authority == nil {
		return nil, errors.New("peer server: no authority")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxConns <= 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	ln := o.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("peer port: %w", err)
		}
	}
	s := &Server{
		opts:     o,
		ln:       ln,
		handlers: make(map[string]handler),
		metrics:  newServerMetrics(o.Metrics),
		slots:    make(chan struct{}, o.MaxConns),
		served:   make(chan struct{}),
	}
	s.drain, s.markDrain = context.WithCancel(context.Background())
	s.hard, s.cut = context.WithCancel(context.Background())
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Handle registers who serves a protocol, before Serve is called. allow decides by the caller's certificate, nil lets every
// member of the mesh in. h owns the connection until it returns; then the server closes it. Its ctx ends when the server
// must stop at once; Conn.Draining comes first.
func (s *Server) Handle(alpn string, allow func(certs.Identity) bool, h func(ctx context.Context, c *Conn)) {
	s.handlers[alpn] = handler{allow, h}
}

// Serve accepts connections until Close is called or ctx ends, and returns when all handlers have returned: nil, or why
// the listener failed. When ctx ends, connections are cut.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	again := s.started
	s.started = true
	s.mu.Unlock()
	switch {
	case again && s.drain.Err() != nil:
		return nil // closed already
	case again:
		return errors.New("peer server: Serve was called before")
	}

	defer close(s.served)
	stop := context.AfterFunc(ctx, func() {
		s.markDrain()
		s.cut()
		_ = s.ln.Close() // to end Accept
	})
	defer stop()

	alpns := make([]string, 0, len(s.handlers))
	for alpn := range s.handlers {
		alpns = append(alpns, alpn)
	}
	slices.Sort(alpns)
	config := s.opts.Authority.ServerConfig(s.opts.Cert, alpns...)

	err := s.accept(config)
	if err != nil { // the port is gone for good: the connections that there are go on until Close
		s.opts.Logger.Error("the peer port cannot accept connections any longer", "addr", s.ln.Addr(), "err", err)
	}
	s.conns.Wait()
	return err
}

// accept runs until the listener is closed, by Close or by the end of Serve's ctx (nil), or fails.
func (s *Server) accept(config *tls.Config) error {
	pause := acceptRetry
	for {
		raw, err := s.ln.Accept()
		switch {
		case s.drain.Err() != nil:
			if err == nil {
				_ = raw.Close() // nobody has spoken on it yet
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("peer port: %w", err)
		case err != nil:
			s.opts.Logger.Warn("accepting on the peer port failed, trying again", "err", err, "in", pause)
			select {
			case <-time.After(pause):
			case <-s.drain.Done():
				return nil
			}
			pause = min(2*pause, acceptRetryMax)
			continue
		}
		pause = acceptRetry
		select {
		case s.slots <- struct{}{}:
		default:
			s.metrics.refused.WithLabelValues("max_conns").Inc()
			s.warn("the peer port is at its limit of connections", "limit", s.opts.MaxConns, "from", raw.RemoteAddr())
			_ = raw.Close() // nobody has spoken on it yet
			continue
		}
		s.conns.Go(func() {
			defer func() { <-s.slots }()
			s.serveConn(raw, config)
		})
	}
}

// serveConn takes one connection from its first byte to its end.
func (s *Server) serveConn(raw net.Conn, config *tls.Config) {
	stop := context.AfterFunc(s.hard, func() { _ = raw.Close() })
	defer stop()
	defer func() { _ = raw.Close() }() // after the goodbye of TLS, which may have closed it already

	c, h, err := s.handshake(raw, config)
	if err != nil {
		result := "failed"
		if errors.Is(err, certs.ErrWrongMeshKey) {
			result = "wrong_mesh_key"
			s.warn("refused a node on the peer port", "from", raw.RemoteAddr(), "err", err)
		} else {
			s.opts.Logger.Debug("handshake on the peer port failed", "from", raw.RemoteAddr(), "err", err)
		}
		s.metrics.handshakes.WithLabelValues(result).Inc()
		return
	}
	s.metrics.handshakes.WithLabelValues("ok").Inc()
	if h.allow != nil && !h.allow(c.peer) {
		s.metrics.refused.WithLabelValues("role").Inc()
		s.warn("refused a node that may not speak this protocol", "peer", c.peer, "alpn", c.alpn, "from", raw.RemoteAddr())
		reason := kv.Errorf(kv.CodeUnauthorized, "the certificate of node %s does not allow it to speak %s", c.peer, c.alpn)
		if err := c.refuse(reason); err != nil {
			s.opts.Logger.Debug("telling a node that it is refused failed", "peer", c.peer, "err", err)
		}
		return
	}

	open := s.metrics.conns.WithLabelValues(c.alpn)
	open.Inc()
	defer open.Dec()
	defer func() {
		// One connection's handler must not take the other connections with it.
		if p := recover(); p != nil {
			s.opts.Logger.Error("the handler of a peer connection paniced", "peer", c.peer, "alpn", c.alpn,
				"panic", p, "stack", string(debug.Stack()))
			c.Abort()
		}
	}()
	h.serve(s.hard, c)
	_ = c.Close() // a goodbye that the other side does not take any more is no loss
}

func (s *Server) handshake(raw net.Conn, config *tls.Config) (*Conn, handler, error) {
	if _, err := tuneTCP(raw); err != nil {
		return nil, handler{}, err
	}
	ctx, cancel := context.WithTimeout(s.hard, s.opts.HandshakeTimeout)
	defer cancel()
	tc := tls.Server(raw, config)
	if err := s.opts.Authority.Handshake(ctx, tc); err != nil {
		return nil, handler{}, err
	}
	cs := tc.ConnectionState()
	id, err := certs.IdentityOf(cs)
	if err != nil {
		return nil, handler{}, err
	}
	h, ok := s.handlers[cs.NegotiatedProtocol]
	if !ok { // a caller that offers no protocol at all gets through the handshake
		return nil, handler{}, fmt.Errorf("node %s chose no protocol", id)
	}
	return &Conn{Conn: tc, raw: raw, peer: id, alpn: cs.NegotiatedProtocol, drain: s.drain, sendHello: true}, h, nil
}

// Close stops accepting, asks the handlers to finish (Conn.Draining) and waits for them. When ctx ends first, it cuts the
// connections, waits for the handlers to notice, and returns ctx's error.
func (s *Server) Close(ctx context.Context) error {
	s.markDrain()
	err := s.ln.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	started := s.started
	s.started = true // Serve is too late now
	s.mu.Unlock()
	if !started {
		close(s.served)
	}
	select {
	case <-s.served:
	case <-ctx.Done():
		s.cut()
		<-s.served
		err = errors.Join(err, fmt.Errorf("peer port: connections were cut: %w", ctx.Err()))
	}
	s.cut() // releases the context
	return err
}

// Abort stops accepting and cuts the connections, and waits for nobody.
func (s *Server) Abort() {
	s.markDrain()
	_ = s.ln.Close() // whatever it says, the port is of no more use
	s.cut()
}

// warn logs a warning that the outside can cause, at most one every warnEvery.
func (s *Server) warn(msg string, args ...any) {
	s.mu.Lock()
	now := time.Now()
	ok := s.warned.IsZero() || now.Sub(s.warned) >= warnEvery
	if ok {
		s.warned = now
	}
	s.mu.Unlock()
	if ok {
		s.opts.Logger.Warn(msg, args...)
	}
}
