package gossip_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/gossip"
	"kvmesh/gossip/gossiptest"
)

var (
	_ gossip.Network = (*gossiptest.Host)(nil)

	clusterA = strings.Repeat("aa", 16)
	clusterB = strings.Repeat("bb", 16)
)

// mesh is a number of nodes on one virtual network. Node i has the address 10.0.0.(i+1) and lives in region r(i mod 3).
type mesh struct {
	t     *testing.T
	net   *gossiptest.Net
	nodes []*node
}

type node struct {
	*gossip.Gossip
	ip  string
	log *logBuffer
	reg *prometheus.Registry

	mu    sync.Mutex // guards heard
	heard map[string]int
}

// logBuffer is a log that tests can search.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// inMesh runs f in virtual time and afterwards lets memberlist's last timers run out.
func inMesh(t *testing.T, f func(m *mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{t: t, net: gossiptest.New()}
		defer func() {
			m.net.Heal()
			m.net.SetLoss(0)
			var wg sync.WaitGroup
			for _, n := range m.nodes {
				wg.Go(func() {
					if err := n.Stop(t.Context()); err != nil {
						t.Errorf("stop: %v", err)
					}
				})
			}
			wg.Wait()
			time.Sleep(time.Minute)
		}()
		f(m)
	})
}

// add starts a node that is seeded by the first one.
func (m *mesh) add(change ...func(*gossip.Options)) *node {
	m.t.Helper()
	i := len(m.nodes)
	n := &node{
		ip: fmt.Sprintf("10.0.0.%d", i+1), log: &logBuffer{}, reg: prometheus.NewRegistry(), heard: make(map[string]int),
	}
	opts := gossip.Options{
		ID: fmt.Sprintf("node-%02d", i+1), Role: "edge", Region: fmt.Sprintf("r%d", i%3), Version: "test",
		HTTP: n.ip + ":8580", Peer: n.ip + ":8581", Bind: n.ip + ":8582", Seeds: []string{"10.0.0.1:8582"},
		Key: bytes.Repeat([]byte{7}, 32), Label: "label", Cluster: clusterA, Network: m.net.Host(n.ip),
		Logger: slog.New(slog.NewTextHandler(n.log, nil)), Metrics: n.reg,
		OnHint: func(p []byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.heard[string(p)]++
		},
	}
	for _, f := range change {
		f(&opts)
	}
	var err error
	if n.Gossip, err = gossip.New(opts); err != nil {
		m.t.Fatal(err)
	}
	m.nodes = append(m.nodes, n)
	if err := n.Start(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *mesh) grow(n int, change ...func(*gossip.Options)) {
	for range n {
		m.add(change...)
	}
}

// within waits for ok in steps of 50 ms and fails when it takes longer than limit; it returns how long it took.
func (m *mesh) within(limit time.Duration, what string, ok func() bool) time.Duration {
	m.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) >= limit {
			for _, n := range m.nodes {
				m.t.Logf("%s: %v", n.ip, states(n))
			}
			m.t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(start)
}

func states(n *node) map[gossip.State]int {
	out := make(map[gossip.State]int)
	for _, m := range n.Members() {
		out[m.State]++
	}
	return out
}

// whole reports whether each of the nodes sees want members alive.
func whole(nodes []*node, want int) func() bool {
	return func() bool {
		for _, n := range nodes {
			if states(n)[gossip.Alive] != want {
				return false
			}
		}
		return true
	}
}

// counter is the value of a metric for one value of its label.
func (n *node) counter(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}
