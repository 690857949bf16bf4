package cfbind

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

const (
	// headerNamespace names the namespace of a request, by id or title, and makes it one of this surface.
	headerNamespace = "Kv-Namespace"
	// MiniflarePath is where Miniflare's remote form is served; the namespace follows as one escaped segment.
	MiniflarePath = "/v1/miniflare/"
)

// Options are the parts of the surface. Only Service is required.
type Options struct {
	Service api.Service
	// Auth is asked before anything else about every request; nil allows all.
	Auth api.Authorizer
	// Writes refuses writes of a key that follow each other too fast; nil allows all.
	Writes *cfkv.WriteLimit
	Logger *slog.Logger // nil = discard
	// Metrics takes this surface's metrics, which carry the label surface="binding"; nil = not exported.
	Metrics prometheus.Registerer
	// Timeout ends a call, or the body of one, that makes no progress; 0 = api.DefaultTimeout.
	Timeout time.Duration
}

// Handler serves the binding's requests.
type Handler struct {
	svc     api.Service
	auth    api.Authorizer
	writes  *cfkv.WriteLimit
	frame   *api.Frame
	timeout time.Duration
}

// New returns the surface. It panics when its metrics are registered already.
func New(o Options) *Handler {
	h := &Handler{svc: o.Service, auth: o.Auth, writes: o.Writes, timeout: o.Timeout}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if h.timeout == 0 {
		h.timeout = api.DefaultTimeout
	}
	h.frame = api.NewFrame("binding", log, o.Metrics, answerError)
	return h
}

// Count returns the counters of one route, for answers that are given outside of the handler.
func (h *Handler) Count(route string) *api.Count { return h.frame.Count(route) }

// Before returns a handler that serves the binding's requests itself and gives all others to next.
func (h *Handler) Before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, named := r.Header[headerNamespace]
		if named || strings.HasPrefix(r.URL.Path, MiniflarePath) {
			h.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ServeHTTP answers one request of the binding, in either form.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{}
	h.frame.Serve(&c.Exchange, w, r, func() error { return h.serve(c) })
}

// call is one request on its way through the surface.
type call struct {
	api.Exchange
	// What the binding sent, whichever way it came. The body is the request's.
	url    *url.URL
	header http.Header
	// ns names the namespace; segment is the path without its first slash, still escaped.
	ns, segment string
	query       query
}

// The names of calls in metrics and logs.
const (
	RouteGet     = "binding_get"
	routePut     = "binding_put"
	routeDelete  = "binding_delete"
	routeList    = "binding_list"
	routeBulkGet = "binding_bulk_get"
)

func (h *Handler) serve(c *call) error {
	r := c.Request()
	if h.auth != nil {
		if err := h.auth.Check(r); err != nil {
			return err
		}
	}
	var err error
	if refs, named := r.Header[headerNamespace]; named {
		c.url, c.header = r.URL, r.Header
		c.ns, err = namespaceRef(refs)
	} else {
		err = c.unwrap()
	}
	if err != nil {
		return err
	}
	path := api.RawPath(c.url)
	if !strings.HasPrefix(path, "/") {
		return kv.Errorf(kv.CodeNotFound, "the binding has no path like this one; a key is one segment of it, percent-encoded")
	}
	c.segment, c.query = path[1:], parseQuery(c.url.RawQuery)
	run, err := h.route(c)
	if err != nil {
		return err
	}
	return run(c)
}

// route finds the call that a request makes. What is none of the binding's is never answered with 404, which a Worker
// takes for a key that does not exist.
func (h *Handler) route(c *call) (func(*call) error, error) {
	type endpoint struct {
		name string
		run  func(*call) error
	}
	calls := map[string]endpoint{
		http.MethodGet:    {RouteGet, h.get},
		http.MethodPut:    {routePut, h.put},
		http.MethodDelete: {routeDelete, h.delete},
	}
	switch {
	case c.segment == "":
		calls[http.MethodGet] = endpoint{routeList, h.list}
	case c.segment == "bulk/get":
		calls = map[string]endpoint{http.MethodPost: {routeBulkGet, h.bulkGet}}
	case strings.Contains(c.segment, "/"):
		return nil, kv.Errorf(kv.CodeNotFound, "a key is one segment of the path; write / within it as %%2F")
	}
	ep, ok := calls[c.Request().Method]
	if !ok {
		allow := "DELETE, GET, PUT"
		if len(calls) == 1 {
			allow = http.MethodPost
		}
		c.Writer().Header().Set("Allow", allow)
		return nil, kv.Errorf(kv.CodeMethodNotAllowed, "Method Not Allowed")
	}
	c.SetRoute(ep.name)
	return ep.run, nil
}

// namespaceRef takes the namespace from the values of its header.
func namespaceRef(refs []string) (string, error) {
	if len(refs) != 1 {
		return "", kv.FieldErrorf(kv.CodeInvalidParameter, headerNamespace,
			"the header %s is given %d times; give it once", headerNamespace, len(refs))
	}
	return refs[0], nil
}

// namespace resolves the namespace of a call.
func (h *Handler) namespace(ctx context.Context, c *call) (kv.Namespace, error) {
	if err := api.ValidateNamespaceRef(c.ns); err != nil {
		return kv.Namespace{}, err
	}
	return h.svc.Namespace(ctx, c.ns)
}

// ask returns the context of a question to the service, which ends with the request or after the time limit.
func (h *Handler) ask(c *call) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Request().Context(), h.timeout)
}

// key decodes and checks the key in the path: percent-decoded once when urlencoded=true, else taken as it stands.
func (c *call) key() (string, error) {
	key := c.segment
	if encoded, _ := c.query.get("urlencoded"); strings.EqualFold(encoded, "true") {
		var err error
		if key, err = url.PathUnescape(key); err != nil {
			return "", refuse(cfkv.BadKeyEncoding())
		}
	}
	return key, refuse(cfkv.CheckKey(key))
}
