package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

const tag1 = `"deadbeef-1"`

// headersOf lists the headers of an answer in a fixed order, without Date.
func headersOf(h http.Header) string {
	var b bytes.Buffer
	h = h.Clone()
	h.Del("Date")
	_ = h.Write(&b) // to memory
	return strings.ReplaceAll(b.String(), "\r\n", "\n")
}

func TestAnswersOfReads(t *testing.T) {
	r := newRig(t)
	expiry := fmt.Sprint(testNow.Unix() + 60)
	r.want(r.do("PUT", "/v1/kv/default/k?expiration="+expiry, "hello", "Kv-Metadata", ` {"t": "ü<😀"} `), 200, "", "")
	r.want(r.do("PUT", "/v1/kv/default/empty", ""), 200, "", "")

	const bookmark = "Kv-Bookmark: 00000102030405060708090adeadbeef.2\n"
	full := "Accept-Ranges: bytes\nAge: 1\nContent-Length: 5\nContent-Type: application/octet-stream\nEtag: " + tag1 + "\n" +
		bookmark + "Kv-Cache: hit\nKv-Expiration: " + expiry + "\nKv-Metadata: {\"t\":\"\\u00fc<\\ud83d\\ude00\"}\n" +
		"Kv-Revision: 1\nKv-Staleness-Ms: 1501\nX-Content-Type-Options: nosniff\n"
	notModified := strings.NewReplacer("Accept-Ranges: bytes\n", "", "Content-Length: 5\n", "",
		"Content-Type: application/octet-stream\n", "", "X-Content-Type-Options: nosniff\n", "").Replace(full)
	absentBody := `{"error":{"code":"key_not_found","message":"the key does not exist in this namespace"}}` + "\n"
	absent := fmt.Sprintf("Age: 1\nCache-Control: no-store\nContent-Length: %d\nContent-Type: application/json\n", len(absentBody)) +
		bookmark + "Kv-Cache: hit\nKv-Staleness-Ms: 1501\nX-Content-Type-Options: nosniff\n"

	for name, tc := range map[string]struct {
		method, path  string
		headers       []string
		status        int
		answer, bytes string
	}{
		"get":          {"GET", "k", nil, 200, full, "hello"},
		"head":         {"HEAD", "k", nil, 200, full, ""},
		"empty value":  {"GET", "empty", nil, 200, "", ""},
		"not modified": {"GET", "k", []string{"If-None-Match", tag1}, 304, notModified, ""},
		"absent":       {"GET", "none", nil, 404, absent, absentBody},
		"absent head":  {"HEAD", "none", nil, 404, absent, ""},
	} {
		w := r.do(tc.method, "/v1/kv/default/"+tc.path, "", tc.headers...)
		got := headersOf(w.Header())
		if tc.answer == "" {
			got = ""
		}
		if w.Code != tc.status || got != tc.answer || w.Body.String() != tc.bytes {
			t.Errorf("%s: %d\n%s\n%q\nwant %d\n%s\n%q", name, w.Code, got, w.Body, tc.status, tc.answer, tc.bytes)
		}
	}
}

func TestConditionalReads(t *testing.T) {
	r := newRig(t)
	r.do("PUT", "/v1/kv/default/k", "v")
	for _, tc := range []struct {
		header, value string
		status        int
		path          string
	}{
		{"If-None-Match", tag1, 304, "k"},
		{"If-None-Match", "W/" + tag1, 304, "k"},
		{"If-None-Match", `"other", W/"x" ,` + tag1, 304, "k"},
		{"If-None-Match", "*", 304, "k"},
		{"If-None-Match", `"deadbeef-2"`, 200, "k"},
		{"If-None-Match", `"00000000-1"`, 200, "k"},
		{"If-None-Match", tag1, 404, "none"},
		{"If-Match", tag1, 200, "k"},
		{"If-Match", "*", 200, "k"},
		{"If-Match", "W/" + tag1, 412, "k"},
		{"If-Match", `"deadbeef-2"`, 412, "k"},
		{"If-Match", tag1, 404, "none"},
		{"If-None-Match", "deadbeef-1", 400, "k"},
		{"If-None-Match", `"a" "b"`, 400, "k"},
		{"If-None-Match", `*,` + tag1, 400, "k"},
		{"If-Match", `"open`, 400, "k"},
		{"If-Match", ``, 400, "k"},
		{"If-Match", `W/`, 400, "k"},
	} {
		if w := r.do("GET", "/v1/kv/default/"+tc.path, "", tc.header, tc.value); w.Code != tc.status {
			t.Errorf("%s: %s on %s: %d, want %d", tc.header, tc.value, tc.path, w.Code, tc.status)
		}
	}
	w := r.do("GET", "/v1/kv/default/k", "", "If-Match", `"deadbeef-9"`)
	r.want(w, 412, kv.CodeConditionFailed, "If-Match")
	if w.Header().Get("Kv-Revision") != "1" || !strings.Contains(w.Body.String(), "revision 1") {
		t.Errorf("412 does not name the revision: %v %s", w.Header(), w.Body)
	}
}

func TestReadParameters(t *testing.T) {
	r := newRig(t)
	for query, want := range map[string]time.Duration{
		"": time.Minute, "cache_ttl=0": 0, "cache_ttl=86400": 24 * time.Hour, "cache_ttl=99999999999999999999": maxCacheTTL,
	} {
		r.svc.gets = nil
		r.do("GET", "/v1/kv/default/k?"+query, "")
		if len(r.svc.gets) != 1 || r.svc.gets[0].CacheTTL != want {
			t.Errorf("%q: %+v", query, r.svc.gets)
		}
	}
	for query, field := range map[string]string{
		"cache_ttl=x": "cache_ttl", "cache_ttl=": "cache_ttl", "cache_ttl=-1": "cache_ttl", "cache_ttl=1.5": "cache_ttl",
		"cache_ttl=%2B1": "cache_ttl", "cache_ttl=1&cache_ttl=1": "cache_ttl", "cache_tll=1": "cache_tll",
		"expiration=1": "expiration", "cache_ttl=%zz": "cache_ttl", "consistency=weak": "consistency", "=": "",
		"%zz=1": "%zz", "Cache_TTL=1": "Cache_TTL", "cache_ttl=1;x": "cache_ttl",
	} {
		r.want(r.do("GET", "/v1/kv/default/k?"+query, ""), 400, kv.CodeInvalidParameter, field)
	}
	long := strings.Repeat("ü", 100)
	w := r.do("GET", "/v1/kv/default/k?"+long, "")
	if e := readError(t, w.Body.Bytes()); len(e.Field) > maxShown+len("…") || !strings.HasPrefix(e.Field, "üü") {
		t.Errorf("field %q", e.Field)
	}
}

// TestUnsupportedIsRefused is generated from the table: nothing in it may be passed over in silence.
func TestUnsupportedIsRefused(t *testing.T) {
	r := newRig(t)
	for _, res := range unsupported.calls {
		for method := range res.methods {
			r.want(r.do(method, res.example(), ""), 501, kv.CodeUnsupportedByPeer, "")
		}
	}
	if len(r.svc.gets)+len(r.svc.lists)+len(r.svc.keys) > 0 {
		t.Error("a refused call reached the service")
	}
}

// TestDemandsReachTheService: what a read demands is handed over, and what is malformed is refused on every route.
func TestDemandsReachTheService(t *testing.T) {
	r := newRig(t)
	const mark = "000001a1ff668c0a76b62c6c6da236bf.17"
	want := Consistency{Strong: true, MaxStaleness: 1500 * time.Millisecond, Bounded: true}
	want.Bookmark, _ = kv.ParseBookmark(mark)
	r.do("GET", "/v1/kv/default/k?consistency=strong", "", "Kv-Bookmark", mark, "Kv-Max-Staleness", "1500")
	if len(r.svc.gets) != 1 || r.svc.gets[0].Consistency != want {
		t.Errorf("the service was asked %+v", r.svc.gets)
	}
	r.do("GET", "/v1/kv/default?consistency=strong", "", "Kv-Bookmark", mark, "Kv-Max-Staleness", "1500")
	if len(r.svc.lists) != 1 || r.svc.lists[0].Consistency != want {
		t.Errorf("the service was asked %+v", r.svc.lists)
	}
	r.want(r.do("PUT", "/v1/kv/default/k", "v", "Kv-Bookmark", mark), 200, "", "")
	for name, values := range map[string][]string{
		"Kv-Bookmark":      {"1", mark[:32], mark[:33], "x" + mark[1:], mark[:33] + "-1", mark[:33] + "+1", mark + "0000000000000000000000"},
		"Kv-Max-Staleness": {"-1", "1.5", "1s", "soon"},
	} {
		for _, value := range values {
			for _, res := range routes() {
				for method := range res.methods {
					if method != http.MethodHead {
						r.want(r.do(method, res.example(), "", name, value), 400, kv.CodeInvalidParameter, name)
					}
				}
			}
		}
	}
}

func TestExpiryIsJudgedAtAnswerTime(t *testing.T) {
	r := newRig(t)
	r.do("PUT", fmt.Sprintf("/v1/kv/default/k?expiration=%d", testNow.Unix()+1), "v")
	r.want(r.do("GET", "/v1/kv/default/k", ""), 200, "", "")
	r.svc.now = time.Unix(testNow.Unix()+1, 0).Add(-time.Nanosecond)
	r.want(r.do("GET", "/v1/kv/default/k", ""), 200, "", "")
	r.svc.now = time.Unix(testNow.Unix()+1, 0)
	r.want(r.do("GET", "/v1/kv/default/k", ""), 404, kv.CodeKeyNotFound, "")
	if w := r.do("GET", "/v1/kv/default", ""); strings.Contains(w.Body.String(), `"name"`) {
		t.Errorf("expired key is listed: %s", w.Body)
	}
}

func TestStalenessHeaders(t *testing.T) {
	for _, tc := range []struct {
		staleness time.Duration
		ms, age   string
	}{
		{-1, "", ""},
		{0, "0", "0"},
		{time.Nanosecond, "1", "0"},
		{999 * time.Millisecond, "999", "0"},
		{24*time.Hour + time.Microsecond, "86400001", "86400"},
	} {
		r := newRig(t)
		r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
			return &Value{Absent: true, Tier: TierStale, Staleness: tc.staleness, StaleReason: "no_quorum"}, nil
		}
		h := r.do("GET", "/v1/kv/default/k", "").Header()
		if h.Get("Kv-Staleness-Ms") != tc.ms || h.Get("Age") != tc.age || h.Get("Kv-Stale-Reason") != "no_quorum" {
			t.Errorf("%v: %v", tc.staleness, h)
		}
		if h.Get("Kv-Bookmark") != "" {
			t.Error("a bookmark without an epoch")
		}
	}
}

func TestRanges(t *testing.T) {
	value := []byte("0123456789")
	for _, inMemory := range []bool{true, false} {
		r := newRig(t)
		r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
			v := &Value{Epoch: testEpoch, Revision: 1, Size: 10, Tier: TierStore, Staleness: -1}
			if inMemory {
				v.Bytes = value
			} else {
				v.Open = func(_ context.Context, off, _ int64) (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(value[off:])), nil
				}
			}
			return v, nil
		}
		for _, tc := range []struct {
			spec, ifRange string
			status        int
			body, content string
		}{
			{"bytes=0-0", "", 206, "0", "bytes 0-0/10"},
			{"bytes=2-4", "", 206, "234", "bytes 2-4/10"},
			{"bytes=7-", "", 206, "789", "bytes 7-9/10"},
			{"bytes=7-99999999999999999999", "", 206, "789", "bytes 7-9/10"},
			{"bytes=-3", "", 206, "789", "bytes 7-9/10"},
			{"bytes=-30", "", 206, "0123456789", "bytes 0-9/10"},
			{"bytes=2-4", tag1, 206, "234", "bytes 2-4/10"},
			{"bytes=2-4", `"deadbeef-2"`, 200, "0123456789", ""},
			{"bytes=2-4", "Mon, 01 Jan 2024 00:00:00 GMT", 200, "0123456789", ""},
			{"Bytes=2-4", "", 206, "234", "bytes 2-4/10"},
			{"bytes= ,2-4 ,", "", 206, "234", "bytes 2-4/10"},
			{"bytes=2-4", "W/" + tag1, 200, "0123456789", ""},
			{"bytes=10-", tag1, 416, "", "bytes */10"},
			{"bytes=10-", `"deadbeef-2"`, 200, "0123456789", ""},
			{"bytes=10-", "", 416, "", "bytes */10"},
			{"bytes=-0", "", 416, "", "bytes */10"},
			{"bytes=4-2", "", 200, "0123456789", ""},
			{"bytes=1-2,4-5", "", 200, "0123456789", ""},
			{"bytes=-", "", 200, "0123456789", ""},
			{"bytes=+1-2", "", 200, "0123456789", ""},
			{"lines=1-2", "", 200, "0123456789", ""},
		} {
			headers := []string{"Range", tc.spec}
			if tc.ifRange != "" {
				headers = append(headers, "If-Range", tc.ifRange)
			}
			w := r.do("GET", "/v1/kv/default/k", "", headers...)
			if w.Code != tc.status || w.Header().Get("Content-Range") != tc.content {
				t.Errorf("%s: %d %q", tc.spec, w.Code, w.Header().Get("Content-Range"))
			}
			if tc.status == 416 {
				r.want(w, 416, kv.CodeInvalidParameter, "Range")
			} else if w.Body.String() != tc.body || w.Header().Get("Content-Length") != fmt.Sprint(len(tc.body)) {
				t.Errorf("%s: body %q", tc.spec, w.Body)
			}
		}
		// What is conditional comes first (RFC 9110, 13.2.2), and several ranges are none.
		for _, tc := range []struct {
			headers []string
			status  int
		}{
			{[]string{"If-None-Match", tag1, "Range", "bytes=2-4"}, 304},
			{[]string{"If-None-Match", tag1, "Range", "bytes=10-"}, 304},
			{[]string{"If-Match", `"deadbeef-2"`, "Range", "bytes=2-4"}, 412},
			{[]string{"If-Match", `"deadbeef-2"`, "If-Range", tag1, "Range", "bytes=10-"}, 412},
			{[]string{"If-Match", tag1, "If-None-Match", `"deadbeef-2"`, "If-Range", tag1, "Range", "bytes=2-4"}, 206},
			{[]string{"If-Range", tag1}, 200},
			{[]string{"Range", "bytes=2-4", "Range", "bytes=6-7"}, 200},
		} {
			w := r.do("GET", "/v1/kv/default/k", "", tc.headers...)
			if w.Code != tc.status || w.Header().Get("ETag") != tag1 || w.Code == 304 && w.Body.Len() > 0 {
				t.Errorf("%v: %d %v", tc.headers, w.Code, w.Header())
			}
		}
		if w := r.do("HEAD", "/v1/kv/default/k", "", "Range", "bytes=1-2"); w.Code != 200 || w.Header().Get("Content-Length") != "10" || w.Header().Get("Accept-Ranges") != "bytes" {
			t.Errorf("HEAD with a range: %d %v", w.Code, w.Header())
		}
	}
}

// source is an upstream body that counts and can fail.
type source struct {
	left    int
	largest int
	err     error
	closed  chan struct{}
}

func newSource(size int, err error) *source {
	return &source{left: size, err: err, closed: make(chan struct{})}
}

func (s *source) Read(p []byte) (int, error) {
	s.largest = max(s.largest, len(p))
	if s.left == 0 {
		return 0, s.err
	}
	n := min(len(p), s.left)
	s.left -= n
	return n, nil
}

func (s *source) Close() error {
	close(s.closed)
	return nil
}

func TestStreamedValues(t *testing.T) {
	const size = 3 << 20
	for name, tc := range map[string]struct {
		src   *source
		whole bool
	}{
		"whole":  {newSource(size, io.EOF), true},
		"short":  {newSource(size-1, io.EOF), false},
		"broken": {newSource(size/2, errors.New("disk")), false},
		"longer": {newSource(size+10, io.EOF), true},
	} {
		r := newRig(t)
		r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
			return &Value{
				Epoch: testEpoch, Revision: 1, Size: size, Tier: TierStore,
				Open: func(context.Context, int64, int64) (io.ReadCloser, error) { return tc.src, nil },
			}, nil
		}
		resp, err := http.Get("http://" + r.serve() + "/v1/kv/default/k")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if (err == nil) != tc.whole || (n == size) != tc.whole {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		<-tc.src.closed
		if tc.src.largest > copyBufferBytes {
			t.Errorf("%s: a read of %d bytes", name, tc.src.largest)
		}
	}
}

// endless gives bytes until its context ends.
type endless struct {
	ctx  context.Context
	done chan error
}

func (e *endless) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (e *endless) Close() error {
	e.done <- e.ctx.Err()
	return nil
}

func TestClientThatLeavesEndsTheUpstreamRead(t *testing.T) {
	r := newRig(t)
	done := make(chan error, 1)
	r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
		return &Value{
			Epoch: testEpoch, Revision: 1, Size: math.MaxInt64, Tier: TierStore,
			Open: func(ctx context.Context, _, _ int64) (io.ReadCloser, error) { return &endless{ctx, done}, nil },
		}, nil
	}
	resp, err := http.Get("http://" + r.serve() + "/v1/kv/default/k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	<-done
}
