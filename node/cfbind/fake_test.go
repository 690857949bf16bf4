package cfbind

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

var testNow = time.Unix(1_900_000_000, 900_000_000)

// stored is one key of the fake.
type stored struct {
	value, metadata []byte
	expiry          int64
	tier            api.Tier
	// streamed values are not in memory; broken ones fail after that many bytes.
	streamed bool
	broken   int64
}

// fake is the part of an api.Service that the binding asks, in memory. Whatever else is called panics.
type fake struct {
	api.Service
	mu     sync.Mutex // guards what follows
	keys   map[string]stored
	gets   []api.GetRequest
	lists  []api.ListRequest
	err    error // of Get, Put, Delete and List
	putErr error // of Put, once it has read everything
}

func (f *fake) MeshTime() time.Time { return testNow }

func (f *fake) Namespace(_ context.Context, ref string) (kv.Namespace, error) {
	id := kv.NamespaceID{1}
	if ref != "default" && ref != id.String() && ref != "Prüfung / 1" {
		return kv.Namespace{}, kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace", "there is no namespace %q", ref)
	}
	return kv.Namespace{ID: id, Title: ref}, nil
}

func (f *fake) Get(_ context.Context, req api.GetRequest) (*api.Value, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets = append(f.gets, req)
	if f.err != nil {
		return nil, f.err
	}
	s, ok := f.keys[req.Key]
	v := &api.Value{Absent: !ok, Tier: api.TierHit, Metadata: s.metadata, Expiry: s.expiry, Size: int64(len(s.value)), Bytes: s.value}
	if s.tier != "" {
		v.Tier = s.tier
	}
	if s.streamed {
		v.Bytes = nil
		v.Open = func(_ context.Context, at, n int64) (io.ReadCloser, error) {
			var r io.Reader = bytes.NewReader(s.value[at : at+n])
			if s.broken > 0 {
				r = io.MultiReader(io.LimitReader(r, s.broken), brokenReader{})
			}
			return io.NopCloser(r), nil
		}
	}
	return v, nil
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, fmt.Errorf("every copy is broken") }

func (f *fake) Put(_ context.Context, req api.PutRequest) (api.WriteResult, error) {
	value, err := io.ReadAll(req.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		err = f.err
	}
	if err == nil {
		err = f.putErr
	}
	if err != nil {
		return api.WriteResult{}, fmt.Errorf("put: %w", err)
	}
	f.keys[req.Key] = stored{value: value, metadata: req.Metadata, expiry: req.Expiry}
	return api.WriteResult{Revision: 1, Expiry: req.Expiry}, nil
}

func (f *fake) Delete(_ context.Context, req api.DeleteRequest) (api.WriteResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return api.WriteResult{}, f.err
	}
	delete(f.keys, req.Key)
	return api.WriteResult{}, nil
}

func (f *fake) List(_ context.Context, req api.ListRequest) (*api.ListPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists = append(f.lists, req)
	if f.err != nil {
		return nil, f.err
	}
	if strings.HasPrefix(req.Cursor, "bad") {
		return nil, kv.FieldErrorf(kv.CodeInvalidCursor, "cursor", "the cursor is not one of this mesh")
	}
	page := &api.ListPage{Complete: true}
	for _, name := range slices.Sorted(maps.Keys(f.keys)) {
		if !strings.HasPrefix(name, req.Prefix) || name <= req.Cursor {
			continue
		}
		if len(page.Keys) == req.Limit {
			page.Complete, page.Cursor = false, page.Keys[len(page.Keys)-1].Name
			break
		}
		s := f.keys[name]
		page.Keys = append(page.Keys, api.ListKey{Name: name, Expiry: s.expiry, Metadata: s.metadata})
	}
	return page, nil
}

func (f *fake) has(t *testing.T, key string, want stored) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	got, ok := f.keys[key]
	if !ok || !bytes.Equal(got.value, want.value) || string(got.metadata) != string(want.metadata) || got.expiry != want.expiry {
		t.Errorf("%q is %d bytes beginning %.40q, %+v (%v)", key, len(got.value), got.value, got, ok)
	}
}

// rig is the surface on a loopback port, behind it a fake, before it whatever was there before.
type rig struct {
	t    *testing.T
	svc  *fake
	addr string
	log  *bytes.Buffer
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, svc: &fake{keys: map[string]stored{}}, log: &bytes.Buffer{}}
	o := Options{Service: r.svc, Logger: slog.New(slog.NewTextHandler(r.log, nil))}
	for _, c := range change {
		c(&o)
	}
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "next %s %s", r.Method, r.URL) // to a recorder of the test's
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(New(o).Before(next), api.ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(api.LimitListener(l, 0)) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	r.addr = l.Addr().String()
	return r
}

// wire is one connection, as workerd keeps it.
type wire struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (r *rig) dial() *wire {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	// A guard against a hanging test, not a measurement.
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	return &wire{r.t, c, bufio.NewReader(c)}
}

func (c *wire) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// answer is an answer with its status line as it was on the wire.
type answer struct {
	line   string // without "HTTP/1.1 "
	header http.Header
	body   string
}

// read reads one answer: the status line byte for byte, then the rest by the rules of HTTP.
func (c *wire) read(method string) answer {
	c.t.Helper()
	line, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("status line %q: %v", line, err)
	}
	// What the reader below takes too much of is the beginning of the next answer.
	rest := bufio.NewReader(io.MultiReader(strings.NewReader(line), c.in))
	defer func() { c.in = rest }()
	raw, err := http.ReadResponse(rest, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("after %q: %v", line, err)
	}
	body, err := io.ReadAll(raw.Body)
	if err != nil {
		c.t.Fatalf("after %q: body: %v", line, err)
	}
	line, ok := strings.CutPrefix(line, "HTTP/1.1 ")
	if !ok || !strings.HasSuffix(line, "\r\n") {
		c.t.Fatalf("status line %q", line)
	}
	return answer{strings.TrimSuffix(line, "\r\n"), raw.Header, string(body)}
}

// ask sends what workerd sends and reads the answer. headers are lines; a body with "\r\n" at its beginning ends them.
func (c *wire) ask(method, target, body string, headers ...string) answer {
	c.t.Helper()
	head := method + " " + target + " HTTP/1.1\r\nHost: fake-host\r\nKv-Namespace: default\r\n" +
		"cf-kv-flprod-405: https://fake-host" + target + "\r\n"
	if method == http.MethodPut || method == http.MethodPost || method == http.MethodDelete {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	for _, h := range headers {
		head += h + "\r\n"
	}
	c.send(head + "\r\n" + body)
	return c.read(method)
}
