package cfrest

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
)

// Root is the path that the surface serves everything below.
const Root = "/client/v4"

const (
	// copyBufferBytes is the memory that one streamed value takes.
	copyBufferBytes = 64 << 10
	// maxDrain is how much of a refused body is read before the answer, so that clients which send all of it before they
	// listen hear why: a value with its form, or a part of a bulk call.
	maxDrain = 32 << 20
)

// Account is the one account that a mesh shows.
type Account struct {
	ID   string // 32 hex digits
	Name string
}

// Options are the parts of the surface. Service is required.
type Options struct {
	Service api.Service
	// Auth is asked before anything else about every request; nil allows all. A key in X-Auth-Key or
	// X-Auth-User-Service-Key reaches it as a bearer token.
	Auth api.Authorizer
	// Account is what GET /accounts and /memberships show; nil = an id of zeros.
	Account func() Account
	// Limit refuses a second write to a key within a second; nil allows all.
	Limit   *cfkv.WriteLimit
	Logger  *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // takes metrics with the label surface="rest"; nil = not exported
	// MaxBulk is the largest body of a bulk call in bytes; 0 = cfkv.MaxBulkBytes. BulkMemory is what all bulk calls together
	// may hold; 0 = 256 MiB.
	MaxBulk, BulkMemory int64
	// Timeout ends a call, or the body of one, that makes no progress; 0 = api.DefaultTimeout.
	Timeout time.Duration
}

// New returns the handler of the surface. It panics when the metrics are registered already.
func New(o Options) *Surface {
	s := &surface{
		svc: o.Service, auth: o.Auth, account: o.Account, limit: o.Limit, maxBulk: o.MaxBulk, timeout: o.Timeout,
		routes:  routes(),
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBufferBytes); return &b }},
	}
	if s.account == nil {
		s.account = func() Account { return Account{ID: "00000000000000000000000000000000", Name: "kvmesh"} }
	}
	if s.maxBulk == 0 {
		s.maxBulk = cfkv.MaxBulkBytes
	}
	if s.timeout == 0 {
		s.timeout = api.DefaultTimeout
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s.log = log
	s.memory = newBudget(o.BulkMemory)
	s.frame = api.NewFrame("rest", log, o.Metrics, answerError)
	return s
}

// Surface is the handler of this surface.
type Surface = surface

// Count returns the counters of one route, for answers that are given outside of the handler.
func (s *surface) Count(route string) *api.Count { return s.frame.Count(route) }

// surface is the handler.
type surface struct {
	svc     api.Service
	auth    api.Authorizer
	account func() Account
	limit   *cfkv.WriteLimit
	log     *slog.Logger
	frame   *api.Frame
	memory  *budget
	routes  []resource
	maxBulk int64
	timeout time.Duration
	buffers sync.Pool // of *[]byte, copyBufferBytes each
}

// call is one request on its way through the surface.
type call struct {
	api.Exchange
	w http.ResponseWriter
	r *http.Request
	// op names the call in the texts of errors.
	op string
	// account, ns and key are the decoded names in the path.
	account, ns, key string
	q                url.Values
}

func (s *surface) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{}
	s.frame.Serve(&c.Exchange, w, r, func() error {
		c.w, c.r = c.Writer(), c.Request()
		if err := s.serve(c); err != nil {
			return c.told(err)
		}
		return nil
	})
}

// serve authorises, routes and runs one call. An error that it returns has not been answered yet.
func (s *surface) serve(c *call) error {
	path := subPath(c.r.URL)
	// Before routing, so that there is no route, known or not, that is not behind it.
	if err := s.authorise(c.r, path); err != nil {
		return err
	}
	ep, err := s.find(c, path)
	if err != nil {
		return err
	}
	c.SetRoute(ep.name)
	c.op = ep.op
	if c.q, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return invalid("", "the query cannot be read: %v", err)
	}
	return ep.run(s, c)
}

// ask returns the context of a question to the service, which ends with the request or after s.timeout.
func (s *surface) ask(c *call) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.r.Context(), s.timeout)
}
