package hitpath

import (
	"testing"

	"kvmesh/node/api"
)

// BenchmarkHit is a hit without the kernel: everything from the bytes of a request to the bytes of its answer.
func BenchmarkHit(b *testing.B) {
	f := newFake()
	h, counts := surfaces(f, nil, nil)
	s := New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Accepts: checker{}.accepts, Counts: counts,
	})
	for _, bc := range []struct{ name, text string }{
		{"wrk", get("/v1/kv/default/k", auth)},
		{"browser", get("/v1/kv/default/k", auth,
			"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n",
			"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n",
			"Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nReferer: http://localhost:8580/\r\n")},
		{"binding", get("/k?urlencoded=true", auth, "Kv-Namespace: default\r\n")},
	} {
		b.Run(bc.name, func(b *testing.B) {
			taken, _ := api.Take(limited(b))
			c := newConn(s, taken)
			c.in = new([readBytes]byte)
			b.ReportAllocs()
			for b.Loop() {
				c.start, c.end = 0, copy(c.in[:], bc.text)
				if why, ok := c.answerAll(); !ok || why != "" || !c.flush() {
					b.Fatal(why, ok)
				}
			}
		})
	}
}
