package cfrest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// golden is one request and what the wire contract of Workers KV demands as its answer. want is the whole JSON answer, or,
// for a value, its bytes; of errors it is "code text".
type golden struct {
	clause  string // of the contract
	method  string
	target  string // /{ns} is the namespace A of account "acc"
	body    string
	headers []string
	status  int
	want    string
	state   string // what the key k holds afterwards, "" = not looked at
}

func okJSON(result string) string {
	return `{"success":true,"errors":[],"messages":[],"result":` + result + `}`
}

func okInfo(result, info string) string {
	return `{"success":true,"errors":[],"messages":[],"result":` + result + `,"result_info":` + info + `}`
}

// sameJSON compares two documents, numbers as they stand.
func sameJSON(t testing.TB, got, want string) bool {
	t.Helper()
	read := func(text string) (v any) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return err.Error() + " in " + text
		}
		return v
	}
	return reflect.DeepEqual(read(got), read(want))
}

// told is the "code text" of an error answer, which has exactly the members of the envelope.
func told(t testing.TB, body string) string {
	t.Helper()
	var e struct {
		Success *bool
		Errors  []struct {
			Code    int
			Message string
		}
		Messages []any
		Result   *json.RawMessage
	}
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(body), &e) != nil || json.Unmarshal([]byte(body), &members) != nil {
		return "no JSON: " + body
	}
	if e.Success == nil || *e.Success || len(e.Errors) != 1 || e.Messages == nil || string(members["result"]) != "null" || len(members) != 4 {
		return "no failure as §1.1 has it: " + body
	}
	return fmt.Sprintf("%d %s", e.Errors[0].Code, e.Errors[0].Message)
}

func (g golden) run(t *testing.T, r *rig) {
	t.Helper()
	w := r.do(g.method, g.target, g.body, g.headers...)
	got := w.Body.String()
	same := got == g.want
	switch {
	case g.status >= 400:
		got = told(t, got)
		same = got == g.want
	case strings.HasPrefix(g.want, "{"):
		same = sameJSON(t, got, g.want)
	}
	if w.Code != g.status || !same {
		t.Errorf("%s: %s %s %.80q\ngot  %d %s\nwant %d %s", g.clause, g.method, g.target, g.body, w.Code, got, g.status, g.want)
	}
	if g.status != 200 || strings.HasPrefix(g.want, "{") {
		if ct := w.Header().Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: content type %q of an envelope", g.clause, ct)
		}
	}
	if has := r.has("k"); g.state != "" && has != g.state {
		t.Errorf("%s: %s %s %.80q\nk is  %s\nwant  %s", g.clause, g.method, g.target, g.body, has, g.state)
	}
}

const (
	textPlain = "text/plain;charset=UTF-8"
	ctype     = "Content-Type"
)

// formBody writes the body of a multipart form: name, value, name, value …
func formBody(parts ...string) string {
	var b strings.Builder
	for i := 0; i < len(parts); i += 2 {
		fmt.Fprintf(&b, "--BB\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", parts[i], parts[i+1])
	}
	return b.String() + "--BB--\r\n"
}

var multi = []string{ctype, "multipart/form-data; boundary=BB"}

var long = strings.Repeat("k", 513)

const past = ". Please specify integer greater than the current number of seconds since the UNIX epoch.'"

func TestGoldenKeys(t *testing.T) {
	null := okJSON("null")
	for _, g := range []golden{
		// §1.4, §0.5: the body is the value, byte for byte, whatever its type.
		{"§0.5 text", "PUT", "/{ns}/values/k", "v", []string{ctype, textPlain}, 200, null, "v||0"},
		{"§0.5 JSON is the value", "PUT", "/{ns}/values/k", `{"metadata":{},"value":"x"}`, []string{ctype, "application/json"}, 200, null, `{"metadata":{},"value":"x"}||0`},
		{"§0.5 a form that is none", "PUT", "/{ns}/values/k", "a=b", []string{ctype, "application/x-www-form-urlencoded"}, 200, null, "a=b||0"},
		{"§1.4 empty", "PUT", "/{ns}/values/k", "", nil, 200, null, "||0"},
		{"§1.4 ttl", "PUT", "/{ns}/values/k?expiration_ttl=60", "v", nil, 200, null, "v||1900000060"},
		{"§1.4 expiration", "PUT", "/{ns}/values/k?expiration=1900000100", "v", nil, 200, null, "v||1900000100"},
		{"§1.4 ttl wins", "PUT", "/{ns}/values/k?expiration=1&expiration_ttl=61", "v", nil, 200, null, "v||1900000061"},
		{"§1.4 put replaces all", "PUT", "/{ns}/values/old", "new", nil, 200, null, ""},
		{"§1.4 unknown parameters", "PUT", "/{ns}/values/k?x=1", "v", nil, 200, null, "v||0"},
		// §1.4, §1.6: forms.
		{"§0.4 metadata is optional", "PUT", "/{ns}/values/k", formBody("value", "v"), multi, 200, null, "v||0"},
		{"§1.6 wrangler's order", "PUT", "/{ns}/values/k?expiration_ttl=60", formBody("value", "v\r\n", "metadata", `{"a": [1, "ü"]}`), multi, 200, null, "v\r\n|" + `{"a":[1,"ü"]}` + "|1900000060"},
		{"§1.6 cloudflare-rs's order", "PUT", "/{ns}/values/k", formBody("metadata", `"s"`, "value", "v"), multi, 200, null, `v|"s"|0`},
		{"§1.6 unknown parts", "PUT", "/{ns}/values/k", formBody("x", "y", "metadata", "1", "z", "", "value", ""), multi, 200, null, `|1|0`},
		{"§1.6 empty metadata", "PUT", "/{ns}/values/k", formBody("metadata", "", "value", "v"), multi, 200, null, `v||0`},
		{"§1.6 null metadata", "PUT", "/{ns}/values/k", formBody("metadata", "null", "value", "v"), multi, 200, null, `v||0`},
		{
			"§1.6 a file part", "PUT", "/{ns}/values/k",
			"--BB\r\nContent-Disposition: form-data; name=\"value\"; filename=\"blob\"\r\nContent-Type: application/octet-stream\r\n\r\n\x00\xff\r\n--BB--\r\n",
			multi, 200, null, "\x00\xff||0",
		},
		{
			"§0.4 brackets of the TypeScript SDK", "PUT", "/{ns}/values/k",
			formBody("value", "v", "metadata[a][b]", "1", "metadata[a][c]", "ü", "metadata[list][]", "x", "metadata[list][]", "y", "metadata[o][][p]", "1", "metadata[o][][q]", "2", "metadata[o][][p]", "3"),
			multi, 200, null, `v|{"a":{"b":"1","c":"ü"},"list":["x","y"],"o":[{"p":"1","q":"2"},{"p":"3"}]}|0`,
		},
		{
			"§0.4 dots of the Go SDK", "PUT", "/{ns}/values/k",
			formBody("metadata.a.b", "1", "metadata.list.0", "x", "metadata.list.1", "y", "metadata.gap.1", "z", "value", "v"),
			multi, 200, null, `v|{"a":{"b":"1"},"list":["x","y"],"gap":{"1":"z"}}|0`,
		},
		{"§0.4 positions only with dots", "PUT", "/{ns}/values/k", formBody("metadata[0]", "x", "value", "v"), multi, 200, null, `v|{"0":"x"}|0`},
		// §1.4: reading.
		{"§1.4 get", "GET", "/{ns}/values/old", "", nil, 200, "new", ""},
		{"§1.4 empty value", "GET", "/{ns}/values/empty", "", nil, 200, "", ""},
		{"§1.8 10009", "GET", "/{ns}/values/none", "", nil, 404, "10009 get: 'key not found'", ""},
		{"§0.8 metadata", "GET", "/{ns}/metadata/meta", "", nil, 200, okJSON(`{"n":1.0,"t":"<ü>"}`), ""},
		{"§0.8 no metadata", "GET", "/{ns}/metadata/old", "", nil, 200, null, ""},
		{"§0.8 metadata of a missing key", "GET", "/{ns}/metadata/none", "", nil, 404, "10009 get: 'key not found'", ""},
		{"§1.8 expired", "GET", "/{ns}/values/expired", "", nil, 404, "10009 get: 'key not found'", ""},
		{"§1.8 expired", "GET", "/{ns}/metadata/expired", "", nil, 404, "10009 get: 'key not found'", ""},
		{"§1.4 delete", "DELETE", "/{ns}/values/k", "{}", []string{ctype, "application/json"}, 200, null, "-"},
		{"§1.4 delete a missing key", "DELETE", "/{ns}/values/none", "", nil, 200, null, ""},
		// §0.6, §1.7: keys on the URL.
		{"§1.7 escaped slash", "GET", "/{ns}/values/a%2Fb", "", nil, 200, "slash", ""},
		{"§1.7 raw slash", "GET", "/{ns}/values/a/b", "", nil, 200, "slash", ""},
		{"§1.7 no cleaning", "GET", "/{ns}/values/a//../b", "", nil, 200, "dirty", ""},
		{"§1.7 decoded once", "GET", "/{ns}/values/%2525", "", nil, 200, "percent", ""},
		{"§0.6 a plus is a plus", "GET", "/{ns}/values/a+b", "", nil, 200, "plus", ""},
		{"§1.7 the TypeScript SDK", "GET", "/{ns}/values/a%2Fb:c%20%C3%A9%25", "", nil, 200, "odd", ""},
		{"§4 512 bytes", "GET", "/{ns}/values/" + long[1:], "", nil, 200, "long", ""},
		// §1.8, §2.5: what is refused.
		{"§1.8 10034", "PUT", "/{ns}/values/k?expiration_ttl=59", "v", nil, 400, "10034 put: 'Invalid expiration_ttl of 59. Expiration TTL must be at least 60.'", "-"},
		{"§2.5 ttl 0", "PUT", "/{ns}/values/k?expiration_ttl=0", "v", nil, 400, "10034 put: 'Invalid expiration_ttl of 0. Please specify integer greater than 0.'", "-"},
		{"§1.8 10033", "PUT", "/{ns}/values/k?expiration=5", "v", nil, 400, "10033 put: 'Invalid expiration of 5" + past, "-"},
		{"§2.5 too soon", "PUT", "/{ns}/values/k?expiration=1900000059", "v", nil, 400, "10033 put: 'Invalid expiration of 1900000059. Expiration times must be at least 60 seconds in the future.'", "-"},
		{"§1.8 10147", "PUT", "/{ns}/values/k", formBody("value", "v", "metadata", "{"), multi, 400, "10147 metadata must be valid json", "-"},
		{"§1.8 10147 not UTF-8", "PUT", "/{ns}/values/k", formBody("value", "v", "metadata", "\"\xff\""), multi, 400, "10147 metadata must be valid json", "-"},
		{"§1.8 10047", "PUT", "/{ns}/values/k", formBody("metadata", "1"), multi, 400, "10047 multipart put request does not contain required form field 'value'", "-"},
		{"§1.8 10047 empty form", "PUT", "/{ns}/values/k", formBody(), multi, 400, "10047 multipart put request does not contain required form field 'value'", "-"},
		{"§2.5 metadata 1025", "PUT", "/{ns}/values/k", formBody("value", "v", "metadata", `"`+strings.Repeat("m", 1023)+`"`), multi, 413, "10029 put: 'Metadata length of 1025 exceeds limit of 1024.'", "-"},
		{"§2.5 metadata in fields", "PUT", "/{ns}/values/k", formBody("value", "v", "metadata[a]", strings.Repeat("m", 1024)), multi, 413, "10029 put: 'Metadata length of 1032 exceeds limit of 1024.'", "-"},
		{"§1.6 metadata twice", "PUT", "/{ns}/values/k", formBody("metadata", "1", "metadata", "1", "value", "v"), multi, 400, "10012 put: 'the form has more than one field 'metadata''", "-"},
		{"§1.6 value twice", "PUT", "/{ns}/values/k", formBody("value", "v", "value", "w"), multi, 400, "10012 put: 'the form has more than one field 'value''", "-"},
		{"§1.6 fields that contradict", "PUT", "/{ns}/values/k", formBody("metadata[a]", "1", "metadata[a][b]", "1", "value", "v"), multi, 400, "10012 put: 'the field metadata[a][b] does not go with the others, or is malformed; send metadata as JSON in one field'", "-"},
		{"§1.6 no boundary", "PUT", "/{ns}/values/k", "x", []string{ctype, "multipart/form-data"}, 400, "10012 put: 'the Content-Type of the form names no boundary'", "-"},
		{"§2.5 .", "PUT", "/{ns}/values/%2E", "v", nil, 400, `10029 put: 'Illegal key name ".". Please use a different name.'`, ""},
		{"§2.5 ..", "GET", "/{ns}/metadata/..", "", nil, 400, `10029 get: 'Illegal key name "..". Please use a different name.'`, ""},
		{"§2.5 513 bytes", "GET", "/{ns}/values/" + long, "", nil, 414, "10029 get: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'", ""},
		{"§2.5 513 bytes", "DELETE", "/{ns}/values/" + long, "", nil, 414, "10029 remove key: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'", ""},
		{"§2.5 not UTF-8", "PUT", "/{ns}/values/%ff", "v", nil, 400, "10029 put: 'Could not URL-decode key name'", ""},
		{"§1.8 10405 no key", "GET", "/{ns}/values/", "", nil, 405, "10405 GET method not allowed for the api_token authentication scheme", ""},
		{"§1.8 10405 a method that does not exist", "BREW", "/{ns}/values/k", "", nil, 405, "10405 BREW method not allowed for the api_token authentication scheme", "-"},
		{"§1.8 10013", "PUT", base + "/" + nsNone + "/values/k", "v", nil, 404, "10013 put: 'namespace not found'", ""},
		{"§1.8 10013", "GET", base + "/" + nsNone + "/values/k", "", nil, 404, "10013 get: 'namespace not found'", ""},
		{"§1.8 10013", "GET", base + "/" + nsNone + "/keys", "", nil, 404, "10013 list keys: 'namespace not found'", ""},
		{"§1.8 10011", "GET", base + "/abc/values/k", "", nil, 400, "10011 could not parse UUID from request's namespace_id: 'uuid: incorrect UUID length: abc'", ""},
		{"§1.8 10011 no hex", "GET", base + "/" + strings.Repeat("x", 32) + "/keys", "", nil, 400, "10011 could not parse UUID from request's namespace_id: 'invalid namespace format: " + strings.Repeat("x", 32) + "'", ""},
		{"§1.8 10011 a title", "GET", base + "/a/keys", "", nil, 400, "10011 could not parse UUID from request's namespace_id: 'uuid: incorrect UUID length: a'", ""},
	} {
		r := newRig(t)
		r.seed("old", "new", "", 0)
		r.seed("empty", "", "", 0)
		r.seed("meta", "v", `{"n":1.0,"t":"<ü>"}`, 0)
		r.seed("expired", "v", `1`, testNow.Unix())
		for key, value := range map[string]string{"a/b": "slash", "a//../b": "dirty", "%25": "percent", "a+b": "plus", "a/b:c é%": "odd", long[1:]: "long"} {
			r.seed(key, value, "", 0)
		}
		if g.method == "DELETE" {
			r.seed("k", "v", "", 0)
		}
		g.run(t, r)
	}
}

func TestGoldenNamespaces(t *testing.T) {
	const one = `{"id":"` + nsA + `","title":"a","supports_url_encoding":true}`
	body := func(title string) string { return fmt.Sprintf(`{"title":%q}`, title) }
	for _, g := range []golden{
		{"§1.2 list", "GET", base, "", nil, 200, okInfo("["+one+"]", `{"page":1,"per_page":20,"count":1,"total_count":1,"total_pages":1}`), ""},
		{"§0.3 past the end", "GET", base + "?page=2&per_page=1", "", nil, 200, okInfo("[]", `{"page":2,"per_page":1,"count":0,"total_count":1,"total_pages":1}`), ""},
		{"§0.3 far past the end", "GET", base + "?page=9223372036854775807&per_page=1000", "", nil, 200, okInfo("[]", `{"page":9223372036854775807,"per_page":1000,"count":0,"total_count":1,"total_pages":1}`), ""},
		{"§1.2 per_page 1001", "GET", base + "?per_page=1001", "", nil, 400, "10029 list namespaces: 'per_page=1001 is not a number from 1 to 1000'", ""},
		{"§1.2 page 0", "GET", base + "?page=0", "", nil, 400, "10029 list namespaces: 'page=0 is not a number from 1 to 9223372036854775807'", ""},
		{"§1.2 order", "GET", base + "?order=size", "", nil, 400, "10029 list namespaces: 'order=size is neither id nor title'", ""},
		{"§1.2 direction", "GET", base + "?direction=up", "", nil, 400, "10029 list namespaces: 'direction=up is neither asc nor desc'", ""},
		{"§1.2 get", "GET", base + "/" + nsA, "", nil, 200, okJSON(one), ""},
		{"§1.8 10013", "GET", base + "/" + nsNone, "", nil, 404, "10013 get namespace: 'namespace not found'", ""},
		{"§1.8 10011", "GET", base + "/" + nsA + "0", "", nil, 400, "10011 could not parse UUID from request's namespace_id: 'uuid: incorrect UUID length: " + nsA + "0'", ""},
		{"§1.2 create", "POST", base, body("ü b"), nil, 200, okJSON(`{"id":"02000000000000000000000000000000","title":"ü b","supports_url_encoding":true}`), ""},
		{"§1.2 512 bytes", "POST", base, body(long[1:]), nil, 200, okJSON(`{"id":"02000000000000000000000000000000","title":"` + long[1:] + `","supports_url_encoding":true}`), ""},
		{"§1.2 mode", "POST", base, `{"title":"b","mode":"instant","jurisdiction":null}`, nil, 200, okJSON(`{"id":"02000000000000000000000000000000","title":"b","supports_url_encoding":true}`), ""},
		{"§1.2 jurisdiction", "POST", base, `{"title":"b","jurisdiction":"eu"}`, nil, 400, "10012 create namespace: 'jurisdiction eu is not supported: the nodes of a mesh all hold its data; leave jurisdiction out'", ""},
		{"§1.2 513 bytes", "POST", base, body(long), nil, 400, "10012 create namespace: 'the title has 513 bytes; the limit is 512 bytes of UTF-8'", ""},
		{"§1.8 10014", "POST", base, body("a"), nil, 400, "10014 a namespace with this account ID and title already exists", ""},
		{"§1.8 10019", "POST", base, `{}`, nil, 400, "10019 request is missing a title definition", ""},
		{"§1.8 10019 empty", "POST", base, `{"title":""}`, nil, 400, "10019 request is missing a title definition", ""},
		{"§1.8 10012", "POST", base, `{"title":`, nil, 400, `10012 create namespace: 'the body is not a JSON object; send {"title": "…"}'`, ""},
		{"§1.8 10012 type", "POST", base, `{"title":1}`, nil, 400, `10012 create namespace: 'title is not a string'`, ""},
		{"§1.8 10012 huge", "POST", base, body(strings.Repeat("x", 20<<10)), nil, 400, `10012 create namespace: 'the body has more than 16384 bytes; send {"title": "…"}'`, ""},
		{"§1.2 rename", "PUT", base + "/" + nsA, body("b"), nil, 200, okJSON(strings.Replace(one, `"a"`, `"b"`, 1)), ""},
		{"§1.2 rename to the same", "PUT", base + "/" + nsA, body("a"), nil, 200, okJSON(one), ""},
		{"§1.8 10013", "PUT", base + "/" + nsNone, body("b"), nil, 404, "10013 rename namespace: 'namespace not found'", ""},
		{"§0.7 delete", "DELETE", base + "/" + nsA, "", nil, 200, okJSON("null"), ""},
		{"§1.8 10013", "DELETE", base + "/" + nsNone, "", nil, 404, "10013 remove namespace: 'namespace not found'", ""},
		{"§1.8 10405 no namespace", "DELETE", base + "/", "", nil, 405, "10405 DELETE method not allowed for the api_token authentication scheme", ""},
		{"§1.8 10405 no namespace", "GET", base + "//keys", "", nil, 405, "10405 GET method not allowed for the api_token authentication scheme", ""},
		{"§1.8 10405 a method", "PATCH", base, "", nil, 405, "10405 PATCH method not allowed for the api_token authentication scheme", ""},
		{"§1.8 7003 account of 33", "GET", "/client/v4/accounts/" + strings.Repeat("x", 33) + "/storage/kv/namespaces", "", nil, 404, "7003 Could not route to /accounts/" + strings.Repeat("x", 33) + "/storage/kv/namespace…, perhaps your object identifier is invalid?", ""},
		{"§1.8 7003 no account", "GET", "/client/v4/accounts//storage/kv/namespaces", "", nil, 404, "7003 Could not route to /accounts//storage/kv/namespaces, perhaps your object identifier is invalid?", ""},
		{"§1.8 7003", "GET", "/client/v4/zones", "", nil, 404, "7003 Could not route to /zones, perhaps your object identifier is invalid?", ""},
		{"§1.8 7003", "GET", "/{ns}/values", "", nil, 404, "7003 Could not route to /accounts/acc/storage/kv/namespaces/0100000000000000000000000000…, perhaps your object identifier is invalid?", ""},
		// §1.9
		{"§1.9 user", "GET", "/client/v4/user", "", nil, 200, okJSON(`{"id":"00000000000000000000000000000001","email":"admin@kvmesh.invalid"}`), ""},
		{"§1.9 accounts", "GET", "/client/v4/accounts?page=1", "", nil, 200, okInfo(`[{"id":"`+strings.Repeat("ab", 16)+`","name":"mesh"}]`, `{"page":1,"per_page":20,"count":1,"total_count":1,"total_pages":1}`), ""},
		{"§0.3 accounts", "GET", "/client/v4/accounts?page=2", "", nil, 200, okInfo(`[]`, `{"page":2,"per_page":20,"count":0,"total_count":1,"total_pages":1}`), ""},
		{"§1.9 an account", "GET", "/client/v4/accounts/xyz", "", nil, 200, okJSON(`{"id":"xyz","name":"mesh"}`), ""},
		{"§1.9 memberships", "GET", "/client/v4/memberships?page=1", "", nil, 200, okInfo(`[{"id":"`+strings.Repeat("ab", 16)+`","status":"accepted","account":{"id":"`+strings.Repeat("ab", 16)+`","name":"mesh"},"roles":["Administrator"]}]`, `{"page":1,"per_page":20,"count":1,"total_count":1,"total_pages":1}`), ""},
		{"§1.9 verify", "GET", "/client/v4/user/tokens/verify", "", nil, 200, `{"success":true,"errors":[],"messages":[{"code":10000,"message":"This API Token is valid and active"}],"result":{"id":"00000000000000000000000000000002","status":"active"}}`, ""},
	} {
		g.run(t, newRig(t))
	}
}

func TestGoldenBulk(t *testing.T) {
	done := func(n int, failed string) string {
		return okJSON(fmt.Sprintf(`{"successful_key_count":%d,"unsuccessful_keys":[%s]}`, n, failed))
	}
	names := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat(`"x",`, n), ",") + "]" }
	keys := func(n int) string { return `{"keys":` + names(n) + `}` }
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	const put, del = "/{ns}/bulk", "/{ns}/bulk/delete"
	for _, g := range []golden{
		{"§1.5 put", "PUT", put, `[{"key":"k","value":"v"}]`, nil, 200, done(1, ""), "v||0"},
		{"§1.5 base64 after the value", "PUT", put, `[{"value":"AP8=","key":"k","base64":true,"metadata":{"a": 1},"expiration_ttl":60}]`, nil, 200, done(1, ""), "\x00\xff|{\"a\":1}|1900000060"},
		{"§1.5 expiration", "PUT", put, `[{"key":"k","value":"","expiration":1900000100,"base64":false,"metadata":null}]`, nil, 200, done(1, ""), "||1900000100"},
		{"§1.5 numbers as Python writes them", "PUT", put, `[{"key":"k","value":"","expiration_ttl":60.0}]`, nil, 200, done(1, ""), "||1900000060"},
		{"§1.5 unknown members", "PUT", put, `[{"key":"k","value":"v","x":[{}]}]`, nil, 200, done(1, ""), "v||0"},
		{"§1.5 empty put", "PUT", put, `[]`, nil, 200, done(0, ""), "-"},
		{"§1.5 identical duplicates collapse", "PUT", put, `[{"key":"k","value":"v"},{"value":"dg==","base64":true,"key":"k"}]`, nil, 200, done(1, ""), "v||0"},
		{"§1.5 different duplicates", "PUT", put, `[{"key":"o","value":"v"},{"key":"k","value":"v"},{"key":"k","value":"w"}]`, nil, 400, `10012 received duplicate key with different values or expiration parameters: "k"`, "-"},
		{"§1.5 different expiration", "PUT", put, `[{"key":"k","value":"v"},{"key":"k","value":"v","expiration_ttl":60}]`, nil, 400, `10012 received duplicate key with different values or expiration parameters: "k"`, "-"},
		{"§1.5 bad base64", "PUT", put, `[{"key":"k","value":"v"},{"key":"l","value":"a","base64":true}]`, nil, 400, `10012 Invalid base64 value`, "-"},
		{"§1.5 all or nothing: key", "PUT", put, `[{"key":"k","value":"v"},{"key":"","value":"v"}]`, nil, 400, `10029 bulk put keys: 'Key names must not be empty'`, "-"},
		{"§1.5 all or nothing: no key", "PUT", put, `[{"key":"k","value":"v"},{"value":"v"}]`, nil, 400, `10029 bulk put keys: 'Key names must not be empty'`, "-"},
		{"§1.5 all or nothing: long key", "PUT", put, `[{"key":"k","value":"v"},{"key":"` + long + `","value":"v"}]`, nil, 414, `10029 bulk put keys: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'`, "-"},
		{"§1.5 all or nothing: huge key", "PUT", put, `[{"key":"k","value":"v"},{"key":"` + strings.Repeat("x", 9000) + `","value":"v"}]`, nil, 414, `10029 bulk put keys: 'UTF-8 encoded length of 9000 exceeds key length limit of 512.'`, "-"},
		{"§1.5 all or nothing: no value", "PUT", put, `[{"key":"k","value":"v"},{"key":"l"}]`, nil, 400, `10012 bulk put keys: 'the item has no value; give a string, which may be empty'`, "-"},
		{"§1.5 all or nothing: type", "PUT", put, `[{"key":"k","value":"v"},{"key":"l","value":1}]`, nil, 400, `10012 bulk put keys: 'the body is not as this call takes it: it is a number, not a string'`, "-"},
		{"§1.8 10034", "PUT", put, `[{"key":"k","value":"v"},{"key":"l","value":"v","expiration_ttl":59}]`, nil, 400, `10034 bulk put keys: 'Invalid expiration_ttl of 59. Expiration TTL must be at least 60.'`, "-"},
		{"§1.8 10033", "PUT", put, `[{"key":"k","value":"v"},{"key":"l","value":"v","expiration":1}]`, nil, 400, `10033 bulk put keys: 'Invalid expiration of 1` + past, "-"},
		{"§2.5 metadata", "PUT", put, `[{"key":"k","value":"v","metadata":"` + strings.Repeat("m", 1023) + `"}]`, nil, 413, `10029 bulk put keys: 'Metadata length of 1025 exceeds limit of 1024.'`, "-"},
		{"§1.5 not JSON", "PUT", put, `[{"key":"k","value":"v"},`, nil, 400, `10012 bulk put keys: 'the body is not JSON at byte 25: it ends too early'`, "-"},
		{"§1.5 something behind it", "PUT", put, `[{"key":"k","value":"v"}] []`, nil, 400, `10012 bulk put keys: 'the body is not JSON at byte 26: '[' where nothing more is expected'`, "-"},
		{"§1.5 no array", "PUT", put, `{"key":"k","value":"v"}`, nil, 400, `10012 bulk put keys: 'the body is not as this call takes it: it is an object, not an array'`, "-"},
		{"§1.5 deep", "PUT", put, `[{"key":"k","value":"v","x":` + deep + `}]`, nil, 400, `10012 bulk put keys: 'the body is not JSON at byte 1028: nested deeper than 1000 levels'`, "-"},
		{"§1.5 half a surrogate pair", "PUT", put, `[{"key":"k","value":"\ud800"}]`, nil, 400, `10012 bulk put keys: 'the body is not as this call takes it: it is not valid Unicode: half a surrogate pair, or bytes that are not UTF-8'`, "-"},
		{"§1.5 delete", "POST", del, `["k","none","k"]`, nil, 200, done(2, ""), "-"},
		{"§0.11 wrangler's delete", "DELETE", put, `["k","none"]`, nil, 200, done(2, ""), "-"},
		{"§1.5 empty delete", "POST", del, `[]`, nil, 200, done(0, ""), "seed|1|0"},
		{"§1.5 10,000", "POST", del, names(10_000), nil, 200, done(1, ""), ""},
		{"§1.5 10,001", "POST", del, names(10_001), nil, 400, "10029 bulk remove keys: 'You can request a maximum of 10000 keys'", "seed|1|0"},
		{"§1.5 10,001", "PUT", put, "[" + strings.TrimSuffix(strings.Repeat(`{"key":"k","value":"v"},`, 10_001), ",") + "]", nil, 400, "10029 bulk put keys: 'You can request a maximum of 10000 keys'", "-"},
		{"§1.5 all or nothing: delete", "POST", del, `["k",""]`, nil, 400, "10029 bulk remove keys: 'Key names must not be empty'", "seed|1|0"},
		{"§1.5 delete: type", "DELETE", put, `["k",1]`, nil, 400, "10012 bulk remove keys: 'the body is not as this call takes it: it is a number, not a string'", "seed|1|0"},
		// §1.5 bulk get
		{"§1.5 get", "POST", "/{ns}/bulk/get", `{"keys":["k","none","k","expired"]}`, nil, 200, okJSON(`{"values":{"k":"seed","none":null,"expired":null}}`), ""},
		{"§1.5 with metadata", "POST", "/{ns}/bulk/get", `{"keys":["k","none","soon","obj"],"withMetadata":true}`, nil, 200, okJSON(`{"values":{"k":{"value":"seed","metadata":1},"none":null,"soon":{"value":"s","metadata":null,"expiration":1900000100},"obj":{"value":" {\"a\":1.50} ","metadata":null}}}`), ""},
		{"§1.5 json", "POST", "/{ns}/bulk/get", `{"keys":["obj","num"],"type":"json"}`, nil, 200, okJSON(`{"values":{"obj":{"a":1.50},"num":7}}`), ""},
		{"§1.8 10029 json", "POST", "/{ns}/bulk/get", `{"keys":["obj","k"],"type":"json"}`, nil, 400, "10029 bulk get keys: 'At least one of the requested keys corresponds to a non-json value'", ""},
		{"§1.8 10029 text", "POST", "/{ns}/bulk/get", `{"keys":["k","bin"]}`, nil, 400, "10029 bulk get keys: 'At least one of the requested keys corresponds to a non-text value'", ""},
		{"§1.8 10029 101 keys", "POST", "/{ns}/bulk/get", keys(101), nil, 400, "10029 bulk get keys: 'You can request a maximum of 100 keys'", ""},
		{"§1.8 10029 no keys", "POST", "/{ns}/bulk/get", keys(0), nil, 400, "10029 bulk get keys: 'You must request a minimum of 1 key'", ""},
		{"§1.8 10029 no keys", "POST", "/{ns}/bulk/get", `{}`, nil, 400, "10029 bulk get keys: 'You must request a minimum of 1 key'", ""},
		{"§2.5 type", "POST", "/{ns}/bulk/get", `{"keys":["k"],"type":"stream"}`, nil, 400, `10029 bulk get keys: '"stream" is not a valid type. Use "json" or "text"'`, ""},
		{"§2.5 25 MB", "POST", "/{ns}/bulk/get", `{"keys":["big1","big2"]}`, nil, 413, `10029 bulk get keys: 'Total size of request exceeds the limit of 25MB'`, ""},
		{"§1.8 10013", "POST", base + "/" + nsNone + "/bulk/get", keys(1), nil, 404, "10013 bulk get keys: 'namespace not found'", ""},
		{"§1.8 10405", "GET", "/{ns}/bulk", "", nil, 405, "10405 GET method not allowed for the api_token authentication scheme", ""},
	} {
		for _, stream := range []bool{false, true} {
			r := newRig(t)
			r.stream = stream
			if g.method != "PUT" {
				r.seed("k", "seed", "1", 0)
			}
			r.seed("soon", "s", "", 1_900_000_100)
			r.seed("expired", "s", "", 1_900_000_000)
			r.seed("obj", ` {"a":1.50} `, "", 0)
			r.seed("num", `7`, "", 0)
			r.seed("bin", "\xff", "", 0)
			if strings.Contains(g.body, "big1") {
				r.seed("big1", strings.Repeat("x", kv.MaxValueBytes/2), "", 0)
				r.seed("big2", strings.Repeat("x", kv.MaxValueBytes/2+1), "", 0)
			}
			before := r.written
			g.run(t, r)
			if g.status >= 400 && r.written != before {
				t.Errorf("%s: refused, and %d keys were written", g.clause, r.written-before)
			}
		}
	}
}
