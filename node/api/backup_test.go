package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// fakeBackups gives what it is told to, and remembers what it was asked.
type fakeBackups struct {
	content io.Reader // of the next backup
	err     error     // of the next call
	stale   bool
	replace bool
	got     []byte
	readErr error
	saves   int
	givenUp chan struct{}
	closed  atomic.Int32
}

func (f *fakeBackups) Save(_ context.Context, stale bool) (*Backup, error) {
	f.saves++
	f.stale = stale
	if f.err != nil {
		return nil, f.err
	}
	return &Backup{Body: &fakeBody{f.content, f}, Epoch: testEpoch, Revision: 77, Estimate: 1234, GivenUp: f.givenUp}, nil
}

type fakeBody struct {
	io.Reader
	f *fakeBackups
}

func (b *fakeBody) Close() error { b.f.closed.Add(1); return nil }

func (f *fakeBackups) Restore(_ context.Context, req RestoreRequest) (*Restored, error) {
	f.replace = req.Replace
	if f.err != nil {
		return nil, f.err
	}
	if f.got, f.readErr = io.ReadAll(req.Body); f.readErr != nil {
		return nil, f.readErr
	}
	return &Restored{Epoch: testEpoch, Revision: 101, From: 77, Namespaces: 2, Keys: 3, Bytes: 40, LargeValues: 1}, nil
}

func (f *fakeBackups) Address() []byte {
	kek, err := seal.NewKEK(make([]byte, seal.KEKBytes))
	if err != nil {
		panic(err)
	}
	return kek.Address()
}

func backupRig(t *testing.T) (*rig, *fakeBackups) {
	f := &fakeBackups{}
	return newRig(t, func(o *Options) { o.Backups = f }), f
}

func TestSaveBackup(t *testing.T) {
	r, f := backupRig(t)
	content := strings.Repeat("backup", 50_000)
	f.content = strings.NewReader(content)
	w := r.do("GET", "/v1/backup", "")
	if w.Code != 200 || w.Body.String() != content || f.stale || f.closed.Load() != 1 {
		t.Errorf("status %d, %d bytes, stale %v, closed %d times", w.Code, w.Body.Len(), f.stale, f.closed.Load())
	}
	for name, want := range map[string]string{
		"Kv-Revision": "77", "Kv-Estimated-Bytes": "1234", "Kv-Bookmark": kv.Bookmark{Epoch: testEpoch, Revision: 77}.String(),
		"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Length": "",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	f.content = strings.NewReader("x")
	if r.do("GET", "/v1/backup?stale=true", ""); !f.stale {
		t.Error("stale=true was lost")
	}
	saves := f.saves
	if w := r.do("HEAD", "/v1/backup", ""); w.Code != 200 || f.saves != saves {
		t.Errorf("HEAD made a backup: %d", w.Code)
	}
	r.want(r.do("GET", "/v1/backup?stale=yes", ""), 400, kv.CodeInvalidParameter, "stale")
	r.want(r.do("GET", "/v1/backup?replace=true", ""), 400, kv.CodeInvalidParameter, "replace")
	r.want(r.do("GET", "/v1/backup/", ""), 404, kv.CodeNotFound, "")
	f.err = &kv.Error{Code: kv.CodeOverloaded, Message: "two already", RetryAfter: 10 * time.Second}
	if w := r.do("GET", "/v1/backup", ""); w.Code != 503 || w.Header().Get("Retry-After") != "10" || w.Header().Get("Kv-Revision") != "" {
		t.Errorf("overloaded: %d %v", w.Code, w.Header())
	}
}

// TestSaveBackupCut: what cannot be finished never looks finished.
func TestSaveBackupCut(t *testing.T) {
	f := &fakeBackups{content: io.MultiReader(strings.NewReader(strings.Repeat("x", 300_000)), brokenReader{})}
	h := New(Options{Service: newFake(), Backups: f})
	addr := serveHandler(t, h, ServerOptions{})
	resp, err := http.Get("http://" + addr + "/v1/backup")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or failed
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || err == nil {
		t.Errorf("status %d, %d bytes and no error", resp.StatusCode, len(b))
	}
	if f.closed.Load() != 1 {
		t.Errorf("closed %d times", f.closed.Load())
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func TestRestoreBackup(t *testing.T) {
	r, f := backupRig(t)
	w := r.do("POST", "/v1/backup", "the backup")
	want := fmt.Sprintf(`{"epoch":"%s","revision":101,"bookmark":"%s.101","from_revision":77,"namespaces":2,"keys":3,"bytes":40,"large_values":1}`+"\n", testEpoch, testEpoch)
	if w.Code != 200 || string(f.got) != "the backup" || f.replace || w.Body.String() != want {
		t.Errorf("status %d, %q, replace %v: %s", w.Code, f.got, f.replace, w.Body)
	}
	if got := w.Header().Get("Kv-Bookmark"); got != testEpoch.String()+".101" {
		t.Errorf("bookmark %s", got)
	}
	if r.do("POST", "/v1/backup?replace=true", "b"); !f.replace {
		t.Error("replace=true was lost")
	}
	r.want(r.do("POST", "/v1/backup?replace=", "b"), 400, kv.CodeInvalidParameter, "replace")
	r.want(r.do("POST", "/v1/backup", "b", "Content-Encoding", "gzip"), 400, kv.CodeInvalidBody, "Content-Encoding")
	f.err = kv.FieldErrorf(kv.CodeInvalidBody, "body", "damaged")
	r.want(r.do("POST", "/v1/backup", "b"), 400, kv.CodeInvalidBody, "body")
	f.err = kv.Errorf(kv.CodeOutcomeUnknown, "who knows")
	if w := r.do("POST", "/v1/backup", "b"); w.Code != 503 || w.Header().Get("Retry-After") != "" {
		t.Errorf("unknown outcome: %d %v", w.Code, w.Header())
	}
}

// TestSaveBackupGivenUp: a client that reads nothing does not hold up a backup that was given up.
func TestSaveBackupGivenUp(t *testing.T) {
	f := &fakeBackups{content: endlessBackup{}, givenUp: make(chan struct{})}
	addr := serveHandler(t, New(Options{Service: newFake(), Backups: f}), ServerOptions{})
	c := dial(t, addr)
	if _, err := io.WriteString(c, "GET /v1/backup HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.in.ReadByte(); err != nil { // it has begun
		t.Fatal(err)
	}
	close(f.givenUp)
	for deadline := time.Now().Add(20 * time.Second); f.closed.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still open")
		}
	}
}

type endlessBackup struct{}

func (endlessBackup) Read(p []byte) (int, error) { return len(p), nil }

// TestRestoreBackupBodies: an upload that stalls or breaks off is told as that.
func TestRestoreBackupBodies(t *testing.T) {
	f := &fakeBackups{}
	addr := serveHandler(t, New(Options{Service: newFake(), Backups: f}), ServerOptions{Progress: 50 * time.Millisecond})
	c := dial(t, addr)
	if _, err := io.WriteString(c, "POST /v1/backup HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if e := readError(t, body); err != nil || resp.StatusCode != 400 || !strings.Contains(e.Message, "stalled after 9 bytes; nothing was restored") {
		t.Errorf("%d %s, %v", resp.StatusCode, body, err)
	}
	broken := &uploadBody{r: io.MultiReader(bytes.NewReader([]byte("12345")), brokenReader{})}
	if _, err := io.ReadAll(broken); kv.CodeOf(err) != kv.CodeInvalidBody || !strings.Contains(err.Error(), "after 5 bytes (the disk is gone)") {
		t.Errorf("%v", err)
	}
}

func TestBackupAddress(t *testing.T) {
	r, f := backupRig(t)
	id, err := seal.AddressID(f.Address())
	w := r.do("GET", "/v1/backup/address", "")
	if err != nil || w.Code != 200 || !strings.Contains(w.Body.String(), `"key":"`+id+`"`) {
		t.Errorf("%d %s, want key %s, %v", w.Code, w.Body, id, err)
	}
	r.want(r.do("GET", "/v1/backup/address?x=1", ""), 400, kv.CodeInvalidParameter, "x")
}
