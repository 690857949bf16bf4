package hitpath

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
)

// How a request must have been answered.
const (
	hit    = "hit"    // from memory
	stays  = "stays"  // by the handlers, on this connection
	leaves = "leaves" // by net/http
)

// auth is a header that lets a request in.
const auth = "Authorization: Bearer " + token + "\r\n"

// get is a request with these headers, each with its end of line.
func get(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: example.com:8580\r\n" + strings.Join(headers, "") + "\r\n"
}

// requests are one request each, and what must become of it behind a token.
func requests() []struct{ name, text, how string } {
	const native, rest = "/v1/kv/default/", "/client/v4/accounts/acc/storage/kv/namespaces/" + spaceID + "/values/"
	const bound = "Kv-Namespace: default\r\n"
	all := []struct{ name, text, how string }{
		{"titles", get("/v1/kv/default/k", auth), hit},
		{"ids", get("/v1/kv/"+spaceID+"/k", auth), hit},
		{"capital ids", get("/v1/kv/"+strings.ToUpper(spaceID)+"/k", auth), stays},
		{"headers", get(native+"k", auth, "User-Agent: a/1 (b; c)\r\nAccept: */*\r\nACCEPT-encoding:gzip\r\nX-Request-Id:\t7 \t\r\n"), hit},
		{"keep-alive", get(native+"k", auth, "Connection: Keep-Alive\r\n"), hit},
		{"small scheme", get(native+"k", "authorization: bearer "+token+"\r\n"), stays},
		{"no token", get(native + "k"), stays},
		{"another token", get(native+"k", "Authorization: Bearer nobody's\r\n"), stays},
		{"two tokens", get(native+"k", auth, auth), stays},
		{"unknown namespace", get("/v1/kv/nobody/k", auth), stays},
		{"no namespace", get("/v1/kv//k", auth), stays},
		{"escaped namespace", get("/v1/kv/def%61ult/k", auth), leaves},
		{"no key", get("/v1/kv/default/", auth), leaves},
		{"list", get("/v1/kv/default", auth), leaves},
		{"dots", get(native+"..", auth), stays},
		{"longer than a key", get(native+strings.Repeat("k", 513), auth), stays},
		{"longer than a key, escaped", get(native+strings.Repeat("%6b", 513), auth), stays},
		{"cache_ttl", get(native+"k?cache_ttl=2", auth), hit},
		{"cache_ttl below the age", get(native+"k?cache_ttl=1", auth), stays},
		{"cache_ttl of 0", get(native+"now?cache_ttl=0", auth), hit},
		{"cache_ttl with zeros", get(native+"aged?cache_ttl=000000060", auth), hit},
		{"long cache_ttl", get(native+"older?cache_ttl=999999999", auth), hit},
		{"longer cache_ttl", get(native+"older?cache_ttl=18446744073709551617", auth), stays},
		{"negative cache_ttl", get(native+"now?cache_ttl=-1", auth), stays},
		{"cache_ttl and more", get(native+"k?cache_ttl=60&consistency=strong", auth), stays},
		{"two cache_ttl", get(native+"k?cache_ttl=60&cache_ttl=60", auth), stays},
		{"empty cache_ttl", get(native+"k?cache_ttl=", auth), stays},
		{"bad cache_ttl", get(native+"k?cache_ttl=x", auth), stays},
		{"unknown parameter", get(native+"k?cachettl=60", auth), stays},
		{"no parameter", get(native+"k?", auth), stays},
		{"bad escape in the query", get(native+"k?a=%zz", auth), stays},
		{"strong", get(native+"k?consistency=strong", auth), stays},
		{"bounded", get(native+"k", auth, "Kv-Max-Staleness: 1000\r\n"), stays},
		{"badly bounded", get(native+"k", auth, "Kv-Max-Staleness: soon\r\n"), stays},
		{"timing", get(native+"k", auth, "Kv-Timing: 1\r\n"), stays},
		{"timing of nothing", get(native+"none", auth, "Kv-Timing: 1\r\n"), stays},
		{"timing of a stream", get(native+"stream", auth, "kv-timing: 1\r\n"), stays},
		{"bad timing", get(native+"k", auth, "Kv-Timing: yes\r\n"), stays},
		{"two timings", get(native+"k", auth, "Kv-Timing: 1\r\nKv-Timing: 1\r\n"), stays},
		{"bookmark", get(native+"k", auth, "Kv-Bookmark: "+epoch.String()+".12\r\n"), stays},
		{"key by another name", get(native+"k", "X-Auth-Key: "+token+"\r\n"), stays},
		{"bad escape", get(native+"k%zz", auth), leaves},
		{"escape cut off", get(native+"k%2", auth), leaves},
		{"fragment", get(native+"k#x", auth), leaves},
		{"quotes", get(native+`"k"`, auth), leaves},
		{"raw UTF-8", get(native+"ü", auth), leaves},
		{"whole URL", get("http://example.com"+native+"k", auth), leaves},
		{"other path", get("/v1/kvx/default/k", auth), leaves},
		{"encoded path", get("/v1/%6bv/default/k", auth), leaves},
		{"cluster", get("/v2/cluster", auth), leaves},
		{"root", get("/", auth), leaves},
		{"unknown header", get(native+"k", auth, "Nobody-Knows: this\r\n"), leaves},
		{"range", get(native+"k", auth, "Range: bytes=1-3\r\n"), leaves},
		{"condition", get(native+"k", auth, "If-None-Match: *\r\n"), leaves},
		{"condition that fails", get(native+"k", auth, "If-Match: \"x\"\r\n"), leaves},
		{"expect", get(native+"k", auth, "Expect: 100-continue\r\n"), leaves},
		{"expect nonsense", get(native+"k", auth, "Expect: nonsense\r\n"), leaves},
		{"upgrade", get(native+"k", auth, "Connection: Upgrade\r\nUpgrade: h2c\r\n"), leaves},
		{"close", get(native+"k", auth, "Connection: close\r\n"), leaves},
		{"more than keep-alive", get(native+"k", auth, "Connection: keep-alive, close\r\n"), leaves},
		{"body", get(native+"k", auth, "Content-Length: 5\r\n") + "hello", leaves},
		{"no body", get(native+"k", auth, "Content-Length: 0\r\n"), leaves},
		{"chunked", get(native+"k", auth, "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", leaves},
		{"body that is a request", get(native+"k", auth, "Content-Length: 96\r\n") + get(native+"a/b", auth), leaves},
		{"HTTP/1.0", strings.Replace(get(native+"k", auth), "/1.1", "/1.0", 1), leaves},
		{"HTTP/1.2", strings.Replace(get(native+"k", auth), "/1.1", "/1.2", 1), leaves},
		{"HTTP/2.0", strings.Replace(get(native+"k", auth), "/1.1", "/2.0", 1), leaves},
		{"preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", leaves},
		{"no version", "GET /v1/kv/default/k\r\n\r\n", leaves},
		{"two spaces", strings.Replace(get(native+"k", auth), "GET ", "GET  ", 1), leaves},
		{"small method", strings.Replace(get(native+"k", auth), "GET", "get", 1), leaves},
		{"put", strings.Replace(get(native+"k", auth, "Content-Length: 1\r\n"), "GET", "PUT", 1) + "v", leaves},
		{"options", strings.Replace(get("*", auth), "GET", "OPTIONS", 1), leaves},
		{"no host", "GET /v1/kv/default/k HTTP/1.1\r\n" + auth + "\r\n", leaves},
		{"empty host", "GET /v1/kv/default/k HTTP/1.1\r\nHost:\r\n" + auth + "\r\n", leaves},
		{"bad host", "GET /v1/kv/default/k HTTP/1.1\r\nHost: a b\r\n" + auth + "\r\n", leaves},
		{"two hosts", get(native+"k", auth, "Host: example.com\r\n"), leaves},
		{"space before the colon", get(native+"k", auth, "X-A : b\r\n"), leaves},
		{"tab before the colon", get(native+"k", auth, "Accept\t: b\r\n"), leaves},
		{"no colon", get(native+"k", auth, "nothing\r\n"), leaves},
		{"no name", get(native+"k", auth, ": nothing\r\n"), leaves},
		{"folded", get(native+"k", auth, "X-A: b\r\n c\r\n"), leaves},
		{"folded host", "GET /v1/kv/default/k HTTP/1.1\r\nHost: a\r\n b\r\n" + auth + "\r\n", leaves},
		{"folded with a tab", get("/k", auth, bound+"\tx\r\n"), leaves},
		{"folded at once", "GET /v1/kv/default/k HTTP/1.1\r\n Host: a\r\n" + auth + "\r\n", leaves},
		{"bare line feeds", strings.ReplaceAll(get(native+"k", auth), "\r\n", "\n"), leaves},
		{"bare line feed hides a condition", get(native+"k", auth, "X-A: b\nIf-None-Match: *\r\n"), leaves},
		{"bare line feed at the end", strings.TrimSuffix(get(native+"k", auth), "\r\n") + "\n", leaves},
		{"bare carriage return", get(native+"k", auth, "X-A: b\rc\r\n"), leaves},
		{"two carriage returns", get(native+"k", auth, "X-A: b\r\r\n"), leaves},
		{"NUL", get(native+"k", auth, "X-A: b\x00c\r\n"), leaves},
		{"DEL", get(native+"k", auth, "X-A: b\x7fc\r\n"), leaves},
		{"Latin-1", get(native+"k", auth, "X-A: b\xfcc\r\n"), leaves},
		{"long value", get(native+"k", auth, "X-A: "+strings.Repeat("a", 3000)+"\r\n"), hit},
		{"too long for the path", get(native+"k", auth, "X-A: "+strings.Repeat("a", 9000)+"\r\n"), leaves},
		{"too long for net/http", get(native+"k", auth, "X-A: "+strings.Repeat("a", 80000)+"\r\n"), leaves},
		{"many headers", get(native+"k", auth, strings.Repeat("X-A: 1\r\n", 12000)), leaves},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", leaves},
		{"empty line", "\r\n", leaves},
		{"line feed", "\n", leaves},
		{"miniflare", get("/v1/miniflare/default", auth, "MF-URL: http://x/k\r\n"), leaves},

		{"REST", get(rest+"k", auth), hit},
		{"REST, key by another name", get(rest+"k", "X-Auth-Key: "+token+"\r\nX-Auth-Email: a@b\r\n"), stays},
		{"REST, no token", get(rest + "k"), stays},
		{"REST, bad scheme", get(rest+"k", "Authorization: Basic x\r\n"), stays},
		{"REST, titles", get(strings.Replace(rest, spaceID, "default", 1)+"k", auth), stays},
		{"REST, other namespace", get(strings.Replace(rest, "0123", "9999", 1)+"k", auth), stays},
		{"REST, long account", get(strings.Replace(rest, "/acc/", "/"+strings.Repeat("a", 33)+"/", 1)+"k", auth), leaves},
		{"REST, no account", get(strings.Replace(rest, "/acc/", "//", 1)+"k", auth), leaves},
		{"REST, no key", get(rest, auth), leaves},
		{"REST, metadata", get(strings.Replace(rest, "/values/", "/metadata/", 1)+"meta", auth), leaves},
		{"REST, timing", get(rest+"k", auth, "Kv-Timing: 1\r\n"), stays},
		{"REST, query", get(rest+"k?x=1", auth), stays},
		{"REST, head", strings.Replace(get(rest+"exp", auth), "GET", "HEAD", 1), hit},
		{"REST, head of nothing", strings.Replace(get(rest+"none", auth), "GET", "HEAD", 1), stays},

		{"binding", get("/k?urlencoded=true", auth, bound), hit},
		{"binding by id", get("/k?urlencoded=true", auth, "KV-namespace: "+spaceID+"\r\n"), hit},
		{"binding, what workerd sends", get("/k?urlencoded=true", auth, bound, "CF-KV-FLPROD-405: https://fake-host/k?urlencoded=true\r\n"), hit},
		{"binding, escaped", get("/a%2Fb?urlencoded=true", auth, bound), hit},
		{"binding, literal", get("/a%2Fb", auth, bound), hit},
		{"binding, literal and bad", get("/a%2", auth, bound), leaves},
		{"binding, cache_ttl", get("/aged?urlencoded=true&cache_ttl=60", auth, bound), hit},
		{"binding, cache_ttl below the age", get("/aged?urlencoded=true&cache_ttl=59", auth, bound), stays},
		{"binding, least cache_ttl", get("/k?urlencoded=true&cache_ttl=30", auth, bound), hit},
		{"binding, small cache_ttl", get("/k?urlencoded=true&cache_ttl=29", auth, bound), stays},
		{"binding, odd cache_ttl", get("/k?urlencoded=true&cache_ttl=60abc", auth, bound), stays},
		{"binding, cache_ttl alone", get("/k?cache_ttl=60", auth, bound), stays},
		{"binding, prefix of a parameter", get("/k?urlencoded=truecache_ttl=60", auth, bound), stays},
		{"binding, two namespaces", get("/k?urlencoded=true", auth, bound, bound), stays},
		{"binding, unknown namespace", get("/k?urlencoded=true", auth, "Kv-Namespace: nobody\r\n"), stays},
		{"binding, empty namespace", get("/k?urlencoded=true", auth, "Kv-Namespace:\r\n"), stays},
		{"binding, no token", get("/k?urlencoded=true", bound), stays},
		{"binding, timing", get("/k?urlencoded=true", auth, bound, "Kv-Timing: 1\r\n"), stays},
		{"binding, native path", get(native+"k", auth, bound), leaves},
		{"binding, list", get("/?prefix=", auth, bound), leaves},
		{"binding, head", strings.Replace(get("/k?urlencoded=true", auth, bound), "GET", "HEAD", 1), leaves},
		{"binding, bounded", get("/k?urlencoded=true", auth, bound, "Kv-Max-Staleness: 5\r\n"), stays},
	}
	// Every value, in every shape.
	add := func(name, text, how string) {
		all = append(all, struct{ name, text, how string }{name, text, how})
	}
	for _, v := range []struct{ key, how, native, binding string }{
		{"a/b", hit, hit, hit},
		{"a%2Fb", hit, hit, hit},
		{"%C3%BC%20z", hit, hit, hit},
		{"%c3%bc%20z", hit, hit, hit},
		{"%6B", hit, hit, hit},
		{"a%252Fb", hit, hit, hit},
		{"k+", hit, hit, hit},
		{"empty", hit, hit, hit},
		{"stale", hit, hit, hit},
		{"now", hit, hit, hit},
		{"aged", hit, hit, hit},
		{"older", stays, stays, stays},
		{"first", hit, hit, hit},
		{"exp", hit, hit, hit},
		{"meta", hit, hit, hit},
		{"uni", hit, stays, hit},
		{"del", hit, stays, stays},
		{"long", hit, hit, hit},
		{"16K", hit, hit, hit},
		{"20K", hit, hit, hit},
		{"300K", hit, hit, hit},
		{"lying", stays, stays, stays},
		{"missed", stays, stays, stays},
		{"gone", stays, stays, stays},
		{"none", stays, stays, stays},
		{"late", stays, stays, stays},
		{"reason", stays, stays, stays},
		{"stream", stays, stays, stays},
		{"failing", stays, stays, stays},
		{"panic", stays, stays, stays},
		{"%FF", stays, stays, stays},
	} {
		add(v.key, get(native+v.key, auth), v.native)
		add("REST "+v.key, get(rest+v.key, auth), v.how)
		if !strings.Contains(v.key, "/") {
			add("binding "+v.key, get("/"+v.key+"?urlencoded=true", auth, bound), v.binding)
		}
		if v.key != "panic" {
			add("head "+v.key, strings.Replace(get(native+v.key, auth), "GET", "HEAD", 1), v.native)
		}
	}
	return all
}

// TestGolden sends every request three times over, whole, and once byte by byte, and holds the answers against net/http's; and
// it holds the path to answering itself what it can.
func TestGolden(t *testing.T) {
	p := newPair(t, true)
	for _, tc := range requests() {
		t.Run(tc.name, func(t *testing.T) {
			before := p.fake.hits.Load()
			handed := p.handed(t)
			p.same(t, []byte(tc.text))
			how := stays
			switch {
			case p.handed(t) > handed:
				how = leaves
			case p.fake.hits.Load() > before:
				how = hit
			}
			if tc.name == "lying" || strings.HasSuffix(tc.name, " lying") || strings.HasSuffix(tc.name, "del") ||
				strings.HasSuffix(tc.name, "uni") {
				how = tc.how // held, and not answered from there
			}
			if how != tc.how {
				t.Errorf("it was answered as %q, want %q", how, tc.how)
			}
			if len(tc.text) > 1<<16 {
				return // net/http takes half a second to refuse it
			}
			p.same(t, []byte(tc.text+tc.text+tc.text))
			if len(tc.text) < 600 {
				p.same(t, bytewise(tc.text)...)
			}
			p.same(t, []byte(get("/v1/kv/default/k", auth)+tc.text), []byte(get("/v1/kv/default/20K", auth)))
		})
	}
}

func bytewise(text string) (pieces [][]byte) {
	for i := range len(text) {
		pieces = append(pieces, []byte{text[i]})
	}
	return pieces
}

// TestBroken compares what cannot be compared byte for byte: how much of an answer comes before it is cut is nobody's
// promise.
func TestBroken(t *testing.T) {
	p := newPair(t, false)
	for _, l := range []*listener{p.fast, p.std} {
		got := l.send(t, [][]byte{[]byte(get("/v1/kv/default/broken") + get("/v1/kv/default/k"))})
		if strings.Count(got, "HTTP/1.1 ") > 1 || strings.Contains(got, "value of k") {
			t.Errorf("an answer that was cut is followed by another: %q", got)
		}
	}
}

// TestOpen is the node without a token.
func TestOpen(t *testing.T) {
	p := newPair(t, false)
	for _, text := range []string{
		get("/v1/kv/default/k"), get("/v1/kv/default/k", "Authorization: Bearer any\r\n"), get("/v1/kv/default/k", auth, auth),
		get("/k?urlencoded=true", "Kv-Namespace: default\r\n"),
	} {
		before := p.fake.hits.Load()
		if p.same(t, []byte(text)); p.fake.hits.Load() == before {
			t.Errorf("%q is not answered from memory", text)
		}
	}
}

// TestCutAnywhere cuts pipelines in two at every byte.
func TestCutAnywhere(t *testing.T) {
	p := newPair(t, true)
	text := get("/v1/kv/default/k", auth) + get("/v1/kv/default/none", auth) + "GET /v1/namespaces HTTP/1.1\r\n"
	for at := range len(text) {
		p.same(t, []byte(text[:at]), []byte(text[at:]))
		p.same(t, []byte(text[:at])) // and ends there
	}
}

// TestPipeline sends more requests at once than any buffer holds.
func TestPipeline(t *testing.T) {
	p := newPair(t, true)
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b.WriteString(get("/v1/kv/default/"+[]string{"k", "meta", "16K", "20K", "empty", "none"}[r.IntN(6)], auth))
	}
	text := b.Bytes()
	p.same(t, text)
	var pieces [][]byte
	for rest := text; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(3000))
		pieces, rest = append(pieces, rest[:n]), rest[n:]
	}
	p.same(t, pieces...)
}

// TestCounts holds what is counted of requests against what net/http alone has counted of the same ones.
func TestCounts(t *testing.T) {
	p := newPair(t, true)
	for _, tc := range requests() {
		if len(tc.text) < 1<<16 {
			p.same(t, []byte(tc.text))
		}
	}
	counted := func(reg *prometheus.Registry) map[string]float64 {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]float64{}
		for _, family := range all {
			if strings.HasPrefix(family.GetName(), "kvmesh_hitpath") {
				continue
			}
			for _, m := range family.GetMetric() {
				name := family.GetName()
				for _, l := range m.GetLabel() {
					switch v := l.GetValue(); v {
					case "4xx", "5xx", "gone": // the client has ended its side, and net/http may see that in time
						name += " failed"
					default:
						name += " " + v
					}
				}
				n[name] += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		return n
	}
	// A route that nobody has asked for is counted as 0 by the one and not at all by the other.
	want := counted(p.stdMetrics)
	for name, n := range counted(p.metrics) {
		if n != want[name] {
			t.Errorf("%s: %v, net/http alone counts %v", name, n, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not counted: %v", want)
	}
}

// TestTCP is the path over real sockets: values of every size to clients that end their side at once, or go away.
func TestTCP(t *testing.T) {
	f := newFake()
	h, counts := surfaces(f, nil, nil)
	s := New(Options{Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Counts: counts})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(api.LimitListener(l, 0)) }()
	text := ""
	keys := []string{"k", "300K", "20K", "16K", "meta", "none", "stream"}
	for _, key := range keys {
		text += get("/v1/kv/default/" + key)
	}
	for i := range 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // it does not wait for the answers
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		for _, key := range keys {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(key, err)
			}
			body, err := io.ReadAll(resp.Body)
			if v := f.held[key]; err != nil || (v.Bytes != nil && string(body) != string(v.Bytes)) {
				t.Fatalf("%s: %d bytes, %v", key, len(body), err)
			}
		}
		if b, err := in.ReadByte(); err != io.EOF {
			t.Errorf("after the last answer: %q, %v", b, err)
		}
		_ = c.Close() // it has ended
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// FuzzDifferential sends any bytes, cut at places that seed chooses, to the path and to net/http alone.
func FuzzDifferential(f *testing.F) {
	for i, tc := range requests() {
		if len(tc.text) < 4000 {
			f.Add([]byte(tc.text+get("/v1/kv/default/k", auth)), uint64(i))
		}
	}
	p := newPair(f, true)
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		if len(data) > 1<<16 || bytes.Contains(data, []byte("broken")) || bytes.Contains(data, []byte("panic")) ||
			bytes.Contains(data, []byte("slow")) {
			return // what comes of it is not the same twice
		}
		r := rand.New(rand.NewPCG(seed, 0))
		var pieces [][]byte
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(1+r.IntN(len(data))))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		p.same(t, pieces...)
	})
}
