package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// contents reads a tree.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path) // it lies below
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cutter ends a command while it runs: at the n-th request that it counts.
type cutter struct {
	mu       sync.Mutex // guards all below
	requests int        // so far
	at       int        // 0 = never
	cut      func()
}

func (c *cutter) before(http.ResponseWriter, *http.Request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests++; c.requests == c.at {
		c.cut()
	}
	return false
}

func (c *cutter) arm(at int, cut func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.at, c.cut = 0, at, cut
}

func (c *cutter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}

// runCtx runs a command that may be interrupted.
func (s *shell) runCtx(ctx context.Context, args ...string) result {
	var out, errOut bytes.Buffer
	code := s.app.Run(ctx, args, IO{In: strings.NewReader(s.stdin), Out: &out, Err: &errOut})
	return result{code, out.String(), errOut.String()}
}

// copyTree copies what a command has on the disk while it runs: so much there would be, had it been killed now.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		target := filepath.Join(to, rel)
		switch {
		case os.IsNotExist(err): // renamed meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		}
		in, err := os.Open(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		out, err := os.Create(target)
		if err == nil {
			_, err = io.Copy(out, in)
		}
		return errorsOf(err, out.Close(), in.Close())
	})
	if err != nil {
		t.Error(err)
	}
}

// much is a namespace in which there is something to interrupt.
func much(t *testing.T) (*fakeNode, *shell, *cutter) {
	f := newFake(t)
	oddState(f)
	maps.DeleteFunc(f.data[defaultID], func(key string, _ *fakeValue) bool { return strings.Count(key, "/") > 3 }) // they take long
	for key, v := range f.data[defaultID] {
		v.value = v.value[:min(len(v.value), 100)]
		if key == "zeros" {
			v.value = make([]byte, kv.MaxInlineValueBytes+1)
		}
	}
	for i := range 120 {
		v := &fakeValue{value: []byte(fmt.Sprint(i)), revision: 1}
		if i%24 == 0 {
			v.value = bytes.Repeat([]byte{byte(i), 255}, kv.MaxInlineValueBytes/2+1)
			v.metadata = fmt.Sprintf(`{"i":%d}`, i)
		}
		f.data[defaultID][fmt.Sprintf("n/%04d", i)] = v
	}
	c := &cutter{}
	f.before = c.before
	s := newShell(f.URL)
	s.app.savePause = 20 * time.Millisecond
	s.ok(t, "namespace", "create", "copy")
	return f, s, c
}

// reached is how many of the keys, which are in order, an export has done for good.
func reached(t *testing.T, format, target string, keys []string) int {
	t.Helper()
	path := target + partialSuffix + ".state"
	if format == formatDir {
		path = filepath.Join(target, exportDir, stateFile)
	}
	st, err := readState(path)
	if err != nil || st == nil || len(st.Failed) > 0 {
		t.Fatalf("the state of an export: %v, %v", st, err)
	}
	if !st.Begun {
		return len(st.Ahead)
	}
	n, found := slices.BinarySearch(keys, string(st.Mark))
	if !found {
		t.Fatalf("the state names %q, which is no key", st.Mark)
	}
	return n + 1 + len(st.Ahead)
}

// An export that was interrupted, or killed, goes on where it was, and ends with the same files.
func TestExportsResume(t *testing.T) {
	for _, format := range []string{formatDir, formatNDJSON, formatWrangler} {
		t.Run(format, func(t *testing.T) {
			f, s, c := much(t)
			keys := slices.Sorted(maps.Keys(f.state("default")))
			whole := filepath.Join(t.TempDir(), "out")
			c.arm(0, nil)
			s.ok(t, "export", "--format", format, whole)
			all := c.count()
			want := contents(t, filepath.Dir(whole))
			for i, at := range []int{2, all / 2, all * 3 / 4} {
				killed := i%2 == 1
				work := t.TempDir()
				args := []string{"export", "--format", format, filepath.Join(work, "out"), "--parallel", "3"}
				ctx, cancel := context.WithCancel(t.Context())
				dead := t.TempDir()
				c.arm(at, cancel)
				if killed {
					c.arm(at, func() { copyTree(t, work, dead); cancel() })
				}
				r := s.runCtx(ctx, args...)
				if r.code != ExitFailure || !strings.Contains(r.err, "interrupted") || !strings.Contains(r.err, "--resume goes on") {
					t.Fatalf("at %d: exit %d: %s", at, r.code, r.err)
				}
				if killed {
					work = dead
					args[3] = filepath.Join(work, "out")
				}
				if left := contents(t, work); left["out"] != "" {
					t.Errorf("at %d: what is not whole has the name of what is", at)
				}
				if r := s.run(args...); r.code != ExitFailure || !strings.Contains(r.err, "not whole") {
					t.Errorf("at %d: without --resume: exit %d: %s", at, r.code, r.err)
				}
				if format == formatDir {
					if r := s.run("import", args[3]); r.code != ExitFailure || !strings.Contains(r.err, "not whole") {
						t.Errorf("at %d: it can be imported: exit %d: %s", at, r.code, r.err)
					}
				}
				if r := s.run(append(args, "--resume", "--prefix", "n/")...); r.code != ExitFailure || !strings.Contains(r.err, `--prefix was not given and is n/ now`) {
					t.Errorf("at %d: another prefix: exit %d: %s", at, r.code, r.err)
				}
				c.arm(0, nil)
				done := reached(t, format, args[3], keys)
				out := s.ok(t, append(args, "--resume")...)
				if !strings.HasPrefix(out, fmt.Sprintf("export: %d ", len(keys)-done)) || !strings.Contains(out, " before") {
					t.Errorf("at %d, killed %v: %d of %d keys were done: %s", at, killed, done, len(keys), out)
				}
				got := contents(t, work)
				if len(got) != len(want) {
					t.Errorf("at %d, killed %v: %d files, want %d", at, killed, len(got), len(want))
				}
				for name, text := range want {
					if got[name] != text {
						t.Errorf("at %d, killed %v: %s has %d bytes, want %d", at, killed, name, len(got[name]), len(text))
					}
				}
			}
		})
	}
}

// An import that was interrupted, or killed, goes on where it was.
func TestImportsResume(t *testing.T) {
	for _, format := range []string{formatDir, formatNDJSON, formatWrangler} {
		t.Run(format, func(t *testing.T) {
			f, s, c := much(t)
			source := filepath.Join(t.TempDir(), "out")
			s.ok(t, "export", "--format", format, source)
			args := []string{"import", "--format", format, source, "--namespace", "copy", "--parallel", "3"}
			c.arm(0, nil)
			s.ok(t, args...)
			all, total := c.count(), len(f.state("default"))
			for i, at := range []int{all / 2, all * 2 / 3} {
				killed := i%2 == 1
				clear(f.data[fmt.Sprintf("%032x", 2)])
				ctx, cancel := context.WithCancel(t.Context())
				dead := t.TempDir()
				c.arm(at, cancel)
				if killed {
					c.arm(at, func() { copyTree(t, filepath.Dir(source), dead); cancel() })
				}
				r := s.runCtx(ctx, args...)
				if r.code != ExitFailure || !strings.Contains(r.err, "--resume goes on") {
					t.Fatalf("at %d: exit %d: %s", at, r.code, r.err)
				}
				state := source + stateSuffix
				if killed { // the state may not have been kept yet
					if err := os.Remove(state); err != nil {
						t.Fatal(err)
					}
					if b, err := os.ReadFile(filepath.Join(dead, "out"+stateSuffix)); err == nil {
						if err := os.WriteFile(state, b, 0o600); err != nil {
							t.Fatal(err)
						}
					}
				} else if r := s.run(append(args, "--resume", "--only", "n/")...); r.code != ExitFailure || !strings.Contains(r.err, `--only was not given and is n/ now`) {
					t.Errorf("at %d: other keys: exit %d: %s", at, r.code, r.err)
				}
				c.arm(0, nil)
				st, err := readState(state)
				if err != nil || !killed && st == nil {
					t.Fatal(err)
				}
				out := s.ok(t, append(args, "--resume")...)
				sameState(t, f, "default", "copy")
				if _, err := os.Stat(state); !os.IsNotExist(err) {
					t.Errorf("at %d: the state is still there: %v", at, err)
				}
				if st == nil || format == formatDir {
					continue
				}
				done, _ := strconv.Atoi(string(st.Mark)) // empty: none
				done += len(st.Ahead)
				if !strings.HasPrefix(out, fmt.Sprintf("import: %d ", total-done)) {
					t.Errorf("at %d, killed %v: %d of %d keys were done: %s", at, killed, done, total, out)
				}
			}
		})
	}
}

// What failed is tried again by --resume, and nothing else.
func TestResumeTriesAgainWhatFailed(t *testing.T) {
	for _, format := range []string{formatDir, formatNDJSON, formatWrangler} {
		f, s, c := much(t)
		bad := map[string]bool{"n/0024": true, "n/0048": true, "zeros": true}
		var mu sync.Mutex // guards broken and touched
		broken, touched := true, 0
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			rest, isKV := strings.CutPrefix(r.URL.Path, "/v1/kv/")
			_, key, _ := strings.Cut(rest, "/")
			if isKV && key != "" {
				touched++
			}
			if broken && bad[key] {
				f.refuse(w, kv.Errorf(kv.CodeDiskFull, "no room"))
				return true
			}
			return c.before(w, r)
		}
		source := filepath.Join(t.TempDir(), "out")
		for _, args := range [][]string{{"export", "--format", format, source}, {"import", "--format", format, source, "--namespace", "copy"}} {
			broken, touched = true, 0
			r := s.run(args...)
			if r.code != ExitFailure || strings.Count(r.err, "no room") != len(bad) || !strings.Contains(r.out, "3 FAILED") || !strings.Contains(r.err, "--resume tries again") {
				t.Fatalf("%v: exit %d: %s%s", args, r.code, r.out, r.err)
			}
			if _, err := os.Stat(source); args[0] == "export" && format != formatDir && !os.IsNotExist(err) {
				t.Errorf("%s: what lacks keys has the name of what is whole: %v", format, err)
			}
			if r := s.run(append(args, "--resume")...); r.code != ExitFailure || !strings.Contains(r.out, "3 FAILED") {
				t.Fatalf("%v: again: exit %d: %s%s", args, r.code, r.out, r.err)
			}
			broken, touched = false, 0
			out := s.ok(t, append(args, "--resume")...)
			if touched != len(bad) || !strings.Contains(out, ": 3 ") {
				t.Errorf("%v: %d values were touched: %s", args, touched, out)
			}
		}
		sameState(t, f, "default", "copy")
	}
}

// A file that an interrupted export has written, and somebody has removed, is written again.
func TestResumeMissesFiles(t *testing.T) {
	f, s, _ := much(t)
	broken := true
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if broken && strings.HasSuffix(r.URL.Path, "/text") {
			f.refuse(w, kv.Errorf(kv.CodeDiskFull, "no room"))
			return true
		}
		return false
	}
	dir := filepath.Join(t.TempDir(), "out")
	if r := s.run("export", dir); r.code != ExitFailure {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	lost := filepath.Join(dir, "n", "0007")
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	broken = false
	out := s.ok(t, "export", dir, "--resume")
	if b, err := os.ReadFile(lost); err != nil || string(b) != "7" || !strings.HasPrefix(out, "export: 2 files, ") {
		t.Errorf("%q, %v: %s", b, err, out)
	}
}

// A source that has changed is not gone on with; neither is a state that is damaged, or of another kind.
func TestResumeRefusals(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	dir := t.TempDir()
	file, state := filepath.Join(dir, "f"), filepath.Join(dir, "f"+stateSuffix)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, `{"key":"..","value":""}`)
	if r := s.run("import", "--format", "ndjson", file); r.code != ExitFailure {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	good, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	write(file, `{"key":"a","value":""}`)
	for text, want := range map[string]string{
		string(good):    "the size of " + file + " was 23 and is 22 now",
		"{":             "is damaged",
		`{"version":7}`: "is of version 7",
		`{"version":1,"args":[],"mark":"","begun":false,"totals":{}}`: "belongs to something else",
	} {
		write(state, text)
		if r := s.run("import", "--format", "ndjson", file, "--resume"); r.code != ExitFailure || !strings.Contains(r.err, want) {
			t.Errorf("%s: exit %d, want %q: %s", text, r.code, want, r.err)
		}
	}
	s.ok(t, "import", "--format", "ndjson", file) // anew
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state is still there: %v", err)
	}
	s.ok(t, "import", "--format", "ndjson", file, "--resume") // there is nothing to go on with
}

// The ledger's mark never passes an item that is still under way.
func TestLedger(t *testing.T) {
	l := newLedger()
	for i, mark := range []string{"a", "b", "c", "d"} {
		if n, err := l.begin(t.Context(), mark, i == 0); err != nil || n != int64(i) {
			t.Fatal(n, err)
		}
	}
	mark := func() string {
		var st state
		l.write(&st, totals{})
		return fmt.Sprintf("%s %v %s %s", st.Mark, st.Begun, st.Failed, st.Ahead)
	}
	for _, step := range []struct {
		n      int64
		failed bool
		want   string
	}{{3, false, " false [] [d]"}, {2, true, " false [c] [d]"}, {0, false, " false [c] [d]"}, {1, false, "d true [c] []"}} {
		if l.settle(step.n, step.failed); mark() != step.want {
			t.Errorf("after %d: %q, want %q", step.n, mark(), step.want)
		}
	}
	// What was moved ahead is not moved again, and stays known until the mark has passed it.
	next := newLedger()
	next.resume(&state{Mark: []byte("a"), Begun: true, Ahead: [][]byte{[]byte("c"), []byte("d"), []byte("f")}})
	for _, m := range []string{"b", "c", "d", "e"} {
		due, again := next.due(m, true)
		if due != (m == "b" || m == "e") || again {
			t.Errorf("%s is due: %v, again: %v", m, due, again)
		}
		if due {
			if _, err := next.begin(t.Context(), m, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := l
	l = next // of which mark speaks now
	if got := mark(); got != "a true [] [c d f]" {
		t.Error(got)
	}
	if l.settle(0, false); mark() != "d true [] [f]" {
		t.Error(mark())
	}
	l = old
	for range maxWindow {
		if _, err := l.begin(t.Context(), "x", false); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.begin(ctx, "too far", false); err == nil {
		t.Error("the window has no end")
	}
	l.settle(5, false)
	if _, err := l.begin(ctx, "too far", false); err == nil {
		t.Error("the window moves without its oldest item")
	}
	l.settle(4, false)
	if _, err := l.begin(ctx, "y", false); err != nil {
		t.Error(err)
	}
}

// An import that waits for standard input can be interrupted.
func TestInterruptOfAPipe(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	in, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan int)
	var errOut bytes.Buffer // read once the command has ended
	go func() {
		got <- s.app.Run(ctx, []string{"import", "--format", "ndjson", "-"}, IO{In: in, Out: io.Discard, Err: &errOut})
	}()
	if _, err := io.WriteString(out, `{"key":"a","value":"1"}`+"\n"); err != nil { // it is being read
		t.Fatal(err)
	}
	cancel()
	if code := <-got; code != ExitFailure || !strings.Contains(errOut.String(), "interrupted: the rest was not transferred\n") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
}
