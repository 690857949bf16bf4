package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kvmesh/node/certs"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// meshKey writes a mesh key to a file and returns its path and its key-encryption key.
func meshKey(t *testing.T) (path string, kek *seal.KEK) {
	t.Helper()
	key := certs.NewMeshKey()
	path = filepath.Join(t.TempDir(), "mesh.key")
	if err := os.WriteFile(path, []byte(key.Encode()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	kek, err := seal.NewKEK(key.KEK())
	if err != nil {
		t.Fatal(err)
	}
	return path, kek
}

// backupOf is a small backup, of two keys.
func backupOf(t *testing.T, kek *seal.KEK) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, backup.Header{Revision: 42, Epoch: kv.Epoch{1}, Cluster: kv.ClusterID{2}, Version: "v9"}, kek)
	if err != nil {
		t.Fatal(err)
	}
	id := kv.NewNamespaceID()
	wrapped, err := kek.NewDataKey(id)
	err = errors.Join(err, w.Namespace(kv.Namespace{ID: id, Title: "default", WrappedKey: wrapped}),
		w.Key("a", &kv.Item{Revision: 2, Size: 1, Value: []byte("a")}), w.Key("b", &kv.Item{Revision: 3, Size: 2, Value: []byte("bb")}), w.Close())
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// backupNode is a fake node that makes one backup and restores another.
type backupNode struct {
	*fakeNode
	kek      *seal.KEK // of the mesh
	content  []byte    // what it gives
	cut      bool      // without an end
	stale    string
	replace  string
	restored []byte                    // what it was sent
	refuse   func(http.ResponseWriter) // answers a restore before its body is read
}

func newBackupNode(t *testing.T) *backupNode {
	_, kek := meshKey(t)
	n := &backupNode{fakeNode: newFake(t), kek: kek, content: backupOf(t, kek)}
	n.cluster = `{"cluster":"000000000000000000000000000000cc"}`
	n.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/backup":
			n.stale = r.URL.Query().Get("stale")
			w.Header().Set("Kv-Estimated-Bytes", "1000")
			_, _ = w.Write(n.content)
			if n.cut {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		case "GET /v1/backup/address":
			writeJSON(w, map[string]string{"key": n.kek.String(), "address": base64.StdEncoding.EncodeToString(n.kek.Address())})
		case "POST /v1/backup":
			n.replace = r.URL.Query().Get("replace")
			if n.refuse != nil {
				n.refuse(w)
				return true
			}
			n.restored, _ = io.ReadAll(r.Body)
			writeJSON(w, map[string]any{"epoch": "0e", "revision": 50, "from_revision": 42, "namespaces": 1, "keys": 2, "bytes": 5})
		default:
			return false
		}
		return true
	}
	return n
}

// files lists what is in a directory.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestBackupSave(t *testing.T) {
	n := newBackupNode(t)
	s, dir := newShell(n.URL), t.TempDir()
	file := filepath.Join(dir, "mesh.backup")
	out := s.ok(t, "backup", "save", file)
	saved, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(saved, n.content) || files(t, dir) != "mesh.backup" {
		t.Errorf("saved %d of %d bytes, %v; files %s", len(saved), len(n.content), err, files(t, dir))
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if !strings.HasPrefix(out, "backup: revision 42 of mesh 0200") {
		t.Error(out)
	}
	if r := s.run("backup", "save", file); r.code != ExitFailure || !strings.Contains(r.err, "exists already") || !strings.Contains(r.err, "--force") {
		t.Errorf("over an old one: %+v", r)
	}
	n.content = backupOf(t, n.kek)
	var doc backupDoc
	if err := json.Unmarshal([]byte(s.ok(t, "backup", "save", "--force", "--allow-stale", "-o", "json", file)), &doc); err != nil {
		t.Fatal(err)
	}
	if saved, err := os.ReadFile(file); err != nil || !bytes.Equal(saved, n.content) || n.stale != "true" {
		t.Errorf("--force: %v, stale %q", err, n.stale)
	}
	if doc.Revision != 42 || !doc.Whole || !doc.Checked || doc.Proven || doc.Parts != 1 || doc.Key != n.kek.String() || doc.Size != int64(len(n.content)) {
		t.Errorf("%+v", doc)
	}
}

// TestBackupSaveFails: whatever goes wrong, no file gets the name, an old one stays as it was, and nothing is left over.
func TestBackupSaveFails(t *testing.T) {
	n := newBackupNode(t)
	whole := n.content
	for name, tc := range map[string]struct {
		content []byte
		cut     bool
		says    string
	}{
		"the connection breaks":     {whole[:len(whole)-10], true, "unexpected EOF"},
		"it ends too early":         {whole[:len(whole)-10], false, "gave up after"},
		"a byte changes on its way": {append(bytes.Clone(whole[:200]), append([]byte{whole[200] ^ 1}, whole[201:]...)...), false, "damaged"},
		"it is something else":      {[]byte("<html>a proxy says hello</html>"), false, "not a backup"},
	} {
		for _, force := range []bool{false, true} {
			s, dir := newShell(n.URL), t.TempDir()
			file := filepath.Join(dir, "b")
			args := []string{"backup", "save", file}
			want := ""
			if force {
				args, want = append(args, "--force"), "b"
				if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.content, n.cut = tc.content, tc.cut
			r := s.run(args...)
			if r.code != ExitFailure || !strings.Contains(r.err, "no backup was made") || !strings.Contains(r.err, tc.says) {
				t.Errorf("%s: %+v", name, r)
			}
			if got := files(t, dir); got != want {
				t.Errorf("%s: files %q", name, got)
			}
			if old, err := os.ReadFile(file); force && (err != nil || string(old) != "old") {
				t.Errorf("%s: the old one is %q, %v", name, old, err)
			}
		}
	}
	s := newShell(n.URL)
	if r := s.run("backup", "save", filepath.Join(t.TempDir(), "missing", "b")); r.code != ExitFailure || !strings.Contains(r.err, "no such file") {
		t.Errorf("a directory that is missing: %+v", r)
	}
}

func TestBackupInspectAndVerify(t *testing.T) {
	path, kek := meshKey(t)
	otherPath, _ := meshKey(t)
	s, dir := newShell("http://127.0.0.1:1"), t.TempDir() // no node is asked
	whole := backupOf(t, kek)
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good, cut := write("good", whole), write("cut", whole[:len(whole)-1])
	damaged := write("damaged", append(bytes.Clone(whole[:300]), append([]byte{whole[300] ^ 1}, whole[301:]...)...))
	future := write("future", append([]byte("kvmesh-backup\n\x02"), whole[15:]...))
	text, empty := write("text", []byte("hello, this is no backup")), write("empty", nil)

	for _, args := range [][]string{{"inspect", good}, {"inspect", damaged}, {"verify", good}, {"verify", "--mesh-key", path, good}} {
		out := s.ok(t, append([]string{"backup"}, args...)...)
		for _, want := range []string{"revision   42\n", "key        " + kek.String(), "parts      1\n", "by kvmesh v9\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q lacks %q:\n%s", args, want, out)
			}
		}
	}
	state := regexp.MustCompile(`state +(.*)`)
	for args, want := range map[string]string{
		"inspect " + good:                        "was not looked at",
		"inspect " + cut:                         "CUT SHORT",
		"verify " + good:                         "every checksum fits",
		"verify --mesh-key " + path + " " + good: "proven",
	} {
		out := s.ok(t, append([]string{"backup"}, strings.Fields(args)...)...)
		if m := state.FindStringSubmatch(out); m == nil || !strings.Contains(m[1], want) {
			t.Errorf("%s: %q, want %q", args, m, want)
		}
	}
	for args, want := range map[string]string{
		"inspect " + text:                             "not a backup",
		"inspect " + empty:                            "not a backup",
		"inspect " + future:                           "another version",
		"verify " + future:                            "another version",
		"verify " + cut:                               "cut short: unexpected EOF; copy it again",
		"verify " + damaged:                           "damaged",
		"verify " + text:                              "not a backup",
		"verify --mesh-key " + path + " " + cut:       "cut short",
		"verify --mesh-key " + path + " " + damaged:   "damaged",
		"verify --mesh-key " + otherPath + " " + good: "sealed for the key " + kek.String(),
		"inspect " + dir:                              "not a regular file",
		"inspect " + filepath.Join(dir, "none"):       "no such file",
	} {
		if r := s.run(append([]string{"backup"}, strings.Fields(args)...)...); r.code != ExitFailure || !strings.Contains(r.err, want) || r.out != "" {
			t.Errorf("%s: %+v, want %q", args, r, want)
		}
	}
	for _, args := range []string{"verify --mesh-key " + text + " " + good, "inspect", "verify a b", "inspect -o xml " + good} {
		if r := s.run(append([]string{"backup"}, strings.Fields(args)...)...); r.code != ExitUsage {
			t.Errorf("%s: %+v", args, r)
		}
	}
	s.env["KVMESH_MESH_KEY"] = path
	var doc backupDoc
	if err := json.Unmarshal([]byte(s.ok(t, "backup", "verify", good, "-o", "json")), &doc); err != nil {
		t.Fatal(err)
	}
	if !doc.Proven || doc.Holds == nil || *doc.Holds != (holdsDoc{Namespaces: 1, Keys: 2, Bytes: 5}) || doc.Revision != 42 {
		t.Errorf("%+v", doc)
	}
}

func TestBackupRestore(t *testing.T) {
	n := newBackupNode(t)
	s, dir := newShell(n.URL), t.TempDir()
	file := filepath.Join(dir, "b")
	if err := os.WriteFile(file, n.content, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.run("backup", "restore", file); r.code != ExitUsage || !strings.Contains(r.err, "--yes") || !strings.Contains(r.err, "000000cc") || n.restored != nil {
		t.Errorf("without --yes: %+v", r)
	}
	out := s.ok(t, "backup", "restore", file, "--yes")
	if !bytes.Equal(n.restored, n.content) || n.replace != "" || !strings.Contains(out, "2 keys in 1 namespaces") || !strings.Contains(out, "epoch 0e") {
		t.Errorf("%d of %d bytes, replace %q: %s", len(n.restored), len(n.content), n.replace, out)
	}
	if s.ok(t, "backup", "restore", "--yes", "--replace", file); n.replace != "true" {
		t.Error("--replace was lost")
	}
	var doc struct{ Revision, Keys int }
	if err := json.Unmarshal([]byte(s.ok(t, "backup", "restore", "--yes", file, "-o", "json")), &doc); err != nil || doc.Revision != 50 || doc.Keys != 2 {
		t.Errorf("%+v, %v", doc, err)
	}
	// What is not good is never sent.
	n.restored = nil
	for name, b := range map[string][]byte{"cut short": n.content[:len(n.content)-1], "not a backup": []byte("hello"), "damaged": append(bytes.Clone(n.content), 0)} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := s.run("backup", "restore", "--yes", file); r.code != ExitFailure || !strings.Contains(r.err, name) || !strings.Contains(r.err, "nothing was restored") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if n.restored != nil {
		t.Errorf("%d bytes were sent", len(n.restored))
	}
}

// TestBackupRestoreElsewhere: a backup of another mesh needs that mesh's key, and goes out sealed for the target.
func TestBackupRestoreElsewhere(t *testing.T) {
	n := newBackupNode(t)
	path, source := meshKey(t)
	wrong, wrongKEK := meshKey(t)
	s := newShell(n.URL)
	file := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(file, backupOf(t, source), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, says := range map[string][]string{
		"":                             {"sealed for another key", source.String(), n.kek.String(), "--source-mesh-key"},
		"--source-mesh-key " + wrong:   {source.String(), wrongKEK.String()},
		"--source-mesh-key " + "/none": {"--source-mesh-key", "no such file"},
	} {
		r := s.run(append([]string{"backup", "restore", "--yes", file}, strings.Fields(args)...)...)
		for _, want := range says {
			if r.code == ExitOK || !strings.Contains(r.err, want) {
				t.Errorf("%q: %+v, want %q", args, r, want)
			}
		}
	}
	if n.restored != nil {
		t.Fatal("something was sent")
	}
	s.ok(t, "backup", "restore", "--yes", "--source-mesh-key", path, file)
	br, err := backup.NewReader(bytes.NewReader(n.restored))
	if err == nil {
		err = br.Unlock(n.kek)
	}
	for err == nil {
		_, err = br.Next()
	}
	if err != io.EOF || br.Totals().Keys != 2 {
		t.Errorf("what was sent: %v, %+v", err, br.Totals())
	}
	key, err := os.ReadFile(path)
	if err != nil || bytes.Contains(n.restored, bytes.TrimSpace(key)) {
		t.Errorf("the mesh key was sent (%v)", err)
	}
}

// TestBackupRestoreFails: what the mesh says reaches the user, and a connection that breaks is told as what it is.
func TestBackupRestoreFails(t *testing.T) {
	n := newBackupNode(t)
	s := newShell(n.URL)
	file := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(file, n.content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		refuse func(http.ResponseWriter)
		says   string
	}{
		{func(w http.ResponseWriter) {
			n.fakeNode.refuse(w, kv.FieldErrorf(kv.CodeInvalidParameter, "replace", "the mesh holds 7 keys"))
		}, "the mesh holds 7 keys"},
		{func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, "may or may not"},
	} {
		n.refuse = tc.refuse
		if r := s.run("backup", "restore", "--yes", file); r.code != ExitFailure || !strings.Contains(r.err, tc.says) {
			t.Errorf("%+v, want %q", r, tc.says)
		}
	}
	// Larger than what lies in buffers, so that the end has not been read when the node hangs up.
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, backup.Header{Revision: 1}, n.kek)
	if err != nil {
		t.Fatal(err)
	}
	id := kv.NewNamespaceID()
	wrapped, err := n.kek.NewDataKey(id)
	if err = errors.Join(err, w.Namespace(kv.Namespace{ID: id, Title: "default", WrappedKey: wrapped})); err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		if err := w.Key(fmt.Sprintf("%04d", i), &kv.Item{Size: 60_000, Value: make([]byte, 60_000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.run("backup", "restore", "--yes", file); r.code != ExitFailure || !strings.Contains(r.err, "broke during the upload, and nothing was restored") {
		t.Errorf("%+v", r)
	}
}
