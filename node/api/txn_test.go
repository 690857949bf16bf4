package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// txnResult is the answer to a transaction, as a client reads it.
type txnResult struct {
	Error     *errorDoc
	Revision  kv.Revision
	Bookmark  string
	Put       []txnItemDoc
	Delete    []txnItemDoc
	Conflicts []txnItemDoc
}

func readTxn(t *testing.T, w *httptest.ResponseRecorder) (r txnResult) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(w.Body.String()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return r
}

func TestAnswersOfTransactions(t *testing.T) {
	r := newRig(t)
	r.svc.spaces[kv.NamespaceID{2}] = "other"
	r.do("PUT", "/v1/kv/default/a", "1")
	r.do("PUT", "/v1/kv/other/a", "2")
	expiry := testNow.Unix() + 61
	w := r.do("POST", "/v1/txn", `{
		"compare": [
			{"namespace":"default","key":"a","revision":1}, {"key":"a","exists":true,"namespace":"other"},
			{"namespace":"01000000000000000000000000000000","key":"b","exists":false}, {"namespace":"other","key":"c","revision":0},
			{"namespace":"other","key":"a2","exists":false}],
		"put": [{"namespace":"default","key":"a","value":"3"},{"value_base64":"/w==","namespace":"other","key":"b","expiration_ttl":60,"metadata":7}],
		"delete": [{"namespace":"other","key":"a"},{"namespace":"default","key":"none"}]}`)
	want := fmt.Sprintf(`{"revision":5,"bookmark":"%s5","put":[{"namespace":"default","key":"a","revision":3,"etag":"deadbeef-3"},`+
		`{"namespace":"other","key":"b","revision":4,"etag":"deadbeef-4","expiration":%d}],`+
		`"delete":[{"namespace":"other","key":"a","revision":5},{"namespace":"default","key":"none","revision":0}]}`+"\n", bookmarkOf, expiry)
	if w.Code != 200 || w.Body.String() != want || w.Header().Get("Kv-Bookmark") != bookmarkOf+"5" || w.Header().Get("Kv-Revision") != "5" {
		t.Errorf("%d %v\ngot  %swant %s", w.Code, w.Header(), w.Body, want)
	}
	if r.svc.names() != "default/a other/b" || r.svc.has("a") != "3" || string(r.svc.keys["other\x00b"].metadata) != "7" {
		t.Errorf("keys %q", r.svc.names())
	}

	w = r.do("POST", "/v1/txn", `{"put":[{"namespace":"default","key":"a","value":"4"}],"compare":[
		{"namespace":"default","key":"a","etag":"deadbeef-3"},{"namespace":"default","key":"a2","revision":8},
		{"namespace":"other","key":"b","exists":false},{"namespace":"other","key":"c","etag":"\"deadbeef-9\""}]}`)
	want = `{"error":{"code":"conflict","message":"nothing was written: the key \"a2\" of namespace \"default\" does not exist, and 2 more; read again and decide anew","field":"compare[1]"},` +
		`"conflicts":[{"namespace":"default","key":"a2","revision":0},{"namespace":"other","key":"b","revision":4,"etag":"deadbeef-4"},` +
		`{"namespace":"other","key":"c","revision":0}],"bookmark":"` + bookmarkOf + `5"}` + "\n"
	if w.Code != 409 || w.Body.String() != want || w.Header().Get("Kv-Bookmark") != bookmarkOf+"5" || r.svc.has("a") != "3" {
		t.Errorf("%d %v\ngot  %swant %s", w.Code, w.Header(), w.Body, want)
	}
	w = r.do("POST", "/v1/txn", `{"compare":[{"namespace":"default","key":"a","etag":"deadbeef-3"}]}`)
	if got := readTxn(t, w); w.Code != 200 || got.Revision != 0 || got.Bookmark != bookmarkOf+"5" || w.Header().Get("Kv-Revision") != "" {
		t.Errorf("comparisons only: %d %s", w.Code, w.Body)
	}
	w = r.do("POST", "/v1/txn", `{"compare":[{"namespace":"default","key":"a","revision":9}]}`)
	if got := readTxn(t, w); !strings.Contains(got.Error.Message, `"a"`) || !strings.Contains(got.Error.Message, "revision 3") {
		t.Errorf("the key and its revision are not named: %s", w.Body)
	}
}

// TestBadTransactions: each is refused as a whole, naming the item, and nothing reaches the store.
func TestBadTransactions(t *testing.T) {
	long := strings.Repeat("k", kv.MaxKeyBytes+1)
	const good = `{"namespace":"default","key":"a","value":"1"}`
	for doc, want := range map[string]struct {
		status int
		code   kv.Code
		field  string
	}{
		``:                                   {400, kv.CodeInvalidBody, "body"},
		`{}`:                                 {400, kv.CodeInvalidBody, "body"},
		`[1]`:                                {400, kv.CodeInvalidBody, "body"},
		`{"put":[` + good + `]`:              {400, kv.CodeInvalidBody, "body"},
		`{"put":[` + good + `],"get":["a"]}`: {400, kv.CodeInvalidBody, "get"},
		`{"put":[` + good + `,{"namespace":"default","key":"a","value":"2"}]}`:                                         {400, kv.CodeInvalidBody, "put[1].key"},
		`{"put":[` + good + `],"delete":[{"namespace":"01000000000000000000000000000000","key":"a"}]}`:                 {400, kv.CodeInvalidBody, "delete[0].key"},
		`{"compare":[{"namespace":"default","key":"a","exists":true},{"namespace":"default","key":"a","revision":1}]}`: {400, kv.CodeInvalidBody, "compare[1].key"},
		`{"compare":[{"namespace":"default","key":"a"}]}`:                                                              {400, kv.CodeInvalidBody, "compare[0]"},
		`{"compare":[{"namespace":"default","key":"a","exists":true,"revision":1}]}`:                                   {400, kv.CodeInvalidBody, "compare[0].revision"},
		`{"compare":[{"namespace":"default","key":"a","revision":-1}]}`:                                                {400, kv.CodeInvalidBody, "compare[0].revision"},
		`{"compare":[{"namespace":"default","key":"a","revision":"1"}]}`:                                               {400, kv.CodeInvalidBody, "compare[0].revision"},
		`{"compare":[{"namespace":"default","key":"a","exists":1}]}`:                                                   {400, kv.CodeInvalidBody, "compare[0].exists"},
		`{"compare":[{"namespace":"default","key":"a","etag":"a b"}]}`:                                                 {400, kv.CodeInvalidParameter, "compare[0].etag"},
		`{"compare":[{"namespace":"default","key":"a","value":"x"}]}`:                                                  {400, kv.CodeInvalidBody, "compare[0].value"},
		`{"compare":["a"]}`:                                                      {400, kv.CodeInvalidBody, "compare[0]"},
		`{"put":[{"key":"a","value":"1"}]}`:                                      {400, kv.CodeInvalidTitle, "put[0].namespace"},
		`{"put":[{"namespace":"","key":"a","value":"1"}]}`:                       {400, kv.CodeInvalidTitle, "put[0].namespace"},
		`{"put":[{"namespace":7,"key":"a","value":"1"}]}`:                        {400, kv.CodeInvalidBody, "put[0].namespace"},
		`{"put":[` + good + `,{"namespace":"nowhere","key":"b","value":"1"}]}`:   {404, kv.CodeNamespaceNotFound, "put[1].namespace"},
		`{"put":[{"namespace":"default","key":"a"}]}`:                            {400, kv.CodeInvalidBody, "put[0].value"},
		`{"put":[{"namespace":"default","key":"a","value":"1","if_match":"*"}]}`: {400, kv.CodeInvalidBody, "put[0].if_match"},
		`{"put":[{"namespace":"default","key":"a","value":"1","expiration":1}]}`: {400, kv.CodeInvalidExpiration, "put[0].expiration"},
		`{"delete":[{"namespace":"default","key":"` + long + `"}]}`:              {400, kv.CodeKeyTooLong, "delete[0].key"},
		`{"delete":["a"]}`: {400, kv.CodeInvalidBody, "delete[0]"},
		`{"put":[{"namespace":"default","key":"a","value":"` + strings.Repeat("v", kv.MaxValueBytes+1) + `"}]}`: {413, kv.CodeValueTooLarge, "put[0].value"},
	} {
		r := newRig(t)
		w := r.do("POST", "/v1/txn", doc)
		r.want(w, want.status, want.code, want.field)
		if t.Failed() {
			t.Fatalf("%.100s: %s", doc, w.Body)
		}
		if len(r.svc.txns)+len(r.svc.keys) > 0 {
			t.Errorf("%.100s reached the store", doc)
		}
	}
}

// TestTransactionLimits: 10,000 operations, and one more than there may be, are refused with the limit and the remedy.
func TestTransactionLimits(t *testing.T) {
	doc := func(n int, value string) string {
		var b strings.Builder
		b.WriteString(`{"compare":[{"namespace":"default","key":"c","exists":false}],"put":[`)
		for i := range n - 1 {
			fmt.Fprintf(&b, `%s{"namespace":"default","key":"k%d","value":"%s"}`, []string{",", ""}[max(0, 1-i)], i, value)
		}
		return b.String() + `]}`
	}
	r := newRig(t)
	r.want(r.do("POST", "/v1/txn", doc(kv.MaxBatchOps, "v")), 200, "", "")
	for _, n := range []int{kv.MaxBatchOps + 1, 10_000} {
		w := r.do("POST", "/v1/txn", doc(n, "v"))
		r.want(w, 413, kv.CodeTooLarge, "body")
		for _, says := range []string{"1024", "split"} {
			if !strings.Contains(w.Body.String(), says) {
				t.Errorf("%d operations: %s does not say %q", n, w.Body, says)
			}
		}
	}
	// Values that go into the log are counted as they come, larger ones are not; of those only the first are kept.
	w := r.do("POST", "/v1/txn", doc(8, strings.Repeat("v", 60_000)))
	r.want(w, 413, kv.CodeTooLarge, "put[4].value")
	if !strings.Contains(w.Body.String(), "262144") || !strings.Contains(w.Body.String(), "split") {
		t.Errorf("%s", w.Body)
	}
	r.svc.staged = nil
	r.want(r.do("POST", "/v1/txn", doc(9, strings.Repeat("v", 300_000))), 200, "", "")
	kept := 0
	for _, v := range r.svc.staged {
		if !v.forget {
			kept++
		}
	}
	if kept != 4 || len(r.svc.staged) != 8 {
		t.Errorf("%d of %d values were kept", kept, len(r.svc.staged))
	}
}

func TestFailuresOfTransactions(t *testing.T) {
	raw := errors.New("secret")
	const doc = `{"delete":[{"namespace":"default","key":"a"}]}`
	for _, tc := range []struct {
		err    error
		status int
		code   kv.Code
		retry  string
	}{
		{&kv.Error{Code: kv.CodeNoQuorum, Message: "m"}, 503, kv.CodeNoQuorum, "1"},
		{kv.Errorf(kv.CodeTooLarge, "m"), 413, kv.CodeTooLarge, ""},
		{kv.Errorf(kv.CodeUnsupportedByPeer, "m"), 501, kv.CodeUnsupportedByPeer, ""},
		{raw, 503, kv.CodeOutcomeUnknown, ""},
	} {
		r := newRig(t)
		r.h = New(Options{Service: failing{r.svc, tc.err}})
		w := r.do("POST", "/v1/txn", doc)
		r.want(w, tc.status, tc.code, "")
		if w.Header().Get("Retry-After") != tc.retry || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%v: %v %s", tc.err, w.Header(), w.Body)
		}
	}
}

// failing fails transactions.
type failing struct {
	*fakeService
	err error
}

func (f failing) Txn(context.Context, TxnRequest) (*TxnResult, error) { return nil, f.err }

// FuzzDocuments: whatever a client sends, it is answered with JSON, and names no more items than it may.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{
		`{"put":[{"key":"a","value":"v","metadata":{"x":[1]},"expiration_ttl":60,"if_match":"deadbeef-1"}],"delete":["a",{"key":"b"}],"get":["a"]}`,
		`{"put":[{"namespace":"default","key":"a","value_base64":"/w=="}],"compare":[{"namespace":"default","key":"a","revision":1}],"delete":[{"namespace":"default","key":"b"}]}`,
		`{"put":[{"value":"early","key":"k"}]}`, `{"put":[{"value":"\ud800","key":"k"},{}]}`, `{"put":[1,"x",null,[],{"key":1}]}`, `{"put":[{"key":"k","value_base64":"*"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		r := newRig(t)
		for _, path := range []string{"/v1/kv/default", "/v1/txn"} {
			w := r.do("POST", path, doc)
			if !json.Valid(w.Body.Bytes()) || w.Code == 500 {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	})
}
