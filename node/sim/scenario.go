package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/simnet"
	"kvmesh/raftstore/kv"
)

// userIP is the host of the users who speak HTTP. It is no machine of the mesh, so no link to it is ever cut.
const userIP = "10.0.1.1"

// steady makes the network predictable: the usual delays, and nothing lost, doubled or overtaken.
func (w *world) steady() {
	w.net.SetLinks(func(from, to string) simnet.Link {
		l := w.link(from, to)
		return simnet.Link{Delay: l.Delay}
	})
}

// bigCaches is a tune: nothing is evicted, and nobody who was away is told less than exactly what he missed.
func bigCaches(o *node.Options) { o.CacheBytes, o.RingBytes, o.ChangeIndex = 16<<20, 0, 0 }

// named finds a machine.
func (w *world) named(name string) *machine {
	for _, m := range w.machines {
		if m.name == name {
			return m
		}
	}
	return nil
}

// only lists the machines of one role.
func (w *world) only(role string) (out []*machine) {
	for _, m := range w.machines {
		if m.role == role {
			out = append(out, m)
		}
	}
	return out
}

func (w *world) edges() []*machine { return w.only(certs.RoleEdge) }

// put writes a key through a machine, and notes it.
func (w *world) put(ctx context.Context, m *machine, ns kv.Namespace, key, value string) (api.WriteResult, error) {
	w.history.sending(key, value)
	res, err := m.running().Service().Put(ctx, api.PutRequest{
		Namespace: ns, Key: key, Body: strings.NewReader(value), Size: int64(len(value)),
	})
	w.history.wrote(m.name, key, value, res, err)
	return res, err
}

// get reads a key through a machine, and holds the answer against the history.
func (w *world) get(ctx context.Context, m *machine, ns kv.Namespace, key string, ttl time.Duration, k api.Consistency) (*api.Value, string, error) {
	start := time.Now()
	v, value, err := get(ctx, m.running(), ns, key, ttl, k)
	if err == nil {
		w.history.read(m.name, key, start, demand{k, ttl}, v, value)
	}
	return v, value, err
}

// metric sums the counters and gauges of a name over all labels, or over those that have all of the given "name=value".
func (m *machine) metric(name string, labels ...string) (sum float64) {
	families, err := m.running().Metrics().Gather()
	if err != nil {
		return -1
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, s := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range s.GetLabel() {
					found = found || l.GetName()+"="+l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
		}
	}
	return sum
}

// answer is what an HTTP client got.
type answer struct {
	status int
	header http.Header
	body   string
}

// http sends one request to a machine's public port, as a user would. Headers come as name, value, name, value.
func (w *world) http(ctx context.Context, m *machine, method, path, body string, headers ...string) (answer, error) {
	host := w.net.Host(userIP)
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return host.Dial(ctx, addr) },
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.opts.HTTP+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}, errors.Join(err, res.Body.Close())
}

// feedGate can cut the feeds that a machine follows, and nothing else. What a connection is for is told in clear by the
// first thing that is written to it, the protocol list of the TLS ClientHello (RFC 7301).
type feedGate struct {
	mu    sync.Mutex // guards all below
	shut  bool
	conns map[*gatedConn]struct{} // feeds
}

// gateFeeds puts a gate before a machine that has not been started yet.
func gateFeeds(m *machine) *feedGate {
	g := &feedGate{conns: make(map[*gatedConn]struct{})}
	dial := m.opts.Env.Dial
	m.opts.Env.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &gatedConn{Conn: c, gate: g}, nil
	}
	return g
}

// set shuts the gate, and resets the feeds that run, or opens it.
func (g *feedGate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if shut {
		for c := range g.conns {
			_ = c.Conn.Close() // it is a reset: nobody is told anything
		}
		clear(g.conns)
	}
}

type gatedConn struct {
	net.Conn
	gate *feedGate
	said bool // the first write was seen; only the writer of the handshake touches it
}

// Write implements net.Conn.
func (c *gatedConn) Write(p []byte) (int, error) {
	if !c.said {
		c.said = true
		if bytes.Contains(p, []byte(peer.ALPNFeed)) {
			c.gate.mu.Lock()
			shut := c.gate.shut
			if !shut {
				c.gate.conns[c] = struct{}{}
			}
			c.gate.mu.Unlock()
			if shut {
				return 0, syscall.ECONNRESET
			}
		}
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
