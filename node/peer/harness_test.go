package peer

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"kvmesh/node/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a few nodes that hold one mesh key, on loopback or, inside a bubble, in memory.
type mesh struct {
	t         *testing.T
	authority *certs.Authority
	memory    bool

	mu    sync.Mutex // guards the two below
	addrs map[string]string
	pipes map[string]*pipeListener
}

func newMesh(t *testing.T, memory bool) *mesh {
	t.Helper()
	a, err := certs.NewMeshKey().Authority()
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{t: t, authority: a, memory: memory, addrs: map[string]string{}, pipes: map[string]*pipeListener{}}
}

func (m *mesh) issue(id, role string) tls.Certificate {
	m.t.Helper()
	c, err := m.authority.Issue(id, role)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// server starts the peer port of a node. setup registers what it serves. It stops with the test.
func (m *mesh) server(id string, o Options, setup func(*Server)) *Server {
	m.t.Helper()
	o.Authority, o.Cert = m.authority, m.issue(id, certs.RoleVoter)
	if m.memory {
		ln := &pipeListener{name: id, conns: make(chan net.Conn), closed: make(chan struct{})}
		m.mu.Lock()
		m.pipes[id] = ln
		m.mu.Unlock()
		o.Listener = ln
	} else if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	s, err := NewServer(o)
	if err != nil {
		m.t.Fatal(err)
	}
	setup(s)
	m.mu.Lock()
	m.addrs[id] = s.Addr().String()
	m.mu.Unlock()
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	m.t.Cleanup(func() {
		_ = s.Close(ended()) // cut what is left: a test that cares closes the server itself
		if err := <-served; err != nil {
			m.t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// dialer dials as node id.
func (m *mesh) dialer(id, role string) *Dialer {
	m.t.Helper()
	d := &Dialer{Authority: m.authority, Cert: m.issue(id, role), Resolve: m.resolve}
	if m.memory {
		d.DialContext = m.dialPipe
	}
	return d
}

// client calls as node "caller", an edge.
func (m *mesh) client(o ClientOptions) *Client {
	m.t.Helper()
	o.Dialer = m.dialer("caller", certs.RoleEdge)
	cl := NewClient(o)
	m.t.Cleanup(cl.Close)
	return cl
}

func (m *mesh) resolve(id string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr, ok := m.addrs[id]
	return addr, ok
}

func (m *mesh) dialPipe(ctx context.Context, _, addr string) (net.Conn, error) {
	m.mu.Lock()
	ln := m.pipes[addr]
	m.mu.Unlock()
	a, b := net.Pipe()
	select {
	case ln.conns <- b:
		return a, nil
	case <-ln.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pipeListener accepts the far ends of net.Pipe. It is its own address.
type pipeListener struct {
	name   string
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
func (l *pipeListener) Addr() net.Addr  { return l }
func (l *pipeListener) Network() string { return "pipe" }
func (l *pipeListener) String() string  { return l.name }

// ended is a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// patient is a context for what should work: it ends only when a test hangs.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// metric is the value of a counter or gauge whose label values are these; 0 when it has never been touched.
func metric(t *testing.T, reg prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, x := range f.GetMetric() {
			var values []string
			for _, l := range x.GetLabel() {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && slices.Equal(values, labels) {
				return x.GetCounter().GetValue() + x.GetGauge().GetValue()
			}
		}
	}
	return 0
}
