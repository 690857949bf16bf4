package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

const (
	cloudAccount   = "0123456789abcdef0123456789abcdef"
	cloudNamespace = "fedcba9876543210fedcba9876543210"
	cloudToken     = "cloud-token"
)

// fakeCloud is what is read of the Workers KV REST API (KV contract 1.1, 1.3, 1.4, 1.8), over a map.
type fakeCloud struct {
	*httptest.Server
	// before sees each request first, and answers it itself when it returns true.
	before func(http.ResponseWriter, *http.Request) bool
	page   int // keys of a page

	mu     sync.Mutex // guards all below
	data   map[string]fakeValue
	values map[string]bool // keys whose values were asked for
}

func newCloud(t *testing.T) *fakeCloud {
	c := &fakeCloud{page: 7, data: map[string]fakeValue{}, values: map[string]bool{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func refuseCloud(w http.ResponseWriter, status, code int, text string) {
	w.WriteHeader(status)
	writeJSON(w, map[string]any{"success": false, "result": nil, "messages": []any{}, "errors": []any{map[string]any{"code": code, "message": text}}})
}

func (c *fakeCloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.before != nil && c.before(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+cloudToken {
		refuseCloud(w, 401, 10000, "Authentication error")
		return
	}
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/client/v4/accounts/"+cloudAccount+"/storage/kv/namespaces/"+cloudNamespace)
	if !ok {
		refuseCloud(w, 404, 10013, "list keys: 'namespace not found'")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	raw, isValue := strings.CutPrefix(path, "/values/")
	if !isValue {
		c.list(w, r)
		return
	}
	key, err := client.UnescapeSegment(raw)
	c.values[key] = true
	v, ok := c.data[key]
	if err != nil || !ok || strings.Contains(raw, "/") {
		refuseCloud(w, 404, 10009, "get: 'key not found'")
		return
	}
	if len(v.value)%2 == 0 { // not every server tells the size
		w.Header().Set("Content-Length", strconv.Itoa(len(v.value)))
	} else if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
	_, _ = w.Write(v.value) // the client may have gone
}

func (c *fakeCloud) list(w http.ResponseWriter, r *http.Request) {
	after, _ := base64.URLEncoding.DecodeString(r.URL.Query().Get("cursor"))
	result := []map[string]any{}
	cursor := ""
	for _, key := range slices.Sorted(maps.Keys(c.data)) {
		if !strings.HasPrefix(key, r.URL.Query().Get("prefix")) || key <= string(after) {
			continue
		}
		if len(result) == c.page {
			cursor = base64.URLEncoding.EncodeToString([]byte(result[len(result)-1]["name"].(string)))
			break
		}
		v := c.data[key]
		doc := map[string]any{"name": key}
		if v.metadata != "" {
			doc["metadata"] = json.RawMessage(v.metadata)
		}
		if v.expiration != 0 {
			doc["expiration"] = v.expiration
		}
		result = append(result, doc)
	}
	writeJSON(w, map[string]any{
		"success": true, "errors": []any{}, "messages": []any{}, "result": result,
		"result_info": map[string]any{"count": len(result), "cursor": cursor},
	})
}

// shellOf returns a shell that has the token, and the arguments of a copy.
func (c *fakeCloud) shellOf(t *testing.T, f *fakeNode) (*shell, []string) {
	s := newShell(f.URL)
	s.env["CLOUDFLARE_API_TOKEN"] = cloudToken
	state := filepath.Join(t.TempDir(), "state")
	return s, []string{
		"import", "--from-cloudflare", c.URL + "/client/v4/", "--account", cloudAccount, "--namespace-id", cloudNamespace, "--state", state,
	}
}

// fill gives the server what oddState gives a node, and returns it as a namespace "cloud" of f.
func (c *fakeCloud) fill(f *fakeNode) {
	oddState(f)
	f.titles["cloud"], f.data["cloud"] = "cloud", f.data[defaultID]
	f.data[defaultID] = map[string]*fakeValue{}
	c.data = f.state("cloud")
}

// A namespace comes over with everything, whatever its keys are.
func TestCopyFromCloudflare(t *testing.T) {
	f, c := newFake(t), newCloud(t)
	c.fill(f)
	s, args := c.shellOf(t, f)
	out := s.ok(t, args...)
	sameState(t, f, "cloud", "default")
	if !strings.HasPrefix(out, fmt.Sprintf("import: %d keys, ", len(c.data))) || len(c.values) != len(c.data) {
		t.Errorf("%d values were read of %d: %s", len(c.values), len(c.data), out)
	}
	if _, err := os.Stat(args[len(args)-1]); !os.IsNotExist(err) {
		t.Errorf("the state is still there: %v", err)
	}
	// The token may come from a file; keys may be picked and renamed.
	delete(s.env, "CLOUDFLARE_API_TOKEN")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(cloudToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "namespace", "create", "part")
	s.ok(t, append(args, "--api-token-file", token, "--namespace", "part", "--only", "a/", "--prefix", "x/")...)
	part := f.state("part")
	if got, want := string(part["x/a/b"].value), string(c.data["a/b"].value); len(part) == 0 || got != want {
		t.Errorf("%d keys, %d bytes, want %d", len(part), len(got), len(want))
	}
	for key := range part {
		if !strings.HasPrefix(key, "x/a/") {
			t.Errorf("%q was copied too", key)
		}
	}
}

// What the other server says no to is told with its code and text.
func TestCloudflareErrors(t *testing.T) {
	f, c := newFake(t), newCloud(t)
	c.data["k"] = fakeValue{value: []byte("v")}
	s, args := c.shellOf(t, f)
	s.env["CLOUDFLARE_API_TOKEN"] = "wrong"
	r := s.run(args...)
	if r.code != ExitFailure || !strings.Contains(r.err, "HTTP 401 Unauthorized: Authentication error [code: 10000]") || !strings.Contains(r.err, "--api-token-file") || strings.Contains(r.err, "wrong") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	s.env["CLOUDFLARE_API_TOKEN"] = cloudToken
	other := slices.Clone(args)
	other[6] = strings.Repeat("0", 32)
	if r := s.run(other...); r.code != ExitFailure || !strings.Contains(r.err, "HTTP 404 Not Found: list keys: 'namespace not found' [code: 10013]") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	other = slices.Clone(args)
	other[2] = f.URL // it answers, and is no such API
	if r := s.run(other...); r.code != ExitFailure || !strings.Contains(r.err, "HTTP 404") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	// Keys that cannot be read, or that the mesh cannot have, are named; the others come over.
	c.data = map[string]fakeValue{
		"good": {value: []byte("1")}, "broken": {value: []byte("2")}, "gone": {value: []byte("3")},
		"meta": {value: []byte("4"), metadata: `"` + strings.Repeat("m", kv.MaxMetadataBytes) + `"`},
		"big":  {value: make([]byte, kv.MaxValueBytes+2)}, "big, of unknown size": {value: make([]byte, kv.MaxValueBytes+1)},
		strings.Repeat("k", 513): {value: []byte("5")}, "old": {value: []byte("6"), expiration: 1600000000},
	}
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/broken"):
			refuseCloud(w, 400, 10001, "get: 'something\x1b is wrong'")
		case strings.HasSuffix(r.URL.Path, "/gone"):
			refuseCloud(w, 404, 10009, "get: 'key not found'")
		default:
			return false
		}
		return true
	}
	r = s.run(args...)
	for _, want := range []string{
		"import broken: the server answered HTTP 400 Bad Request: get: 'something is wrong' [code: 10001]",
		"import meta: the metadata has 1026 bytes; the limit is 1024", "import big: the value has 26214402 bytes; the limit is 26214400",
		"import big, of unknown size: the value has more than 26214400 bytes", "kkk: the key has 513 bytes; the limit is 512",
	} {
		if !strings.Contains(r.err, want) {
			t.Errorf("stderr does not say %q: %s", want, r.err)
		}
	}
	if got := f.state("default"); r.code != ExitFailure || len(got) != 1 || !strings.Contains(r.out, "2 expired or gone, 5 FAILED") {
		t.Errorf("exit %d, %d keys: %s", r.code, len(got), r.out)
	}
	// The next run tries those that failed, and nothing else.
	c.before, c.values = nil, map[string]bool{}
	for _, key := range []string{"meta", "big", "big, of unknown size", strings.Repeat("k", 513)} {
		delete(c.data, key)
	}
	s.ok(t, append(args, "--resume")...)
	if got := f.state("default"); len(c.values) != 1 || string(got["broken"].value) != "2" {
		t.Errorf("%v were read: %v", c.values, got)
	}
}

// A server that is busy, or breaks off, is asked again, no sooner than it says.
func TestCloudflareIsAskedAgain(t *testing.T) {
	f, c := newFake(t), newCloud(t)
	for i := range 20 {
		c.data[fmt.Sprintf("k%02d", i)] = fakeValue{value: bytes.Repeat([]byte{byte(i)}, 100_000)}
	}
	s, args := c.shellOf(t, f)
	var mu sync.Mutex // guards seen
	seen := map[string]int{}
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		seen[r.URL.String()]++
		n, kind := seen[r.URL.String()], len(seen)%4
		mu.Unlock()
		if n > 1 {
			return false
		}
		switch kind {
		case 0:
			w.Header().Set("Retry-After", "1")
			refuseCloud(w, 429, 971, "Please wait and consider throttling your request speed")
		case 1:
			refuseCloud(w, 500, 10500, "internal")
		case 2:
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		default:
			panic(http.ErrAbortHandler)
		}
		return true
	}
	s.ok(t, args...)
	for key, v := range f.state("default") {
		if !bytes.Equal(v.value, c.data[key].value) {
			t.Errorf("%s has %d bytes", key, len(v.value))
		}
	}
	if got := len(f.state("default")); got != 20 {
		t.Errorf("%d keys", got)
	}
}

// A server that does not recover is given up, and one that asks for an hour is not waited for.
func TestCloudflareIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			status, want int
			after        string
			least, most  time.Duration
		}{
			{503, 6, "", time.Second, 12 * time.Second},
			{429, 1, "3600", 0, 0},
			{429, 11, "60", 9 * time.Minute, 10 * time.Minute},
			{429, 1, time.Now().UTC().Add(3 * time.Hour).Format(http.TimeFormat), 0, 0},
			{418, 1, "", 0, 0},
		} {
			asked := 0
			cf, err := client.NewCloudflare(client.CloudflareOptions{
				URL: "https://api.example", Account: "a", Namespace: "n",
				Transport: roundTrip(func(r *http.Request) *http.Response {
					asked++
					rec := httptest.NewRecorder()
					rec.Header().Set("Retry-After", tc.after)
					refuseCloud(rec, tc.status, 1, "no")
					resp := rec.Result()
					resp.Request = r
					return resp
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, _, err = cf.Get(t.Context(), "k")
			if took := time.Since(start); err == nil || asked != tc.want || took < tc.least || took > tc.most {
				t.Errorf("%d with Retry-After %q: asked %d times within %v: %v", tc.status, tc.after, asked, took, err)
			}
		}
	})
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// A copy that was interrupted goes on where it was.
func TestCopyFromCloudflareResumes(t *testing.T) {
	f, c := newFake(t), newCloud(t)
	c.fill(f)
	s, args := c.shellOf(t, f)
	args = append(args, "--parallel", "2")
	ctx, cancel := context.WithCancel(t.Context())
	cut := &cutter{}
	cut.arm(len(c.data)/2, cancel)
	f.before = cut.before
	r := s.runCtx(ctx, args...)
	if r.code != ExitFailure || !strings.Contains(r.err, "--resume goes on") {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	cut.arm(0, nil)
	if r := s.run(append(slices.Clone(args), "--resume", "--prefix", "x")...); r.code != ExitFailure || !strings.Contains(r.err, "--prefix was not given and is x now") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	st, err := readState(args[8])
	if err != nil || st == nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	clear(c.values) // those that were still under way come again
	c.mu.Unlock()
	left := map[string]bool{}
	for key := range c.data {
		if !st.Begun || key > string(st.Mark) {
			left[key] = true
		}
	}
	for _, key := range st.Ahead {
		delete(left, string(key))
	}
	s.ok(t, append(args, "--resume")...)
	sameState(t, f, "cloud", "default")
	c.mu.Lock()
	defer c.mu.Unlock()
	if !maps.Equal(c.values, left) {
		t.Errorf("%d values were read; %d were left of %d", len(c.values), len(left), len(c.data))
	}
}
