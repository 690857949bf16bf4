package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/kv"
)

func awkward() []string {
	return []string{
		"a/b", "a//b", "a/../b", "../x", "%2F", "a%2Fb", "%00", "\x00", " x", "x ", "v1/kv", "ü", "🌍", "+", "a+b", "?", "#", "a?b#c",
		".", "..", "...", "/", "//", "/a", "a/", ";", "a;b=c", "\"", "\\", "\n", "100%", "%", "%zz", strings.Repeat("k", 512),
		strings.Repeat("ü", 256), "\xff\xfe",
	}
}

// The segment must reach a server as one segment, through the client library, the network and the server library.
func TestEscapedSegmentsReachTheServer(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.RawPath
		if got == "" {
			got = r.URL.EscapedPath()
		}
		_, _ = io.WriteString(w, "v")
	}))
	defer srv.Close()
	c := mustNew(t, Options{URL: srv.URL})
	seen := map[string]string{}
	for _, key := range awkward() {
		obj, err := c.Get(t.Context(), "a namespace/with", key, GetOptions{})
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if err := obj.Body.Close(); err != nil {
			t.Fatal(err)
		}
		segment, ok := strings.CutPrefix(got, "/v1/kv/a%20namespace%2Fwith/")
		back, err := UnescapeSegment(segment)
		if !ok || strings.Contains(segment, "/") || err != nil || back != key {
			t.Errorf("%q arrived as %q, which is %q, %v", key, got, back, err)
		}
		if other, taken := seen[got]; taken {
			t.Errorf("%q and %q have the same path", key, other)
		}
		seen[got] = key
	}
}

func TestUnescapeRefusesBadEscapes(t *testing.T) {
	for _, bad := range []string{"%", "%2", "a%", "%zz", "%2g", "%%41"} {
		if got, err := UnescapeSegment(bad); err == nil {
			t.Errorf("%q is read as %q", bad, got)
		}
	}
	if got, err := UnescapeSegment("%41+%c3%BC"); got != "A+ü" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzSegmentRoundTrip(f *testing.F) {
	for _, s := range awkward() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := EscapeSegment(s)
		if strings.ContainsAny(e, "/?# ") || e == "." || e == ".." {
			t.Fatalf("%q is written as %q", s, e)
		}
		if back, err := UnescapeSegment(e); err != nil || back != s {
			t.Fatalf("%q comes back as %q, %v", s, back, err)
		}
	})
}

func mustNew(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// script answers requests one after the other, without a network.
type script struct {
	answers []any // error, or status with code and Retry-After
	sent    []time.Time
	bodies  []string
}

type answer struct {
	status     int
	code       kv.Code
	retryAfter string
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	s.sent, s.bodies = append(s.sent, time.Now()), append(s.bodies, body)
	next := s.answers[min(len(s.sent), len(s.answers))-1]
	if err, ok := next.(error); ok {
		return nil, err
	}
	a := next.(answer)
	resp := &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Header: http.Header{}, Request: r}
	resp.Body = io.NopCloser(strings.NewReader(`{"error":{"code":"` + string(a.code) + `","message":"m"}}`))
	if a.retryAfter != "" {
		resp.Header.Set("Retry-After", a.retryAfter)
	}
	return resp, nil
}

func TestRetries(t *testing.T) {
	busy := answer{503, kv.CodeNoLeader, "2"}
	unknown := answer{503, kv.CodeOutcomeUnknown, ""}
	ok := answer{status: 200}
	put := func(c *Client, ctx context.Context) error {
		_, err := c.Put(ctx, "n", "k", BytesBody([]byte("v")), PutOptions{})
		return err
	}
	for _, tc := range []struct {
		name    string
		answers []any
		opts    Options
		do      func(*Client, context.Context) error
		sent    int
		code    kv.Code // of the error; empty = success
	}{
		{"a write waits for a leader", []any{busy, busy, ok}, Options{}, put, 3, ""},
		{"429 too", []any{answer{429, kv.CodeTooManyRequests, "1"}, ok}, Options{}, put, 2, ""},
		{"it gives up", []any{busy}, Options{RetryFor: 5 * time.Second}, put, 3, kv.CodeNoLeader},
		{"it gives up before a wait that is too long", []any{answer{503, kv.CodeNoQuorum, "60"}}, Options{}, put, 1, kv.CodeNoQuorum},
		{"it does not try again", []any{busy}, Options{RetryFor: -1}, put, 1, kv.CodeNoLeader},
		{"an unknown outcome is not repeated", []any{unknown, ok}, Options{}, put, 1, kv.CodeOutcomeUnknown},
		{"unless the user asked", []any{unknown, ok}, Options{RetryUnknown: true}, put, 2, ""},
		{"a broken connection is an unknown outcome", []any{io.ErrUnexpectedEOF, ok}, Options{}, sentPut, 1, kv.CodeOutcomeUnknown},
		{"which can be repeated on demand", []any{io.ErrUnexpectedEOF, ok}, Options{RetryUnknown: true}, sentPut, 2, ""},
		{"other failures are final", []any{answer{507, kv.CodeDiskFull, "1"}, ok}, Options{}, put, 1, kv.CodeDiskFull},
		{"a condition is sent once", []any{busy, ok}, Options{}, func(c *Client, ctx context.Context) error {
			_, err := c.Put(ctx, "n", "k", BytesBody([]byte("v")), PutOptions{IfNoneMatch: "*"})
			return err
		}, 1, kv.CodeNoLeader},
		{"a condition is sent once, even on demand", []any{unknown, ok}, Options{RetryUnknown: true}, func(c *Client, ctx context.Context) error {
			_, err := c.Delete(ctx, "n", "k", `"x"`)
			return err
		}, 1, kv.CodeOutcomeUnknown},
		{"standard input is read once", []any{busy, ok}, Options{}, func(c *Client, ctx context.Context) error {
			in := strings.NewReader("v")
			_, err := c.Put(ctx, "n", "k", Body{Size: -1, Once: true, Open: func() (io.ReadCloser, error) { return io.NopCloser(in), nil }}, PutOptions{})
			return err
		}, 1, kv.CodeNoLeader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: tc.answers}
				tc.opts.Transport = s
				err := tc.do(mustNew(t, tc.opts), t.Context())
				if len(s.sent) != tc.sent || CodeOf(err) != tc.code || (err == nil) != (tc.code == "") {
					t.Fatalf("sent %d times, then %v; want %d and %q", len(s.sent), err, tc.sent, tc.code)
				}
				for i := range s.sent {
					if s.bodies[i] != "v" && s.bodies[i] != "" {
						t.Errorf("body %d is %q", i, s.bodies[i])
					}
					if i > 0 && tc.answers[0] == any(busy) && s.sent[i].Sub(s.sent[i-1]) < 2*time.Second {
						t.Errorf("attempt %d came %v after the one before, earlier than the node asked for", i+1, s.sent[i].Sub(s.sent[i-1]))
					}
				}
			})
		})
	}
}

// sentPut makes the transport say that there was a connection.
func sentPut(c *Client, ctx context.Context) error {
	inner := c.http.Transport
	c.http.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if trace := traceOf(r); trace.GotConn != nil {
			trace.GotConn(connInfo)
		}
		return inner.RoundTrip(r)
	})
	_, err := c.Put(ctx, "n", "k", BytesBody([]byte("v")), PutOptions{})
	return err
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = mustNew(t, Options{URL: addr}).Put(t.Context(), "n", "k", BytesBody(nil), PutOptions{})
	var u *UnreachableError
	if !errors.As(err, &u) || u.URL != "http://"+addr || strings.Count(err.Error(), addr) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestConnectionThatBreaks(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer srv.Close()
	c := mustNew(t, Options{URL: srv.URL})
	if _, err := c.Put(t.Context(), "n", "k", BytesBody([]byte("v")), PutOptions{}); CodeOf(err) != kv.CodeOutcomeUnknown {
		t.Errorf("a write whose answer never came: %v", err)
	}
	if _, err := c.Get(t.Context(), "n", "k", GetOptions{}); err == nil || CodeOf(err) != "" {
		t.Errorf("a read whose answer never came: %v", err)
	}
}

func TestBodiesThatLie(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	c := mustNew(t, Options{URL: srv.URL})
	for _, size := range []int64{4, 6} {
		b := BytesBody([]byte("12345"))
		b.Size = size
		_, err := c.Put(t.Context(), "n", "k", b, PutOptions{})
		if err == nil || CodeOf(err) != "" || !strings.HasPrefix(err.Error(), "it ") {
			t.Errorf("5 bytes announced as %d: %v", size, err)
		}
	}
	gone := errors.New("gone")
	_, err := c.Put(t.Context(), "n", "k", Body{Size: 1, Open: func() (io.ReadCloser, error) { return nil, gone }}, PutOptions{})
	if !errors.Is(err, gone) {
		t.Errorf("a body that cannot be opened: %v", err)
	}
}

// A large body is not sent to a node that refuses it anyway, so one that can be read only once is still whole.
func TestRefusalBeforeTheBody(t *testing.T) {
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Kv-Revision", map[bool]string{true: "7", false: "0"}[string(b) == "from a pipe"])
	}))
	defer srv.Close()
	in := strings.NewReader("from a pipe")
	body := Body{Size: -1, Once: true, Open: func() (io.ReadCloser, error) { return io.NopCloser(in), nil }}
	m, err := mustNew(t, Options{URL: srv.URL}).Put(t.Context(), "n", "k", body, PutOptions{})
	if err != nil || m.Revision != 7 {
		t.Errorf("got %+v, %v after %d requests", m, err, calls.Load())
	}
}

func TestParallelIsBounded(t *testing.T) {
	const limit, calls = 3, 12
	var now, most atomic.Int32
	gate := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		<-gate
	}))
	defer srv.Close()
	c := mustNew(t, Options{URL: srv.URL, Parallel: limit})
	done := make(chan error, calls)
	for range calls {
		go func() {
			_, err := c.Put(context.Background(), "n", "k", BytesBody(nil), PutOptions{})
			done <- err
		}()
	}
	for range calls {
		gate <- struct{}{}
	}
	for range calls {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if most.Load() > limit {
		t.Errorf("%d requests at a time, the limit is %d", most.Load(), limit)
	}
}

func TestURLs(t *testing.T) {
	for in, want := range map[string]string{
		"": DefaultURL, "h:1": "http://h:1", "http://h:1/": "http://h:1", "https://[::1]:2": "https://[::1]:2",
	} {
		if c, err := New(Options{URL: in}); err != nil || c.URL() != want {
			t.Errorf("%q: %v, %v; want %s", in, c, err, want)
		}
	}
	for _, bad := range []string{"ftp://h", "http://", "http://h/path", "http://u:secret@h", "http://h?x=1", "://", "http://h:port"} {
		if _, err := New(Options{URL: bad}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMetadataInHeaders(t *testing.T) {
	got, err := headerJSON([]byte("{\n \"a\": \"\x7f ü\" }"))
	if err != nil || got != `{"a":"\u007f ü"}` {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := headerJSON([]byte("{")); kv.CodeOf(err) != kv.CodeInvalidMetadata {
		t.Errorf("got %v", err)
	}
}

func TestMetadataFromHeaders(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":"\u00fc\ud83c\udf0d"}`: `{"a":"ü🌍"}`,
		`"\\u00fc \" \u007f \n"`:     `"\\u00fc \" \u007f \n"`, // an escaped backslash, and ASCII
		`"\ud83c x \udf0d\ud83cy"`:   `"\ud83c x \udf0d\ud83cy"`,
		`"\ud83c\ud83c\udf0d"`:       `"\ud83c🌍"`,
		`"\u0`:                       `"\u0`,
		`"\`:                         `"\`,
		`"\u+123"`:                   `"\u+123"`,
	} {
		if got := unescapeJSON(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// What does not come from a kvmesh node must not be taken for an answer of one.
func TestForeignAnswers(t *testing.T) {
	status, body := 0, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://example.invalid/")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	defer srv.Close()
	c := mustNew(t, Options{URL: srv.URL, RetryFor: -1})
	for _, tc := range []struct {
		status int
		body   string
		want   string
	}{
		{302, "moved", "302 Found: moved (HTTP 302)"},
		{404, "<html>\x1b[31mred", "404 Not Found: <html>[31mred (HTTP 404)"},
		{200, "hello", "not what a kvmesh node sends"},
		{200, `{"keys":[],"list_complete":false}`, "without a cursor"},
	} {
		status, body = tc.status, tc.body
		if _, err := c.List(t.Context(), "n", ListOptions{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%d %q: %v", tc.status, tc.body, err)
		}
	}
	status, body = 200, `{"keys":[],"list_complete":false,"cursor":"x"}`
	pages := 0
	for _, err := range c.Pages(t.Context(), "n", ListOptions{}) {
		if pages++; err != nil {
			break
		}
	}
	if pages != 2 {
		t.Errorf("a listing that goes in circles was followed for %d pages", pages)
	}
}

var connInfo = httptrace.GotConnInfo{}

func traceOf(r *http.Request) *httptrace.ClientTrace {
	return httptrace.ContextClientTrace(r.Context())
}
