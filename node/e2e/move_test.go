package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvmesh/node/cli"
	"kvmesh/node/cli/client"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// commandLine runs a command line against a node, and returns what it printed.
func commandLine(t *testing.T, c *nodetest.Client, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	app := cli.New(cli.Hooks{})
	env := map[string]string{"KVMESH_URL": c.Base, "CLOUDFLARE_API_TOKEN": "any"}
	app.Env = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	code := app.Run(t.Context(), args, cli.IO{In: strings.NewReader(""), Out: &out, Err: &errOut})
	if code != cli.ExitOK {
		t.Fatalf("kvmesh %q: exit %d\n%s%s", args, code, out.String(), errOut.String())
	}
	return out.String()
}

// testMoves: whatever way a namespace takes out of the mesh at one node and back at another, it arrives as it was; as a copy by
// the REST API too. Each node is asked for what it wrote itself, so that nothing has to be waited for.
func testMoves(t *testing.T, w *world) {
	from, to := w.nodes[0], w.nodes[len(w.nodes)-1]
	w.namespace(t, "move")
	var created client.Namespace
	if err := json.Unmarshal(from.Must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/move", nil).Body, &created); err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour).Unix()
	keys := []string{
		"a", "a/b", "a//b", "../x", "...", "%25", "+", "ü x", "q?x=1&y#z", "nul\x00", strings.Repeat("k", kv.MaxKeyBytes), "empty", "large", "blob",
	}
	for i, key := range keys {
		value := append([]byte{byte(i), 255, 0}, randomBytes(i*i)...)
		switch key {
		case "empty":
			value = nil
		case "large":
			value = randomBytes(kv.MaxInlineValueBytes + 1)
		case "blob":
			value = randomBytes(3 << 20)
		}
		target, headers := "/v1/kv/move/"+client.EscapeSegment(key), []string{}
		if i%2 == 0 {
			target += fmt.Sprintf("?expiration=%d", future+int64(i))
			headers = []string{"Kv-Metadata", fmt.Sprintf(`{"i":%d,"t":"<\u00fc>"}`, i)}
		}
		from.Must(t, http.StatusOK, http.MethodPut, target, value, headers...)
	}
	dir := t.TempDir()
	// An export is what all is compared by: it shows keys, values, metadata and expirations, in order.
	state := func(c *nodetest.Client, ns, name string) []byte {
		t.Helper()
		file := filepath.Join(dir, name)
		out := commandLine(t, c, "export", "--format", "ndjson", "--namespace", ns, file)
		if !strings.HasPrefix(out, fmt.Sprintf("export: %d keys, ", len(keys))) {
			t.Errorf("%s: %s", ns, out)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	want := state(from, "move", "move.ndjson")
	for i, moved := range [][][]string{
		{{"import", "--format", "ndjson", filepath.Join(dir, "move.ndjson")}},
		{{"export", "--format", "wrangler", filepath.Join(dir, "w.json")}, {"import", "--format", "wrangler", filepath.Join(dir, "w.json")}},
		{{"export", filepath.Join(dir, "tree")}, {"import", filepath.Join(dir, "tree")}},
		{{
			"import", "--from-cloudflare", from.Base, "--account", "any", "--namespace-id", created.ID, "--parallel", "4",
			"--state", filepath.Join(dir, "state"),
		}},
	} {
		title := fmt.Sprintf("moved-%d", i)
		w.namespace(t, title)
		for _, args := range moved {
			ns, c := title, to
			if args[0] == "export" {
				ns, c = "move", from
			}
			commandLine(t, c, append(args, "--namespace", ns)...)
		}
		if got := state(to, title, title); !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes became %d", moved, len(want), len(got))
		}
	}
}
