package node_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/nodetest"
)

// lines keeps what a node logs.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

// single starts one node by itself.
func single(t *testing.T, o node.Options, adapt func(*node.Node)) *node.Node {
	t.Helper()
	o.Region, o.Hasty, o.CacheBytes = "here", true, 8<<20
	o.HTTP, o.Peer, o.Gossip, o.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	n, err := node.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(t.Context()); err != nil {
			t.Log(err) // the context has ended: what is under way is cut
		}
	})
	if adapt != nil {
		adapt(n)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

// vote is what the leader says of a node's vote.
func vote(t *testing.T, c *nodetest.Client, id string) string {
	t.Helper()
	var doc api.Membership
	if err := json.Unmarshal(c.Must(t, 200, http.MethodGet, "/v1/cluster/members", nil).Body, &doc); err != nil {
		t.Fatal(err)
	}
	for _, row := range doc.Members {
		if row.ID == id {
			return row.Vote
		}
	}
	return ""
}

// TestVoteWaitsForLargeValues: a new voter that follows well but has large values to fetch gets no vote until it has them,
// and while a voter has some to fetch, no other one is removed.
func TestVoteWaitsForLargeValues(t *testing.T) {
	key, log := certs.NewMeshKey(), &lines{}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	first := single(t, node.Options{
		Role: certs.RoleVoter, Name: "first", DataDir: t.TempDir(), MeshKey: key, BootstrapExpect: 1, Logger: logger,
	}, nil)
	if err := first.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := nodetest.NewClient("first", first.HTTPURL())
	defer c.CloseIdle()

	var missing atomic.Int64
	missing.Store(3)
	second := single(t, node.Options{
		Role: certs.RoleVoter, Name: "second", DataDir: t.TempDir(), MeshKey: key, Join: []string{first.GossipAddr()},
	}, func(n *node.Node) { n.SetMissing(func() int { return int(missing.Load()) }) })
	nodetest.Eventually(t, nodetest.Patience, "the new voter is stable, and has to wait", func() error {
		if !log.has("it has 3 large values to fetch yet") {
			return fmt.Errorf("its vote is %q", vote(t, c, second.ID()))
		}
		return nil
	})
	if v := vote(t, c, second.ID()); v != api.VotePending {
		t.Fatalf("with values missing its vote is %q", v)
	}
	missing.Store(0)
	nodetest.Eventually(t, nodetest.Patience, "the vote", func() error {
		if v := vote(t, c, second.ID()); v != api.VoteYes {
			return fmt.Errorf("it is %q", v)
		}
		return nil
	})

	missing.Store(2)
	a, err := c.Do(t.Context(), http.MethodPost, "/v1/cluster/remove", []byte(`{"node":"first"}`))
	if err != nil || a.Status != http.StatusConflict || !strings.Contains(a.Err().Message, "2 large values") {
		t.Errorf("removed the voter that may have them: %v %v", a, err)
	}
	missing.Store(0)
	c.Must(t, 200, http.MethodPost, "/v1/cluster/remove", []byte(`{"node":"first"}`))
}

// TestLostStoreIsRefused: a member whose log is gone and whose id is not must not vote again as if it had never promised
// anything.
func TestLostStoreIsRefused(t *testing.T) {
	o := node.Options{Role: certs.RoleVoter, Name: "v", DataDir: t.TempDir(), MeshKey: certs.NewMeshKey(), BootstrapExpect: 1}
	n := single(t, o, nil)
	nodetest.Eventually(t, nodetest.Patience, "it knows that it is a member", func() error {
		_, err := os.Stat(filepath.Join(o.DataDir, "member"))
		return err
	})
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.DataDir, "store")); err != nil {
		t.Fatal(err)
	}
	o.Region, o.HTTP, o.Peer, o.Gossip, o.Admin = "here", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if n, err := node.New(o); err == nil || !strings.Contains(err.Error(), "Move the whole data directory aside") {
		t.Errorf("started without its log: %v %v", n, err)
	}
}
