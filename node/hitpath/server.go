package hitpath

import (
	"bufio"
	"context"
	"crypto/tls"
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
	// HTTP2 serves the connections on which HTTP/2 is spoken, answers by Handler, is configured for HTTP/2, and is started and
	// ended as Next is; nil = HTTP/2 is not known.
	HTTP2 *http.Server
	// TLS is spoken on all connections; nil = none. It offers h2 only beside HTTP2.
	TLS *tls.Config
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
	nexts   []*next                  // Next and HTTP2
	ctx     context.Context          // of the requests that Handler answers
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
		conns: make(map[*conn]struct{}),
		nexts: []*next{newNext(o.Next)},
	}
	if o.HTTP2 != nil { // the last one: http2
		s.nexts = append(s.nexts, newNext(o.HTTP2))
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

// Serve accepts the connections of l, which is a LimitListener's; with TLS none other will do, and without it those of
// others go to Next at once. It returns http.ErrServerClosed after Shutdown or Close, and otherwise the error that ended it.
func (s *Server) Serve(l net.Listener) error {
	for _, n := range s.nexts {
		n.addr = l.Addr()
	}
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
	served := make(chan error, len(s.nexts))
	for _, n := range s.nexts {
		go func() { served <- n.server.Serve(n) }()
	}
	err := s.accept(l)
	if s.isEnded() {
		err = http.ErrServerClosed
	} else {
		err = errors.Join(err, s.Close())
	}
	s.running.Wait()
	s.goneOnce.Do(func() { close(s.gone) })
	for range s.nexts {
		if nextErr := ended(<-served); nextErr != nil { // it has been told to end, or has by itself
			err = errors.Join(err, nextErr)
		}
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
	switch {
	case !ok && s.opts.TLS != nil:
		s.log.Error("a connection is not a LimitListener's, and TLS cannot be put on it")
		_ = nc.Close() // there is nobody to tell
		return
	case !ok:
		s.nexts[0].give(nc)
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
	s.eachConn(func(c *conn) bool { return c.atRest() }, (*conn).wake)
	select {
	case <-s.gone:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	s.cancel()
	s.eachConn(func(*conn) bool { return true }, (*conn).cut)
	errs := make([]error, len(s.nexts))
	var all sync.WaitGroup
	for i, n := range s.nexts {
		all.Go(func() { errs[i] = n.server.Shutdown(ctx) })
	}
	all.Wait()
	return errors.Join(err, errors.Join(errs...))
}

// Close ends the server and closes all connections at once. It waits for nothing; Serve does.
func (s *Server) Close() error {
	err := s.stop()
	s.cancel()
	s.eachConn(func(*conn) bool { return true }, (*conn).cut)
	for _, n := range s.nexts {
		err = errors.Join(err, n.server.Close())
	}
	return err
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

// eachConn does what end does to the connections that which picks.
func (s *Server) eachConn(which func(*conn) bool, end func(*conn)) {
	var chosen []*conn
	s.mu.Lock()
	for c := range s.conns {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	s.mu.Unlock()
	for _, c := range chosen {
		end(c)
	}
}
