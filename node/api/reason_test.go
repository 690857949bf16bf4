package api

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// phrases is a handler that gives phrases by say.
func phrases(say func(r *http.Request, status int, text string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		switch r.URL.Path {
		case "/said":
			say(r, 400, "Invalid cache_ttl of 1.")
			http.Error(w, "HTTP/1.1 400 Bad Request\r\n", 400) // its body is none of a status line
		case "/other": // as an answer that fails on its way
			say(r, 400, "not this one")
			w.WriteHeader(503)
		case "/silent":
			w.WriteHeader(400)
		case "/dropped": // it never begins
			say(r, 400, "leaks")
			panic(http.ErrAbortHandler)
		case "/large": // head and body come in many writes
			say(r, 200, "Large")
			w.Header().Set("X-Long", strings.Repeat("h", 6000))
			_, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\n"+strings.Repeat("b", 9000)) // a failure shows in the comparison
		case "/read": // a client waits for 100 meanwhile
			say(r, 201, "Read")
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(201)
		case "/odd":
			say(r, 404, "a\r\nX: y\x00\x7f\u2028 ü€ \xff\t.")
			w.WriteHeader(404)
		case "/long":
			say(r, 404, strings.Repeat("ü", 400))
			w.WriteHeader(404)
		}
	}
}

// TestReason compares what is on the wire with what it would be without phrases, byte for byte. Requests are pipelined, so
// the connection has to stay in step.
func TestReason(t *testing.T) {
	plain := serveHandler(t, phrases(func(*http.Request, int, string) {}), ServerOptions{})
	said := serveHandler(t, phrases(SetReason), ServerOptions{})
	const end = " HTTP/1.1\r\nHost: x\r\n\r\n"
	const last = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	for _, tc := range []struct{ name, send, old, phrase string }{
		{
			"pipelined", "GET /said" + end + "HEAD /said" + end + "GET /" + end + "GET /other" + end + "GET /" + end +
				"POST /said HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + "GET /" + last,
			"HTTP/1.1 400 Bad Request\r\nCon", "HTTP/1.1 400 Invalid cache_ttl of 1.\r\nCon",
		},
		{"another status", "GET /other" + end + "GET /said" + last, "400 Bad Request\r\nCon", "400 Invalid cache_ttl of 1.\r\nCon"},
		{"left over", "GET /other" + end + "GET /silent" + end + "GET /said" + last, "400 Bad Request\r\nContent-Type", "400 Invalid cache_ttl of 1.\r\nContent-Type"},
		{"HTTP/1.0", "GET /odd HTTP/1.0\r\n\r\n", "HTTP/1.0 404 Not Found", "HTTP/1.0 404 a  X: y    ü€ � ."},
		{"long", "GET /long" + end + "GET /" + last, "Not Found", strings.Repeat("ü", 254) + "…"},
		{"many writes", "GET /large" + end + "GET /" + last, "HTTP/1.1 200 OK\r\nX", "HTTP/1.1 200 Large\r\nX"},
		{
			"100 comes first", "POST /read HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + "GET /" + last,
			"Created", "Read",
		},
		{"a request that net/http refuses", "GET /said" + end + "GET /%zz" + end, "Bad Request\r\nContent-Type: text", "Invalid cache_ttl of 1.\r\nContent-Type: text"},
		{"dropped", "GET /dropped" + end, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := exchange(t, plain, tc.send)
			if tc.name != "dropped" && !strings.Contains(want, tc.old) {
				t.Fatalf("without a phrase: %q", want)
			}
			want = strings.ReplaceAll(want, tc.old, tc.phrase)
			if got := exchange(t, said, tc.send); got != want {
				t.Errorf("got\n%.2000q, want\n%.2000q", got, want)
			}
		})
	}
}

// exchange sends bytes on a connection of their own and returns everything that comes back until it is closed.
func exchange(t *testing.T, addr, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // what was to be read has been
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %q: %v", got, err)
	}
	return string(got)
}

// Without a connection of LimitListener there is no phrase, and nothing fails.
func TestReasonWithoutConnection(t *testing.T) {
	r := newRig(t)
	r.h = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		SetReason(req, 400, "text")
		w.WriteHeader(400)
	})
	if w := r.do("GET", "/", ""); w.Code != 400 {
		t.Error(w.Code)
	}
}
