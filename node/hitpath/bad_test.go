package hitpath

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestPauses cuts requests at every byte and goes on after a pause: one that is below the limit changes nothing, one that is
// above it ends the connection, for the first request of a connection as for a later one.
func TestPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Server, _ *fake, l pipes) {
		text := get("/v1/kv/default/k", "Accept: */*\r\n")
		for at := 1; at < len(text); at++ {
			for _, later := range []bool{false, true} {
				if later && at < leastUnread { // as net/http, which does not look at less: these wait as an idle connection does
					continue
				}
				c := l.dial()
				if later {
					ask(t, c, text)
					time.Sleep(time.Minute)
				}
				send(t, c, text[:at])
				time.Sleep(9 * time.Second)
				if got := ask(t, c, text[at:]); got != "200 OK value of k" {
					t.Fatalf("cut after %d bytes: %q", at, got)
				}
				_ = c.Close() // it was answered

				if c = l.dial(); later {
					ask(t, c, text)
				}
				send(t, c, text[:at])
				within(t, closedAfter(t, c), 10*time.Second)
			}
		}
	})
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// TestNeverReading: a client that does not take its answer is cut by the limit of a write, whoever writes: the path, a handler on
// the path, or net/http. Others are answered meanwhile.
func TestNeverReading(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Server, _ *fake, l pipes) {
		well := l.dial()
		for _, text := range []string{
			get("/v1/kv/default/k"), get("/v1/kv/default/300K"), get("/v1/kv/default/stream"),
			get("/v1/kv/default/300K", "Range: bytes=1-\r\n"), get("/v1/kv/default/stream", "Range: bytes=1-\r\n"),
		} {
			deaf := l.dial()
			began := time.Now()
			send(t, deaf, text)
			for isOpen(t, deaf) {
				if got := ask(t, well, get("/v1/kv/default/k")); got != "200 OK value of k" {
					t.Fatal(got)
				}
				time.Sleep(time.Second)
			}
			within(t, time.Since(began), 30*time.Second)
			// One that has taken a part of it has as long for the next.
			part := l.dial()
			send(t, part, text)
			if _, err := io.ReadFull(part, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			for isOpen(t, part) {
				time.Sleep(time.Second)
			}
			within(t, time.Since(began), 30*time.Second)
		}
		_ = well.Close() // it was answered
	})
}

// isOpen reports whether the server has not closed c. What it writes for that nobody reads, or it is a byte of a next request.
func isOpen(t *testing.T, c net.Conn) bool {
	t.Helper()
	err := c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if err == nil {
		_, err = c.Write([]byte("G"))
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	return !errors.Is(err, io.ErrClosedPipe)
}

// TestHalfClosed: who has asked and ends its side is answered, and then the connection ends, on the path and by net/http.
func TestHalfClosed(t *testing.T) {
	p := newPair(t, false)
	for _, text := range []string{
		get("/v1/kv/default/k"), get("/v1/kv/default/300K"), get("/v1/kv/default/stream"), get("/v1/kv/default/none"),
		get("/v1/kv/default/missed"), get("/v1/kv/default/300K", "Range: bytes=1-\r\n"), get("/v1/kv/default"),
	} {
		got := p.same(t, []byte(text))
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n == 0 || err != nil {
			t.Errorf("%q: %d bytes, %v", text, n, err)
		}
	}
}
