package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// inNamespace says that this process has a mount namespace of its own, in which it may mount.
const inNamespace = "KVMESH_TEST_IN_NAMESPACE"

// TestDiskFull runs itself where small disks can be mounted, which are gone when it ends.
func TestDiskFull(t *testing.T) {
	bench(t)
	if os.Getenv(inNamespace) != "" {
		diskFull(t)
		return
	}
	cmd := exec.Command("unshare", "--map-root-user", "--mount", os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestDiskFull") {
		t.Errorf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// smallDisk is the size of each voter's disk; below an eighth of that and a bit, writes are refused.
const smallDisk = 192 << 20

// diskFull fills the disks of one voter and of two, and makes space again.
func diskFull(t *testing.T) {
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	for _, v := range voters {
		disk(t, v)
	}
	startAll(t, p.All)
	edge := edges[0]
	written := map[string][]byte{}
	tries := 0
	put := func(c *nodetest.Proc, name string, size int) (nodetest.Answer, error) {
		tries++ // each try has a key of its own: one whose outcome is unknown may still be carried out
		target, body := fmt.Sprintf("/v1/kv/default/%s-%d", name, tries), randomBytes(size)
		a, err := c.Do(t.Context(), http.MethodPut, target, body)
		if err == nil && a.Status == http.StatusOK {
			written[target] = body
		}
		return a, err
	}
	takes := func(when string) {
		t.Helper()
		for _, size := range []int{100, kv.MaxInlineValueBytes + 1} {
			nodetest.Eventually(t, nodetest.Patience, when+": a write is taken", func() error {
				a, err := put(edge, fmt.Sprintf("%s-%d", when, size), size)
				if err == nil && a.Status != http.StatusOK {
					err = fmt.Errorf("%v", a)
				}
				return err
			})
		}
	}
	takes("before")
	early := maps.Clone(written)

	// The leader's disk alone: somebody else leads, and the mesh takes writes.
	first, _ := leader(t, voters)
	free := fill(t, first)
	nodetest.Eventually(t, nodetest.Patience, "another voter leads", func() error {
		if s, err := edge.Cluster(t.Context()); err != nil || s.Leader == "" || s.Leader == id(t, first) {
			return fmt.Errorf("leader %s: %w", s.Leader, err)
		}
		return nil
	})
	takes("one-full")

	// A second one: too few are left.
	second, rest := leader(t, voters)
	freeToo := fill(t, second)
	for _, size := range []int{100, kv.MaxInlineValueBytes + 1, 2 << 20} {
		for _, c := range []*nodetest.Proc{edge, second} {
			nodetest.Eventually(t, nodetest.Patience, "two full: a write is refused", func() error {
				a, err := put(c, fmt.Sprintf("refused-%d", size), size)
				switch {
				case err != nil:
					return err
				case a.Status != http.StatusInsufficientStorage || a.Header.Get("Retry-After") == "" || a.Err().Code != string(kv.CodeDiskFull):
					return fmt.Errorf("%s: %v, Retry-After %q", c.Name, a, a.Header.Get("Retry-After"))
				}
				return nil
			})
		}
	}
	for _, n := range p.All {
		for target, want := range early {
			nodetest.Eventually(t, nodetest.Patience, "two full: reads go on", func() error { return n.Sees(t.Context(), target, want) })
		}
		for target, want := range written { // a voter that could not store what was written last may show it only when it has to
			nodetest.Eventually(t, nodetest.Patience, "two full: strong reads go on", func() error {
				return n.Sees(t.Context(), target+"?consistency=strong", want)
			})
		}
	}
	for _, v := range voters { // nobody has ended
		select {
		case <-v.Exited():
			t.Fatalf("%s has ended", v.Name)
		default:
		}
	}

	// With space again, everything heals alone.
	free()
	takes("space-at-one")
	freeToo()
	takes("space-at-all")
	for _, v := range append(rest, first, second) {
		for target, want := range written {
			nodetest.Eventually(t, nodetest.Patience, "at the end", func() error { return v.Sees(t.Context(), target, want) })
		}
	}
}

func id(t *testing.T, n *nodetest.Proc) string {
	t.Helper()
	s, err := n.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Self
}

// disk gives a voter a small disk of its own.
func disk(t *testing.T, n *nodetest.Proc) {
	t.Helper()
	at := n.DataDir
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", smallDisk)); err != nil {
		t.Fatalf("mount a tmpfs at %s: %v", at, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// fill takes all space on a voter's disk, and returns what gives it back.
func fill(t *testing.T, n *nodetest.Proc) (free func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.DataDir, "filler"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for step := int64(16 << 20); step >= 4096; {
		switch err := syscall.Fallocate(int(f.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, syscall.ENOSPC):
			step /= 2
		case !errors.Is(err, syscall.EINTR):
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
			t.Fatal(err)
		}
	}
}
