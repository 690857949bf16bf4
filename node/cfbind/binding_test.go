package cfbind

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// wantLine compares a status line.
func wantLine(t *testing.T, a answer, line string) {
	t.Helper()
	if a.line != line {
		t.Errorf("status line\n%s, want\n%s", a.line, line)
	}
}

// stillInStep shows that the connection goes on.
func (c *wire) stillInStep() {
	c.t.Helper()
	wantLine(c.t, c.ask("GET", "/no-such-key"+form, ""), "404 Not Found")
}

// chunked sends a body without a length, in pieces of 1 MiB.
func (c *wire) chunked(target string, size int, headers ...string) {
	c.t.Helper()
	head := "PUT " + target + " HTTP/1.1\r\nHost: fake-host\r\nKv-Namespace: default\r\nTransfer-Encoding: chunked\r\n"
	for _, h := range headers {
		head += h + "\r\n"
	}
	c.send(head + "\r\n")
	for size > 0 {
		n := min(size, 1<<20)
		c.send(strconv.FormatInt(int64(n), 16) + "\r\n" + strings.Repeat("v", n) + "\r\n")
		size -= n
	}
	c.send("0\r\n\r\n")
}

// Contract 2.1, 2.5: a refused upload is read to its end before the answer, N is what came, and the connection lives on.
func TestUploads(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	const most = kv.MaxValueBytes

	c.chunked("/chunked"+form, most)
	wantLine(t, c.read("PUT"), "200 OK")
	r.svc.has(t, "chunked", stored{value: bytes.Repeat([]byte("v"), most)})
	wantLine(t, c.ask("PUT", "/sized"+form, strings.Repeat("v", most)), "200 OK")
	r.svc.has(t, "sized", stored{value: bytes.Repeat([]byte("v"), most)})

	wantLine(t, c.ask("PUT", "/never"+form, strings.Repeat("v", most+1)), "413 Value length of 26214401 exceeds limit of 26214400.")
	c.chunked("/never"+form, most+1)
	wantLine(t, c.read("PUT"), "413 Value length of 26214401 exceeds limit of 26214400.")
	c.chunked("/never"+form, 30_000_000)
	wantLine(t, c.read("PUT"), "413 Value length of 30000000 exceeds limit of 26214400.")
	c.chunked("/never"+form+"&expiration_ttl=7", 20_000_000)
	wantLine(t, c.read("PUT"), "400 Invalid expiration_ttl of 7. Expiration TTL must be at least 60.")
	wantLine(t, c.ask("PUT", "/never"+form, strings.Repeat("v", 3<<20), "Content-Encoding: gzip"),
		`400 Content-Encoding "gzip" is not taken; send the value as it is`)
	wantLine(t, c.ask("PATCH", "/never"+form, strings.Repeat("v", 3<<20), "Content-Length: "+strconv.Itoa(3<<20)), "405 Method Not Allowed")
	c.stillInStep()
	if _, ok := r.svc.keys["never"]; ok {
		t.Error("a refused value was stored")
	}
}

// Who waits for 100 before he uploads hears a refusal at once; the rest is net/http's.
func TestExpectContinue(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	head := "PUT /k?urlencoded=true%s HTTP/1.1\r\nHost: x\r\nKv-Namespace: default\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	c.send(fmt.Sprintf(head, ""))
	if line, err := c.in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if line, err := c.in.ReadString('\n'); line != "\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.send("value")
	wantLine(t, c.read("PUT"), "200 OK")
	r.svc.has(t, "k", stored{value: []byte("value")})

	c.send(fmt.Sprintf(head, "&expiration_ttl=1"))
	a := c.read("PUT")
	wantLine(t, a, "400 Invalid expiration_ttl of 1. Expiration TTL must be at least 60.")
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("the connection is not closed: %v", err)
	}
}

// Contract 2.1: a connection that breaks is an error to a Worker, an answer that merely ends is a short value.
func TestCutAnswer(t *testing.T) {
	for target, method := range map[string]string{"/broken" + form: "GET", "/bulk/get": "POST"} {
		r := newRig(t)
		r.svc.keys["broken"] = stored{value: bytes.Repeat([]byte("v"), 1<<20), streamed: true, broken: 500_000}
		c := r.dial()
		body := ""
		if method == "POST" {
			body = `{"keys":["broken"]}`
		}
		c.send(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nKv-Namespace: default\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body))
		resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if got, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: %d bytes look complete", method, len(got))
		}
	}
}

// codes are the codes that the package kv declares.
func codes(t *testing.T) []kv.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../raftstore/kv/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []kv.Code
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 && strings.HasPrefix(v.Names[0].Name, "Code") {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, kv.Code(text))
		}
		return true
	})
	if len(all) < 20 {
		t.Fatalf("only %d codes were found", len(all))
	}
	return all
}

// Contract 2.2: 404 and 410 mean that the key does not exist, so nothing else may be answered with them.
func TestStatuses(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	for _, code := range codes(t) {
		status, ok := statuses[code]
		if !ok {
			t.Errorf("%s has no status", code)
		}
		if (status == 404 || status == 410) && code != kv.CodeKeyNotFound || status < 400 {
			t.Errorf("%s is %d", code, status)
		}
		r.svc.err = &kv.Error{Code: code, Message: "it is\r\nso", RetryAfter: 2500 * time.Millisecond}
		a := c.ask("DELETE", "/k"+form, "")
		want := strconv.Itoa(status) + " it is  so"
		switch {
		case status >= 500:
			want = strconv.Itoa(status) + " " + string(code) + ": it is  so"
		case status == 404:
			want = "404 Not Found"
		}
		wantLine(t, a, want)
		retry := ""
		if (status == 429 || status == 503 || status == 507) && code != kv.CodeOutcomeUnknown {
			retry = "3"
		}
		if got := a.header.Get("Retry-After"); got != retry {
			t.Errorf("%s: Retry-After %q, want %q", code, got, retry)
		}
	}
	for _, target := range []string{"GET /k" + form, "GET /?prefix=", "PUT /k" + form, "POST /bulk/get"} {
		r.svc.err = kv.Errorf(kv.CodeNoQuorum, "too few voters are alive")
		method, path, _ := strings.Cut(target, " ")
		body := ""
		if method == "POST" {
			body = `{"keys":["a","b"]}`
		}
		wantLine(t, c.ask(method, path, body), "503 no_quorum: too few voters are alive")
	}
	// A write that may still land is never a plain failure, and what is the node's own business stays in its log.
	r.svc.err = nil
	r.svc.putErr = errors.New("the disk /dev/sda1 is odd")
	wantLine(t, c.ask("PUT", "/k"+form, "v"),
		"503 outcome_unknown: the write may or may not have been carried out; read the state before sending it again")
	r.svc.err = errors.New("secret")
	wantLine(t, c.ask("DELETE", "/k"+form, ""),
		"503 outcome_unknown: the write may or may not have been carried out; read the state before sending it again")
	wantLine(t, c.ask("GET", "/k"+form, ""), "500 internal: the node met an error of its own; its log says more")
	if !strings.Contains(r.log.String(), "/dev/sda1") || !strings.Contains(r.log.String(), "secret") {
		t.Errorf("the log lacks them: %s", r.log)
	}
}

// Contract 2.6: the namespace comes with the request, by id or title, and so does the token.
func TestNamespaceHeader(t *testing.T) {
	r := newRig(t)
	r.svc.keys["k"] = stored{value: []byte("v")}
	c := r.dial()
	for header, line := range map[string]string{
		"Kv-Namespace: default":                           "200 OK",
		"kv-namespace: " + kv.NamespaceID{1}.String():     "200 OK",
		"Kv-Namespace: Prüfung / 1":                       "200 OK",
		"Kv-Namespace: other":                             `400 there is no namespace "other"`,
		"Kv-Namespace: " + kv.NamespaceID{2}.String():     `400 there is no namespace "02000000000000000000000000000000"`,
		"Kv-Namespace:":                                   "400 the title is empty; a title has 1 to 512 bytes",
		"Kv-Namespace: default\r\nKv-Namespace: default":  "400 the header Kv-Namespace is given 2 times; give it once",
		"Kv-Namespace: " + strings.Repeat("x", 513):       "400 the title has 513 bytes; the limit is 512 bytes of UTF-8",
		"Kv-Namespace: \xff":                              "400 the title is not valid UTF-8",
		"Kv-Namespace: default\r\nKv-Max-Staleness: soon": "400 Kv-Max-Staleness: soon is not a whole number of milliseconds, 0 or more",
	} {
		c.send("GET /k HTTP/1.1\r\nHost: x\r\n" + header + "\r\n\r\n")
		wantLine(t, c.read("GET"), line)
	}
	c.send("GET /k?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	if a := c.read("GET"); a.body != "next GET /k?x=1" {
		t.Errorf("a request of another surface: %+v", a)
	}
	// The native paths too, when the header is there.
	c.send("GET /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nKv-Namespace: default\r\n\r\n")
	wantLine(t, c.read("GET"), "400 a key is one segment of the path; write / within it as %2F")
}

type only struct{ token string }

func (o only) Check(r *http.Request) error {
	if r.Header.Get("Authorization") != "Bearer "+o.token {
		return kv.Errorf(kv.CodeUnauthorized, "this node needs a token")
	}
	return nil
}

func TestAuth(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Auth = only{"right"} })
	r.svc.keys["k"] = stored{value: []byte("v")}
	c := r.dial()
	for _, target := range []string{"GET /k", "PUT /k", "DELETE /k", "GET /", "POST /bulk/get", "PATCH /a/b/c", "GET /v1/miniflare/default"} {
		for _, header := range []string{"", "Authorization: Bearer wrong\r\n"} {
			method, path, _ := strings.Cut(target, " ")
			named := "Kv-Namespace: default\r\n"
			if strings.HasPrefix(path, MiniflarePath) {
				named = "MF-URL: http://fake-host/k\r\nMF-Header-Authorization: Bearer right\r\n"
			}
			c.send(method + " " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + named + header + "\r\n")
			a := c.read(method)
			wantLine(t, a, "401 this node needs a token")
			if a.header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s: %v", target, a.header)
			}
		}
	}
	if len(r.svc.gets)+len(r.svc.lists) > 0 || len(r.svc.keys) != 1 {
		t.Error("something was done")
	}
	wantLine(t, c.ask("GET", "/k", "", "Authorization: Bearer right"), "200 OK")
}

// DESIGN §6: cache_ttl is the age limit of a read, and what the headers demand holds too.
func TestDemands(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	bookmark := kv.Bookmark{Epoch: kv.Epoch{1}, Revision: 7}
	demands := []string{"Kv-Max-Staleness: 250", "Kv-Bookmark: " + bookmark.String()}
	c.ask("GET", "/k"+form, "")
	c.ask("GET", "/k"+form+"&cache_ttl=3600", "", demands...)
	c.ask("POST", "/bulk/get", `{"keys":["k"],"cacheTtl":"45"}`, demands...)
	c.ask("GET", "/?prefix=p", "", demands...)
	hard := api.Consistency{MaxStaleness: 250 * time.Millisecond, Bounded: true, Bookmark: bookmark}
	ns := kv.Namespace{ID: kv.NamespaceID{1}, Title: "default"}
	for i, want := range []api.GetRequest{
		{Namespace: ns, Key: "k", CacheTTL: 60 * time.Second},
		{Namespace: ns, Key: "k", CacheTTL: time.Hour, Consistency: hard},
		{Namespace: ns, Key: "k", CacheTTL: 45 * time.Second, Consistency: hard},
	} {
		if got := r.svc.gets[i]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("asked for %+v, want %+v", got, want)
		}
	}
	if got := r.svc.lists[0]; got.Consistency != hard || got.Prefix != "p" || got.Limit != 1000 {
		t.Errorf("asked for %+v", got)
	}
}

// Contract 4: with strict limits, one write a second to a key.
func TestStrictLimits(t *testing.T) {
	now := testNow
	r := newRig(t, func(o *Options) { o.Writes = cfkv.NewWriteLimit(func() time.Time { return now }) })
	c := r.dial()
	wantLine(t, c.ask("PUT", "/k"+form, "1"), "200 OK")
	a := c.ask("PUT", "/k"+form, strings.Repeat("2", 1<<20))
	wantLine(t, a, "429 Too Many Requests")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("header %v", a.header)
	}
	wantLine(t, c.ask("DELETE", "/k"+form, ""), "429 Too Many Requests")
	wantLine(t, c.ask("PUT", "/other"+form, "1"), "200 OK")
	r.svc.has(t, "k", stored{value: []byte("1")})
	now = now.Add(time.Second)
	wantLine(t, c.ask("PUT", "/k"+form, "2"), "200 OK")
}

// Contract 2.6, Miniflare's remote form: one URL, the original one in MF-URL, each header in MF-Header-<name>.
func TestMiniflare(t *testing.T) {
	r := newRig(t)
	fill(r.svc)
	c := r.dial()
	ask := func(method, path, original, body string, headers ...string) answer {
		t.Helper()
		head := method + " " + path + " HTTP/1.1\r\nHost: mesh\r\nMF-Binding: KV\r\nMF-Header-cf-kv-flprod-405: x\r\n"
		if original != "" {
			head += "MF-URL: " + original + "\r\n"
		}
		if method != "GET" {
			head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
		}
		for _, h := range headers {
			head += h + "\r\n"
		}
		c.send(head + "\r\n" + body)
		return c.read(method)
	}
	const at = "/v1/miniflare/default"
	a := ask("GET", at, "https://fake-host/meta?urlencoded=true", "")
	if a.line != "200 OK" || a.body != "m" || a.header.Get("CF-KV-Metadata") != `{"a":"ü€"}` {
		t.Errorf("%+v", a)
	}
	if a := ask("GET", "/v1/miniflare/Pr%C3%BCfung%20%2F%201", "https://fake-host/a%2Fb%20%25+%C3%BC?urlencoded=true", ""); a.body != "odd" {
		t.Errorf("%+v", a)
	}
	wantLine(t, ask("PUT", at, "https://fake-host/new?urlencoded=true&expiration_ttl=60", "v", `MF-Header-cf-kv-metadata: {"n": 1}`), "200 OK")
	r.svc.has(t, "new", stored{value: []byte("v"), metadata: []byte(`{"n":1}`), expiry: testNow.Unix() + 60})
	wantLine(t, ask("DELETE", at, "https://fake-host/new?urlencoded=true", ""), "200 OK")
	if a := ask("GET", at, "https://fake-host?prefix=l%2F&key_count_limit=1", ""); a.body != `{"keys":[{"name":"l/1"}],"list_complete":false,"cursor":"l/1"}`+"\n" {
		t.Errorf("%+v", a)
	}
	if a := ask("POST", at, "https://fake-host/bulk/get", `{"keys":["text"]}`); a.body != `{"text":"value"}` {
		t.Errorf("%+v", a)
	}
	wantLine(t, ask("GET", at, "https://fake-host/new?urlencoded=true&cache_ttl=1", ""), "400 Invalid cache_ttl of 1. Cache TTL must be at least 30.")
	wantLine(t, ask("PUT", at, "https://fake-host/k?urlencoded=true", strings.Repeat("v", 3<<20), "MF-Header-cf-kv-metadata: {"),
		`400 the metadata is not JSON (unexpected end of JSON input); send one JSON value, for example {"type":"text/html"}`)
	wantLine(t, ask("GET", at, "", ""), "400 this path is for Miniflare's remote bindings, which send the header MF-URL once")
	wantLine(t, ask("GET", at, "https://fake-host/%zz", ""), "400 Could not URL-decode key name")
	wantLine(t, ask("GET", at, "mailto:somebody", ""), "400 the binding has no path like this one; a key is one segment of it, percent-encoded")
	wantLine(t, ask("GET", at+"/more", "https://fake-host/k", ""), "400 the path is /v1/miniflare/ and one namespace, its id or its title, percent-encoded")
	wantLine(t, ask("GET", "/v1/miniflare/nobody", "https://fake-host/k", ""), `400 there is no namespace "nobody"`)
	a = ask("GET", at+"?MF-Binding=KV", "", "", "Upgrade: websocket", "Connection: Upgrade")
	wantLine(t, a, "501 unsupported_by_peer: this node takes calls of a KV binding as plain HTTP requests, not over a web socket")
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, func(o *Options) { o.Metrics = reg })
	r.svc.keys["k"] = stored{value: []byte("v")}
	c := r.dial()
	c.ask("GET", "/k"+form, "")
	c.ask("POST", "/bulk/get", `{"keys":["k","l"]}`)
	c.ask("GET", "/k"+form+"&cache_ttl=1", "")
	c.stillInStep() // so that the last of them has been counted
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	reads, routes := 0.0, map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["surface"] != "binding" {
				t.Errorf("%s: labels %v", f.GetName(), labels)
			}
			switch f.GetName() {
			case "kvmesh_reads_total":
				reads += m.GetCounter().GetValue()
			case "kvmesh_http_requests_total":
				routes[labels["route"]+" "+labels["class"]] = m.GetCounter().GetValue()
			}
		}
	}
	// Of the last call the read has been counted at least.
	if reads != 4 || routes["binding_get 2xx"] != 1 || routes["binding_get 4xx"] < 1 || routes["binding_bulk_get 2xx"] != 1 {
		t.Errorf("%v reads, %v", reads, routes)
	}
}
