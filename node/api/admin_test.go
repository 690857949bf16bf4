package api

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// declaredCodes reads the codes out of the source of kv, so that a new one cannot be forgotten here.
func declaredCodes(t *testing.T) []kv.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../raftstore/kv/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []kv.Code
	ast.Inspect(file, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncDecl); ok {
			return false
		}
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Code" || len(spec.Values) != 1 {
			t.Errorf("constant %v is not of the form Name Code = \"text\"", spec.Names)
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, kv.Code(text))
		return true
	})
	return codes
}

func TestEveryCodeHasAStatus(t *testing.T) {
	codes := declaredCodes(t)
	if len(codes) < 30 {
		t.Fatalf("found only %d codes", len(codes))
	}
	for _, code := range codes {
		status, ok := statuses[code]
		if !ok {
			t.Errorf("%s has no status", code)
			continue
		}
		w := httptest.NewRecorder()
		WriteError(w, httptest.NewRequest("GET", "/", nil), &kv.Error{Code: code, Message: "m<", Field: "f"})
		if w.Code != status || status < 400 {
			t.Errorf("%s: %d", code, w.Code)
		}
		retry := (status == 503 || status == 429 || status == 507) && code != kv.CodeOutcomeUnknown
		if got := w.Header().Get("Retry-After") != ""; got != retry {
			t.Errorf("%s: Retry-After %v, want %v", code, got, retry)
		}
		if code != kv.CodeConditionFailed && w.Body.String() != `{"error":{"code":"`+string(code)+`","message":"m<","field":"f"}}`+"\n" {
			t.Errorf("%s: %s", code, w.Body)
		}
	}
	for code := range statuses {
		if !slices.Contains(codes, code) {
			t.Errorf("%s is in the table, but kv does not have it", code)
		}
	}
	w := httptest.NewRecorder()
	WriteError(w, httptest.NewRequest("GET", "/", nil), kv.Errorf("made_up", "m"))
	if w.Code != 500 {
		t.Errorf("a code that is not in the table: %d", w.Code)
	}
}

func TestListGolden(t *testing.T) {
	r := newRig(t)
	empty := r.do("GET", "/v1/kv/default", "").Body.String()
	if want := `{"keys":[],"list_complete":true}` + "\n"; empty != want {
		t.Errorf("empty: %s", empty)
	}
	r.do("PUT", "/v1/kv/default/a%3Cb", "")
	r.do("PUT", "/v1/kv/default/b?expiration=1900000060", "\x00\xff", "Kv-Metadata", `{"t":"<ü>"}`)
	r.do("PUT", "/v1/kv/default/c", "x")
	for query, want := range map[string]string{
		"limit=2": `{"keys":[{"name":"a<b","revision":1,"size":0},` +
			`{"name":"b","expiration":1900000060,"metadata":{"t":"<ü>"},"revision":2,"size":2}],` +
			`"list_complete":false,"cursor":"b"}`,
		"limit=2&values=true&prefix=": `{"keys":[{"name":"a<b","revision":1,"size":0,"value":""},` +
			`{"name":"b","expiration":1900000060,"metadata":{"t":"<ü>"},"revision":2,"size":2,"value":"AP8="}],` +
			`"list_complete":false,"cursor":"b"}`,
		"cursor=b&values=false": `{"keys":[{"name":"c","revision":3,"size":1}],"list_complete":true}`,
		"prefix=x&delimiter=/":  `{"keys":[],"prefixes":["group/"],"list_complete":true}`,
	} {
		w := r.do("GET", "/v1/kv/default?"+query, "")
		if w.Code != 200 || w.Body.String() != want+"\n" {
			t.Errorf("%s:\n got %s\nwant %s", query, w.Body, want)
		}
		h := w.Header()
		if h.Get("Content-Type") != "application/json" || h.Get("Kv-Bookmark") != "00000102030405060708090adeadbeef.3" {
			t.Errorf("%s: headers %v", query, h)
		}
	}
}

func TestListParameters(t *testing.T) {
	r := newRig(t)
	r.do("GET", "/v1/kv/default", "")
	r.do("GET", "/v1/kv/default?prefix=a+b%2Bc%2F&delimiter=%2F&limit=1&cursor=Zm9v_-&values=true", "")
	want := []ListRequest{
		{Limit: 1000},
		{Prefix: "a b+c/", Delimiter: "/", Limit: 1, Cursor: "Zm9v_-", Values: true},
	}
	for i := range r.svc.lists {
		r.svc.lists[i].Namespace = kv.Namespace{}
	}
	if got, want := jsonOf(t, r.svc.lists), jsonOf(t, want); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=x": "limit", "limit=": "limit", "limit=-1": "limit",
		"values=1": "values", "values=": "values", "prefix=%FF": "prefix", "delimiter=%FF": "delimiter",
		"prefix=" + strings.Repeat("x", 513): "prefix", "consistency=eventual": "consistency", "prefx=a": "prefx",
		"cache_ttl=1": "cache_ttl", "prefix=a&prefix=b": "prefix",
	} {
		r.want(r.do("GET", "/v1/kv/default?"+query, ""), 400, kv.CodeInvalidParameter, field)
	}
	r.want(r.do("GET", "/v1/kv/default?cursor="+strings.Repeat("x", 5000), ""), 400, kv.CodeInvalidCursor, "cursor")
	r.want(r.do("GET", "/v1/kv/nowhere", ""), 404, kv.CodeNamespaceNotFound, "namespace")
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNamespaces(t *testing.T) {
	r := newRig(t)
	const id2 = "02000000000000000000000000000000"
	// One after another, on one state.
	for _, step := range []struct {
		method, path, body string
		status             int
		answer             string // the body, or the code of an error
	}{
		{"GET", "", "", 200, `{"namespaces":[{"id":"01000000000000000000000000000000","title":"default"}]}`},
		{"PUT", "/a%2Fb", "", 201, `{"id":"` + id2 + `","title":"a/b"}`},
		{"PUT", "/a/b", "", 200, `{"id":"` + id2 + `","title":"a/b"}`},
		{"PUT", "/a/b", ` {"title":"a/b"} `, 200, `{"id":"` + id2 + `","title":"a/b"}`},
		{"PUT", "/a/b", `{}`, 200, `{"id":"` + id2 + `","title":"a/b"}`},
		{"GET", "/" + id2, "", 200, `{"id":"` + id2 + `","title":"a/b"}`},
		{"PUT", "/a/b", `{"title":"default"}`, 409, "namespace_exists"},
		{"PUT", "/a/b", `{"title":"new"}`, 200, `{"id":"` + id2 + `","title":"new"}`},
		{"PUT", "/a/b", `{"title":"new"}`, 404, "namespace_not_found"},
		{"PUT", "/" + id2, `{"title":"newer"}`, 200, `{"id":"` + id2 + `","title":"newer"}`},
		{"PUT", "/newer", `{"Title":"x"}`, 400, "invalid_body"},
		{"PUT", "/newer", `{"title":"x","extra":1}`, 400, "invalid_body"},
		{"PUT", "/newer", `{"title":"x"} {}`, 400, "invalid_body"},
		{"PUT", "/newer", `null`, 400, "invalid_body"},
		{"PUT", "/newer", `["x"]`, 400, "invalid_body"},
		{"PUT", "/newer", "{\"title\":\"\xff\"}", 400, "invalid_body"},
		{"PUT", "/newer", `{"title":"` + strings.Repeat("x", 17<<10) + `"}`, 400, "invalid_body"},
		{"PUT", "/newer", `{"title":null}`, 400, "invalid_title"},
		{"PUT", "/newer", `{"title":7}`, 400, "invalid_title"},
		{"PUT", "/newer", `{"title":""}`, 400, "invalid_title"},
		{"PUT", "/newer", `{"title":"` + id2 + `"}`, 400, "invalid_title"},
		{"PUT", "/" + strings.Repeat("f", 32), "", 400, "invalid_title"},
		{"PUT", "/" + strings.Repeat("f", 32), `{"title":"x"}`, 404, "namespace_not_found"},
		{"PUT", "/made", `{"title":"made"}`, 201, `{"id":"03000000000000000000000000000000","title":"made"}`},
		{"PUT", "/made?force=1", "", 400, "invalid_parameter"},
		{"DELETE", "/newer", "", 200, `{"id":"` + id2 + `","title":"newer"}`},
		{"DELETE", "/newer", "", 404, "namespace_not_found"},
		{"GET", "/newer", "", 404, "namespace_not_found"},
	} {
		w := r.do(step.method, "/v1/namespaces"+step.path, step.body)
		got := strings.TrimSpace(w.Body.String())
		if step.status >= 400 {
			got = string(readError(t, w.Body.Bytes()).Code)
		}
		if w.Code != step.status || got != step.answer {
			t.Errorf("%s %.60s %.60s: %d %s, want %d %s", step.method, step.path, step.body, w.Code, got, step.status, step.answer)
		}
	}
	if strings.Contains(r.do("GET", "/v1/namespaces", "").Body.String(), "c2VjcmV0") {
		t.Error("a wrapped key is shown")
	}

	// With counters, where they are known.
	r.svc.stats = map[kv.NamespaceID]NamespaceStats{{1}: {Keys: 3, Bytes: 1 << 40}, {9}: {Keys: 1}}
	for path, want := range map[string]string{
		"/default": `{"id":"01000000000000000000000000000000","title":"default","keys":3,"bytes":1099511627776}`,
		"/made":    `{"id":"03000000000000000000000000000000","title":"made"}`,
		"": `{"namespaces":[{"id":"01000000000000000000000000000000","title":"default","keys":3,"bytes":1099511627776},` +
			`{"id":"03000000000000000000000000000000","title":"made"}]}`,
	} {
		if w := r.do("GET", "/v1/namespaces"+path, ""); w.Code != 200 || strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
	r.svc.stats[kv.NamespaceID{1}] = NamespaceStats{}
	if w := r.do("GET", "/v1/namespaces/default", ""); !strings.Contains(w.Body.String(), `"keys":0,"bytes":0`) {
		t.Errorf("an empty namespace: %s", w.Body)
	}
}

func TestCluster(t *testing.T) {
	r := newRig(t)
	w := r.do("GET", "/v1/cluster", "")
	var got ClusterStatus
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Leader != "n1" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%v %v %s", err, w.Header(), w.Body)
	}
}
