package cfbind

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"kvmesh/node/api"
)

// golden is one request as workerd sends it and the answer that the wire contract of Workers KV demands. The numbers of
// clauses are those of the contract.
type golden struct {
	clause         string
	method, target string
	headers        []string // lines
	body           string
	line           string   // of the answer, without the version
	want           []string // lines of its header; "Name:" alone = absent
	answer         string   // the body; of an error it is the reason phrase when this is ""
}

const (
	form    = "?urlencoded=true"
	ok      = "200 OK"
	tooLong = "414 UTF-8 encoded length of 513 exceeds key length limit of 512."
	noJSON  = "400 At least one of the requested keys corresponds to a non-json value"
	future  = ". Please specify integer greater than the current number of seconds since the UNIX epoch."
)

var long = strings.Repeat("k", 513)

var reads = []golden{
	{
		clause: "2.2 get", method: "GET", target: "/text" + form, line: ok, answer: "value",
		want: []string{"Content-Length: 5", "CF-KV-Metadata:", "CF-Expiration:", "CF-Cache-Status: HIT"},
	},
	{
		clause: "2.2 metadata, raw UTF-8", method: "GET", target: "/meta" + form, line: ok, answer: "m",
		want: []string{`CF-KV-Metadata: {"a":"ü€"}`},
	},
	{
		clause: "0.12 metadata that a header cannot hold as it is", method: "GET", target: "/del" + form, line: ok, answer: "d",
		want: []string{`CF-KV-Metadata: "\u007f"`},
	},
	{
		clause: "2.5 CF-Expiration", method: "GET", target: "/expiring" + form, line: ok, answer: "e",
		want: []string{"CF-Expiration: 1900001000"},
	},
	{clause: "2.5 an expired key is missing", method: "GET", target: "/expired" + form, line: "404 Not Found"},
	{
		clause: "2.2 a missing key", method: "GET", target: "/missing" + form, line: "404 Not Found",
		want: []string{"CF-Cache-Status: HIT", "CF-KV-Metadata:"},
	},
	{clause: "2.2 cacheStatus", method: "GET", target: "/filled" + form, line: ok, answer: "f", want: []string{"CF-Cache-Status: MISS"}},
	{clause: "2.2 cacheStatus", method: "GET", target: "/stale" + form, line: ok, answer: "s", want: []string{"CF-Cache-Status: STALE"}},
	{clause: "2.2 an empty value", method: "GET", target: "/empty" + form, line: ok, want: []string{"Content-Length: 0"}},
	{clause: "2.3 decode once", method: "GET", target: "/a%2Fb%20%25+%C3%BC" + form, line: ok, answer: "odd"},
	{clause: "2.3 decode once", method: "GET", target: "/a%2Fb%20%25+%C3%BC?urlencoded=TRUE", line: ok, answer: "odd"},
	{clause: "2.3 literally without urlencoded", method: "GET", target: "/a%2Fb%20%25+%C3%BC", line: ok, answer: "literal"},
	{clause: "2.5 the key bulk/get", method: "GET", target: "/bulk%2Fget" + form, line: ok, answer: "no clash"},
	{clause: "2.5 cache_ttl", method: "GET", target: "/text?urlencoded=true&cache_ttl=30", line: ok, answer: "value"},
	{clause: "2.5 cache_ttl", method: "GET", target: "/text?urlencoded=true&cache_ttl=9007199254740991", line: ok, answer: "value"},
	{
		clause: "2.5 cache_ttl", method: "GET", target: "/text?urlencoded=true&cache_ttl=29",
		line: "400 Invalid cache_ttl of 29. Cache TTL must be at least 30.",
	},
	{
		clause: "2.5 cache_ttl", method: "GET", target: "/text?urlencoded=true&cache_ttl=-1",
		line: "400 Invalid cache_ttl of -1. Cache TTL must be at least 30.",
	},
	{
		clause: "2.5 cache_ttl", method: "GET", target: "/text?urlencoded=true&cache_ttl=",
		line: "400 Invalid cache_ttl of NaN. Cache TTL must be at least 30.",
	},
	{clause: "2.5 key: not UTF-8", method: "GET", target: "/%ED%A0%80" + form, line: "400 Could not URL-decode key name"},
	{clause: "2.5 key: .", method: "GET", target: "/%2E" + form, line: `400 Illegal key name ".". Please use a different name.`},
	{clause: "2.5 key: ..", method: "DELETE", target: "/.." + form, line: `400 Illegal key name "..". Please use a different name.`},
	{clause: "2.5 key: 512 bytes", method: "GET", target: "/" + long[1:] + form, line: "404 Not Found"},
	{clause: "2.5 key: 513 bytes", method: "GET", target: "/" + long + form, line: tooLong},
	{clause: "2.5 key before cache_ttl", method: "GET", target: "/" + long + form + "&cache_ttl=1", line: tooLong},
	{clause: "2.5 method", method: "PATCH", target: "/text" + form, line: "405 Method Not Allowed", want: []string{"Allow: DELETE, GET, PUT"}},
	{clause: "2.5 method", method: "HEAD", target: "/text" + form, line: "405 Method Not Allowed"},
	{clause: "2.5 method", method: "GET", target: "/bulk/get", line: "405 Method Not Allowed", want: []string{"Allow: POST"}},
	{
		clause: "2.5 routes: one segment; 404 would be a missing key", method: "GET", target: "/a/b" + form,
		line: "400 a key is one segment of the path; write / within it as %2F",
	},
}

var writes = []golden{
	{
		clause: "2.2 put", method: "PUT", target: "/new" + form, body: "v", headers: []string{"Content-Type: text/plain;charset=UTF-8"},
		line: ok, want: []string{"Content-Length: 0"},
	},
	{clause: "2.2 put, empty", method: "PUT", target: "/new-empty" + form, line: ok},
	{clause: "2.2 put, metadata", method: "PUT", target: "/new-meta" + form, body: "v", headers: []string{`CF-KV-Metadata: { "ü": [1, "€"] }`}, line: ok},
	{
		clause: "2.5 metadata of 1024 bytes", method: "PUT", target: "/new-meta-1024" + form, body: "v",
		headers: []string{`CF-KV-Metadata: "` + strings.Repeat("m", 1022) + `"`}, line: ok,
	},
	{
		clause: "2.5 metadata of 1025 bytes", method: "PUT", target: "/never" + form, body: "v",
		headers: []string{`CF-KV-Metadata: "` + strings.Repeat("ü", 511) + `m"`}, line: "413 Metadata length of 1025 exceeds limit of 1024.",
	},
	{clause: "2.5 expiration_ttl of 60", method: "PUT", target: "/new-ttl" + form + "&expiration_ttl=60", body: "v", line: ok},
	{clause: "2.5 expiration_ttl is parsed with parseInt", method: "PUT", target: "/new-ttl-abc" + form + "&expiration_ttl=60abc", body: "v", line: ok},
	{
		clause: "2.5 expiration_ttl wins, expiration is not even looked at", method: "PUT",
		target: "/new-both" + form + "&expiration=1&expiration_ttl=1000", body: "v", line: ok,
	},
	{clause: "2.5 expiration", method: "PUT", target: "/new-at" + form + "&expiration=1900000060", body: "v", line: ok},
	{
		clause: "2.5 expiration_ttl", method: "PUT", target: "/never" + form + "&expiration_ttl=59", body: "v",
		line: "400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60.",
	},
	{
		clause: "2.5 expiration_ttl", method: "PUT", target: "/never" + form + "&expiration_ttl=0", body: "v",
		line: "400 Invalid expiration_ttl of 0. Please specify integer greater than 0.",
	},
	{
		clause: "2.5 expiration_ttl", method: "PUT", target: "/never" + form + "&expiration_ttl=-1", body: "v",
		line: "400 Invalid expiration_ttl of -1. Please specify integer greater than 0.",
	},
	{
		clause: "2.5 expiration_ttl", method: "PUT", target: "/never" + form + "&expiration_ttl=soon", body: "v",
		line: "400 Invalid expiration_ttl of soon. Please specify integer greater than 0.",
	},
	{
		clause: "2.4 nothing gets into the status line", method: "PUT", target: "/never" + form + "&expiration_ttl=%0D%0AX:%201%00", body: "v",
		line: "400 Invalid expiration_ttl of ??X: 1?. Please specify integer greater than 0.", want: []string{"X:"},
	},
	{clause: "2.5 expiration", method: "PUT", target: "/never" + form + "&expiration=1900000000", body: "v", line: "400 Invalid expiration of 1900000000" + future},
	{clause: "2.5 expiration", method: "PUT", target: "/never" + form + "&expiration=never", body: "v", line: "400 Invalid expiration of never" + future},
	{
		clause: "2.5 expiration", method: "PUT", target: "/never" + form + "&expiration=1900000059", body: "v",
		line: "400 Invalid expiration of 1900000059. Expiration times must be at least 60 seconds in the future.",
	},
	{clause: "2.5 order: key before TTL", method: "PUT", target: "/" + long + form + "&expiration_ttl=1", body: "v", line: tooLong},
	{
		clause: "2.5 order: TTL before metadata", method: "PUT", target: "/never" + form + "&expiration_ttl=1", body: "v",
		headers: []string{`CF-KV-Metadata: "` + strings.Repeat("m", 2000) + `"`},
		line:    "400 Invalid expiration_ttl of 1. Expiration TTL must be at least 60.",
	},
	{clause: "2.5 empty key", method: "PUT", target: "/" + form, body: "v", line: "400 Key names must not be empty"},
	{clause: "2.5 empty key", method: "DELETE", target: "/" + form, line: "400 Key names must not be empty"},
	{
		clause: "2.2 metadata that is no JSON", method: "PUT", target: "/never" + form, body: "v", headers: []string{"CF-KV-Metadata: {"},
		line: `400 the metadata is not JSON (unexpected end of JSON input); send one JSON value, for example {"type":"text/html"}`,
	},
	{clause: "2.2 delete", method: "DELETE", target: "/gone" + form, line: ok, want: []string{"Content-Length: 0"}},
	{clause: "4 delete of a missing key succeeds", method: "DELETE", target: "/gone" + form, line: ok},
}

var lists = []golden{
	{
		clause: "2.2 list: metadata is a JSON-serialised string; no cursor on the last page", method: "GET", target: "/?prefix=l%2F", line: ok,
		answer: `{"keys":[{"name":"l/1"},{"name":"l/2","metadata":"{\"a\":\"ü\\n\"}"},{"name":"l/3","expiration":1900001000}],"list_complete":true}` + "\n",
	},
	{
		clause: "2.2 list: pages", method: "GET", target: "/?key_count_limit=2&prefix=l%2F", line: ok,
		answer: `{"keys":[{"name":"l/1"},{"name":"l/2","metadata":"{\"a\":\"ü\\n\"}"}],"list_complete":false,"cursor":"l/2"}` + "\n",
	},
	{
		clause: "2.2 list: the next page", method: "GET", target: "/?key_count_limit=2&prefix=l%2F&cursor=l%2F2", line: ok,
		answer: `{"keys":[{"name":"l/3","expiration":1900001000}],"list_complete":true}` + "\n",
	},
	{clause: "2.5 list skips expired", method: "GET", target: "/?prefix=expired", line: ok, answer: `{"keys":[],"list_complete":true}` + "\n"},
	{
		clause: "2.2 list: form-encoded, + is a blank", method: "GET", target: "/?prefix=a+b&cursor=", line: ok,
		answer: `{"keys":[{"name":"a b"}],"list_complete":true}` + "\n",
	},
	{clause: "2.5 key_count_limit", method: "GET", target: "/?key_count_limit=0", line: "400 Invalid key_count_limit of 0. Please specify an integer greater than 0."},
	{clause: "2.5 key_count_limit", method: "GET", target: "/?key_count_limit=x", line: "400 Invalid key_count_limit of x. Please specify an integer greater than 0."},
	{clause: "2.5 key_count_limit", method: "GET", target: "/?key_count_limit=1001", line: "400 Invalid key_count_limit of 1001. Please specify an integer less than 1000."},
	{clause: "2.5 prefix", method: "GET", target: "/?prefix=" + long, line: tooLong},
	{clause: "2.5 cursor", method: "GET", target: "/?cursor=bad", line: "400 Invalid cursor"},
	{clause: "2.5 cursor", method: "GET", target: "/?cursor=" + strings.Repeat("c", 5000), line: "400 Invalid cursor"},
}

var bulkGets = []golden{
	{
		clause: "2.2 bulk get", method: "POST", target: "/bulk/get", body: `{"keys":["text","missing","text","expired","odd \" key"]}`, line: ok,
		answer: `{"text":"value","missing":null,"expired":null,"odd \" key":"<ü>"}`,
	},
	{
		clause: "2.2 bulk get, withMetadata", method: "POST", target: "/bulk/get",
		body: `{"keys":["meta","text","missing","empty"],"type":"text","withMetadata":true,"cacheTtl":"30"}`, line: ok,
		answer: `{"meta":{"value":"m","metadata":{"a":"ü€"}},"text":{"value":"value","metadata":null},"missing":null,"empty":{"value":"","metadata":null}}`,
	},
	{
		clause: "2.2 bulk get, json", method: "POST", target: "/bulk/get", body: `{"keys":["number","object","missing"],"type":"json"}`, line: ok,
		answer: `{"number":0,"object":{ "a": [1] },"missing":null}`,
	},
	{
		clause: "2.2 bulk get, streamed", method: "POST", target: "/bulk/get", body: `{"keys":["streamed"],"type":"text"}`, line: ok,
		answer: `{"streamed":"[\"` + strings.Repeat("ü€", 50_000) + `\"]"}`,
	},
	{
		clause: "2.2 bulk get, streamed json", method: "POST", target: "/bulk/get", body: `{"keys":["streamed"],"type":"json"}`, line: ok,
		answer: `{"streamed":["` + strings.Repeat("ü€", 50_000) + `"]}`,
	},
	{
		clause: "2.5 text that is no UTF-8 is replaced", method: "POST", target: "/bulk/get", body: `{"keys":["binary"]}`, line: ok,
		answer: `{"binary":"a\ufffdb\ufffd"}`,
	},
	{clause: "2.5 non-json", method: "POST", target: "/bulk/get", body: `{"keys":["number","text"],"type":"json"}`, line: noJSON},
	{clause: "2.5 non-json, streamed", method: "POST", target: "/bulk/get", body: `{"keys":["streamed-text"],"type":"json"}`, line: noJSON},
	{clause: "2.5 non-json: an empty value", method: "POST", target: "/bulk/get", body: `{"keys":["empty"],"type":"json"}`, line: noJSON},
	{clause: "2.5 type", method: "POST", target: "/bulk/get", body: `{"keys":["text"],"type":"stream"}`, line: `400 "stream" is not a valid type. Use "json" or "text"`},
	{clause: "2.5 a hundred keys", method: "POST", target: "/bulk/get", body: manyKeys(100, ""), line: ok, answer: manyNulls(100)},
	{clause: "2.5 one more", method: "POST", target: "/bulk/get", body: manyKeys(101, ""), line: "400 You can request a maximum of 100 keys"},
	{clause: "2.5 ten thousand", method: "POST", target: "/bulk/get", body: manyKeys(10_000, ""), line: "400 You can request a maximum of 100 keys"},
	{clause: "2.5 no key", method: "POST", target: "/bulk/get", body: `{"keys":[]}`, line: "400 You must request a minimum of 1 key"},
	{clause: "2.5 no keys", method: "POST", target: "/bulk/get", body: `{}`, line: "400 You must request a minimum of 1 key"},
	{
		clause: "2.5 cacheTtl is a string", method: "POST", target: "/bulk/get", body: `{"keys":["text"],"cacheTtl":"29"}`,
		line: "400 Invalid cache_ttl of 29. Cache TTL must be at least 30.",
	},
	{
		clause: "2.5 cacheTtl as a number", method: "POST", target: "/bulk/get", body: `{"keys":["text"],"cacheTtl":29}`,
		line: "400 Invalid cache_ttl of 29. Cache TTL must be at least 30.",
	},
	{clause: "2.5 keys", method: "POST", target: "/bulk/get", body: `{"keys":["text","."]}`, line: `400 Illegal key name ".". Please use a different name.`},
	{clause: "2.5 keys", method: "POST", target: "/bulk/get", body: `{"keys":[""]}`, line: "400 Key names must not be empty"},
	{clause: "2.5 keys", method: "POST", target: "/bulk/get", body: `{"keys":["` + long + `"]}`, line: tooLong},
	{clause: "2.5 a lone surrogate", method: "POST", target: "/bulk/get", body: `{"keys":["\ud800"]}`, line: "400 Could not URL-decode key name"},
	{
		clause: "2.5 total size", method: "POST", target: "/bulk/get", body: `{"keys":["half-1","half-2"]}`,
		line: "413 Total size of request exceeds the limit of 25MB",
	},
	{clause: "2.2 the document", method: "POST", target: "/bulk/get", body: `{"keys":["a"`, line: "400 the body is not JSON at byte 12: it ends too early"},
	{clause: "2.2 the document", method: "POST", target: "/bulk/get", body: `["a"]`, line: "400 the body is not that of a bulk get: it is an array, not an object"},
	{clause: "2.2 the document", method: "POST", target: "/bulk/get", body: `{"keys":["a"],"x":"` + strings.Repeat("x", 2<<20) + `"}`, line: "413 the body has more than 1048576 bytes"},
}

func manyKeys(n int, more string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"no such key %d"`, i)
	}
	return `{"keys":[` + b.String()[1:] + "]" + more + "}"
}

func manyNulls(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"no such key %d":null`, i)
	}
	return "{" + b.String()[1:] + "}"
}

// fill makes the keys that the golden requests are about.
func fill(f *fake) {
	half := stored{value: make([]byte, 13<<20), streamed: true}
	for key, s := range map[string]stored{
		"text": {value: []byte("value")}, "empty": {value: []byte{}},
		"meta": {value: []byte("m"), metadata: []byte(`{"a":"ü€"}`)}, "del": {value: []byte("d"), metadata: []byte("\"\x7f\"")},
		"expiring": {value: []byte("e"), expiry: 1_900_001_000}, "expired": {value: []byte("e"), expiry: 1_900_000_000},
		"filled": {value: []byte("f"), tier: api.TierRegion}, "stale": {value: []byte("s"), tier: api.TierStale},
		"a/b %+ü": {value: []byte("odd")}, "a%2Fb%20%25+%C3%BC": {value: []byte("literal")}, "bulk/get": {value: []byte("no clash")},
		"gone": {value: []byte("g")},
		"l/1":  {}, "l/2": {metadata: []byte(`{"a":"ü\n"}`)}, "l/3": {expiry: 1_900_001_000}, "a b": {}, "a+b": {},
		`odd " key`: {value: []byte("<ü>")}, "number": {value: []byte("0")}, "object": {value: []byte(`{ "a": [1] }`)},
		"binary":   {value: []byte("a\xffb\xe2"), streamed: true},
		"streamed": {value: []byte(`["` + strings.Repeat("ü€", 50_000) + `"]`), streamed: true}, "streamed-text": {value: []byte(`["a"]]`), streamed: true},
		"half-1": half, "half-2": half,
	} {
		f.keys[key] = s
	}
}

func (g *golden) check(t *testing.T, a answer) {
	t.Helper()
	if a.line != g.line {
		t.Errorf("status line\n%s, want\n%s", a.line, g.line)
	}
	want := g.answer
	if want == "" && !strings.HasPrefix(g.line, "200") && g.method != http.MethodHead {
		want = g.line[len("400 "):]
	}
	if a.body != want {
		t.Errorf("body of %d bytes beginning %.300q, want %d bytes beginning %.300q", len(a.body), a.body, len(want), want)
	}
	for _, line := range g.want {
		name, value, _ := strings.Cut(line, ":")
		if got := strings.Join(a.header.Values(name), "|"); got != strings.TrimSpace(value) {
			t.Errorf("header %s is %q, want %q", name, got, value)
		}
	}
	if a.header.Get("Connection") != "" {
		t.Errorf("Connection: %s", a.header.Get("Connection"))
	}
}

// TestGolden sends all of them over one connection, which has to stay in step.
func TestGolden(t *testing.T) {
	r := newRig(t)
	fill(r.svc)
	c := r.dial()
	for _, group := range [][]golden{reads, writes, lists, bulkGets} {
		for _, g := range group {
			t.Run(g.clause, func(t *testing.T) {
				c.t = t
				g.check(t, c.ask(g.method, g.target, g.body, g.headers...))
			})
		}
	}
	r.svc.has(t, "new", stored{value: []byte("v")})
	r.svc.has(t, "new-empty", stored{})
	r.svc.has(t, "new-meta", stored{value: []byte("v"), metadata: []byte(`{"ü":[1,"€"]}`)})
	for key, expiry := range map[string]int64{"new-ttl": 60, "new-ttl-abc": 60, "new-both": 1000, "new-at": 60} {
		r.svc.has(t, key, stored{value: []byte("v"), expiry: testNow.Unix() + expiry})
	}
	for _, key := range []string{"never", "gone", ""} {
		if _, ok := r.svc.keys[key]; ok {
			t.Errorf("%q is there", key)
		}
	}
	if r.log.Len() > 0 {
		t.Errorf("what clients do wrong is logged: %s", r.log)
	}
	for _, req := range r.svc.lists {
		if req.Limit < 1 || req.Limit > 1000 || len(req.Prefix) > 512 {
			t.Error("asked for a list of " + strconv.Itoa(req.Limit))
		}
	}
}
