package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/node/nodetest"
)

// says fails the test unless text has every part.
func says(t *testing.T, who, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s does not say %q:\n%s", who, part, text)
		}
	}
}

// refuses starts a node that must end by itself, with exit code 1 or 2 and a message of one line that has every part.
func refuses(t *testing.T, n *nodetest.Proc, parts ...string) {
	t.Helper()
	n.Start(t)
	if code := n.Wait(t, nodetest.Patience); code != 1 && code != 2 {
		t.Errorf("%s: exit code %d, want 1 or 2", n.Name, code)
	}
	text := n.Log(t)
	says(t, n.Name, text, parts...)
	if strings.Contains(text, "goroutine ") {
		t.Errorf("%s: a stack instead of a message:\n%s", n.Name, text)
	}
}

// waits starts a node that must go on without being ready, and say why: in /readyz and in the log.
func waits(t *testing.T, n *nodetest.Proc, parts ...string) {
	t.Helper()
	n.Start(t)
	nodetest.Eventually(t, nodetest.Patience, n.Name+" says why it waits", func() error {
		status, body, err := n.Readyz(t.Context())
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			t.Fatalf("%s is ready", n.Name)
		}
		for _, part := range parts {
			if !strings.Contains(body, part) || !strings.Contains(n.Log(t), part) {
				return fmt.Errorf("%q is not in both /readyz (%s) and the log", part, body)
			}
		}
		return nil
	})
	select {
	case <-n.Exited():
		t.Errorf("%s has ended", n.Name)
	default:
	}
}

// TestStartup is one running voter, and everything that can be wrong with a node that is started beside it. Each failure
// names the thing and the remedy.
func TestStartup(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	seed := p.Add("seed", "voter")
	seed.Start(t)
	nodetest.WaitReady(t, seed)
	seed.Must(t, 200, http.MethodPut, "/v1/kv/default/k", []byte("v"))

	t.Run("data directory in use", func(t *testing.T) {
		refuses(t, p.Add("in-use", "voter", "--data-dir", seed.DataDir), seed.DataDir, "in use", "--data-dir")
	})
	for flag, addr := range map[string]string{"http": seed.HTTP, "peer": seed.Peer, "gossip": seed.Gossip, "admin": seed.Admin} {
		t.Run("port in use: "+flag, func(t *testing.T) {
			refuses(t, p.Add("port-"+flag, "voter", "--"+flag, addr), "--"+flag, addr, "address already in use", "stop", "another address")
		})
	}
	t.Run("UDP port in use", func(t *testing.T) {
		addr := nodetest.FreeAddr(t)
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = udp.Close() }() // nothing was read from it
		refuses(t, p.Add("port-udp", "voter", "--gossip", addr), "--gossip", addr, "address already in use")
	})
	t.Run("no mesh key", func(t *testing.T) {
		refuses(t, p.Add("no-key", "voter", "--mesh-key", ""), "mesh-key", "required", "kvmesh mesh-key new")
		refuses(t, p.Add("no-key-file", "voter", "--mesh-key", "/nowhere/mesh.key"), "/nowhere/mesh.key", "kvmesh mesh-key new")
	})
	t.Run("unknown configuration key", func(t *testing.T) {
		file := filepath.Join(p.Dir, "bad.yaml")
		if err := os.WriteFile(file, []byte("node:\n  role: voter\n  regoin: here\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, p.Add("bad-config", "voter", "--config", file), "regoin", file, "region")
	})
	t.Run("a seed that does not answer", func(t *testing.T) {
		nobody := nodetest.FreeAddr(t)
		n := p.Add("no-answer", "edge", "--join", nobody)
		waits(t, n, "seed "+nobody, "does not answer", "keep trying")
		n.Kill(t)
	})
	t.Run("wrong mesh key", func(t *testing.T) {
		n := p.Add("wrong-key", "edge", "--join", seed.Gossip, "--mesh-key", nodetest.WriteKey(t, p.Dir, "wrong.key"))
		waits(t, n, "seed "+seed.Gossip, "wrong mesh key")
		says(t, "the seed", seed.Log(t), "refused: the sender has another mesh key")
		n.Kill(t)
	})
	t.Run("data directory of a mesh with another key", func(t *testing.T) {
		n := p.Add("moved", "edge", "--join", seed.Gossip)
		n.Start(t)
		nodetest.WaitReady(t, n)
		n.Kill(t)
		refuses(t, p.Add("moved-again", "edge", "--join", seed.Gossip, "--data-dir", n.DataDir,
			"--mesh-key", nodetest.WriteKey(t, p.Dir, "other.key")), n.DataDir, "another mesh key", "--mesh-key", "--data-dir")
	})
	for _, role := range []string{"voter", "edge"} {
		t.Run("data directory of another mesh with this key: "+role, func(t *testing.T) { otherMesh(t, p, seed, role) })
	}
	t.Run("two meshes that know each other's seeds", func(t *testing.T) { twoMeshes(t, p, seed) })
	if a := seed.Must(t, 200, http.MethodGet, "/v1/kv/default/k", nil); string(a.Body) != "v" {
		t.Errorf("after all of them: %v", a)
	}
	s, err := seed.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Members {
		if m.Role == "voter" && m.ID != s.Self {
			t.Errorf("a stranger was taken in: %+v", m)
		}
	}
}

// otherMesh begins a second mesh with the same key, and starts one of its nodes with a seed of the first. Neither mesh may
// take anything from the other.
func otherMesh(t *testing.T, p *nodetest.Procs, seed *nodetest.Proc, role string) {
	other := p.Add("other-mesh-of-"+role, "voter")
	other.Start(t)
	nodetest.WaitReady(t, other)
	other.Must(t, 200, http.MethodPut, "/v1/kv/default/k", []byte("other"))
	stranger := other
	if role == "edge" {
		stranger = p.Add("other-edge", "edge", "--join", other.Gossip)
		stranger.Start(t)
		nodetest.WaitReady(t, stranger)
		stranger.Must(t, 200, http.MethodGet, "/v1/kv/default/k", nil)
		other.Kill(t)
	}
	stranger.Kill(t)
	stranger.Args = append(stranger.Args, "--join", seed.Gossip)
	waits(t, stranger, "seed "+seed.Gossip, "another mesh", "--join", "--data-dir")
	says(t, "the seed", seed.Log(t), "belongs to another mesh")
	stranger.Kill(t)
}

// twoMeshes has a node of another mesh with this key know a seed of each. It goes on in its own, and both say what is wrong.
func twoMeshes(t *testing.T, p *nodetest.Procs, seed *nodetest.Proc) {
	other := p.Add("second-mesh", "voter")
	other.Start(t)
	edge := p.Add("second-mesh-edge", "edge", "--join", other.Gossip)
	edge.Start(t)
	nodetest.WaitReady(t, other, edge)
	other.Must(t, 200, http.MethodPut, "/v1/kv/default/k", []byte("other"))
	edge.Kill(t)
	edge.Args = append(edge.Args, "--join", seed.Gossip+","+other.Gossip)
	edge.Start(t)
	nodetest.WaitReady(t, edge)
	self, err := edge.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, nodetest.Patience, "both say that it is of another mesh", func() error {
		if !strings.Contains(edge.Log(t), "another mesh") || !strings.Contains(seed.Log(t), "refused: node "+self.Self) {
			return fmt.Errorf("the edge says: %s", edge.Log(t))
		}
		return nil
	})
	if a := edge.Must(t, 200, http.MethodGet, "/v1/kv/default/k", nil); string(a.Body) != "other" {
		t.Errorf("the other mesh's edge: %v", a)
	}
	for _, n := range []*nodetest.Proc{other, edge, seed} {
		s, err := n.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range s.Members {
			if strings.HasPrefix(m.Name, "second-mesh") != (n != seed) {
				t.Errorf("%s knows %s", n.Name, m.Name)
			}
		}
	}
	other.Kill(t)
	edge.Kill(t)
}
