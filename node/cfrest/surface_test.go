package cfrest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// want checks a status and, of an error, "code text".
func (r *rig) want(got int, body string, status int, text string) {
	r.t.Helper()
	if got != status {
		r.t.Errorf("status %d, want %d: %.300s", got, status, body)
	}
	if status >= 400 {
		if has := told(r.t, body); has != text {
			r.t.Errorf("got  %s\nwant %s", has, text)
		}
	}
}

// §1.1 and §1.8: credentials.
func TestAuth(t *testing.T) {
	const secret = "0123456789abcdef"
	r := newRig(t, func(o *Options) { o.Auth = token(secret) })
	for _, tc := range []struct {
		target  string
		headers []string
		status  int
		text    string
	}{
		{base, []string{"Authorization", "Bearer " + secret}, 200, ""},
		{base, []string{"X-Auth-Email", "a@b", "X-Auth-Key", secret}, 200, ""},
		{base, []string{"X-Auth-User-Service-Key", secret}, 200, ""},
		{base, nil, 401, "9106 Missing X-Auth-Key, X-Auth-Email or Authorization headers"},
		{base, []string{"X-Auth-Email", "a@b"}, 401, "9106 Missing X-Auth-Key, X-Auth-Email or Authorization headers"},
		{base, []string{"Authorization", "Bearer wrong"}, 401, "10000 Authentication error"},
		{base, []string{"X-Auth-Key", "wrong"}, 401, "10000 Authentication error"},
		{base, []string{"Authorization", "Bearer wrong", "X-Auth-Key", secret}, 401, "10000 Authentication error"},
		{base, []string{"Authorization", secret}, 400, "6003 Invalid request headers"},
		{base, []string{"Authorization", "Bearer " + secret, "Authorization", "Bearer " + secret}, 400, "6003 Invalid request headers"},
		{"/client/v4/user/tokens/verify", []string{"Authorization", "Bearer wrong"}, 401, "1000 Invalid API Token"},
		{"/client/v4/accounts/x/tokens/verify", []string{"Authorization", "Bearer wrong"}, 401, "1000 Invalid API Token"},
		{"/client/v4/accounts/x/tokens/verify", []string{"Authorization", "Bearer " + secret}, 200, ""},
		// What does not exist is behind it too.
		{"/client/v4/none", nil, 401, "9106 Missing X-Auth-Key, X-Auth-Email or Authorization headers"},
	} {
		w := r.do("GET", tc.target, "", tc.headers...)
		r.want(w.Code, w.Body.String(), tc.status, tc.text)
	}
	if w := r.do("PUT", "/{ns}/values/k", "v", "Authorization", "Bearer wrong"); w.Code != 401 || r.has("k") != "-" {
		t.Errorf("a write without the token: %d, and the key is %s", w.Code, r.has("k"))
	}
}

// §1.4: the headers of a value.
func TestValueHeaders(t *testing.T) {
	for _, stream := range []bool{false, true} {
		r := newRig(t)
		r.stream = stream
		r.seed("k", "hello", `{"a":1}`, 1_900_000_100)
		for _, method := range []string{"GET", "HEAD"} {
			w := r.do(method, "/{ns}/values/k", "")
			h := w.Header()
			if w.Code != 200 || h.Get("Content-Type") != "application/octet-stream" || h.Get("Content-Length") != "5" || h.Get("Expiration") != "1900000100" {
				t.Errorf("%s: %d %v", method, w.Code, h)
			}
			if want := map[string]string{"GET": "hello", "HEAD": ""}[method]; w.Body.String() != want {
				t.Errorf("%s: %q, want %q", method, w.Body, want)
			}
		}
		r.seed("for ever", "x", "", 0)
		if h := r.do("GET", "/{ns}/values/for%20ever", "").Header(); h.Get("Expiration") != "" {
			t.Errorf("a value that does not expire: %v", h)
		}
	}
}

type listAnswer struct {
	Result []struct {
		Name       string
		Expiration *int64
		Metadata   json.RawMessage
	}
	Info struct {
		Count   int
		Cursor  *string
		Cursors struct{ After *string }
	} `json:"result_info"`
}

func (r *rig) list(query string) (out listAnswer) {
	r.t.Helper()
	w := r.do("GET", "/{ns}/keys"+query, "")
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 200 || out.Result == nil {
		r.t.Fatalf("list %s: %d %s", query, w.Code, w.Body)
	}
	if out.Info.Cursor == nil || out.Info.Cursors.After == nil || *out.Info.Cursor != *out.Info.Cursors.After || out.Info.Count != len(out.Result) {
		r.t.Fatalf("list %s: §0.2 wants both cursors: %s", query, w.Body)
	}
	return out
}

// §1.3, §0.2, §0.10: pages with both cursors, the last one with empty ones; no page is empty before the last.
func TestListing(t *testing.T) {
	r := newRig(t)
	for i := range 25 {
		r.seed(fmt.Sprintf("k%02d", i), "v", "", 0)
		r.gone[fmt.Sprintf("k%02d", i)] = i >= 3 && i < 20
	}
	r.seed("m", "v", "{\"a\":1.0}", 1_900_000_100)
	var names []string
	query := "?limit=3&prefix=k"
	for range 10 {
		page := r.list(query)
		for _, k := range page.Result {
			names = append(names, k.Name)
			if k.Expiration != nil || k.Metadata != nil {
				t.Errorf("%s has an expiration or metadata", k.Name)
			}
		}
		if *page.Info.Cursor == "" {
			break
		}
		if len(page.Result) == 0 {
			t.Fatal("an empty page before the last: the SDKs stop here")
		}
		query = "?limit=3&prefix=k&cursor=" + *page.Info.Cursor
	}
	if got := strings.Join(names, " "); got != "k00 k01 k02 k20 k21 k22 k23 k24" {
		t.Errorf("the pages have %s", got)
	}
	if m := r.list("?prefix=m").Result; len(m) != 1 || string(m[0].Metadata) != `{"a":1.0}` || *m[0].Expiration != 1_900_000_100 {
		t.Errorf("metadata is a JSON value here: %+v", m)
	}
	// §3: wrangler sends an empty prefix, and no limit.
	if all := r.list("?prefix="); len(all.Result) != 9 || r.lists[len(r.lists)-1].Limit != 1000 {
		t.Errorf("without a prefix: %+v", all)
	}
	if none := r.list("?prefix=x"); len(none.Result) != 0 {
		t.Errorf("nothing begins with x: %+v", none)
	}
	for query, want := range map[string]string{
		"?limit=0":                             "400 10029 list keys: 'Invalid key_count_limit of 0. Please specify an integer greater than 0.'",
		"?limit=1001":                          "400 10029 list keys: 'Invalid key_count_limit of 1001. Please specify an integer less than 1000.'",
		"?limit=ten":                           "400 10029 list keys: 'Invalid key_count_limit of ten. Please specify an integer greater than 0.'",
		"?cursor=made-up":                      "400 10029 list keys: 'Invalid cursor'",
		"?cursor=" + strings.Repeat("x", 5000): "400 10029 list keys: 'Invalid cursor'",
		"?prefix=" + long:                      "414 10029 list keys: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'",
		"?prefix=%ff":                          "400 10029 list keys: 'Could not URL-decode key name'",
	} {
		w := r.do("GET", "/{ns}/keys"+query, "")
		if got := fmt.Sprint(w.Code, " ", told(t, w.Body.String())); got != want {
			t.Errorf("%.40s\ngot  %s\nwant %s", query, got, want)
		}
	}
}

// §1.2: order and direction, over pages.
func TestNamespaceOrder(t *testing.T) {
	r := newRig(t)
	r.spaces = map[kv.NamespaceID]string{{1}: "b", {2}: "c", {3}: "a"}
	for query, want := range map[string]string{
		"":                             "a b c",
		"?order=title&direction=desc":  "c b a",
		"?order=id":                    "b c a",
		"?order=id&direction=desc":     "a c b",
		"?per_page=2&page=2":           "c",
		"?per_page=1&page=2&order=id":  "c",
		"?per_page=1000&direction=asc": "a b c",
	} {
		var out struct{ Result []struct{ Title string } }
		w := r.do("GET", base+query, "")
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		var titles []string
		for _, ns := range out.Result {
			titles = append(titles, ns.Title)
		}
		if got := strings.Join(titles, " "); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}

// §2.5: a value has 25 MiB, whichever way it comes.
func TestValueLimit(t *testing.T) {
	r := newRig(t)
	whole := strings.Repeat("x", kv.MaxValueBytes)
	coded := base64.StdEncoding.EncodeToString([]byte(whole))
	tooLarge := func(op string) string {
		return "10029 " + op + ": 'Value length of 26214401 exceeds limit of 26214400.'"
	}
	for _, tc := range []struct {
		name, target string
		body         func(value string) io.Reader
		headers      []string
		op           string
	}{
		{"raw", "/{ns}/values/k", func(v string) io.Reader { return strings.NewReader(v) }, nil, "put"},
		{"chunked", "/{ns}/values/k", func(v string) io.Reader { return io.MultiReader(strings.NewReader(v)) }, nil, "put"},
		{"form", "/{ns}/values/k", func(v string) io.Reader { return strings.NewReader(formBody("value", v, "metadata", "1")) }, multi, "put"},
		{"bulk", "/{ns}/bulk", func(v string) io.Reader { return strings.NewReader(`[{"key":"k","value":"` + v + `"}]`) }, nil, "bulk put keys"},
		{"bulk in base64", "/{ns}/bulk", func(v string) io.Reader {
			if len(v) > len(whole) {
				coded = base64.StdEncoding.EncodeToString([]byte(v))
			}
			return strings.NewReader(`[{"key":"k","value":"` + coded + `","base64":true}]`)
		}, nil, "bulk put keys"},
	} {
		if w := r.send("PUT", tc.target, tc.body(whole), tc.headers...); w.Code != 200 || !strings.HasPrefix(r.has("k"), whole+"|") {
			t.Errorf("%s: 25 MiB: %d %.200s", tc.name, w.Code, w.Body)
		}
		r.seed("k", "old", "", 0)
		w := r.send("PUT", tc.target, tc.body(whole+"x"), tc.headers...)
		r.want(w.Code, w.Body.String(), 413, tooLarge(tc.op))
		if r.has("k") != "old||0" {
			t.Errorf("%s: one byte more: the key is %.80s", tc.name, r.has("k"))
		}
	}
}

// A body that is cut stores nothing, wherever the cut is.
func TestCutBodies(t *testing.T) {
	whole := formBody("value", strings.Repeat("v", 100), "metadata", `{"a":1}`)
	const end = "--\r\n"
	for n := range len(whole) - len(end) + 2 { // without both of its last dashes it is not complete
		r := newRig(t)
		if w := r.do("PUT", "/{ns}/values/k", whole[:n], multi...); w.Code != 400 || r.has("k") != "-" {
			t.Fatalf("the form's first %d of %d bytes: %d %s, and the key is %s", n, len(whole), w.Code, w.Body, r.has("k"))
		}
	}
	bulk := `[{"key":"k","value":"v"},{"key":"l","value":"v"}]`
	for n := range len(bulk) {
		r := newRig(t)
		if w := r.do("PUT", "/{ns}/bulk", bulk[:n]); w.Code != 400 || r.written != 0 {
			t.Fatalf("the document's first %d bytes: %d %s, %d keys were written", n, w.Code, w.Body, r.written)
		}
	}
}

type brokenReader struct{ r io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func TestBrokenConnections(t *testing.T) {
	for _, tc := range []struct {
		target, body, want string
		headers            []string
	}{
		{"/{ns}/values/k", "half a val", "10012 put: 'the body ended after 10 bytes, before its end; nothing was stored'", nil},
		{"/{ns}/values/k", formBody("value", "x")[:60], "10012 put: 'the body ended after 60 bytes, before its end; nothing was stored'", multi},
		{"/{ns}/bulk", `[{"key":"k","val`, "10012 bulk put keys: 'the body ended after 16 bytes, before its end; nothing was stored'", nil},
	} {
		r := newRig(t)
		w := r.send("PUT", tc.target, brokenReader{strings.NewReader(tc.body)}, tc.headers...)
		r.want(w.Code, w.Body.String(), 400, tc.want)
		if r.has("k") != "-" {
			t.Errorf("%s: the key is %s", tc.target, r.has("k"))
		}
	}
}

// A write that may still land is never a plain failure, and the SDKs are told not to send it again by themselves.
func TestOutcomeUnknown(t *testing.T) {
	for _, call := range []struct {
		method, target, body string
		headers              []string
	}{
		{"PUT", "/{ns}/values/k", "v", nil},
		{"PUT", "/{ns}/values/k", formBody("value", "v"), multi},
		{"DELETE", "/{ns}/values/k", "", nil},
		{"PUT", "/{ns}/bulk", `[{"key":"k","value":"v"}]`, nil},
	} {
		var log bytes.Buffer
		r := newRig(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		r.err["k"] = errors.New("secret detail")
		w := r.do(call.method, call.target, call.body, call.headers...)
		if w.Code != 503 || !strings.Contains(told(t, w.Body.String()), "outcome_unknown") || w.Header().Get("X-Should-Retry") != "false" ||
			strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s %s: %d %v %s", call.method, call.target, w.Code, w.Header(), w.Body)
		}
	}
}

// An error without a code is for the log, not for the client.
func TestInternalErrors(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	r.err["k"] = errors.New("secret detail")
	w := r.do("GET", "/{ns}/values/k", "")
	r.want(w.Code, w.Body.String(), 500, "10500 get: 'the node met an error of its own; its log says more'")
	if !strings.Contains(log.String(), "secret detail") {
		t.Errorf("the log does not say what happened: %s", log.String())
	}
}

// §4 as an option: one write a second to a key, over all ways to write it.
func TestStrictLimits(t *testing.T) {
	now := testNow
	limit := cfkv.NewWriteLimit(func() time.Time { return now })
	r := newRig(t, func(o *Options) { o.Limit = limit })
	const throttle = "971 Please wait and consider throttling your request speed"
	ask := func(status int, method, target, body string, headers ...string) {
		t.Helper()
		w := r.do(method, target, body, headers...)
		r.want(w.Code, w.Body.String(), status, throttle)
		if status == 429 && w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s %s: no Retry-After: %v", method, target, w.Header())
		}
	}
	ask(200, "PUT", "/{ns}/values/k", "1")
	ask(429, "PUT", "/{ns}/values/k", "2")
	ask(429, "PUT", "/{ns}/values/k", formBody("value", "3"), multi...)
	ask(429, "DELETE", "/{ns}/values/k", "")
	ask(429, "PUT", "/{ns}/bulk", `[{"key":"k","value":"4"}]`)
	ask(200, "PUT", "/{ns}/values/other", "1")
	if w := r.do("PUT", "/{ns}/bulk", `[{"key":"k","value":"5"},{"key":"l","value":"5"}]`); w.Code != 200 ||
		!strings.Contains(w.Body.String(), `{"successful_key_count":1,"unsuccessful_keys":["k"]}`) {
		t.Errorf("a bulk put with a key that was just written: %d %s", w.Code, w.Body)
	}
	if r.has("k") != "1||0" {
		t.Errorf("k is %s", r.has("k"))
	}
	now = now.Add(time.Second)
	ask(200, "PUT", "/{ns}/values/k", formBody("value", "6"), multi...)
}

// Every code of kv is told as a failure with the members that §1.1 wants.
func TestEveryCode(t *testing.T) {
	for code, want := range map[kv.Code]string{
		kv.CodeKeyNotFound:       "404 10009 get: 'key not found'",
		kv.CodeNamespaceNotFound: "404 10013 get: 'namespace not found'",
		kv.CodeNoLeader:          "503 10503 get: 'no_leader: why'",
		kv.CodeNoQuorum:          "503 10503 get: 'no_quorum: why'",
		kv.CodeStaleBeyondLimit:  "503 10503 get: 'stale_beyond_limit: why'",
		kv.CodeOverloaded:        "503 10503 get: 'overloaded: why'",
		kv.CodeUnavailable:       "503 10503 get: 'unavailable: why'",
		kv.CodeEpochChanged:      "503 10503 get: 'epoch_changed: why'",
		kv.CodeNotLeader:         "503 10503 get: 'not_leader: why'",
		kv.CodeDiskFull:          "507 10503 get: 'disk_full: why'",
		kv.CodeDeadlineExceeded:  "504 10503 get: 'deadline_exceeded: why'",
		kv.CodeTooManyRequests:   "429 971 Please wait and consider throttling your request speed",
		kv.CodeInternal:          "500 10500 get: 'the node met an error of its own; its log says more'",
		kv.CodeInvalidParameter:  "400 10029 get: 'why'",
	} {
		r := newRig(t)
		r.err["k"] = kv.Errorf(code, "why")
		w := r.do("GET", "/{ns}/values/k", "")
		if got := fmt.Sprint(w.Code, " ", told(t, w.Body.String())); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", code, got, want)
		}
	}
}

// A wrong method says which are right.
func TestAllow(t *testing.T) {
	r := newRig(t)
	for target, want := range map[string]string{
		base: "GET, HEAD, POST", "/{ns}": "DELETE, GET, HEAD, PUT", "/{ns}/values/k": "DELETE, GET, HEAD, PUT", "/{ns}/bulk": "DELETE, PUT",
	} {
		if w := r.do("BREW", target, ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != want {
			t.Errorf("%s: %d, Allow %q, want %q", target, w.Code, w.Header().Get("Allow"), want)
		}
	}
}

// Names of fields that are no metadata are refused, and none of them is too much.
func TestBadMetadataFields(t *testing.T) {
	deep := "metadata" + strings.Repeat("[a]", maxMetaDepth+1)
	for _, parts := range [][]string{
		{"metadata[", "1"},
		{"metadata[a", "1"},
		{"metadata[a]b", "1"},
		{"metadata.", "1"},
		{"metadata..a", "1"},
		{"metadata.a.", "1"},
		{deep, "1"},
		{"metadata[a]", "1", "metadata[a]", "2"},
		{"metadata[a][]", "1", "metadata[a][b]", "2"},
		{"metadata[]", "1", "metadata[a]", "1"},
		{"metadata[a]", "\xff"},
		{"metadata", "{}", "metadata[a]", "1"},
	} {
		r := newRig(t)
		if w := r.do("PUT", "/{ns}/values/k", formBody(append(parts, "value", "v")...), multi...); w.Code != 400 || r.has("k") != "-" {
			t.Errorf("%q: %d %s, and the key is %s", parts, w.Code, w.Body, r.has("k"))
		}
	}
	var many []string
	for i := range 20_000 {
		many = append(many, fmt.Sprintf("metadata[%d]", i), "x")
	}
	r := newRig(t)
	if w := r.do("PUT", "/{ns}/values/k", formBody(append(many, "value", "v")...), multi...); w.Code != 413 || r.has("k") != "-" {
		t.Errorf("20,000 fields: %d %s", w.Code, w.Body)
	}
}
