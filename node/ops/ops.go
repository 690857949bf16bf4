// Package ops is the admin listener of a node: whether it lives, whether it is ready for traffic, its metrics and its
// profiles. It decides nothing; the checks and the registry are given to it. Serve it with api.NewServer.
package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof" // its init also registers on http.DefaultServeMux, which no listener of kvmesh serves
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

const (
	// DefaultCheckTimeout bounds one /readyz: probes of load balancers give up after one to five seconds.
	DefaultCheckTimeout = time.Second
	// maxScrapes is how many /metrics are answered at once; each gathers everything.
	maxScrapes = 4
)

// Check is one condition of readiness.
type Check struct {
	// Name is shown in the answer of /readyz, which needs no token.
	Name string
	// Run returns nil when the condition holds. Its error's text is shown. It is called concurrently, with itself too,
	// and must return soon after ctx ends.
	Run func(ctx context.Context) error
}

// Options are the parts of the admin listener.
type Options struct {
	Checks []Check
	// Auth is asked about everything but /livez and /readyz; nil allows all.
	Auth api.Authorizer
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	Logger  *slog.Logger // nil = discard
	// CheckTimeout bounds one /readyz; 0 = DefaultCheckTimeout.
	CheckTimeout time.Duration
}

// Handler serves the admin listener. It is safe for concurrent use.
type Handler struct {
	checks   []Check
	auth     api.Authorizer
	timeout  time.Duration
	log      *slog.Logger
	routes   map[string]route
	draining atomic.Bool
}

// route is one path. A path that ends in a slash takes everything below it.
type route struct {
	open    bool // needs no token
	methods []string
	serve   http.HandlerFunc
}

// New returns the handler of the admin listener. Without Metrics, /metrics is empty.
func New(o Options) *Handler {
	h := &Handler{checks: o.Checks, auth: o.Auth, timeout: o.CheckTimeout, log: o.Logger}
	if h.timeout == 0 {
		h.timeout = DefaultCheckTimeout
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	metrics := promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(h.log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
	})
	get := []string{http.MethodGet, http.MethodHead}
	h.routes = map[string]route{
		"/livez":               {open: true, methods: get, serve: h.livez},
		"/readyz":              {open: true, methods: get, serve: h.readyz},
		"/metrics":             {methods: get, serve: metrics.ServeHTTP},
		"/debug/pprof/":        {methods: get, serve: pprof.Index},
		"/debug/pprof/cmdline": {methods: get, serve: pprof.Cmdline},
		"/debug/pprof/profile": {methods: get, serve: pprof.Profile},
		"/debug/pprof/symbol":  {methods: append(get, http.MethodPost), serve: pprof.Symbol},
		"/debug/pprof/trace":   {methods: get, serve: pprof.Trace},
	}
	return h
}

// SetDraining makes /readyz fail while it is true, whatever the checks say, so that load balancers look elsewhere
// before the node stops.
func (h *Handler) SetDraining(draining bool) { h.draining.Store(draining) }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	rt, found := h.find(r.URL.Path)
	// Unknown paths ask for the token too: what exists here is nobody else's business.
	if h.auth != nil && !rt.open {
		if err := h.auth.Check(r); err != nil {
			api.WriteError(w, r, err)
			return
		}
	}
	switch {
	case !found:
		api.WriteError(w, r, kv.Errorf(kv.CodeNotFound, "there is no such path; there are %s",
			strings.Join(slices.Sorted(maps.Keys(h.routes)), ", ")))
	case !slices.Contains(rt.methods, r.Method):
		allow := strings.Join(rt.methods, ", ")
		header.Set("Allow", allow)
		api.WriteError(w, r, kv.Errorf(kv.CodeMethodNotAllowed, "%s takes %s", r.URL.Path, allow))
	default:
		rt.serve(w, r)
	}
}

// find returns the route of a path: its own, or the one of the directory that it lies in.
func (h *Handler) find(path string) (route, bool) {
	if rt, ok := h.routes[path]; ok {
		return rt, true
	}
	rt, ok := h.routes[path[:strings.LastIndexByte(path, '/')+1]]
	return rt, ok
}

// livez says that the process runs and answers; that is all that a supervisor may restart it for.
func (h *Handler) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // an error means that the client has gone
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Failing has the failing checks by name, with the reason.
	Failing map[string]string `json:"failing,omitempty"`
}

func (h *Handler) readyz(w http.ResponseWriter, r *http.Request) {
	failing := h.run(r.Context())
	if h.draining.Load() {
		failing["draining"] = "the node is stopping"
	}
	body, err := json.Marshal(readiness{Ready: len(failing) == 0, Failing: failing})
	if err != nil {
		api.WriteError(w, r, fmt.Errorf("readyz: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if len(failing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(body, '\n')) // an error means that the client has gone
}

// run runs all checks side by side and returns the failing ones. It waits for every one of them.
func (h *Handler) run(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	errs := make([]error, len(h.checks))
	var wg sync.WaitGroup
	for i, check := range h.checks {
		wg.Go(func() { errs[i] = h.one(ctx, check) })
	}
	wg.Wait()
	failing := make(map[string]string)
	for i, err := range errs {
		if err != nil {
			failing[h.checks[i].Name] = err.Error()
		}
	}
	return failing
}

// one runs one check. A panic in it must not end the process: it is a check that does not hold.
func (h *Handler) one(ctx context.Context, check Check) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("panic in a readiness check", "check", check.Name, "panic", p)
			err = fmt.Errorf("the check failed: %v", p)
		}
	}()
	return check.Run(ctx)
}
