package hitpath

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/node/cfbind"
	"kvmesh/node/cfrest"
	"kvmesh/raftstore/kv"
)

const (
	token   = "0123456789abcdef-token"
	spaceID = "0123456789abcdef0123456789abcdef"
)

var (
	epoch = kv.Epoch{0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xde, 0xad, 0xbe, 0xef}
	space = kv.Namespace{ID: mustID(spaceID), Title: "default"}
	now   = time.Unix(1_900_000_000, 500_000_000)
)

func mustID(s string) kv.NamespaceID {
	id, err := kv.ParseNamespaceID(s)
	if err != nil {
		panic(err)
	}
	return id
}

// fake is a node: what it holds in memory, and its service.
type fake struct {
	api.Service // what is not overridden is not called
	held        map[string]api.Value
	cold        map[string]api.Value
	hits        atomic.Int64
	failing     error
	waiting     chan struct{} // a read of "slow" waits for it
}

func newFake() *fake {
	value := func(text string, change func(*api.Value)) api.Value {
		v := api.Value{
			Epoch: epoch, Revision: 7, AsOf: 12, Size: int64(len(text)), Bytes: []byte(text),
			Tier: api.TierHit, Staleness: 1_234_500 * time.Microsecond,
		}
		if change != nil {
			change(&v)
		}
		return v
	}
	same := func(*api.Value) {}
	f := &fake{
		waiting: make(chan struct{}),
		failing: &kv.Error{Code: kv.CodeUnavailable, RetryAfter: 3 * time.Second, Message: "nobody\r\nanswers"},
		held: map[string]api.Value{
			"k":     value("value of k", same),
			"a/b":   value("value of a/b", same),
			"ü z":   value("value of ü z", same),
			"a%2Fb": value("value of a%2Fb", same),
			"k+":    value("a plus", same),
			"empty": value("", same),
			"stale": value("old", func(v *api.Value) { v.Tier = api.TierStale }),
			"aged":  value("a minute old", func(v *api.Value) { v.Staleness = time.Minute }),
			"older": value("older", func(v *api.Value) { v.Staleness = time.Minute + 1 }),
			"now":   value("just proven", func(v *api.Value) { v.Staleness = 0 }),
			"first": value("of no epoch", func(v *api.Value) { v.Epoch = kv.Epoch{} }),
			"exp":   value("expires", func(v *api.Value) { v.Expiry = now.Unix() + 60 }),
			"meta":  value("with metadata", func(v *api.Value) { v.Metadata = []byte(`{"a":"b c"}`) }),
			"uni":   value("with metadata", func(v *api.Value) { v.Metadata = []byte(`{"ü":"€😀"}`) }),
			"del":   value("with metadata", func(v *api.Value) { v.Metadata = []byte("\"a\x7fb\"") }),
			"long":  value("with metadata", func(v *api.Value) { v.Metadata = []byte(`"` + strings.Repeat("m", 1022) + `"`) }),
			"16K":   value(strings.Repeat("x", 16<<10), same),
			"20K":   value(strings.Repeat("0123456789", 2<<10), same),
			"300K":  value(strings.Repeat("abcdefghij", 30<<10), same),
			"lying": value("abc", func(v *api.Value) { v.Size = 4 }),
		},
		cold: map[string]api.Value{
			"missed": value("from the store", func(v *api.Value) { v.Tier = api.TierStore }),
			"gone":   value("", func(v *api.Value) { v.Absent, v.Revision = true, 0 }),
			"late":   value("expired", func(v *api.Value) { v.Expiry = now.Unix() }),
			"reason": value("old", func(v *api.Value) { v.Tier, v.StaleReason, v.Staleness = api.TierStale, "no quorum", -1 }),
			"stream": value(strings.Repeat("s", 100_000), func(v *api.Value) {
				text := v.Bytes
				v.Bytes, v.Open = nil, func(_ context.Context, at, n int64) (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(text[at : at+n])), nil
				}
			}),
			"broken": value("", func(v *api.Value) {
				v.Size, v.Bytes, v.Open = 1000, nil, func(context.Context, int64, int64) (io.ReadCloser, error) {
					return io.NopCloser(io.MultiReader(strings.NewReader("part"), failingReader{})), nil
				}
			}),
		},
	}
	for key, v := range f.held {
		f.cold[key] = v
	}
	return f
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func (f *fake) Namespace(ref []byte, byID bool) (kv.NamespaceID, bool) {
	return space.ID, string(ref) == spaceID || (!byID && string(ref) == space.Title)
}

func (f *fake) Held(v *api.Value, ns kv.NamespaceID, key []byte, limit time.Duration) bool {
	if ns != space.ID {
		return false
	}
	held, ok := f.held[string(key)]
	if ok = ok && held.Staleness <= limit; ok {
		*v = held
		f.hits.Add(1)
	}
	return ok
}

// service is the node as its handlers see it.
type service struct{ *fake }

func (s service) Namespace(_ context.Context, ref string) (kv.Namespace, error) {
	if _, ok := s.fake.Namespace([]byte(ref), false); !ok {
		return kv.Namespace{}, kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace", "there is no namespace %q", ref)
	}
	return space, nil
}

func (s service) Namespaces(context.Context) ([]kv.Namespace, error) {
	return []kv.Namespace{space}, nil
}

func (s service) MeshTime() time.Time { return now }

func (s service) Get(ctx context.Context, req api.GetRequest) (*api.Value, error) {
	switch v, ok := s.cold[req.Key]; {
	case req.Key == "slow":
		select {
		case <-s.waiting:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		fallthrough
	case req.Key == "failing":
		return nil, s.failing
	case req.Key == "panic":
		panic("planted")
	case ok:
		if v.Tier == api.TierHit && v.Staleness > req.CacheTTL {
			v.Tier, v.Staleness = api.TierRegion, 0
		}
		return &v, nil
	}
	return &api.Value{Absent: true, Epoch: epoch, AsOf: 12, Tier: api.TierCentral, Staleness: time.Second}, nil
}

func (s service) List(context.Context, api.ListRequest) (*api.ListPage, error) {
	return &api.ListPage{Keys: []api.ListKey{{Name: "k", Revision: 7}}, Complete: true, Epoch: epoch, AsOf: 12}, nil
}

func (s service) Put(_ context.Context, req api.PutRequest) (api.WriteResult, error) {
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return api.WriteResult{}, err
	}
	return api.WriteResult{Epoch: epoch, Revision: 13, AsOf: 13}, nil
}

// checker is the token that lets requests in.
type checker struct{}

func (checker) Check(r *http.Request) error {
	if v := r.Header.Values("Authorization"); len(v) != 1 || !(checker{}).accepts([]byte(v[0])) {
		return kv.FieldErrorf(kv.CodeUnauthorized, "Authorization", "no token")
	}
	return nil
}

func (checker) accepts(v []byte) bool { return string(v) == "Bearer "+token }

// surfaces are the three surfaces over s, as a node joins them.
func surfaces(f *fake, auth api.Authorizer, reg prometheus.Registerer) (http.Handler, Counts) {
	native := api.New(api.Options{Service: service{f}, Auth: auth, Metrics: reg})
	rest := cfrest.New(cfrest.Options{Service: service{f}, Auth: auth, Metrics: reg})
	binding := cfbind.New(cfbind.Options{Service: service{f}, Auth: auth, Metrics: reg})
	counts := Counts{
		Native: native.Count(api.RouteGet), NativeHead: native.Count(api.RouteHead),
		REST: rest.Count(cfrest.RouteGet), Binding: binding.Count(cfbind.RouteGet),
	}
	return binding.Before(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, cfrest.Root+"/") {
			rest.ServeHTTP(w, r)
			return
		}
		native.ServeHTTP(w, r)
	})), counts
}

// pair is the same node twice: behind the path, and behind net/http alone.
type pair struct {
	fake                *fake
	path                *Server
	metrics, stdMetrics *prometheus.Registry
	fast, std           *listener
}

// server is what both sides are.
type server interface {
	Serve(l net.Listener) error
	Close() error
}

func newPair(t testing.TB, withToken bool) *pair {
	f := newFake()
	var auth api.Authorizer
	var accepts func([]byte) bool
	if withToken {
		auth, accepts = checker{}, checker{}.accepts
	}
	p := &pair{
		fake: f, metrics: prometheus.NewRegistry(), stdMetrics: prometheus.NewRegistry(), fast: newListener(), std: newListener(),
	}
	h, counts := surfaces(f, auth, p.metrics)
	alone, _ := surfaces(f, auth, p.stdMetrics)
	p.path = New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Accepts: accepts, Counts: counts,
		Metrics: p.metrics,
	})
	start := func(s server, l *listener) {
		done := make(chan error, 1)
		go func() { done <- s.Serve(api.LimitListener(l, 0)) }()
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		})
	}
	start(p.path, p.fast)
	start(api.NewServer(alone, api.ServerOptions{}), p.std)
	return p
}

// handed is how many connections the path has handed over.
func (p *pair) handed(t testing.TB) (n float64) {
	t.Helper()
	all, err := p.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		if family.GetName() == "kvmesh_hitpath_connections_handed_over_total" {
			for _, m := range family.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// same sends the same bytes, in the same pieces, to both and compares everything that comes back until the end.
func (p *pair) same(t testing.TB, pieces ...[]byte) (answer string) {
	t.Helper()
	want, got := p.std.send(t, pieces), p.fast.send(t, pieces)
	if got != want {
		t.Fatalf("sent %s\nthe path answers\n%.1500q\nnet/http alone\n%.1500q", shown(pieces), got, want)
	}
	return got
}

func shown(pieces [][]byte) string {
	var b strings.Builder
	for _, p := range pieces {
		b.WriteString("\n  " + strings.TrimSpace(string(appendQuoted(nil, p))))
	}
	return b.String()
}

func appendQuoted(b, p []byte) []byte {
	if len(p) > 1000 {
		p = p[:1000]
	}
	return append(b, strings.ReplaceAll(string(p), "\r\n", "␍␊")...)
}

var dateLine = regexp.MustCompile(`Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n`)

var tookTime = regexp.MustCompile(`;dur=\d+\.\d{3}`)

// masked is an answer without what is not the same twice.
func masked(answer string) string {
	return tookTime.ReplaceAllString(dateLine.ReplaceAllString(answer, "Date: now\r\n"), ";dur=0")
}

// listener hands out scripted connections.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// send plays a client that sends pieces and then ends its side, and returns what it was sent, the dates masked.
func (l *listener) send(t testing.TB, pieces [][]byte) string {
	t.Helper()
	c := &scripted{pieces: pieces, closed: make(chan struct{})}
	l.conns <- c
	select {
	case <-c.closed:
	case <-time.After(time.Minute):
		t.Fatalf("sent %s\nthe connection is still open after a minute; so far %q", shown(pieces), c.output())
	}
	return masked(c.output())
}

// scripted is a connection whose client has sent everything that it will ever send.
type scripted struct {
	mu     sync.Mutex // guards what follows
	piece  []byte
	pieces [][]byte
	out    bytes.Buffer
	once   sync.Once
	closed chan struct{}
}

func (c *scripted) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.piece) == 0 {
		if len(c.pieces) == 0 {
			return 0, io.EOF
		}
		c.piece, c.pieces = c.pieces[0], c.pieces[1:]
	}
	n := copy(p, c.piece)
	c.piece = c.piece[n:]
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *scripted) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *scripted) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *scripted) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
