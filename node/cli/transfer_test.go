package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/kv"
)

// hostile are keys that a file system cannot hold as they are, beside keys that look like their escaped forms.
func hostile() []string {
	long := strings.Repeat("l", 300)
	return []string{
		"a", "a/b", "a/b/c", "a!", "a//b", "a/", "a%d/b", "a%25d/b", "a/../b", "../x", "../../etc/passwd", "%2F", "%", "%-",
		"%2E", "...", "/", "//", "/abs", "x/.", "x/..", "nul\x00", "nul%00", "Case", "case", "ü", "🌍", " lead", "trail ", "new\nline",
		"back\\slash", "-rf", "con", manifestName, manifestName + "/x", "sub/" + manifestName,
		long, long + "/" + long[:200], long[:256], long[:255], long[:255] + "/x", strings.Repeat("%", 200), strings.Repeat("ü", 256), strings.Repeat("d/", 256),
	}
}

func TestFileNamesAreDistinctAndPossible(t *testing.T) {
	keys := hostile()
	slices.Sort(keys)
	var n fileNamer
	files, dirs := map[string]string{}, map[string]bool{}
	for _, key := range keys {
		p := n.path(key)
		if other, taken := files[p]; taken {
			t.Errorf("%q and %q are both %q", key, other, p)
		}
		files[p] = key
		if !fs.ValidPath(p) || p == manifestName || strings.Contains(p, "\x00") {
			t.Errorf("%q has the impossible path %q", key, p)
		}
		for dir := filepath.Dir(p); dir != "."; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
		for part := range strings.SplitSeq(p, "/") {
			if len(part) > maxFileName {
				t.Errorf("%q has a part of %d bytes", key, len(part))
			}
		}
	}
	for dir := range dirs {
		if key, taken := files[dir]; taken {
			t.Errorf("the file of %q is a directory too", key)
		}
	}
	if files["Case"] != "Case" || files["ü"] != "ü" || files["a"] != "a" {
		t.Error("harmless names are not kept")
	}
}

// Export and then import is the identity.
func TestExportThenImport(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	want := f.data[defaultID]
	for i, key := range hostile() {
		v := &fakeValue{value: bytes.Repeat([]byte{byte(i), 0}, i*i*3), revision: uint64(i + 1)}
		if i%3 == 0 {
			v.metadata = fmt.Sprintf(`{"i":%d,"t":"ü🌍<\u007f"}`, i)
		}
		if i%4 == 0 {
			v.expiration = fakeNow + int64(i) + 1
		}
		want[key] = v
	}
	want["a"].metadata, want["case"].value = "17", nil
	want["Case"].metadata = `"` + strings.Repeat("ü", 511) + `"` // the most there may be, and more when it is escaped
	dir := filepath.Join(t.TempDir(), "new", "out")
	out := s.ok(t, "export", dir)
	if !strings.HasPrefix(out, fmt.Sprintf("export: %d files, ", len(want))) {
		t.Errorf("summary: %s", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "ü")); err != nil || !bytes.Equal(b, want["ü"].value) {
		t.Errorf("a plain key is not a plain file: %v", err)
	}
	s.ok(t, "namespace", "create", "copy")
	s.ok(t, "import", dir, "--namespace", "copy")
	before, after := f.state("default"), f.state("copy")
	if len(before) != len(after) {
		t.Errorf("%d keys became %d", len(before), len(after))
	}
	for key, v := range before {
		got, ok := after[key]
		if !ok || !bytes.Equal(got.value, v.value) || got.metadata != v.metadata || got.expiration != v.expiration {
			t.Errorf("%q: %v %d bytes %q %d, want %d bytes %q %d",
				key, ok, len(got.value), got.metadata, got.expiration, len(v.value), v.metadata, v.expiration)
		}
	}
	// A directory with something in it is refused: it would be imported with the rest.
	if r := s.run("export", dir); r.code != ExitFailure || !strings.Contains(r.err, "is not empty") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

func TestExportOfAPrefix(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	for _, k := range []string{"a/1", "a/2", "b/1"} {
		s.ok(t, "key", "put", k, k)
	}
	dir := filepath.Join(t.TempDir(), "out")
	s.ok(t, "export", dir, "--prefix", "a/")
	s.ok(t, "namespace", "create", "copy")
	s.ok(t, "import", "--prefix", "x/", "--namespace", "copy", dir)
	if got := f.state("copy"); len(got) != 2 || string(got["x/a/1"].value) != "a/1" {
		t.Errorf("got %v", got)
	}
}

// tree makes files, and returns the directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What cannot be imported is named and does not stop the rest.
func TestImportGoesOnAfterFailures(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	dir := tree(t, map[string]string{
		"ok/1": "1", "ok/2": "", ".hidden": "h", "bad\xffname": "x", "refused": "x", "outside": "x", "empty/x": "x",
		manifestName: `{"version":1,"namespace":"n","entries":[{"file":"outside","key":".."},{"file":"missing"}]}`,
	})
	if err := errorsOf(
		os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Symlink("ok", filepath.Join(dir, "dirlink")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Remove(filepath.Join(dir, "empty", "x")),
	); err != nil {
		t.Fatal(err)
	}
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/refused") {
			f.refuse(w, kv.Errorf(kv.CodeDiskFull, "no room"))
			return true
		}
		return false
	}
	r := s.run("import", dir, "-o", "json")
	var doc struct {
		Files  int
		Bytes  int64
		Failed []failure
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != ExitFailure {
		t.Fatalf("exit %d, %v: %s%s", r.code, err, r.out, r.err)
	}
	var failed []string
	for _, x := range doc.Failed {
		failed = append(failed, x.File)
		if !strings.Contains(r.err, "import "+x.File+": "+x.Error) {
			t.Errorf("stderr does not say what happened to %q", x.File)
		}
	}
	slices.Sort(failed)
	if want := []string{`"bad\xffname"`, "dirlink", "fifo", "link", "missing", "outside", "refused"}; !slices.Equal(failed, want) {
		t.Errorf("failed: %q, want %q", failed, want)
	}
	if got := f.state("default"); len(got) != 3 || doc.Files != 3 || doc.Bytes != 2 || string(got["ok/1"].value) != "1" {
		t.Errorf("imported %v; summary %+v", got, doc)
	}
	for _, want := range []string{"symbolic link", "special file", "not valid UTF-8", "no room", "in the manifest", "is not allowed"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("stderr does not say %q:\n%s", want, r.err)
		}
	}
}

// A link that takes the place of a file between the walk and the reading is not followed.
func TestImportReadsTheFileThatWasFound(t *testing.T) {
	dir := tree(t, map[string]string{"a": "public", "secret": "secret"})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	found, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		t.Fatal(err)
	}
	im := &importer{root: root}
	it, err := im.item("a", found[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := im.open(it)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a")
	if err := errorsOf(f.Close(), os.Remove(path), os.Symlink("secret", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := im.open(it); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("the link was opened: %v", err)
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// One wrong setting is one error, and not one for each file.
func TestTransferChecksTheNamespaceFirst(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	dir := tree(t, map[string]string{"a": "1", "b": "2"})
	r := s.run("import", dir, "--namespace", "nope")
	if r.code != ExitFailure || strings.Count(r.err, "kvmesh: ") != 1 || !strings.Contains(r.err, "namespace create") || r.out != "" {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
	}
	f.Close()
	if r := s.run("import", dir); r.code != ExitFailure || strings.Count(r.err, "cannot reach") != 1 {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	r = newShell(newFake(t).URL).run("import", filepath.Join(dir, "nowhere"))
	if r.code != ExitFailure || !strings.Contains(r.err, "no such file") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

// A transfer in which everything fails ends before it has tried everything.
func TestTransferGivesUp(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	files := map[string]string{}
	for i := range maxFailures + 500 {
		files[fmt.Sprintf("%05d", i)] = ""
	}
	puts := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		f.mu.Lock()
		puts++
		f.mu.Unlock()
		f.refuse(w, kv.Errorf(kv.CodeInvalidKey, "no"))
		return true
	}
	r := s.run("import", tree(t, files), "--parallel", "2") // two groups of files under way, at most
	f.mu.Lock()                                             // a request that was given up may still be served
	defer f.mu.Unlock()
	if r.code != ExitFailure || !strings.Contains(r.err, "given up after 1000 failures") || puts >= maxFailures+500 {
		t.Errorf("exit %d after %d requests", r.code, puts)
	}
}

func TestExpiredEntriesAreSkipped(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	text := fmt.Sprintf(`{"version":1,"namespace":"n","entries":[{"file":"old","expiration":%d},{"file":"new","expiration":%d}]}`,
		fakeNow-1, fakeNow+9)
	dir := tree(t, map[string]string{"old": "x", "new": "y", manifestName: text})
	out := s.ok(t, "import", dir)
	if got := f.state("default"); len(got) != 1 || got["new"].expiration != fakeNow+9 || !strings.Contains(out, "1 expired or gone") {
		t.Errorf("%v; %s", got, out)
	}
}

func TestDamagedManifests(t *testing.T) {
	s := newShell(newFake(t).URL)
	for _, text := range []string{
		"", "{", `{"version":2}`, `{"version":1,"entries":[{"file":"a"},{"file":"a"}]}`, `{"version":1,"extra":1}`,
	} {
		r := s.run("import", tree(t, map[string]string{manifestName: text}))
		if r.code != ExitFailure || !strings.Contains(r.err, manifestName) {
			t.Errorf("%q: exit %d: %s", text, r.code, r.err)
		}
	}
}

// A cache may not know yet what the listing shows: then the key is read past it.
func TestExportReadsPastStaleCaches(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	s.ok(t, "key", "put", "stale", "new")
	s.ok(t, "key", "put", "absent", "new")
	s.ok(t, "key", "put", "deleted", "x")
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		past := r.URL.Query().Get("cache_ttl") == "0"
		switch {
		case strings.HasSuffix(r.URL.Path, "/stale") && !past:
			w.Header().Set("Kv-Revision", "0")
			_, _ = w.Write([]byte("old"))
		case strings.HasSuffix(r.URL.Path, "/absent") && !past, strings.HasSuffix(r.URL.Path, "/deleted"):
			f.refuse(w, kv.Errorf(kv.CodeKeyNotFound, "no such key"))
		default:
			return false
		}
		return true
	}
	dir := filepath.Join(t.TempDir(), "out")
	out := s.ok(t, "export", dir)
	for _, name := range []string{"stale", "absent"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != "new" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if !strings.Contains(out, "2 files") || !strings.Contains(out, "1 expired or gone") {
		t.Errorf("summary: %s", out)
	}
}

// A value cut short leaves no file.
func TestExportLeavesNoHalfFiles(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	s.ok(t, "key", "put", "cut", "0123456789")
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/cut") {
			return false
		}
		w.Header().Set("Content-Length", "10")
		w.Header().Set("Kv-Revision", "9")
		_, _ = w.Write([]byte("01234"))
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if r := s.run("export", dir); r.code != ExitFailure || !strings.Contains(r.err, "export cut: ") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cut")); !os.IsNotExist(err) {
		t.Errorf("there is a file: %v", err)
	}
	out := filepath.Join(t.TempDir(), "cut")
	if r := s.run("key", "get", "cut", "--out", out); r.code != ExitFailure {
		t.Errorf("exit %d", r.code)
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestPlainProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer                                      // written by the goroutine of the display, read after it has ended
		quiet := transferProgress(&out, "import", "files", false) // no terminal, and nobody has asked
		p := transferProgress(&out, "import", "files", true)
		p.found(2048)
		p.found(1024)
		time.Sleep(plainInterval / 2)
		p.done(1024)
		time.Sleep(plainInterval/2 + time.Millisecond)
		p.say("a message")
		p.stop()
		quiet.stop()
		if got, want := out.String(), "import: 1 of 2 files, 1.0 KiB of 3.0 KiB, 204 B/s\na message\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
