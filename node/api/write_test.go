package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

func TestAnswersOfWrites(t *testing.T) {
	r := newRig(t)
	expiry := testNow.Unix() + 61 // counted from the next whole second
	w := r.do("PUT", "/v1/kv/default/k?expiration_ttl=60", "v")
	want := fmt.Sprintf("Cache-Control: no-store\nContent-Length: 63\nContent-Type: application/json\nEtag: %s\n"+
		"Kv-Bookmark: 00000102030405060708090adeadbeef.1\nKv-Expiration: %d\nKv-Revision: 1\n"+
		"X-Content-Type-Options: nosniff\n", tag1, expiry)
	body := `{"revision":1,"bookmark":"00000102030405060708090adeadbeef.1"}` + "\n"
	if got := headersOf(w.Header()); w.Code != 200 || got != want || w.Body.String() != body {
		t.Errorf("PUT: %d\n%s%q\nwant\n%s%q", w.Code, got, w.Body, want, body)
	}
	w = r.do("DELETE", "/v1/kv/default/k", "")
	if w.Code != 200 || w.Body.String() != strings.ReplaceAll(strings.ReplaceAll(body, ":1", ":2"), ".1", ".2") ||
		w.Header().Get("Kv-Revision") != "2" {
		t.Errorf("DELETE: %d %v %s", w.Code, w.Header(), w.Body)
	}
	w = r.do("DELETE", "/v1/kv/default/k", "")
	if w.Code != 200 || !strings.HasPrefix(w.Body.String(), `{"revision":0,`) || w.Header().Get("Kv-Revision") != "" {
		t.Errorf("DELETE of nothing: %d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestExpirationParameters(t *testing.T) {
	now := testNow.Unix()
	for query, want := range map[string]int64{
		"":                                  0,
		fmt.Sprintf("expiration=%d", now+1): now + 1,
		"expiration_ttl=1":                  now + 2,
		fmt.Sprintf("expiration=%d&expiration_ttl=5", now+1000): now + 6,
		"expiration=1&expiration_ttl=5":                         now + 6,
		fmt.Sprintf("expiration=%d", int64(maxExpiration)):      maxExpiration,
	} {
		r := newRig(t)
		w := r.do("PUT", "/v1/kv/default/k?"+query, "v")
		r.want(w, 200, "", "")
		if got := r.svc.keys["default\x00k"].expiry; got != want {
			t.Errorf("%q: expiry %d, want %d", query, got, want)
		}
	}
	for query, field := range map[string]string{
		fmt.Sprintf("expiration=%d", now):    "expiration",
		"expiration=0":                       "expiration",
		"expiration=-5":                      "expiration",
		"expiration=soon":                    "expiration",
		"expiration=":                        "expiration",
		"expiration=253402300800":            "expiration",
		"expiration=99999999999999999999":    "expiration",
		"expiration_ttl=0":                   "expiration_ttl",
		"expiration_ttl=-1":                  "expiration_ttl",
		"expiration_ttl=1.5":                 "expiration_ttl",
		"expiration_ttl=":                    "expiration_ttl",
		"expiration_ttl=9223372036854775807": "expiration_ttl",
		"expiration=x&expiration_ttl=5":      "expiration",
	} {
		r := newRig(t)
		r.want(r.do("PUT", "/v1/kv/default/k?"+query, "v"), 400, kv.CodeInvalidExpiration, field)
		if len(r.svc.keys) > 0 {
			t.Errorf("%q: stored", query)
		}
	}
	r := newRig(t)
	r.want(r.do("PUT", "/v1/kv/default/k?expiration_tll=60", "v"), 400, kv.CodeInvalidParameter, "expiration_tll")
}

func TestMetadataHeader(t *testing.T) {
	exact := `"` + strings.Repeat("x", kv.MaxMetadataBytes-2) + `"`
	for given, want := range map[string]string{
		``: "", `null`: `null`, ` { "a" : [ 1 , 2 ] } `: `{"a":[1,2]}`, `"ü\u0000"`: `"ü\u0000"`, exact: exact,
	} {
		r := newRig(t)
		r.want(r.do("PUT", "/v1/kv/default/k", "v", "Kv-Metadata", strings.TrimSpace(given)), 200, "", "")
		if got := string(r.svc.keys["default\x00k"].metadata); got != want {
			t.Errorf("%q became %q, want %q", given, got, want)
		}
	}
	for given, code := range map[string]kv.Code{
		`{`: kv.CodeInvalidMetadata, `a`: kv.CodeInvalidMetadata, `1 2`: kv.CodeInvalidMetadata, "\"\xfc\"": kv.CodeInvalidMetadata,
		exact + " ": kv.CodeMetadataTooLarge,
	} {
		r := newRig(t)
		r.want(r.do("PUT", "/v1/kv/default/k", "v", "Kv-Metadata", given), 400, code, "Kv-Metadata")
	}
	r := newRig(t)
	r.want(r.do("PUT", "/v1/kv/default/k", "v", "Kv-Metadata", "1", "Kv-Metadata", "2"), 400, kv.CodeInvalidMetadata, "Kv-Metadata")
}

func TestConditionalWrites(t *testing.T) {
	const absent, present = "none", "k"
	for _, tc := range []struct {
		key     string
		headers []string
		status  int
	}{
		{absent, []string{"If-None-Match", "*"}, 200},
		{present, []string{"If-None-Match", "*"}, 412},
		{absent, []string{"If-Match", "*"}, 412},
		{present, []string{"If-Match", "*"}, 200},
		{present, []string{"If-Match", tag1}, 200},
		{present, []string{"If-Match", "W/" + tag1}, 412}, // weak never matches strongly
		{present, []string{"If-Match", `"deadbeef-2"`}, 412},
		{present, []string{"If-Match", `"deadbeef-01"`}, 412},
		{present, []string{"If-Match", `"DEADBEEF-1"`}, 412},
		{present, []string{"If-Match", `"00000000-1"`}, 412},
		{present, []string{"If-Match", `"someone else's"`}, 400}, // a space
		{present, []string{"If-Match", `"another-servers"`}, 412},
		{absent, []string{"If-Match", `"deadbeef-0"`}, 412}, // revision 0 must not mean absent
		{absent, []string{"If-Match", tag1}, 412},
		{present, []string{"If-Match", tag1 + `, "deadbeef-2"`}, 400},
		{present, []string{"If-Match", tag1, "If-Match", tag1}, 400},
		{present, []string{"If-None-Match", tag1}, 400},
		{present, []string{"If-None-Match", "*", "If-Match", tag1}, 400},
		{present, []string{"If-Match", "deadbeef-1"}, 400},
		{present, []string{"If-Match", ""}, 400},
	} {
		for _, method := range []string{"PUT", "DELETE"} {
			r := newRig(t)
			r.do("PUT", "/v1/kv/default/k", "old")
			w := r.do(method, "/v1/kv/default/"+tc.key, "new", tc.headers...)
			if w.Code != tc.status {
				t.Errorf("%s %s %v: %d, want %d: %s", method, tc.key, tc.headers, w.Code, tc.status, w.Body)
			}
			if changed := r.svc.revision > 1; w.Code != 200 && changed {
				t.Errorf("%s %s %v: refused, yet changed", method, tc.key, tc.headers)
			}
			if w.Code != 412 {
				continue
			}
			revision, text := "1", "at revision 1"
			if tc.key == absent {
				revision, text = "0", "does not exist"
			}
			r.want(w, 412, kv.CodeConditionFailed, tc.headers[0])
			if w.Header().Get("Kv-Revision") != revision || !strings.Contains(w.Body.String(), text) {
				t.Errorf("%s %v: does not name the revision: %v %s", tc.key, tc.headers, w.Header(), w.Body)
			}
		}
	}
}

func TestBodiesThatAreNotTaken(t *testing.T) {
	limited := func(o *Options) { o.MaxBody = 2 << 20 }
	r := newRig(t, limited)
	r.want(r.do("PUT", "/v1/kv/default/k", "x", "Content-Encoding", "gzip"), 400, kv.CodeInvalidBody, "Content-Encoding")
	r.want(r.do("PUT", "/v1/kv/default/k", "x", "Content-Encoding", "identity"), 200, "", "")

	exact := strings.Repeat("x", 2<<20)
	r.want(r.do("PUT", "/v1/kv/default/k", exact), 200, "", "")
	w := r.do("PUT", "/v1/kv/default/k", exact+"y")
	r.want(w, 413, kv.CodeValueTooLarge, "value")
	for _, part := range []string{"2097153", "2097152", "2 MiB"} {
		if !strings.Contains(w.Body.String(), part) {
			t.Errorf("413 does not say %s: %s", part, w.Body)
		}
	}
	if r.svc.revision != 2 {
		t.Errorf("revision %d: something refused was stored", r.svc.revision)
	}
}

// TestBodyLimitHoldsWhileStreaming: a service never sees more than the limit, nor an end after too much.
func TestBodyLimitHoldsWhileStreaming(t *testing.T) {
	for _, size := range []int{0, 1, 99, 100, 101, 1000} {
		b := newValueBody(&chunky{left: size}, -1, 100, func() {})
		var got bytes.Buffer
		_, err := io.Copy(&got, b)
		if over := size > 100; over != (kv.CodeOf(err) == kv.CodeValueTooLarge) || !over && err != nil || got.Len() > 100 {
			t.Errorf("%d bytes: %d given out, %v", size, got.Len(), err)
		}
		if _, err := b.Read(make([]byte, 1)); err == nil || size > 100 && kv.CodeOf(err) != kv.CodeValueTooLarge {
			t.Errorf("%d bytes: read again: %v", size, err)
		}
	}
}

// chunky gives its bytes in sevens.
type chunky struct{ left int }

func (c *chunky) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := min(7, len(p), c.left)
	c.left -= n
	return n, nil
}

// TestFailuresOfWrites: a plain failure is only claimed for a write that cannot land any more.
func TestFailuresOfWrites(t *testing.T) {
	raw := errors.New("connection to the leader lost")
	for name, tc := range map[string]struct {
		body  string
		read  int64 // how much of the body the service reads
		err   error
		code  kv.Code
		retry string
	}{
		"error with a code":            {"abc", 3, kv.Errorf(kv.CodeNoLeader, "none"), kv.CodeNoLeader, "1"},
		"wrapped":                      {"abc", 3, fmt.Errorf("x: %w", &kv.Error{Code: kv.CodeOverloaded, Message: "m", RetryAfter: 1500 * time.Millisecond}), kv.CodeOverloaded, "2"},
		"raw error, body read":         {"abc", 3, raw, kv.CodeOutcomeUnknown, ""},
		"cancelled, body read":         {"abc", 3, context.Canceled, kv.CodeOutcomeUnknown, ""},
		"raw error, body not read":     {"abc", 2, raw, kv.CodeInternal, ""},
		"cancelled, body not read":     {"abc", 2, context.Canceled, kv.CodeDeadlineExceeded, ""},
		"raw error, nothing to read":   {"", 0, raw, kv.CodeOutcomeUnknown, ""},
		"epoch changed under the call": {"", 0, kv.Errorf(kv.CodeEpochChanged, "changed"), kv.CodeEpochChanged, "1"},
	} {
		r := newRig(t)
		r.svc.onPut = func(_ context.Context, req PutRequest) (WriteResult, error) {
			if _, err := io.CopyN(io.Discard, req.Body, tc.read); err != nil {
				t.Error(err)
			}
			return WriteResult{}, tc.err
		}
		w := r.do("PUT", "/v1/kv/default/k", tc.body)
		r.want(w, statusOf(tc.code), tc.code, "")
		if got := w.Header().Get("Retry-After"); got != tc.retry {
			t.Errorf("%s: Retry-After %q, want %q", name, got, tc.retry)
		}
		if strings.Contains(w.Body.String(), raw.Error()) {
			t.Errorf("%s: shows the node's own error: %s", name, w.Body)
		}
		if tc.err == raw && !strings.Contains(r.log.String(), raw.Error()) {
			t.Errorf("%s: does not log the node's own error", name)
		}
	}
	r := newRig(t)
	r.svc.err = raw
	r.want(r.do("DELETE", "/v1/kv/default/k", ""), 500, kv.CodeInternal, "") // failed at the namespace, before the write
}

// TestServiceThatLosesTheBodysError: what was wrong with the body is told although the service says something else.
func TestServiceThatLosesTheBodysError(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxBody = 10 })
	r.svc.onPut = func(_ context.Context, req PutRequest) (WriteResult, error) {
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			t.Error("no error")
		}
		return WriteResult{}, errors.New("put: stage: read failed")
	}
	req, err := http.NewRequest("PUT", "http://"+r.serve()+"/v1/kv/default/k", io.LimitReader(zeros{}, 11))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if e := readError(t, body); err != nil || resp.StatusCode != 413 || e.Code != kv.CodeValueTooLarge || e.Field != "value" {
		t.Errorf("%d %s %v", resp.StatusCode, body, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
