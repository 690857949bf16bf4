package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// Small files go together, larger ones by themselves; what arrives is the same.
func TestImportTogether(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	files := map[string]string{
		"binary": "\xff\x00\xfe", "text": "<a> & \"b\" ü\n", "empty": "", "limit": strings.Repeat("l", smallFile), "large": strings.Repeat("L", smallFile+1),
		"null": "n", manifestName: `{"version":1,"namespace":"n","entries":[{"file":"null","metadata":null},{"file":"text","metadata":{"t":"<&>"},"expiration":1700000009}]}`,
	}
	const more = 600
	for i := range more {
		files[fmt.Sprintf("dir/%04d", i)] = fmt.Sprint(i)
	}
	out := s.ok(t, "import", tree(t, files), "--prefix", "p/", "--parallel", "1")
	got := f.state("default")
	if len(got) != len(files)-1 || !strings.Contains(out, fmt.Sprintf("%d files", len(files)-1)) {
		t.Errorf("%d keys: %s", len(got), out)
	}
	for name, content := range files {
		if v := got["p/"+name]; name != manifestName && string(v.value) != content {
			t.Errorf("%s has %d bytes, want %d", name, len(v.value), len(content))
		}
	}
	if got["p/text"].metadata != `{"t":"<&>"}` || got["p/text"].expiration != fakeNow+9 {
		t.Errorf("%+v", got["p/text"])
	}
	sum := 0
	for _, n := range f.bulks {
		if sum += n; n > groupFiles {
			t.Errorf("a call of %d files", n)
		}
	}
	if sum < more || sum > more+5 || f.requests > len(files)/2 {
		t.Errorf("%d files went in %d calls of %d requests", sum, len(f.bulks), f.requests)
	}
}

// A file that the node could not take just then is tried again by itself; what is wrong with one stays its own.
func TestImportTriesAgain(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	tries := map[string]int{}
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if r.Method == http.MethodPut {
			tries[name]++
		}
		switch {
		case r.Method != http.MethodPut:
			return false
		case name == "busy" && tries[name] < 3:
			f.refuse(w, kv.Errorf(kv.CodeNoLeader, "nobody leads"))
		case name == "unknown" && tries[name] == 1:
			f.refuse(w, kv.Errorf(kv.CodeOutcomeUnknown, "it may have been"))
		case name == "wrong":
			f.refuse(w, kv.Errorf(kv.CodeMetadataTooLarge, "too much"))
		default:
			return false
		}
		return true
	}
	files := map[string]string{"busy": "b", "unknown": "u", "wrong": "w", "good": "g"}
	r := s.run("import", tree(t, files), "-o", "json")
	var doc struct {
		Files  int
		Failed []failure
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != ExitFailure || doc.Files != 2 || len(doc.Failed) != 2 {
		t.Fatalf("exit %d, %v: %s%s", r.code, err, r.out, r.err)
	}
	if got := f.state("default"); len(got) != 2 || tries["busy"] != 3 || tries["unknown"] != 1 || tries["wrong"] != 1 {
		t.Errorf("%v, tries %v", got, tries)
	}
	if !strings.Contains(r.err, "import wrong: too much") || !strings.Contains(r.err, "import unknown: it may have been") {
		t.Errorf("stderr: %s", r.err)
	}
	clear(tries)
	if r := s.run("import", tree(t, map[string]string{"unknown": "u"}), "--retry-unknown"); r.code != ExitOK || tries["unknown"] != 2 {
		t.Errorf("exit %d, tries %v: %s", r.code, tries, r.err)
	}
}

// A node that refuses the call as such gets the files one by one; one that refuses the client gets no more.
func TestImportWithoutBulk(t *testing.T) {
	for code, want := range map[kv.Code]int{kv.CodeUnsupportedByPeer: 5, kv.CodeUnauthorized: 0} {
		f := newFake(t)
		s := newShell(f.URL)
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			f.refuse(w, kv.Errorf(code, "no"))
			return true
		}
		files := map[string]string{}
		for i := range 5 {
			files[fmt.Sprint(i)] = "v"
		}
		r := s.run("import", tree(t, files))
		if got := f.state("default"); len(got) != want || (r.code == ExitOK) != (want == 5) {
			t.Errorf("%s: exit %d, %d files: %s", code, r.code, len(got), r.err)
		}
	}
}

// A stream may have a key twice. Its later value waits until the earlier one has been answered.
func TestImportKeepsTheOrderOfAKey(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	var mu sync.Mutex // guards calls
	calls := 0
	second := make(chan struct{})
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		mu.Lock()
		calls++
		call := calls
		mu.Unlock()
		if call == 2 {
			close(second)
		}
		if call == 1 {
			select { // an importer in a hurry has more than enough time
			case <-second:
				t.Error("the second value of a key came while the first one was under way")
			case <-time.After(500 * time.Millisecond):
			}
		}
		return false
	}
	large := strings.Repeat("a", smallFile+1) // each goes by itself
	s.stdin = fmt.Sprintf("{\"key\":\"k\",\"value\":%q}\n{\"key\":\"k\",\"value\":%q}\n", large, large+"b")
	s.ok(t, "import", "--format", formatNDJSON, "--parallel", "4", "-")
	if got := f.state("default"); string(got["k"].value) != large+"b" {
		t.Errorf("the earlier value stayed: %d bytes", len(got["k"].value))
	}
}

func TestTxnCommand(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	const doc = `{"put":[{"namespace":"default","key":"a","value":"1"}]}`
	f.txnStatus = 200
	f.txnAnswer = `{"revision":8,"bookmark":"m.8","put":[{"namespace":"default","key":"a","revision":7,"etag":"x-7"}],` +
		`"delete":[{"namespace":"n 1","key":"b","revision":8},{"namespace":"n 1","key":"\n","revision":0}]}`
	s.stdin = doc
	want := "put a in default: revision 7\ndelete b in n 1: revision 8\ndelete \"\\n\" in n 1: nothing to change\n"
	if out := s.ok(t, "txn", "-"); out != want || f.txns[0] != doc {
		t.Errorf("sent %q, printed %q", f.txns, out)
	}
	path := filepath.Join(t.TempDir(), "doc.json")
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	out := s.ok(t, "txn", path, "-o", "json")
	var a, b bytes.Buffer
	if err := errorsOf(json.Compact(&a, []byte(out)), json.Compact(&b, []byte(f.txnAnswer))); err != nil || a.String() != b.String() || f.txns[1] != doc {
		t.Errorf("%v: sent %q, printed %s", err, f.txns[1], out)
	}

	f.txnStatus = 409
	f.txnAnswer = `{"error":{"code":"conflict","message":"nothing was written: a is at 9","field":"compare[0]"},"conflicts":[` +
		`{"namespace":"default","key":"a","revision":9,"etag":"x-9"},{"namespace":"n","key":"b","revision":0}],"bookmark":"m.9"}`
	r := s.run("txn", path)
	if r.code != ExitFailure || r.out != "" {
		t.Errorf("exit %d: %s", r.code, r.out)
	}
	for _, says := range []string{"txn: a in default is at revision 9", "txn: b in n does not exist", "nothing was written", "(conflict, HTTP 409)", "key get KEY -o json"} {
		if !strings.Contains(r.err, says) {
			t.Errorf("stderr does not say %q: %s", says, r.err)
		}
	}
	if r := s.run("txn", path, "-o", "json"); r.code != ExitFailure || !strings.Contains(r.out, `"revision": 9`) || len(f.txns) != 4 {
		t.Errorf("exit %d after %d requests: %s", r.code, len(f.txns), r.out)
	}
	if r := s.run("txn", "/nowhere"); r.code != ExitFailure || !strings.Contains(r.err, "no such file") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if r := s.run("txn"); r.code != ExitUsage {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}
