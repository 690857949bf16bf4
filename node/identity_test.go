package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// A node keeps the id that its directory was made with. Under another one, which one flipped bit in a file of 37 bytes can
// make of it, its log and its votes would be a stranger's.
func TestNodeIDIsTheDirectorys(t *testing.T) {
	key := func(fill byte) *seal.KEK {
		t.Helper()
		kek, err := seal.NewKEK(bytes.Repeat([]byte{fill}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return kek
	}
	kek := key('a')
	remove := func(name string) func(*testing.T, string, string) {
		return func(t *testing.T, dir, _ string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		change func(t *testing.T, dir, id string)
		kek    *seal.KEK
		says   string // "" = opened, under the same id
	}{
		"nothing":                        {change: func(*testing.T, string, string) {}},
		"a crash between the two files":  {change: remove("key-check")},
		"another mesh key":               {change: func(*testing.T, string, string) {}, kek: key('b'), says: "another mesh key"},
		"missing":                        {change: remove("node-id"), says: "is missing; write "},
		"cut":                            {change: func(t *testing.T, dir, id string) { put(t, dir, "node-id", id[:9]) }, says: "Write "},
		"a flipped bit, and an id still": {change: func(t *testing.T, dir, id string) { put(t, dir, "node-id", flipped(id)+"\n") }, says: "Write "},
		"put back": {change: func(t *testing.T, dir, id string) {
			put(t, dir, "node-id", flipped(id))
			put(t, dir, "node-id", id)
		}},
		"a damaged check": {change: func(t *testing.T, dir, _ string) {
			b, err := os.ReadFile(filepath.Join(dir, "key-check"))
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 4
			put(t, dir, "key-check", string(b))
		}, says: "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			first, err := openIdentity(dir, kek)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.close(); err != nil {
				t.Fatal(err)
			}
			tc.change(t, dir, first.nodeID)
			if tc.kek == nil {
				tc.kek = kek
			}
			second, err := openIdentity(dir, tc.kek)
			switch {
			case tc.says == "" && err != nil:
				t.Fatal(err)
			case tc.says == "":
				if second.nodeID != first.nodeID {
					t.Errorf("the id is %s, it was %s", second.nodeID, first.nodeID)
				}
				if err := second.close(); err != nil {
					t.Error(err)
				}
			case err == nil:
				t.Fatalf("it was opened, as %s", second.nodeID)
			case !strings.Contains(err.Error(), tc.says):
				t.Errorf("the error is %q, it should say %q", err, tc.says)
			case strings.Contains(strings.ToLower(tc.says), "write ") && !strings.Contains(err.Error(), first.nodeID):
				t.Errorf("the error does not name the id %s: %v", first.nodeID, err)
			}
		})
	}
}

// flipped is a node id with one bit changed that is a node id still.
func flipped(id string) string {
	bit := byte(1)
	if id[0] == 'a' || id[0] == 'f' {
		bit = 2
	}
	if id[0] == 'f' {
		bit = 4
	}
	return string(id[0]^bit) + id[1:]
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestClusterFile: with another cluster id than its own a node would find nobody, so a file in which any bit has flipped is
// refused.
func TestClusterFile(t *testing.T) {
	c := kv.NewClusterID()
	text := clusterFile(c)
	if got, err := parseClusterFile(strings.TrimSpace(text)); err != nil || got != c {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range 8 * (len(text) - 1) {
		b := []byte(text)
		b[i/8] ^= 1 << (i % 8)
		if got, err := parseClusterFile(strings.TrimSpace(string(b))); err == nil && got != c {
			t.Errorf("%q was taken for %v", b, got)
		} else if err == nil {
			t.Errorf("%q was taken", b)
		}
	}
}
