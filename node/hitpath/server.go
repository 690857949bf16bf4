package hitpath

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// Source is what a node holds in memory. Its methods neither wait, nor allocate, nor keep their arguments, and are safe for
// concurrent use.
type Source interface {
	// Namespace resolves a title or an id, with byID only an id. It reports false for what this node does not know: that
	// says nothing about the mesh.
	Namespace(ref []byte, byID bool) (kv.NamespaceID, bool)
	// Held reports whether a default read with this limit of age may be answered at once with a value that exists and is
	// whole in memory, and fills v with it. The read is counted only then.
	Held(v *api.Value, ns kv.NamespaceID, key []byte, limit time.Duration) bool
}

// Options are the parts of a Server. Source, Handler, Next and Counts are required.
type Options struct {
	Source Source
	// Handler answers the reads of one value that Source cannot. It sets Content-Length, as the surfaces do.
	Handler http.Handler
	// Next serves the connections that the path gives up. It answers by Handler too, and is the caller's to configure; the
	// Server starts and ends it.
	Next *http.Server
	// Accepts reports whether the value of an Authorization header lets a request in; nil = no request needs one.
	Accepts func(authorization []byte) bool
	Counts  Counts
	Logger  *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // nil = not exported
}

// Counts count the answers of each surface, by the route that its own handler counts.
type Counts struct{ Native, NativeHead, REST, Binding *api.Count }

// Server serves the public listener of a node. It is used like an http.Server: Serve returns when Shutdown or Close has
// been called.
type Server struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	counts  [numShapes][2]*api.Count // by shape, GET and HEAD
	handoff *handoff
	ctx     context.Context // of the requests that Handler answers
	cancel  context.CancelFunc

	began    time.Time              // New
	tick     atomic.Uint64          // seconds since New, coarsely
	date     atomic.Pointer[[]byte] // the Date header of now
	draining atomic.Bool            // whoever asks from now on is given to Next, whose answers end the connection
	stopping atomic.Bool            // answered connections are closed
	ended    chan struct{}          // closed with the first Shutdown or Close
	endOnce  sync.Once
	gone     chan struct{} // closed when no connection is on the path, and none will be
	goneOnce sync.Once

	mu       sync.Mutex         // guards conns and listener; held for memory operations only
	conns    map[*conn]struct{} // those that the path has
	listener net.Listener       // what Serve accepts from
	running  sync.WaitGroup     // the goroutines of conns
	clock    sync.WaitGroup     // keepTime
	// memory has the buffers of connections, of answers on their way, and of readers of requests that are answered slowly.
	memory struct{ in, out, text sync.Pool }
}

// New returns a server. It panics when its metrics are registered already.
func New(o Options) *Server {
	s := &Server{
		opts: o, began: time.Now(), log: o.Logger, metrics: newMetrics(o.Metrics), ended: make(chan struct{}), gone: make(chan struct{}),
		conns:   make(map[*conn]struct{}),
		handoff: &handoff{conns: make(chan net.Conn), closed: make(chan struct{})},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.counts[nativeShape] = [2]*api.Count{o.Counts.Native, o.Counts.NativeHead}
	s.counts[restShape] = [2]*api.Count{o.Counts.REST, o.Counts.REST}
	s.counts[bindingShape] = [2]*api.Count{o.Counts.Binding, o.Counts.Binding}
	s.memory.in.New = func() any { return new([readBytes]byte) }
	s.memory.text.New = func() any { return bufio.NewReader(nil) }
	s.memory.out.New = func() any { b := make([]byte, 0, writeBytes); return &b }
	s.setDate(time.Now())
	return s
}

// Serve accepts the connections of l, which is a LimitListener's; those of others go to Next at once. It returns
// http.ErrServerClosed after Shutdown or Close, and otherwise the error that ended it.
func (s *Server) Serve(l net.Listener) error {
	s.handoff.addr = l.Addr()
	s.mu.Lock()
	late := s.stopping.Load()
	if !late {
		s.listener = l
		s.clock.Go(s.keepTime)
	}
	s.mu.Unlock()
	if late {
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	next := make(chan error, 1)
	go func() { next <- s.opts.Next.Serve(s.handoff) }()
	err := s.accept(l)
	if s.isEnded() {
		err = http.ErrServerClosed
	} else {
		err = errors.Join(err, s.Close())
	}
	s.running.Wait()
	s.goneOnce.Do(func() { close(s.gone) })
	if nextErr := ended(<-next); nextErr != nil { // it has been told to end, or has by itself
		err = errors.Join(err, nextErr)
	}
	s.clock.Wait()
	return err
}

// ended is err unless it says what was asked for.
func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) isEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// The waits after an accept that failed for want of something that may come back, such as a free descriptor.
const (
	minAcceptWait = 5 * time.Millisecond
	maxAcceptWait = time.Second
)

func (s *Server) accept(l net.Listener) error {
	wait := minAcceptWait
	for {
		c, err := l.Accept()
		if err == nil {
			wait = minAcceptWait
			s.start(c)
			continue
		}
		passing, ok := err.(interface{ Temporary() bool })
		if !ok || !passing.Temporary() || s.isEnded() {
			return err
		}
		s.log.Warn("a connection cannot be accepted; trying again", "err", err, "wait", wait)
		select {
		case <-time.After(wait):
		case <-s.ended:
			return err
		}
		wait = min(2*wait, maxAcceptWait)
	}
}

// start begins to serve a connection.
func (s *Server) start(nc net.Conn) {
	taken, ok := api.Take(nc)
	if !ok {
		s.handoff.give(nc)
		return
	}
	c := newConn(s, taken)
	s.mu.Lock()
	late := s.stopping.Load()
	if !late {
		s.conns[c] = struct{}{}
		s.running.Add(1)
	}
	s.mu.Unlock()
	if late {
		c.close()
		return
	}
	s.metrics.conns.Inc()
	go func() {
		defer s.running.Done()
		c.serve()
	}()
}

// now is the time since New. It is cheaper to read than a time of day.
func (s *Server) now() time.Duration { return time.Since(s.began) }

// forget takes a connection off the path's list.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.metrics.conns.Dec()
}

// Drain has every further request answered by Next, whose answers end their connections once the node drains.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown ends the server: no connection is accepted, idle ones are closed, the others when they are answered. When ctx
// ends first, all are closed, and not waited for.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.stop()
	s.closeConns(func(c *conn) bool { return c.atRest() })
	select {
	case <-s.gone:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	s.cancel()
	s.closeConns(func(*conn) bool { return true })
	return errors.Join(err, s.opts.Next.Shutdown(ctx))
}

// Close ends the server and closes all connections at once. It waits for nothing; Serve does.
func (s *Server) Close() error {
	err := s.stop()
	s.cancel()
	s.closeConns(func(*conn) bool { return true })
	return errors.Join(err, s.opts.Next.Close())
}

// stop ends accepting.
func (s *Server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping.Store(true)
	s.endOnce.Do(func() { close(s.ended) })
	if s.listener == nil { // Serve will not begin
		s.goneOnce.Do(func() { close(s.gone) })
		return nil
	}
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// closeConns closes the connections that which picks.
func (s *Server) closeConns(which func(*conn) bool) {
	var chosen []*conn
	s.mu.Lock()
	for c := range s.conns {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	s.mu.Unlock()
	for _, c := range chosen {
		c.close()
	}
}

// handoff is the listener of Next: its connections are those that the path gives up.
type handoff struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

// give hands a connection over, or closes it when Next has ended.
func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close() // the node ends, and the client is told so by that
	}
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handoff) Addr() net.Addr { return h.addr }
