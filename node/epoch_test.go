package node_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
)

// TestNewEpoch begins new epochs, at an edge and at a voter, in a mesh that is being written and read. Every node adopts
// them, keys stay readable, nothing given before means anything any more, and no node's answers go back.
func TestNewEpoch(t *testing.T) {
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"us-east", "eu-west", "ap-south"}, Voters: 3, EdgesPerRegion: 1, Patient: true})
	nodes := nodetest.Clients(m)
	const target = "/v1/kv/default/k"
	put := nodes[0].Must(t, 200, http.MethodPut, target, []byte("before"))
	for _, c := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the first value", func() error { return c.Sees(t.Context(), target, []byte("before")) })
	}
	begin := func(i int) {
		t.Helper()
		status, err := nodes[i].Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		etag, bookmark := put.Header.Get("ETag"), put.Header.Get("Kv-Bookmark")
		if !strings.HasPrefix(bookmark, status.Epoch) {
			t.Fatalf("%s: bookmark %s in epoch %s", nodes[i].Name, bookmark, status.Epoch)
		}
		if err := m.Nodes[i].NewEpoch(t.Context()); err != nil {
			t.Fatalf("%s: %v", nodes[i].Name, err)
		}
		inNewEpoch(t, nodes, status.Epoch)
		value := []byte("after " + status.Epoch)
		for _, c := range nodes {
			checkOldPosition(t, c, target, etag, bookmark)
		}
		put = nodes[(i+1)%len(nodes)].Must(t, 200, http.MethodPut, target, value)
		for _, c := range nodes {
			nodetest.Eventually(t, nodetest.Patience, "a write in the new epoch", func() error { return c.Sees(t.Context(), target, value) })
		}
	}
	stop := traffic(t, nodes)
	for i, mem := range m.Members {
		if i == 0 || mem.Role == certs.RoleVoter {
			begin(i)
		}
	}
	stop()
	begin(1) // now nothing but the command itself tells of it
}

// inNewEpoch waits until all nodes are in one epoch, greater than old, and the feed has brought them all the way in it:
// what was read is a hit again, proven by it.
func inNewEpoch(t *testing.T, nodes []*nodetest.Client, old string) {
	t.Helper()
	var epoch string
	var revision uint64
	for i, c := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the new epoch", func() error {
			s, err := c.Cluster(t.Context())
			if err == nil && (s.Epoch <= old || (i > 0 && s.Epoch != epoch)) {
				err = fmt.Errorf("%s is in epoch %s, want %s, after %s", c.Name, s.Epoch, epoch, old)
			}
			if i == 0 {
				epoch, revision = s.Epoch, s.Revision
			}
			return err
		})
	}
	for _, c := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the feed in the new epoch", func() error {
			s, err := c.Cluster(t.Context())
			for _, mem := range s.Members {
				if err == nil && mem.ID == s.Self && mem.W < revision {
					err = fmt.Errorf("%s is at %d, want %d", c.Name, mem.W, revision)
				}
			}
			return err
		})
		nodetest.Eventually(t, nodetest.Patience, "a hit proven in the new epoch", func() error {
			a, err := c.Do(t.Context(), http.MethodGet, "/v1/kv/default/k", nil, "Kv-Max-Staleness", "5000")
			if err == nil && (a.Status != 200 || a.Header.Get("Kv-Cache") != "hit" || !strings.HasPrefix(a.Header.Get("Kv-Bookmark"), epoch)) {
				err = fmt.Errorf("%s: %v, bookmark %s", c.Name, a, a.Header.Get("Kv-Bookmark"))
			}
			return err
		})
	}
}

// checkOldPosition: an ETag of a superseded epoch matches nothing, a bookmark of one is read strongly.
func checkOldPosition(t *testing.T, c *nodetest.Client, target, etag, bookmark string) {
	t.Helper()
	c.Must(t, http.StatusPreconditionFailed, http.MethodPut, target, []byte("lost"), "If-Match", etag)
	c.Must(t, http.StatusPreconditionFailed, http.MethodDelete, target, nil, "If-Match", etag)
	a := c.Must(t, 200, http.MethodGet, target, nil, "Kv-Bookmark", bookmark)
	_, rev, _ := strings.Cut(etag, "-")
	if now := a.Header.Get("ETag"); now == etag || !strings.HasSuffix(now, "-"+rev) {
		t.Errorf("%s: ETag %s, before it was %s: the same write, in another epoch", c.Name, now, etag)
	}
	if tier := a.Header.Get("Kv-Cache"); tier != "store" {
		t.Errorf("%s: a bookmark of an old epoch was answered by %q", c.Name, tier)
	}
	if b := a.Header.Get("Kv-Bookmark"); strings.HasPrefix(b, bookmark[:32]) {
		t.Errorf("%s: bookmark %s is of the old epoch", c.Name, b)
	}
}

// traffic counts up in one key, through one node after the other, and reads it at every node, until the returned function
// is called. It fails the test when an answer is older than an earlier one of the same node.
func traffic(t *testing.T, nodes []*nodetest.Client) (stop func()) {
	const target = "/v1/kv/default/counter"
	ctx, cancel := context.WithCancel(t.Context())
	nodes[0].Must(t, 200, http.MethodPut, target, []byte("0"))
	for _, c := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the counter", func() error { return c.Sees(ctx, target, []byte("0")) })
	}
	var wg sync.WaitGroup
	writes, reads := 0, make([]int, len(nodes))
	wg.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			a, err := nodes[n%len(nodes)].Do(ctx, http.MethodPut, target, []byte(strconv.Itoa(n)))
			if err == nil && a.Status == 200 {
				writes++
			}
			time.Sleep(nodetest.Pause)
		}
	})
	for i, c := range nodes {
		wg.Go(func() {
			last := 0
			for ctx.Err() == nil {
				a, err := c.Do(ctx, http.MethodGet, target, nil)
				if err != nil || a.Status == http.StatusServiceUnavailable {
					continue
				}
				n, err := strconv.Atoi(string(a.Body))
				if err != nil || n < last {
					t.Errorf("%s: %v after %d", c.Name, a, last)
					return
				}
				last = n
				reads[i]++
				time.Sleep(nodetest.Pause)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		for i, n := range reads {
			if n < 20 || writes < 20 {
				t.Errorf("%s: %d reads of %d writes say nothing", nodes[i].Name, n, writes)
			}
		}
	}
}
