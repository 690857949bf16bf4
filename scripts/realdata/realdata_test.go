package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	writer  = edge{"a", "http://a"}
	readers = []edge{{"b", "http://b"}, {"c", "http://c"}}
)

func expectationOf(key string, value []byte) expectation {
	return expectation{key, sha256.Sum256(value), int64(len(value))}
}

// filled returns a client of f with n keys written, awkward names among them.
func filled(t *testing.T, f *fakeMesh, n int) (*client, []expectation) {
	t.Helper()
	c := newClient(f, namespace)
	keys := []string{"a/b", "a//b", "a/../b", "../x", "%2F", "%00", " x", "v1/kv", "ü", "😀", "q?x=1#y", "a+b;c", strings.Repeat("k", 512)}
	for i := len(keys); i < n; i++ {
		keys = append(keys, fmt.Sprintf("dir/%03d", i))
	}
	slices.Sort(keys)
	var want []expectation
	for i, k := range keys[:min(n, len(keys))] {
		value := bytes.Repeat([]byte{byte(i)}, i) // the first one is empty
		if err := c.put(t.Context(), writer, k, value); err != nil {
			t.Fatal(err)
		}
		want = append(want, expectationOf(k, value))
	}
	return c, want
}

// requireErr fails unless err says part; with an empty part err must be nil.
func requireErr(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Fatalf("error %v, want none", err)
	case part != "" && (err == nil || !strings.Contains(err.Error(), part)):
		t.Fatalf("error %v, want one that says %q", err, part)
	}
}

func TestCompareFindsEveryDifference(t *testing.T) {
	overloaded := 0
	for name, tc := range map[string]struct {
		mesh *fakeMesh
		says string
	}{
		"equal": {&fakeMesh{}, ""},
		"one bit at one edge": {&fakeMesh{breakGet: func(host, key string, v []byte) []byte {
			if host == "c" && key == "dir/013" {
				v = bytes.Clone(v)
				v[0] ^= 1
			}
			return v
		}}, `c: "dir/013"`},
		"an empty value for another": {&fakeMesh{breakGet: func(_, key string, v []byte) []byte {
			if key == "ü" {
				return nil
			}
			return v
		}}, `"ü"`},
		"a missing key": {&fakeMesh{status: func(_, key string) int {
			if key == "a//b" {
				return http.StatusNotFound
			}
			return 0
		}}, `"a//b": status 404`},
		"a key that the listing misses": {&fakeMesh{breakKey: func(k string) string {
			return strings.Replace(k, "dir/014", "", 1)
		}}, `misses "dir/014"`},
		"a key that nobody wrote": {&fakeMesh{breakKey: func(k string) string {
			return strings.Replace(k, "dir/014", "dir/0140", 1)
		}}, `"dir/0140", which was not written`},
		"503 that passes": {&fakeMesh{status: func(_, key string) int {
			if key == "v1/kv" && overloaded < 3 {
				overloaded++
				return http.StatusServiceUnavailable
			}
			return 0
		}}, ""},
		"503 that stays": {&fakeMesh{status: func(_, key string) int {
			if key == "v1/kv" {
				return http.StatusServiceUnavailable
			}
			return 0
		}}, `"v1/kv": status 503`},
		"no tier named": {&fakeMesh{tier: func(string, string, int) string { return "" }}, "no Kv-Cache"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, want := filled(t, tc.mesh, 40)
				total, err := c.compare(t.Context(), readers, want)
				requireErr(t, err, tc.says)
				if bytes := int64(39 * 40); err == nil && total != bytes { // both edges: 2 × (0 + 1 + … + 39)
					t.Errorf("%d bytes read, want %d", total, bytes)
				}
			})
		})
	}
}

func TestTallyCountsAnswersByEdgeAndTier(t *testing.T) {
	c, want := filled(t, &fakeMesh{tier: func(host, key string, _ int) string {
		if host == "b" && key < "b" {
			return "region"
		}
		return "hit"
	}}, 20)
	if _, err := c.compare(t.Context(), readers, want); err != nil {
		t.Fatal(err)
	}
	below := 0
	for _, w := range want {
		if w.key < "b" {
			below++
		}
	}
	lines := strings.Join(c.tally.take(), "\n")
	for _, part := range []string{fmt.Sprintf("hit %d  region %d", 20-below, below), "hit 20"} {
		if !strings.Contains(lines, part) {
			t.Errorf("%q is not in\n%s", part, lines)
		}
	}
	if total := fmt.Sprintf("  hit %d  region %d", 40-below, below); c.tally.total() != total {
		t.Errorf("in all %q, want %q", c.tally.total(), total)
	}
	if again := c.tally.take(); len(again) != 0 {
		t.Errorf("counted twice: %q", again)
	}
}

func TestWarmWaitsForHits(t *testing.T) {
	for name, tc := range map[string]struct {
		hitAt int // the read that is a hit
		says  string
	}{
		"third read": {3, ""},
		"never":      {1 << 30, "is no hit after 30s of reading it: Kv-Cache: central"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeMesh{tier: func(_, _ string, reads int) string {
					if reads >= tc.hitAt {
						return "hit"
					}
					return "central"
				}}
				c, want := filled(t, f, 20)
				requireErr(t, c.warm(t.Context(), readers, want), tc.says)
			})
		})
	}
}

func TestPublishHoldsTheDeadline(t *testing.T) {
	first := func(reads *int, then []byte) func(string, string, []byte) []byte {
		return func(host, key string, v []byte) []byte {
			if host == "c" && key == "a/b" {
				if *reads++; *reads > 1 {
					return then
				}
			}
			return v
		}
	}
	var reads, backReads int
	for name, tc := range map[string]struct {
		mesh  *fakeMesh
		stale bool
		says  string
	}{
		"at once":          {mesh: &fakeMesh{}},
		"just in time":     {&fakeMesh{lag: map[string]time.Duration{"b": 300 * time.Millisecond, "c": 1990 * time.Millisecond}}, true, ""},
		"at the deadline":  {&fakeMesh{lag: map[string]time.Duration{"c": 2 * time.Second}}, true, "c: \"a/b\" has no new version 2s after"},
		"after a minute":   {&fakeMesh{lag: map[string]time.Duration{"b": time.Minute}}, true, "b: \"a/b\" has no new version 2s after"},
		"another value":    {&fakeMesh{breakGet: func(string, string, []byte) []byte { return []byte("?") }}, false, "neither the old version nor the new"},
		"back to the old":  {&fakeMesh{breakGet: first(&backReads, []byte("old a/b"))}, false, `"a/b" went back`},
		"gone afterwards":  {&fakeMesh{breakGet: first(&reads, nil)}, false, `"a/b" went back`},
		"a write refused":  {&fakeMesh{maxBytes: 10, tooLarge: "no"}, false, "writing"},
		"a read that errs": {&fakeMesh{status: func(string, string) int { return 500 }}, false, "status 500"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(tc.mesh, namespace)
				var changes []change
				for _, k := range []string{"a/b", "c", "d"} {
					old := []byte("old " + k)
					tc.mesh.set(k, old)
					ch := newVersion(expectationOf(k, old), old)
					if ch.sum == ch.old || ch.sum != sha256.Sum256(ch.value) || int(ch.size) != len(ch.value) {
						t.Fatalf("newVersion(%q) = %+v", old, ch)
					}
					changes = append(changes, ch)
				}
				v, err := c.publish(t.Context(), writer, readers, changes)
				requireErr(t, err, tc.says)
				if got := v.stale > 0; got != tc.stale {
					t.Errorf("%d old reads, want some: %v", v.stale, tc.stale)
				}
				if err == nil && v.max < tc.mesh.lag["c"] {
					t.Errorf("max %v, but edge c lags by %v", v.max, tc.mesh.lag["c"])
				}
			})
		})
	}
}

func TestLimits(t *testing.T) {
	const size = 100_000
	for name, tc := range map[string]struct {
		mesh *fakeMesh
		says string
	}{
		"kept":           {&fakeMesh{maxBytes: size, tooLarge: "the limit is 26214400 bytes"}, ""},
		"kept, in MiB":   {&fakeMesh{maxBytes: size, tooLarge: "at most 25 MiB"}, ""},
		"limit unnamed":  {&fakeMesh{maxBytes: size, tooLarge: "126214400 too large"}, "does not name the limit"},
		"one byte less":  {&fakeMesh{maxBytes: size - 1, tooLarge: "25 MiB"}, "a value of exactly 100000 bytes: status 413"},
		"no limit":       {&fakeMesh{}, "status 200 instead of 413"},
		"value is lost":  {&fakeMesh{maxBytes: size, tooLarge: "25 MiB", status: func(string, string) int { return 404 }}, "404"},
		"value is wrong": {&fakeMesh{maxBytes: size, tooLarge: "25 MiB", breakGet: func(_, _ string, v []byte) []byte { return v[1:] }}, "99999 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := newClient(tc.mesh, namespace).limits(t.Context(), writer, readers, bigKey, size)
			requireErr(t, err, tc.says)
			if want.size != size {
				t.Errorf("%d bytes, want %d", want.size, size)
			}
		})
	}
}

func TestPickIsReproducibleAndMixed(t *testing.T) {
	var want []expectation
	for i := range 1000 {
		want = append(want, expectation{key: fmt.Sprint(i), size: int64(i) << 11}) // 0 to 2 MiB
	}
	if _, err := pick(want, 200, maxChanged); err == nil {
		t.Error("only 33 files travel inline, but 200 were picked")
	}
	for i := range want {
		want[i].size /= 16
	}
	a, err := pick(want, 200, maxChanged)
	if err != nil {
		t.Fatal(err)
	}
	b, err := pick(want, 200, maxChanged)
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("another choice the second time (%v)", err)
	}
	seen, large := map[string]bool{}, 0
	for _, p := range a {
		seen[p.key] = true
		if p.size > maxChanged {
			t.Errorf("%q has %d bytes", p.key, p.size)
		}
		if p.size > 64<<10 {
			large++
		}
	}
	if len(seen) != 200 || large != 20 {
		t.Errorf("%d different keys with %d large ones, want 200 and 20", len(seen), large)
	}
}

func TestScanNamesWhatAnImportRefuses(t *testing.T) {
	dir := t.TempDir()
	for path, value := range map[string]string{"b": "", "a b/ü": "x", "a/.hidden": "y"} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b", filepath.Join(dir, "a", "link")); err != nil {
		t.Fatal(err)
	}
	want, refused, err := scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := []expectation{expectationOf("a b/ü", []byte("x")), expectationOf("a/.hidden", []byte("y")), expectationOf("b", nil)}
	if !reflect.DeepEqual(want, files) || !slices.Equal(refused, []string{"a/link"}) {
		t.Errorf("scan = %v, %v", want, refused)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := copyTree(dir, to, want); err != nil {
		t.Fatal(err)
	}
	if copied, refused, err := scan(to); err != nil || len(refused) > 0 || !reflect.DeepEqual(copied, files) {
		t.Errorf("the copy holds %v, %v, %v", copied, refused, err)
	}
}

// A node that cannot start must be told by its name and its own words, and nothing may be left running.
func TestRunReportsANodeThatEnds(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "kvmesh")
	script := `#!/bin/sh
case "$1 $3" in
"mesh-key ") echo key ;;
"serve edge") echo "the words of an edge" >&2; exit 3 ;;
*) exec sleep 300 ;;
esac
`
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tree"), 0o700); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	var out, errOut bytes.Buffer
	o := options{binary: binary, source: filepath.Join(dir, "tree"), dir: data}
	r := &runner{options: o, out: &out}
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.release()
	for _, n := range r.mesh.nodes {
		if err := n.start(binary); err != nil {
			t.Fatal(err)
		}
	}
	last := r.mesh.nodes[len(r.mesh.nodes)-1]
	requireErr(t, last.waitReady(t.Context()), "edge-ap-south ended before it was ready: exit status 3")
	<-r.mesh.nodes[3].exited
	if got := strings.Join(r.mesh.crashed(), " "); !strings.Contains(got, "edge-us-east") || strings.Contains(got, "voter") {
		t.Errorf("crashed = %q", got)
	}
	r.mesh.tails(&errOut)
	if !strings.Contains(errOut.String(), "the words of an edge") {
		t.Errorf("the log is not shown: %q", errOut.String())
	}
	voter := r.mesh.nodes[0].cmd.Process
	if err := r.mesh.kill(); err != nil {
		t.Fatal(err)
	}
	if err := voter.Signal(os.Interrupt); err != os.ErrProcessDone {
		t.Errorf("a voter is left: %v", err)
	}
}
