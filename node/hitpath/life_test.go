package hitpath

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/api"
)

// pipes is a listener whose connections are net.Pipes, which work in virtual time.
type pipes struct{ *listener }

func (l pipes) dial() net.Conn {
	client, server := net.Pipe()
	if err := client.SetDeadline(time.Now().Add(time.Hour)); err != nil { // so that a server that never cuts is noticed
		panic(err)
	}
	l.conns <- server
	return client
}

// inBubble runs a path in virtual time.
func inBubble(t *testing.T, test func(t *testing.T, s *Server, f *fake, l pipes)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		h, counts := surfaces(f, nil, nil)
		s := New(Options{Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Counts: counts})
		l := pipes{newListener()}
		done := make(chan error, 1)
		go func() { done <- s.Serve(api.LimitListener(l, 3)) }()
		test(t, s, f, l)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// ask sends text and reads one answer.
func ask(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status + " " + string(body)
}

// closedAfter waits for the server to close c and returns how long that took.
func closedAfter(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if n, err := io.Copy(io.Discard, c); n > 0 || err != nil {
		t.Fatalf("%d bytes came, then: %v", n, err)
	}
	return time.Since(began)
}

// within fails unless the path cut a connection at its limit, or soon after.
func within(t *testing.T, got, limit time.Duration) {
	t.Helper()
	if got < limit || got > limit+2*time.Second {
		t.Errorf("the connection was closed after %v, want %v", got, limit)
	}
}

func TestLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Server, _ *fake, l pipes) {
		silent := l.dial()
		within(t, closedAfter(t, silent), 10*time.Second)

		idle := l.dial()
		for range 3 {
			if got := ask(t, idle, get("/v1/kv/default/k")); got != "200 OK value of k" {
				t.Fatal(got)
			}
			time.Sleep(80 * time.Second)
		}
		if got := ask(t, idle, get("/v1/kv/default/k")); got != "200 OK value of k" {
			t.Fatal(got)
		}
		within(t, closedAfter(t, idle), 90*time.Second)

		// One byte a second: the head has to be whole in time, however steadily it comes.
		slow := l.dial()
		began := time.Now()
		for _, b := range []byte(get("/v1/kv/default/k")) {
			if _, err := slow.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		within(t, time.Since(began), 10*time.Second)

		// The same after an answer; here the head begins 40 seconds later.
		slow = l.dial()
		ask(t, slow, get("/v1/kv/default/k"))
		time.Sleep(40 * time.Second)
		if _, err := io.WriteString(slow, "GET /v1"); err != nil {
			t.Fatal(err)
		}
		within(t, closedAfter(t, slow), 10*time.Second)

		// A client that does not read.
		deaf := l.dial()
		if _, err := io.WriteString(deaf, get("/v1/kv/default/300K")); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if _, err := io.WriteString(deaf, "x"); err == nil { // nobody reads this before the answer is taken
			t.Fatal("the path reads on while its answer is not taken")
		}
		within(t, time.Since(began), 30*time.Second)

		// One that reads slowly gets everything.
		patient := l.dial()
		if _, err := io.WriteString(patient, get("/v1/kv/default/300K")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReaderSize(patient, 16), nil)
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for {
			time.Sleep(25 * time.Second)
			n, err := io.CopyN(io.Discard, resp.Body, pieceBytes)
			if total += n; err != nil {
				break
			}
		}
		if total != 300<<10 {
			t.Errorf("a slow reader got %d bytes", total)
		}
	})
}

// TestWaiting: a read that waits for a fill is not cut, and stays.
func TestWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, f *fake, l pipes) {
		c := l.dial()
		if _, err := io.WriteString(c, get("/v1/kv/default/slow")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Second)
		close(f.waiting)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatal(resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if got := ask(t, c, get("/v1/kv/default/k")); got != "200 OK value of k" || f.hits.Load() != 1 {
			t.Errorf("after a miss: %q, %d hits", got, f.hits.Load())
		}
	})
}

// TestConnectionLimit: those that the path has and those that it has handed over count as one.
func TestConnectionLimit(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Server, _ *fake, l pipes) {
		var all []net.Conn
		for i := range 3 {
			c := l.dial()
			if got := ask(t, c, get([]string{"/v1/kv/default/k", "/v1/kv/default"}[i%2])); !strings.HasPrefix(got, "200 OK") {
				t.Fatal(got)
			}
			all = append(all, c)
		}
		fourth := l.dial()
		if got := ask(t, fourth, get("/v1/kv/default/k")); !strings.HasPrefix(got, "503 Service Unavailable") {
			t.Fatalf("a fourth connection is answered %q", got)
		}
		_ = fourth.Close() // so has the node
		if err := all[1].Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c := l.dial()
		if got := ask(t, c, get("/v1/kv/default/k")); got != "200 OK value of k" {
			t.Fatal(got)
		}
		for _, c := range append(all, c) {
			_ = c.Close() // one is closed already
		}
	})
}

// TestShutdown: idle connections are closed at once, a request that is being answered is answered.
func TestShutdown(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, f *fake, l pipes) {
		idle, fresh, busy := l.dial(), l.dial(), l.dial()
		ask(t, idle, get("/v1/kv/default/k"))
		if _, err := io.WriteString(busy, get("/v1/kv/default/slow")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		closedAfter(t, idle)
		closedAfter(t, fresh)
		if d := time.Since(began); d > 0 {
			t.Errorf("idle connections are closed after %v", d)
		}
		time.Sleep(3 * time.Second)
		close(f.waiting)
		resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatal(resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		closedAfter(t, busy)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestShutdownInVain: what does not end in time is cut.
func TestShutdownInVain(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, _ *fake, l pipes) {
		busy := l.dial()
		if _, err := io.WriteString(busy, get("/v1/kv/default/slow")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		closedAfter(t, busy)
	})
}

// TestDrain: whoever asks while the node drains is answered by net/http.
func TestDrain(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, f *fake, l pipes) {
		c := l.dial()
		ask(t, c, get("/v1/kv/default/k"))
		s.Drain()
		if got := ask(t, c, get("/v1/kv/default/k")); got != "200 OK value of k" || f.hits.Load() != 1 {
			t.Errorf("%q, %d hits", got, f.hits.Load())
		}
		_ = c.Close()
	})
}

// TestHitDoesNotAllocate reads as a connection does, without the connection.
func TestHitDoesNotAllocate(t *testing.T) {
	f := newFake()
	h, counts := surfaces(f, nil, nil)
	s := New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Accepts: checker{}.accepts, Counts: counts,
	})
	for _, text := range []string{
		get("/v1/kv/default/k", auth), get("/v1/kv/default/meta", auth), get("/v1/kv/default/%6B", auth),
		get("/v1/kv/default/20K", auth), get("/k?urlencoded=true", "Kv-Namespace: default\r\n", auth),
		get("/client/v4/accounts/acc/storage/kv/namespaces/"+spaceID+"/values/exp", auth),
		strings.Replace(get("/v1/kv/default/k", auth), "GET", "HEAD", 1),
	} {
		taken, _ := api.Take(limited(t))
		c := newConn(s, taken)
		c.in = new([readBytes]byte)
		before := f.hits.Load()
		n := testing.AllocsPerRun(100, func() {
			c.start, c.end = 0, copy(c.in[:], text)
			if why, ok := c.answerAll(); !ok || why != "" || !c.flush() {
				t.Fatal(why, ok)
			}
		})
		if n != 0 || f.hits.Load() == before {
			t.Errorf("%q: %v allocations, %d hits", text, n, f.hits.Load()-before)
		}
	}
}

// limited is a connection of a LimitListener that takes everything.
func limited(t testing.TB) net.Conn {
	t.Helper()
	l := newListener()
	c := make(chan net.Conn, 1)
	go func() {
		nc, err := api.LimitListener(l, 1).Accept()
		if err != nil {
			panic(err)
		}
		c <- nc
	}()
	l.conns <- sink{&scripted{closed: make(chan struct{})}}
	return <-c
}

type sink struct{ *scripted }

func (sink) Write(p []byte) (int, error) { return len(p), nil }
