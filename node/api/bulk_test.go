package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

func sorted(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " ")
}

// bulkResult is the answer to a bulk call, as a client reads it.
type bulkResult struct {
	Error            *errorDoc
	Put, Delete, Get []struct {
		itemDoc
		Value  *string
		Base64 *[]byte `json:"value_base64"`
	}
	Failed   int
	Bookmark string
}

func readBulk(t *testing.T, w *httptest.ResponseRecorder) (r bulkResult) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(w.Body.String()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return r
}

const bookmarkOf = "00000102030405060708090adeadbeef."

func TestAnswersOfBulk(t *testing.T) {
	r := newRig(t)
	r.do("PUT", "/v1/kv/default/old", "o")
	expiry := testNow.Unix() + 61
	w := r.do("POST", "/v1/kv/default", ` {
		"put": [{"key":"a","value":"hello <ü\n"}, {"value_base64":"/w==","metadata": {"x" : 1},"expiration_ttl":60,"key":"b"}],
		"delete": ["old", {"key":"none"}]}`)
	want := fmt.Sprintf(`{"put":[{"key":"a","status":200,"revision":2,"etag":"deadbeef-2"},`+
		`{"key":"b","status":200,"revision":3,"etag":"deadbeef-3","expiration":%d}],`+
		`"delete":[{"key":"old","status":200,"revision":4},{"key":"none","status":200,"revision":0}],"get":[],"failed":0,"bookmark":"%s4"}`+"\n",
		expiry, bookmarkOf)
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d\ngot  %swant %s", w.Code, w.Body, want)
	}
	if h := w.Header(); h.Get("Kv-Bookmark") != bookmarkOf+"4" || h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", h)
	}
	w = r.do("POST", "/v1/kv/default?cache_ttl=7", `{"get":["a","b","none",{"key":"a"}],"put":[{"key":"c","value":""}]}`, "Kv-Max-Staleness", "5000")
	fresh := `"cache":"hit","staleness_ms":1501`
	want = fmt.Sprintf(`{"put":[{"key":"c","status":200,"revision":5,"etag":"deadbeef-5"}],"delete":[],"get":[`+
		`{"key":"a","status":200,"revision":2,"etag":"deadbeef-2",%s,"value":"hello <ü\n"},`+
		`{"key":"b","status":200,"revision":3,"etag":"deadbeef-3","expiration":%d,"metadata":{"x":1},%s,"value_base64":"/w=="},`+
		`{"key":"none","status":404,"revision":0,%s,"error":{"code":"key_not_found","message":"the key does not exist in this namespace"}},`+
		`{"key":"a","status":200,"revision":2,"etag":"deadbeef-2",%s,"value":"hello <ü\n"}],"failed":1,"bookmark":"%s5"}`+"\n",
		fresh, expiry, fresh, fresh, fresh, bookmarkOf)
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d\ngot  %swant %s", w.Code, w.Body, want)
	}
	for _, g := range r.svc.gets {
		if g.CacheTTL != 7*time.Second || !g.Consistency.Bounded || g.Consistency.MaxStaleness != 5*time.Second {
			t.Errorf("a get was asked as %+v", g)
		}
	}
}

// TestBulkItemsFailAlone: each of these is named with the code that a single call has, and the good ones around it are
// carried out.
func TestBulkItemsFailAlone(t *testing.T) {
	long := strings.Repeat("k", kv.MaxKeyBytes+1)
	for item, want := range map[string]struct {
		code  kv.Code
		field string
	}{
		`{"value":"v"}`:                                         {kv.CodeInvalidKey, "key"},
		`{"key":"","value":"v"}`:                                {kv.CodeInvalidKey, "key"},
		`{"key":"..","value":"v"}`:                              {kv.CodeInvalidKey, "key"},
		`{"key":7,"value":"v"}`:                                 {kv.CodeInvalidKey, "key"},
		`{"key":"\ud800","value":"v"}`:                          {kv.CodeInvalidKey, "key"},
		`{"key":"` + long + `","value":"v"}`:                    {kv.CodeKeyTooLong, "key"},
		`{"value":"v","key":"` + strings.Repeat(long, 9) + `"}`: {kv.CodeKeyTooLong, "key"},
		`{"key":"x"}`:                                           {kv.CodeInvalidBody, "value"},
		`{"key":"x","value":null}`:                              {kv.CodeInvalidBody, "value"},
		`{"key":"x","value":{"value":"\"]}"}}`:                  {kv.CodeInvalidBody, "value"},
		`{"key":"x","value":"\udfff"}`:                          {kv.CodeInvalidBody, "value"},
		"{\"key\":\"x\",\"value\":\"\xff\"}":                    {kv.CodeInvalidBody, "value"},
		`{"key":"x","value_base64":"*"}`:                        {kv.CodeInvalidBody, "value_base64"},
		`{"key":"x","value_base64":"/w="}`:                      {kv.CodeInvalidBody, "value_base64"},
		`{"key":"x","value_base64":"_w=="}`:                     {kv.CodeInvalidBody, "value_base64"},
		`{"key":"x","value":"v","value_base64":""}`:             {kv.CodeInvalidBody, "value_base64"},
		`{"key":"x","value":"v","value":"w"}`:                   {kv.CodeInvalidBody, "value"},
		`{"key":"x","value":"v","key":"y"}`:                     {kv.CodeInvalidBody, "key"},
		`{"key":"x","value":"v","expiration_tll":1}`:            {kv.CodeInvalidBody, "expiration_tll"},
		`{"key":"x","value":"v","expiration":1}`:                {kv.CodeInvalidExpiration, "expiration"},
		`{"key":"x","value":"v","expiration":"soon"}`:           {kv.CodeInvalidBody, "expiration"},
		`{"key":"x","value":"v","expiration_ttl":0}`:            {kv.CodeInvalidExpiration, "expiration_ttl"},
		`{"key":"x","value":"v","expiration_ttl":-5}`:           {kv.CodeInvalidExpiration, "expiration_ttl"},
		`{"key":"x","value":"v","expiration_ttl":1.5}`:          {kv.CodeInvalidBody, "expiration_ttl"},
		`{"key":"x","value":"v","metadata":"` + strings.Repeat("m", kv.MaxMetadataBytes-1) + `"}`: {kv.CodeMetadataTooLarge, "metadata"},
		`{"key":"x","value":"v","if_match":"a b"}`:                                                {kv.CodeInvalidParameter, "if_match"},
		`{"key":"x","value":"v","if_match":5}`:                                                    {kv.CodeInvalidBody, "if_match"},
		`{"key":"x","value":"v","if_none_match":"deadbeef-1"}`:                                    {kv.CodeInvalidParameter, "if_none_match"},
		`{"key":"x","value":"v","if_match":"*","if_none_match":"*"}`:                              {kv.CodeInvalidBody, "if_none_match"},
		`"x"`:     {kv.CodeInvalidBody, ""},
		`[1,[2]]`: {kv.CodeInvalidBody, ""},
		`{"key":"x","value":"` + strings.Repeat("v", kv.MaxValueBytes+1) + `"}`: {kv.CodeValueTooLarge, "value"},
		`{"value":"` + strings.Repeat("v", maxEarlyValue+1) + `","key":"x"}`:    {kv.CodeInvalidBody, "value"},
		`{"key":"there","value":"v","if_none_match":"*"}`:                       {kv.CodeConditionFailed, "if_none_match"},
		`{"key":"x","value":"v","if_match":"deadbeef-1"}`:                       {kv.CodeConditionFailed, "if_match"},
	} {
		r := newRig(t)
		r.do("PUT", "/v1/kv/default/there", "t")
		w := r.do("POST", "/v1/kv/default", `{"put":[{"key":"a","value":"1"},`+item+`,{"key":"b","value":"2"}],"delete":["there"]}`)
		got := readBulk(t, w)
		if len(got.Put) != 3 || got.Failed != 1 || w.Code != 200 || r.svc.names() != "default/a default/b" {
			t.Errorf("%.80s: %d, keys %q: %.300s", item, w.Code, r.svc.names(), w.Body)
			continue
		}
		if e := got.Put[1].Error; e == nil || e.Code != want.code || e.Field != want.field || e.Message == "" || got.Put[1].Status != statusOf(want.code) {
			t.Errorf("%.80s: %+v %+v, want %s %q", item, got.Put[1], e, want.code, want.field)
		}
		if len(got.Put[1].Key) > kv.MaxKeyBytes {
			t.Errorf("%.80s: a key of %d bytes is repeated", item, len(got.Put[1].Key))
		}
	}
}

// TestBulkOrder: items are carried out in the order of the document, whatever the order of the lists, and gets come last.
func TestBulkOrder(t *testing.T) {
	r := newRig(t)
	got := readBulk(t, r.do("POST", "/v1/kv/default",
		`{"get":["k","l"],"delete":["k"],"put":[{"key":"k","value":"1"},{"key":"k","value":"2"},{"key":"l","value":"3"}]}`))
	if r.svc.has("k") != "2" || *got.Get[0].Value != "2" || got.Put[0].Revision != 1 || got.Put[1].Revision != 2 {
		t.Errorf("%+v", got)
	}
	got = readBulk(t, r.do("POST", "/v1/kv/default", `{"put":[{"key":"l","value":"4","if_match":"deadbeef-3"},{"key":"l","value":"5","if_match":"\"deadbeef-3\""}],"delete":["k",{"key":"l","if_match":"deadbeef-4"}]}`))
	if got.Failed != 1 || got.Put[1].Status != 412 || got.Put[1].Revision != 4 || r.svc.names() != "" {
		t.Errorf("%+v, keys %q", got, r.svc.names())
	}
}

// TestBulkDocuments: a document that cannot be read to its end is refused, and what was done before is named.
func TestBulkDocuments(t *testing.T) {
	first := `{"put":[{"key":"a","value":"1"}`
	for doc, want := range map[string]struct {
		code  kv.Code
		field string
		done  int
	}{
		``:                         {kv.CodeInvalidBody, "body", 0},
		`[]`:                       {kv.CodeInvalidBody, "body", 0},
		`"x"`:                      {kv.CodeInvalidBody, "body", 0},
		`{"put":{}}`:               {kv.CodeInvalidBody, "put", 0},
		`{"puts":[]}`:              {kv.CodeInvalidBody, "puts", 0},
		first + `]`:                {kv.CodeInvalidBody, "body", 1},
		first + `,]}`:              {kv.CodeInvalidBody, "body", 1},
		first + `,{"key":"b","val`: {kv.CodeInvalidBody, "body", 1},
		first + `,{"key":"b","value":"` + strings.Repeat("x", 200_000): {kv.CodeInvalidBody, "body", 1},
		first + `]}{}`:                    {kv.CodeInvalidBody, "body", 1},
		first + `],"put":[]}`:             {kv.CodeInvalidBody, "put", 1},
		first + `],"delete":7}`:           {kv.CodeInvalidBody, "delete", 1},
		first + `],"delete":["b"],"x":1}`: {kv.CodeInvalidBody, "x", 2},
	} {
		r := newRig(t)
		w := r.do("POST", "/v1/kv/default", doc)
		got := readBulk(t, w)
		if w.Code != 400 || got.Error == nil || got.Error.Code != want.code || got.Error.Field != want.field {
			t.Errorf("%.60s: %d %.300s", doc, w.Code, w.Body)
			continue
		}
		if len(got.Put)+len(got.Delete) != want.done || want.done > 0 && (got.Put[0].Revision != 1 || got.Bookmark == "") || len(r.svc.gets) > 0 {
			t.Errorf("%.60s: %.300s", doc, w.Body)
		}
	}
	r := newRig(t)
	r.want(r.do("POST", "/v1/kv/default", `{}`), 200, "", "")
	r.want(r.do("POST", "/v1/kv/default", `{"put":null,"get":[]}`), 200, "", "")
	r.want(r.do("POST", "/v1/kv/nowhere", `{}`), 404, kv.CodeNamespaceNotFound, "namespace")
	r.want(r.do("POST", "/v1/kv/default", `{}`, "Content-Encoding", "gzip"), 400, kv.CodeInvalidBody, "Content-Encoding")
	r.want(r.do("POST", "/v1/kv/default?prefix=x", `{}`), 400, kv.CodeInvalidParameter, "prefix")
}

// TestBulkLimits: one item more, or one byte more, is refused with the limit in the message.
func TestBulkLimits(t *testing.T) {
	items := func(n int) string {
		return `"k"` + strings.Repeat(`,"k"`, n-1)
	}
	r := newRig(t)
	w := r.do("POST", "/v1/kv/default", `{"put":[{"key":"k","value":"v"}],"delete":[`+items(maxBulkItems-2)+`],"get":["k"]}`)
	if got := readBulk(t, w); w.Code != 200 || len(got.Delete) != maxBulkItems-2 || got.Delete[0].Revision != 2 || got.Failed != 1 {
		t.Errorf("%d items: %d, %d failed", maxBulkItems, w.Code, got.Failed)
	}
	w = r.do("POST", "/v1/kv/default", `{"delete":[`+items(maxBulkItems)+`],"get":["k"]}`)
	got := readBulk(t, w)
	if w.Code != 413 || got.Error.Code != kv.CodeTooLarge || !strings.Contains(got.Error.Message, "10000") || len(got.Delete) != maxBulkItems || len(got.Get) != 0 {
		t.Errorf("one item more: %d %+v, %d named", w.Code, got.Error, len(got.Delete))
	}
	r = newRig(t, func(o *Options) { o.MaxDoc = 100 })
	fits := `{"put":[{"key":"a","value":"1"},{"key":"b","value":"` + strings.Repeat("v", 100-56) + `"}]}`
	if len(fits) != 100 {
		t.Fatalf("%d bytes", len(fits))
	}
	r.want(r.do("POST", "/v1/kv/default", fits), 200, "", "")
	r.want(r.do("POST", "/v1/kv/default", fits+" "), 413, kv.CodeTooLarge, "body")
	req := httptest.NewRequest("POST", "/v1/kv/default", io.MultiReader(strings.NewReader(`{"put":[{"key":"c","value":"1"},{"key":"d","value":"`), endlessText{}))
	rec := httptest.NewRecorder()
	r.h.ServeHTTP(rec, req) // without a length
	if got := readBulk(t, rec); rec.Code != 413 || got.Error.Code != kv.CodeTooLarge || len(got.Put) != 1 || r.svc.has("c") != "1" || r.svc.has("d") != "" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

type endlessText struct{}

func (endlessText) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestBulkFailures: when the mesh took none of the writes the call says so by its status; else each item does.
func TestBulkFailures(t *testing.T) {
	noLeader := &kv.Error{Code: kv.CodeNoLeader, Message: "m", RetryAfter: 3 * time.Second}
	raw := errors.New("secret")
	for name, tc := range map[string]struct {
		errs   []error
		doc    string
		status int
		code   kv.Code
	}{
		"none taken":        {[]error{noLeader, noLeader}, `{"put":[{"key":"a","value":"1"}],"delete":["b"],"get":["c"]}`, 503, kv.CodeNoLeader},
		"one taken":         {[]error{nil, noLeader}, `{"put":[{"key":"a","value":"1"}],"delete":["b"]}`, 200, ""},
		"one is the client": {[]error{noLeader, kv.Errorf(kv.CodeConditionFailed, "m")}, `{"delete":["a","b"]}`, 200, ""},
		"one was bad":       {[]error{noLeader}, `{"put":[{"key":"a","value":"1"},{"key":""}]}`, 200, ""},
		"unknown":           {[]error{raw}, `{"delete":["a"]}`, 503, kv.CodeOutcomeUnknown},
	} {
		r := newRig(t)
		r.svc.onWriteEach = func(_ context.Context, writes iter.Seq2[Write, func(WriteResult, error)]) error {
			i := 0
			for w, told := range writes {
				if i++; tc.errs[i-1] != nil {
					told(WriteResult{}, tc.errs[i-1])
				} else {
					told(r.svc.write(w))
				}
			}
			return nil
		}
		w := r.do("POST", "/v1/kv/default", tc.doc)
		got := readBulk(t, w)
		if w.Code != tc.status || (got.Error != nil) != (tc.code != "") || got.Error != nil && got.Error.Code != tc.code {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if tc.code == kv.CodeNoLeader && (w.Header().Get("Retry-After") != "3" || len(r.svc.gets) > 0 || len(got.Put)+len(got.Delete) != 2) {
			t.Errorf("%s: %v %s", name, w.Header(), w.Body)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: shows the node's own error: %s", name, w.Body)
		}
	}
	r := newRig(t)
	r.svc.onWriteEach = func(context.Context, iter.Seq2[Write, func(WriteResult, error)]) error {
		return kv.Errorf(kv.CodeOverloaded, "busy")
	}
	r.want(r.do("POST", "/v1/kv/default", `{}`), 503, kv.CodeOverloaded, "")
	r = newRig(t)
	r.svc.onGet = func(_ context.Context, req GetRequest) (*Value, error) {
		if req.Key == "bad" {
			return nil, noLeader
		}
		return &Value{Epoch: testEpoch, Revision: 1, AsOf: 1, Size: 1, Bytes: []byte("v"), Tier: TierHit}, nil
	}
	got := readBulk(t, r.do("POST", "/v1/kv/default", `{"get":["a","bad","",".","b"]}`))
	var statuses []int
	for _, g := range got.Get {
		statuses = append(statuses, g.Status)
	}
	if !slices.Equal(statuses, []int{200, 503, 400, 400, 200}) || got.Failed != 3 {
		t.Errorf("gets: %+v", got)
	}
}

// TestBulkGetStreams: values that are not in memory come in base64; their order is that of the document, however long each
// look-up takes; what goes beyond the answer's limit is named.
func TestBulkGetStreams(t *testing.T) {
	r := newRig(t)
	large := strings.Repeat("0123456789", 300_000)
	slow := make(chan struct{})
	r.svc.onGet = func(_ context.Context, req GetRequest) (*Value, error) {
		v := &Value{Epoch: testEpoch, Revision: 1, AsOf: 9, Size: 1, Bytes: []byte(req.Key[:1]), Tier: TierHit}
		switch req.Key {
		case "first":
			<-slow
		case "second":
			close(slow)
		case "large":
			v.Size, v.Bytes = int64(len(large)), nil
			v.Open = func(context.Context, int64, int64) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(large)), nil
			}
		case "broken":
			v.Open = func(context.Context, int64, int64) (io.ReadCloser, error) {
				return nil, kv.Errorf(kv.CodeUnavailable, "no voter")
			}
		case "huge":
			v.Size = maxBulkValues
		}
		return v, nil
	}
	w := r.do("POST", "/v1/kv/default", `{"get":["first","second","large","broken","huge","last"]}`)
	got := readBulk(t, w)
	if *got.Get[0].Value != "f" || *got.Get[1].Value != "s" || string(*got.Get[2].Base64) != large || *got.Get[5].Value != "l" {
		t.Errorf("%.300s", w.Body)
	}
	if got.Get[3].Status != 503 || got.Get[4].Status != 413 || got.Get[4].Error.Code != kv.CodeTooLarge || got.Failed != 2 || got.Bookmark != bookmarkOf+"9" {
		t.Errorf("%+v %+v", got.Get[3], got.Get[4])
	}
}

// TestBulkGetCut: a value that breaks off cuts the answer, so that no client takes it for whole.
func TestBulkGetCut(t *testing.T) {
	r := newRig(t)
	r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
		return &Value{Epoch: testEpoch, Revision: 1, Size: 10, Tier: TierStore, Open: func(context.Context, int64, int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("short")), nil
		}}, nil
	}
	defer func() {
		if recover() == nil {
			t.Error("the answer ended as if it were whole")
		}
	}()
	r.do("POST", "/v1/kv/default", `{"get":["k"]}`)
}

// TestBulkValuesInPieces: a value reaches the service whole, however it is cut, escaped and coded.
func TestBulkValuesInPieces(t *testing.T) {
	text := strings.Repeat("ü😀\"\\\n\x7f", 30_000)
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"text": `"value":` + string(quoted), "base64": `"value_base64":"` + base64.StdEncoding.EncodeToString([]byte(text)) + `"`,
	} {
		r := newRig(t)
		got := readBulk(t, r.do("POST", "/v1/kv/default", `{"put":[{"key":"k",`+value+`}]}`))
		if got.Failed != 0 || r.svc.has("k") != text {
			t.Errorf("%s: %+v, %d bytes", name, got, len(r.svc.has("k")))
		}
	}
}
