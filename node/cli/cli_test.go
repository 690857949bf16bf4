package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvmesh/config"
	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result of one command line.
type result struct {
	code     int
	out, err string
}

// shell runs command lines against a fake node.
type shell struct {
	app   *App
	env   map[string]string
	stdin string
	serve *config.Config
	dev   *DevOptions
}

func newShell(url string) *shell {
	s := &shell{env: map[string]string{"KVMESH_URL": url}}
	s.app = New(Hooks{
		Serve: func(_ context.Context, c config.Config, _ IO) error { s.serve = &c; return nil },
		Dev:   func(_ context.Context, o DevOptions, _ IO) error { s.dev = &o; return nil },
	})
	s.app.Env = func(n string) (string, bool) { v, ok := s.env[n]; return v, ok }
	s.app.Machine = &config.Machine{Hostname: "host-1", Memory: 16 * config.GiB}
	return s
}

func (s *shell) run(args ...string) result {
	var out, errOut bytes.Buffer
	code := s.app.Run(context.Background(), args, IO{In: strings.NewReader(s.stdin), Out: &out, Err: &errOut})
	return result{code, out.String(), errOut.String()}
}

// ok runs a command that must succeed and returns its output.
func (s *shell) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := s.run(args...)
	if r.code != ExitOK || r.err != "" {
		t.Fatalf("kvmesh %q: exit %d\n%s", args, r.code, r.err)
	}
	return r.out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; see it with -update\n--- got\n%s--- want\n%s", path, got, want)
	}
}

// The names of the issue, and values that could be taken for something else, go to the node and come back unchanged.
func TestAwkwardKeys(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	keys := []string{
		"a/b", "a//b", "a/../b", "../x", "%2F", "%00", " x", "v1/kv", "ü", "🌍", strings.Repeat("k", 512), "-o", "--url", "help", "h",
		"url", "get",
	}
	for i, key := range keys {
		s.ok(t, "key", "put", "--", key, "value of "+string(rune('a'+i)))
	}
	if got := len(f.state("default")); got != len(keys) {
		t.Fatalf("%d keys arrived as %d", len(keys), got)
	}
	for i, key := range keys {
		if got := s.ok(t, "key", "get", "--", key); got != "value of "+string(rune('a'+i)) {
			t.Errorf("%q holds %q", key, got)
		}
	}
	for _, key := range keys {
		s.ok(t, "key", "delete", "--", key)
	}
	if left := f.state("default"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	for key, code := range map[string]kv.Code{
		"": kv.CodeInvalidKey, ".": kv.CodeInvalidKey, "..": kv.CodeInvalidKey, strings.Repeat("k", 513): kv.CodeKeyTooLong,
		"\xff": kv.CodeInvalidKey,
	} {
		if r := s.run("key", "put", key, "v"); r.code != ExitFailure || !strings.Contains(r.err, string(code)) {
			t.Errorf("%q: exit %d: %s", key, r.code, r.err)
		}
	}
}

func TestPutAndGet(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	dir := t.TempDir()
	blob := bytes.Repeat([]byte{0, 255, '\n'}, 100_000)
	if err := os.WriteFile(filepath.Join(dir, "in"), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "key", "put", "file", "--file", filepath.Join(dir, "in"))
	s.stdin = "from stdin"
	s.ok(t, "key", "put", "stdin", "-")
	s.ok(t, "key", "put", "empty", "")
	s.ok(t, "key", "put", "full", "v", "--metadata", "{ \"a\": \"ü\" }", "--expiration-ttl", "60")
	for key, want := range map[string]string{"file": string(blob), "stdin": "from stdin", "empty": ""} {
		if got := s.ok(t, "key", "get", key); got != want {
			t.Errorf("%s: %d bytes, want %d", key, len(got), len(want))
		}
	}
	out := filepath.Join(dir, "out")
	s.ok(t, "key", "get", "file", "--out", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("--out: %d bytes, %v", len(got), err)
	}
	golden(t, "get-json", s.ok(t, "key", "get", "-o", "json", "full"))
	golden(t, "put-json", s.ok(t, "key", "put", "x", "y", "-o=json"))
}

func TestConditions(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	s.ok(t, "key", "put", "k", "1", "--if-none-match")
	r := s.run("key", "put", "k", "2", "--if-none-match")
	if r.code != ExitFailure || !strings.Contains(r.err, "condition_failed, HTTP 412") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	s.ok(t, "key", "put", "k", "3", "--if-match", "0badcafe-1") // the quotes of the ETag are added
	if r := s.run("key", "delete", "k", "--if-match", `"0badcafe-1"`); r.code != ExitFailure {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	s.ok(t, "key", "delete", "k", "--if-match", `"0badcafe-2"`)
	if got := s.ok(t, "key", "delete", "k"); got != "delete k: nothing to change\n" {
		t.Errorf("got %q", got)
	}
}

func TestErrorsInPlainWords(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	f.token = "the-right-token"
	right := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(right, []byte(" the-right-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.run("key", "get", "k"); r.code != ExitFailure || !strings.Contains(r.err, "--token-file or KVMESH_TOKEN_FILE") {
		t.Errorf("without a token: exit %d: %s", r.code, r.err)
	}
	s.env["KVMESH_TOKEN_FILE"] = right
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"key", "get", "k\x1b"}, `get "k\x1b": there is no such key (key_not_found, HTTP 404)`},
		{[]string{"key", "get", "k", "--namespace", "nope"}, `(namespace_not_found, HTTP 404)` + "\n  See \"kvmesh namespace list\""},
		{[]string{"key", "put", "k", "v", "--metadata", "{"}, "(invalid_metadata)"},
		{[]string{"key", "put", "k", "v", "--expiration-ttl", "0"}, "(invalid_expiration, HTTP 400)"},
		{[]string{"key", "put", "k", "--file", t.TempDir()}, "is a directory"},
		{[]string{"key", "list", "--cursor", "!"}, "(invalid_cursor, HTTP 400)"},
		{[]string{"namespace", "create", "default"}, "(namespace_exists, HTTP 409)"},
	} {
		if r := s.run(tc.args...); r.code != ExitFailure || r.out != "" || !strings.Contains(r.err, tc.want) {
			t.Errorf("kvmesh %q: exit %d: %s\nwant %s", tc.args, r.code, r.err, tc.want)
		}
	}
	f.Close()
	r := s.run("status")
	if r.code != ExitFailure || !strings.Contains(r.err, "cannot reach "+f.URL) || !strings.Contains(r.err, `"kvmesh dev"`) {
		t.Errorf("without a node: exit %d: %s", r.code, r.err)
	}
}

func TestUnknownOutcomeIsRepeatedOnDemandOnly(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	first := true
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !first {
			return false
		}
		first = false
		f.refuse(w, kv.Errorf(kv.CodeOutcomeUnknown, "it may still land"))
		return true
	}
	r := s.run("key", "put", "k", "v")
	if r.code != ExitFailure || !strings.Contains(r.err, "--retry-unknown") || len(f.state("default")) != 0 {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	first = true
	s.ok(t, "key", "put", "k", "v", "--retry-unknown")
}

func TestList(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	for _, k := range []string{"a", "b/1", "b/2", "b/\n", "c"} {
		s.ok(t, "key", "put", k, "value-"+k, "--metadata", `{"k":"`+strings.Repeat("x", 50)+`"}`)
	}
	golden(t, "list", s.ok(t, "key", "list"))
	golden(t, "list-json", s.ok(t, "key", "list", "-o", "json", "--values", "--prefix", "b/"))
	golden(t, "list-delimiter-json", s.ok(t, "key", "list", "-o", "json", "--delimiter", "/"))
	if got := s.ok(t, "key", "list", "--prefix", "nothing", "-o", "json"); got != "{\"keys\":[\n],\"list_complete\":true}\n" {
		t.Errorf("got %q", got)
	}

	// The limit goes across pages, and the cursor goes on behind it.
	var pages []string
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		pages = append(pages, r.URL.Query().Get("limit"))
		return false
	}
	for i := range 1200 {
		f.data[defaultID]["n/"+string(rune('A'+i/40))+string(rune('A'+i%40))] = &fakeValue{revision: 1}
	}
	type doc struct {
		Keys     []client.Key
		Complete bool `json:"list_complete"`
		Cursor   string
	}
	var one, rest doc
	if err := json.Unmarshal([]byte(s.ok(t, "key", "list", "-o", "json", "--prefix", "n/", "--limit", "1100")), &one); err != nil {
		t.Fatal(err)
	}
	if len(one.Keys) != 1100 || one.Complete || one.Cursor == "" || !slices.Equal(pages, []string{"1000", "100"}) {
		t.Errorf("%d keys, complete %v, in pages of %v", len(one.Keys), one.Complete, pages)
	}
	out := s.ok(t, "key", "list", "-o", "json", "--prefix", "n/", "--cursor", one.Cursor)
	err := json.Unmarshal([]byte(out), &rest)
	if err != nil || len(rest.Keys) != 100 || !rest.Complete || rest.Keys[0].Name <= one.Keys[1099].Name {
		t.Errorf("the rest: %d keys, %v", len(rest.Keys), err)
	}
}

func TestNamespaces(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	golden(t, "namespace-create", s.ok(t, "namespace", "create", "a/b ü"))
	s.ok(t, "key", "put", "k", "v", "--namespace", "a/b ü")
	s.ok(t, "namespace", "rename", "a/b ü", "new")
	if got := s.ok(t, "key", "get", "k", "--namespace", "new"); got != "v" {
		t.Errorf("after the rename the key holds %q", got)
	}
	golden(t, "namespace-list", s.ok(t, "namespace", "list"))
	golden(t, "namespace-list-json", s.ok(t, "namespace", "list", "-o", "json"))
	s.ok(t, "namespace", "delete", "new")
	if r := s.run("namespace", "rename", "default", "\xff"); r.code != ExitFailure || !strings.Contains(r.err, "invalid_title") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

func TestStatus(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	f.cluster = `{"cluster":"c1","epoch":"e1","revision":42,"leader":"22222222-x","mesh_time":"2026-01-02T03:04:05Z","self":"11111111-x","members":[
	{"id":"11111111-x","name":"edge-1","role":"edge","region":"us-east","state":"alive","http":"http://127.0.0.1:8580","rtt_ms":-1,"w":41,"f_age_ms":120,
	 "entries":7,"bytes":1048576,"uptime_ms":3723000,"version":"v1"},
	{"id":"33333333-x","name":"edge-2","role":"edge","region":"eu-west","state":"failed","http":"http://127.0.0.1:8680","rtt_ms":80.04,"w":0,"f_age_ms":-1,
	 "error":"does not answer","version":"v1"},
	{"id":"22222222-x","name":"voter-1","role":"voter","region":"us-east","state":"alive","raft":"leader","http":"http://127.0.0.1:8880","rtt_ms":0.31,
	 "w":42,"f_age_ms":-1,"entries":0,"bytes":0,"uptime_ms":90061000,"version":"v1"}]}`
	golden(t, "status", s.ok(t, "status"))
	var doc map[string]any
	if err := json.Unmarshal([]byte(s.ok(t, "status", "-o", "json")), &doc); err != nil || doc["leader"] != "22222222-x" {
		t.Errorf("%v: %v", err, doc)
	}
}

// Ctrl-C says so, and after a write that was sent already it says that nobody knows what became of it.
func TestInterrupt(t *testing.T) {
	for _, tc := range []struct {
		verb    string
		already bool
		want    string
	}{
		{"get", false, "kvmesh: interrupted\n"},
		{"delete", false, "may or may not have been carried out"},
		{"delete", true, "kvmesh: interrupted\n"},
	} {
		f := newFake(t)
		s := newShell(f.URL)
		ctx, cancel := context.WithCancel(t.Context())
		f.before = func(_ http.ResponseWriter, r *http.Request) bool {
			cancel()
			<-r.Context().Done()
			return true
		}
		if tc.already {
			cancel()
		}
		var errOut bytes.Buffer
		code := s.app.Run(ctx, []string{"key", tc.verb, "k"}, IO{In: strings.NewReader(""), Out: io.Discard, Err: &errOut})
		if code != ExitFailure || !strings.Contains(errOut.String(), tc.want) {
			t.Errorf("%s: exit %d: %s", tc.verb, code, errOut.String())
		}
	}
}
