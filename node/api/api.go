package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
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
func New(o Options) *Surface {
	s := &surface{
		svc: o.Service, admin: o.Admin, backups: o.Backups, auth: o.Auth, log: o.Logger,
		maxBody: o.MaxBody, maxDoc: o.MaxDoc, timeout: o.Timeout,
		routes:  routes(),
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBufferBytes); return &b }},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.frame = NewFrame("native", s.log, o.Metrics, WriteError)
	s.metrics = s.frame.metrics
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

// Surface is the handler of the native surface.
type Surface = surface

// Count returns the counters of one route, for answers that are given outside of the handler.
func (s *surface) Count(route string) *Count { return s.frame.Count(route) }

// surface is the handler.
type surface struct {
	svc     Service
	admin   ClusterAdmin
	backups Backups // may be nil
	auth    Authorizer
	log     *slog.Logger
	frame   *Frame
	metrics *metrics // of frame
	maxBody int64
	maxDoc  int64
	timeout time.Duration
	routes  []resource
	buffers sync.Pool // of *[]byte, copyBufferBytes each
}

// call is one request on its way through the surface.
type call struct {
	Exchange
	// ns and rest are the decoded names in the path; rest is the key of a value.
	ns, rest string
	q        params
	demands  Consistency // of a read
}

func (s *surface) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{}
	s.frame.Serve(&c.Exchange, w, r, func() error { return s.serve(c) })
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

// note counts and logs the failure of a call.
func (s *surface) note(c *call, err error) { s.frame.Note(&c.Exchange, err) }

var errNoProgress = errors.New("no progress within the time limit")

// idleContext returns a context that ends when touch has not been called for d, with the cause errNoProgress. stop
// releases it.
func idleContext(parent context.Context, d time.Duration) (ctx context.Context, touch, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	timer := time.AfterFunc(d, func() { cancel(errNoProgress) })
	return ctx, func() { timer.Reset(d) }, func() { timer.Stop(); cancel(nil) }
}
