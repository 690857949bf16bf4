package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the top of the repository, seen from this package.
const root = "../.."

const module = "kvmesh"

// leaves may be imported by every package of the mesh, because they import nothing of it but the vocabulary.
var leaves = []string{"raftstore/kv", "raftstore/feed", "raftstore/seal"}

// parts are the three that only node joins: each may import itself and the leaves.
var parts = []string{"raftstore", "gossip", "cache"}

// owned lists libraries that one part hides from all others. A path stands for everything that begins with it, so that
// "github.com/hashicorp/raft" covers raft-boltdb and raft-autopilot.
var owned = map[string]string{
	"github.com/hashicorp/raft":       "raftstore",
	"github.com/hashicorp/memberlist": "gossip",
}

// under reports whether the package dir is tree or lies below it.
func under(dir, tree string) bool { return dir == tree || strings.HasPrefix(dir, tree+"/") }

func underAny(dir string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return under(dir, tree) })
}

// forbidden says why a file of the package dir (a path below the module, "" for main) may not import imported. The empty
// string means that it may. inTest is for _test.go files, which may use libraries that the package itself may not.
func forbidden(dir, imported string, inTest bool) string {
	if !under(imported, module) {
		for lib, owner := range owned {
			if strings.HasPrefix(imported, lib) && !under(dir, owner) {
				return "only " + owner + " may import " + lib
			}
		}
		std := !strings.Contains(strings.Split(imported, "/")[0], ".")
		if under(dir, "raftstore/kv") && !std && !inTest {
			return "raftstore/kv imports the standard library only"
		}
		return ""
	}
	to := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
	switch {
	case to == dir || (inTest && under(to, dir)): // an external test of the same package, or its helpers
		return ""
	case under(to, "scripts"):
		return "nothing imports scripts"
	case under(dir, "raftstore/kv"):
		return "raftstore/kv imports the standard library only"
	case underAny(dir, leaves):
		if under(to, "raftstore/kv") {
			return ""
		}
		return "a leaf imports raftstore/kv and nothing else of the mesh"
	case underAny(to, leaves):
		return ""
	}
	for _, part := range parts {
		if under(dir, part) && !under(to, part) {
			return part + " imports itself and the leaves (" + strings.Join(leaves, ", ") + "); node joins the parts"
		}
	}
	switch {
	case under(dir, "config"):
		return "config is settings: it imports the leaves only"
	case dir == "" && to != "node/cli":
		return "main.go calls node/cli and does nothing else"
	}
	return ""
}

// The rules themselves: each has a case that it must refuse.
func TestImportsRules(t *testing.T) {
	for _, tc := range []struct {
		dir, imported string
		inTest        bool
		refused       bool
	}{
		{"raftstore/kv", "strings", false, false},
		{"raftstore/kv", "go.uber.org/goleak", false, true},
		{"raftstore/kv", "go.uber.org/goleak", true, false},
		{"raftstore/kv", "kvmesh/raftstore/feed", true, true},
		{"raftstore/feed", "kvmesh/raftstore/kv", false, false},
		{"raftstore/feed", "kvmesh/raftstore/seal", false, true},
		{"raftstore/seal", "kvmesh/config", false, true},
		{"raftstore/seal", "github.com/tink-crypto/tink-go/v2/aead", false, false},
		{"raftstore", "kvmesh/raftstore/state", false, false},
		{"raftstore", "github.com/hashicorp/raft-boltdb/v2", false, false},
		{"raftstore/state", "kvmesh/cache", false, true},
		{"raftstore", "kvmesh/node/peer", true, true},
		{"raftstore", "kvmesh/config", false, true},
		{"gossip", "github.com/hashicorp/memberlist", false, false},
		{"gossip", "github.com/hashicorp/raft", false, true},
		{"gossip", "kvmesh/raftstore", true, true},
		{"gossip", "kvmesh/raftstore/kv", false, false},
		{"cache", "kvmesh/gossip", false, true},
		{"cache", "kvmesh/raftstore/feed", false, false},
		{"cachefoo", "github.com/hashicorp/memberlist", false, true},
		{"node", "kvmesh/raftstore", false, false},
		{"node/peer", "github.com/hashicorp/raft", false, true},
		{"node/e2e", "github.com/hashicorp/raft", true, true},
		{"node", "github.com/hashicorp/memberlist", false, true},
		{"node", "kvmesh/scripts/realdata", true, true},
		{"config", "kvmesh/raftstore/kv", false, false},
		{"config", "kvmesh/node", false, true},
		{"", "kvmesh/node/cli", false, false},
		{"", "kvmesh/node", false, true},
		{"", "os", false, false},
	} {
		if why := forbidden(tc.dir, tc.imported, tc.inTest); (why != "") != tc.refused {
			t.Errorf("%q importing %q (in a test: %v): %q, want refused = %v", tc.dir, tc.imported, tc.inTest, why, tc.refused)
		}
	}
}

// TestImportsFormAStar reads every import declaration of the repository, whatever its build tags.
func TestImportsFormAStar(t *testing.T) {
	files, packages := 0, map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if rel != "." && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir // what the go command does not see
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		dir := strings.TrimPrefix(path.Dir(rel), ".")
		files++
		packages[dir] = true
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(dir, imported, strings.HasSuffix(file, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", rel, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(slices.Concat(leaves, parts), "node/e2e") {
		if !packages[dir] {
			t.Errorf("no Go file in %s: has the package moved? Then this test has to follow", dir)
		}
	}
	t.Logf("%d files in %d packages", files, len(packages))
}

// TestImportsTopLevel keeps the top of the repository as it is laid out.
func TestImportsTopLevel(t *testing.T) {
	var (
		folders = []string{"node", "raftstore", "gossip", "cache", "config", "scripts", ".ci", ".git"}
		files   = []string{"main.go", "README.md", "CHANGELOG.md", "go.mod", "go.sum", "kvmesh"} // the last is what go build makes
	)
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch {
		case e.IsDir() && !slices.Contains(folders, e.Name()):
			t.Errorf("folder %s at the top: put it into one of %s", e.Name(), strings.Join(folders[:6], ", "))
		case !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(files, e.Name()):
			t.Errorf("file %s at the top: only %s and dotfiles belong there", e.Name(), strings.Join(files[:5], ", "))
		}
	}
}
