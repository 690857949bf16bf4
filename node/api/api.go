package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// DefaultTimeout is how long a call may go without progress before it is given up: long enough for an election and a
// few retries, short enough that a client is not left hanging.
const DefaultTimeout = 30 * time.Second

// copyBufferBytes is the memory that one streamed value takes, however large it is.
const copyBufferBytes = 64 << 10

// Authorizer decides whether a request may use the surface. An error is a *kv.Error with CodeUnauthorized. It must not
// block and must not read the body.
type Authorizer interface {
	Check(r *http.Request) error
}

// Options are the parts of the native surface. Only Service is required.
type Options struct {
	Service Service
	// Admin changes who belongs to the central store; nil = not from here.
	Admin ClusterAdmin
	// Backups makes and restores backups; nil = this node does neither.
	Backups Backups
	// Auth is asked before anything else about every request; nil allows all.
	Auth   Authorizer
	Logger *slog.Logger // nil = discard
	// Metrics takes this surface's metrics, which carry the label surface="native"; nil = not exported.
	Metrics prometheus.Registerer
	// MaxBody is the largest value in bytes; 0 = kv.MaxValueBytes.
	MaxBody int64
	// MaxDoc is the largest body of a bulk call or a transaction in bytes; 0 = 100 MB.
	MaxDoc int64
	// Timeout ends a call, or the body of one, that makes no progress; 0 = DefaultTimeout.
	Timeout time.Duration
}

// New returns the handler of the native surface. It serves any path, and answers 404 to those that are not its own.
// It panics when the metrics are registered already.
func New(o Options) http.Handler {
	s := &surface{
		svc: o.Service, admin: o.Admin, backups: o.Backups, auth: o.Auth, log: o.Logger,
		metrics: newMetrics(o.Metrics),
		maxBody: o.MaxBody, maxDoc: o.MaxDoc, timeout: o.Timeout,
		routes:  routes(),
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBufferBytes); return &b }},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.maxBody == 0 {
		s.maxBody = kv.MaxValueBytes
	}
	if s.maxDoc == 0 {
		s.maxDoc = maxDocBody
	}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	return s
}

// surface is the handler.
type surface struct {
	svc     Service
	admin   ClusterAdmin
	backups Backups // may be nil
	auth    Authorizer
	log     *slog.Logger
	metrics *metrics
	maxBody int64
	maxDoc  int64
	timeout time.Duration
	routes  []resource
	buffers sync.Pool // of *[]byte, copyBufferBytes each
}

// call is one request on its way through the surface.
type call struct {
	w *recorder
	r *http.Request
	// ns and rest are the decoded names in the path; rest is the key of a value.
	ns, rest string
	q        params
	demands  Consistency // of a read
	route    string      // the metrics label
	code     kv.Code
	gone     bool // the client left before it was answered
	start    time.Time
}

func (s *surface) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: &recorder{ResponseWriter: w}, r: r, route: routeOther, start: time.Now()}
	defer s.finish(c)
	if err := s.serve(c); err != nil {
		s.fail(c, err)
	}
}

// serve authorises, routes and runs one call. An error that it returns has not been answered yet.
func (s *surface) serve(c *call) error {
	// Before routing, so that there is no route, known or not, that is not behind it.
	if s.auth != nil {
		if err := s.auth.Check(c.r); err != nil {
			return err
		}
	}
	ep, err := s.find(c)
	if err != nil {
		return err
	}
	c.route = ep.name
	if c.q, err = parseQuery(c.r.URL.RawQuery, ep.params); err != nil {
		return err
	}
	if c.demands, err = c.consistency(); err != nil {
		return err
	}
	return ep.run(s, c)
}

// fail answers err. When the answer has begun already, all that is left is to cut it, so that the client does not take
// it for complete.
func (s *surface) fail(c *call, err error) {
	s.note(c, err)
	if c.w.status != 0 {
		if !c.gone {
			s.log.Warn("answer cut short", "route", c.route, "sent", c.w.bytes, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	WriteError(c.w, c.r, err)
}

// note counts and logs the failure of a call.
func (s *surface) note(c *call, err error) {
	c.code = asError(err).Code
	c.gone = c.r.Context().Err() != nil
	switch {
	case c.gone:
		s.log.Debug("client went away", "route", c.route)
	case c.code == kv.CodeInternal:
		s.log.Error("request failed", "route", c.route, "err", err)
	case c.code == kv.CodeOutcomeUnknown:
		s.log.Warn("outcome of a write unknown", "route", c.route, "err", err)
	}
}

// finish counts and logs a call, and turns a panic into an answer when none has begun. It is deferred.
func (s *surface) finish(c *call) {
	p := recover()
	if p != nil && p != any(http.ErrAbortHandler) {
		s.log.Error("panic while serving", "route", c.route, "panic", p, "stack", string(debug.Stack()))
		c.code = kv.CodeInternal
		if c.w.status == 0 {
			WriteError(c.w, c.r, kv.Errorf(kv.CodeInternal, "%s", internalMessage))
			p = nil
		}
	}
	d := time.Since(c.start)
	s.metrics.observe(c, d)
	s.log.Debug("request", "route", c.route, "status", c.w.status, "code", c.code, "bytes", c.w.bytes, "duration", d)
	if p != nil {
		panic(http.ErrAbortHandler)
	}
}

var errNoProgress = errors.New("no progress within the time limit")

// idleContext returns a context that ends when touch has not been called for d, with the cause errNoProgress. stop
// releases it.
func idleContext(parent context.Context, d time.Duration) (ctx context.Context, touch, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	timer := time.AfterFunc(d, func() { cancel(errNoProgress) })
	return ctx, func() { timer.Reset(d) }, func() { timer.Stop(); cancel(nil) }
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int // 0 until the header is written
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
