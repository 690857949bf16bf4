package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// canary is a text that is nowhere by chance. Either half of it is, too; see search.
func canary() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 40)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// cage is the canaries by what they are.
type cage map[string]string

// nameCanary ends what a canary is that is a part of a key's name. Names may be read in the state, which is ordered by them,
// and nowhere else.
const nameCanary = ", name"

// beyondState leaves out the files of the state.
func beyondState(files []string) []string {
	return slices.DeleteFunc(slices.Clone(files), func(file string) bool { return strings.Contains(file, "/store/state/") })
}

// write stores one value of a size with a canary at its start, in its middle and at its end, and one in its metadata.
func (g cage) write(t *testing.T, c *nodetest.Client, ns, what string, size int) (target string, value []byte) {
	t.Helper()
	value = randomBytes(size)
	for i, at := range []int{0, size / 2, size - 40} {
		if i > 0 && size < 200 {
			break
		}
		text := canary()
		copy(value[at:], text)
		g[fmt.Sprintf("%s, value at byte %d", what, at)] = text
	}
	meta, name := canary(), canary()
	g[what+", metadata"], g[what+nameCanary] = meta, name
	target = "/v1/kv/" + ns + "/" + strings.ReplaceAll(what, " ", "-") + "/" + name
	insist(t, c, http.MethodPut, target, value, "Kv-Metadata", `{"canary":"`+meta+`"}`)
	nodetest.Eventually(t, visible, "read at the writer", func() error { return c.Sees(t.Context(), target, value) })
	return target, value
}

// insist sends a write until it is answered with a success: timers as short as these lose a leader on a busy machine, and
// each of these writes may be carried out twice.
func insist(t *testing.T, c *nodetest.Client, method, target string, body []byte, headers ...string) {
	t.Helper()
	nodetest.Eventually(t, nodetest.Patience, method+" "+target, func() error {
		a, err := c.Do(t.Context(), method, target, body, headers...)
		gone := method == http.MethodDelete && a.Status == http.StatusNotFound // by the attempt before
		if err == nil && a.Status/100 != 2 && !gone {
			err = fmt.Errorf("%s: %v", c.Name, a)
		}
		return err
	})
}

// TestCanaries searches everything that a mesh leaves on its disks for values and metadata, and everything but the state for
// the names of keys.
func TestCanaries(t *testing.T) {
	bench(t)
	dir := t.TempDir()
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, EdgesPerRegion: 1, DataDir: dir, Hasty: true})
	w := &world{m, nodetest.Clients(m)}
	defer func() { w.closeIdle() }() // of the clients that it has in the end
	edge, voters := w.role(certs.RoleEdge)[0], w.role(certs.RoleVoter)
	for _, ns := range []string{"kept", "deleted"} {
		insist(t, edge, http.MethodPut, "/v1/namespaces/"+ns, nil)
		w.has(t, ns)
	}
	g, values := cage{}, map[string][]byte{}
	sizes := map[string]int{
		"inline": 60, "apart": 5000, "largest inline": kv.MaxInlineValueBytes, "blob": kv.MaxInlineValueBytes + 1, "streamed": 2 << 20,
	}
	all := func(when string) {
		for what, size := range sizes {
			for i, ns := range []string{"kept", "deleted"} {
				target, value := g.write(t, edge, ns, when+" "+ns+" edge "+what, size)
				values[target] = value
				g.write(t, voters[i], ns, when+" "+ns+" voter "+what, size)
			}
		}
	}
	all("early")
	snapshots(t, w)
	// A voter without a disk comes back as a new one, and gets the state as a checkpoint: the log no longer begins at 1.
	last := len(m.Nodes) - 1
	stop, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	if err := m.Nodes[last].Stop(stop); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.Dir(last)); err != nil {
		t.Fatal(err)
	}
	if err := m.Restart(last); err != nil {
		t.Fatal(err)
	}
	nodetest.Ready(t, m)
	w.closeIdle()
	w.nodes = nodetest.Clients(m)
	edge, voters = w.role(certs.RoleEdge)[0], w.role(certs.RoleVoter)
	for target, value := range values { // the files of the large ones are on the other voters only
		nodetest.Eventually(t, visible, "at the voter that lost its disk", func() error {
			return w.nodes[last].Sees(t.Context(), target, value)
		})
	}
	all("late")
	insist(t, edge, http.MethodDelete, "/v1/namespaces/deleted", nil)

	stop, cancel = context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	if err := m.Stop(stop); err != nil {
		t.Fatal(err)
	}
	found, searched := g.search(t, dir)
	t.Logf("searched %d files for %d canaries", searched, len(g))
	names := map[string]bool{} // the kinds of files, the state's apart, in which names were found
	for what, text := range g {
		where := found[text]
		mayBeGone := strings.Contains(what, " deleted ") // the state drops what was in a deleted namespace, and the log is cut
		if strings.HasSuffix(what, nameCanary) {
			if len(where) == 0 && !mayBeGone {
				t.Errorf("%s was not found, though the state is ordered by names: the search is blind", what)
			}
			where = beyondState(where)
			for _, file := range where {
				names[kind(file)] = true
			}
			if inClear {
				continue // what was written early has left the log
			}
		}
		switch {
		case !inClear && len(where) > 0:
			t.Errorf("%s lies in clear in %q", what, where)
		case inClear && len(where) == 0 && !mayBeGone:
			t.Errorf("%s was not found, though nothing was sealed: the search is blind", what)
		}
	}
	if inClear {
		if !names["raft.db"] {
			t.Errorf("no name was found in any raft.db, though nothing was sealed: the search is blind there; found in %v", names)
		}
		seen := map[string]bool{} // the kinds of files in which the search found anything
		for _, where := range found {
			for _, file := range where {
				seen[kind(file)] = true
			}
		}
		for _, k := range []string{"raft.db", ".sst", "blobs"} {
			if !seen[k] {
				t.Errorf("nothing was found in any %s, though nothing was sealed: the search is blind there; found in %v", k, seen)
			}
		}
	}
}

// kind is what a file of a data directory is, as far as the search is concerned.
func kind(file string) string {
	if strings.Contains(file, "/blobs/") {
		return "blobs"
	}
	if ext := filepath.Ext(file); ext == ".sst" || ext == ".log" || ext == ".blob" {
		return ext
	}
	return filepath.Base(file)
}

// snapshots writes until every voter has taken a snapshot: what was written before has gone through the whole state by then.
func snapshots(t *testing.T, w *world) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range w.nodes {
		wg.Go(func() {
			for i := range 150 {
				a, err := c.Do(t.Context(), http.MethodPut, fmt.Sprintf("/v1/kv/kept/filler-%s-%d", c.Name, i), randomBytes(4000))
				if err == nil && a.Status != 200 && a.Status != 503 {
					err = fmt.Errorf("%v", a)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, m := range w.mesh.Members {
		if m.Role != certs.RoleVoter {
			continue
		}
		nodetest.Eventually(t, nodetest.Patience, "a snapshot at "+m.Name, func() error {
			a, err := http.Get(w.mesh.Nodes[i].AdminURL() + "/metrics")
			if err != nil {
				return err
			}
			defer func() { _ = a.Body.Close() }() // read to its end, or failed
			var body bytes.Buffer
			if _, err := body.ReadFrom(a.Body); err != nil {
				return err
			}
			for line := range strings.Lines(body.String()) {
				if strings.HasPrefix(line, "kvmesh_raft_snapshots_total ") && !strings.HasSuffix(line, " 0\n") {
					return nil
				}
			}
			return fmt.Errorf("no snapshot among the metrics")
		})
	}
}

// search looks for every canary in every file below dir. Half of one will do: Pebble compresses, and four letters that stand
// in an earlier canary of the same block are replaced by a reference now and then.
func (g cage) search(t *testing.T, dir string) (found map[string][]string, files int) {
	t.Helper()
	found = make(map[string][]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, text := range g {
			if half := len(text) / 2; bytes.Contains(data, []byte(text[:half])) || bytes.Contains(data, []byte(text[half:])) {
				found[text] = append(found[text], strings.TrimPrefix(path, dir))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, files
}

// TestCanariesInABackup searches a backup for values, metadata, names of keys and titles of namespaces.
func TestCanariesInABackup(t *testing.T) {
	bench(t)
	w := start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 1, EdgesPerRegion: 1})
	g := cage{}
	for _, size := range []int{60, 5000, kv.MaxInlineValueBytes, kv.MaxInlineValueBytes + 1, 2 << 20} {
		title, name := canary(), canary()
		g[fmt.Sprintf("title, %d", size)], g[fmt.Sprintf("key, %d", size)] = title, name
		insist(t, w.nodes[0], http.MethodPut, "/v1/namespaces/"+title, nil)
		w.has(t, title)
		g.write(t, w.nodes[0], title, name, size)
	}
	dir := t.TempDir()
	a := w.nodes[0].Must(t, 200, http.MethodGet, "/v1/backup", nil)
	if err := os.WriteFile(filepath.Join(dir, "backup"), a.Body, 0o600); err != nil {
		t.Fatal(err)
	}
	found, _ := g.search(t, dir)
	for what, text := range g {
		if got := len(found[text]) > 0; got != inClear {
			t.Errorf("%s: found %v", what, got)
		}
	}
}

// TestCanariesCanBeFound runs those above in a build that seals nothing: there they have to find every one of them.
func TestCanariesCanBeFound(t *testing.T) {
	if inClear {
		return // this is that run
	}
	bench(t)
	cmd := exec.Command("go", "test", "-count=1", "-tags", "sealidentity", "-run", "^TestCanaries(InABackup)?$", "-v", ".")
	cmd.Env = nodetest.Env()
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestCanaries (")) || !bytes.Contains(out, []byte("--- PASS: TestCanariesInABackup (")) {
		t.Errorf("%v: %v\n%s", cmd.Args, err, out)
	}
}
