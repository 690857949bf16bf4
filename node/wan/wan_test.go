package wan

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"kvmesh/node/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const far = "far:1"

// pipe returns a connection with 40 ms of delay each way, and its undelayed other end.
func pipe(t *testing.T) (s *Shaper, near, other net.Conn) {
	t.Helper()
	s = New(DefaultMatrix(map[string]string{far: "eu-west", "here:1": "us-east"}), "us-east")
	a, b := net.Pipe()
	t.Cleanup(s.Close)
	return s, s.WrapConn(a, far), b
}

const oneWay = 40 * time.Millisecond

func TestMatrix(t *testing.T) {
	m := DefaultMatrix(map[string]string{"a": "us-east", "b": "eu-west", "c": "ap-south", "d": "mars"})
	for _, tc := range []struct {
		from, addr string
		want       time.Duration
	}{
		{"us-east", "a", 0},
		{"us-east", "b", 40 * time.Millisecond},
		{"eu-west", "a", 40 * time.Millisecond},
		{"us-east", "c", 100 * time.Millisecond},
		{"ap-south", "b", 60 * time.Millisecond},
		{"ap-south", "d", 75 * time.Millisecond},
		{"mars", "d", 0},
		{"mars", "unknown", 0},
	} {
		if got := New(m, tc.from).Delay(tc.addr); got != tc.want {
			t.Errorf("from %s to %s: %v, want %v", tc.from, tc.addr, got, tc.want)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got := New(m, "us-east").WrapConn(a, "a"); got != a {
		t.Error("a connection within the region is wrapped")
	}
	m.Within = time.Millisecond
	if s := New(m, "mars"); s.Delay("d") != m.Within/2 || s.Delay("unknown") != 0 {
		t.Errorf("within a region: %v, to an unknown address: %v", s.Delay("d"), s.Delay("unknown"))
	}
}

func TestBothDirectionsAreDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, other := pipe(t)
		begin := time.Now()
		if _, err := near.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("Write took %v; it must not wait for the delay", d)
		}
		buf := make([]byte, 8)
		if n, err := other.Read(buf); err != nil || string(buf[:n]) != "ping" {
			t.Fatal(n, err)
		}
		if d := time.Since(begin); d != oneWay {
			t.Errorf("the bytes arrived after %v, want %v", d, oneWay)
		}
		if _, err := other.Write([]byte("pong")); err != nil {
			t.Fatal(err)
		}
		if n, err := near.Read(buf); err != nil || string(buf[:n]) != "pong" {
			t.Fatal(n, err)
		}
		if d := time.Since(begin); d != 2*oneWay {
			t.Errorf("the answer arrived after %v, want %v", d, 2*oneWay)
		}
	})
}

// Delay is not bandwidth: what is written at once arrives at once, in order, and bit for bit.
func TestPiecesTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, other := pipe(t)
		want := make([]byte, 3<<20)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		begin := time.Now()
		go func() {
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(100_000))
				if _, err := near.Write(rest[:n]); err != nil {
					t.Error(err)
				}
				rest = rest[n:]
			}
			_ = near.Close()
		}()
		got, err := io.ReadAll(other)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
		}
		if d := time.Since(begin); d != oneWay {
			t.Errorf("3 MiB took %v, want %v", d, oneWay)
		}
	})
}

func TestTheEndArrivesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, other := pipe(t)
		begin := time.Now()
		if _, err := other.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		_ = other.Close()
		got, err := io.ReadAll(near)
		if err != nil || string(got) != "last words" {
			t.Fatalf("%q, %v", got, err)
		}
		if d := time.Since(begin); d != oneWay+time.Millisecond {
			t.Errorf("the end arrived after %v, want %v", d, oneWay+time.Millisecond)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, other := pipe(t)
		go func() { _, _ = other.Write([]byte("x")) }()
		begin := time.Now()
		_ = near.SetReadDeadline(begin.Add(oneWay - 1))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("just before the bytes arrive: %v", err)
		}
		if d := time.Since(begin); d != oneWay-1 {
			t.Errorf("timed out after %v", d)
		}
		var timeout net.Error
		_, err := near.Read(make([]byte, 1))
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the deadline does not last: %v", err)
		}
		_ = near.SetReadDeadline(time.Time{})
		if n, err := near.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("after the deadline was taken back: %d, %v", n, err)
		}
		if d := time.Since(begin); d != oneWay {
			t.Errorf("the byte arrived after %v", d)
		}
		// A deadline in the past wakes a reader that is waiting.
		woken := make(chan error)
		go func() { _, err := near.Read(make([]byte, 1)); woken <- err }()
		synctest.Wait()
		_ = near.SetDeadline(time.Unix(1, 0))
		if err := <-woken; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the waiting reader: %v", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write past the deadline: %v", err)
		}
	})
}

// A receiver that takes nothing must not make the sender's memory grow.
func TestTheBufferIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, _ := pipe(t)
		_ = near.SetWriteDeadline(time.Now().Add(time.Hour))
		n, err := near.Write(make([]byte, 4*maxOnTheWay))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n < maxOnTheWay/2 || n > 2*maxOnTheWay {
			t.Errorf("%d bytes were taken, %v; want about %d and a timeout", n, err, maxOnTheWay)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, near, other := pipe(t)
		if _, err := near.Write([]byte("goodbye")); err != nil {
			t.Fatal(err)
		}
		read := make(chan error)
		go func() { _, err := near.Read(make([]byte, 1)); read <- err }()
		synctest.Wait()
		begin := time.Now()
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the waiting reader: %v", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		got, err := io.ReadAll(other)
		if err != nil || string(got) != "goodbye" || time.Since(begin) != oneWay {
			t.Errorf("the other side got %q, %v after %v; Close must not drop what was written", got, err, time.Since(begin))
		}
		if err := near.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		s.Close()
	})
}

// The other side reads nothing: what was written before Close is given up after a while, and nothing is left running.
func TestCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, near, _ := pipe(t)
		if _, err := near.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_ = near.Close()
		s.wg.Wait()
		if d := time.Since(begin); d != oneWay+lingerTimeout {
			t.Errorf("given up after %v, want %v", d, oneWay+lingerTimeout)
		}
	})
}

func TestShaperCloseCutsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, near, other := pipe(t)
		if _, err := near.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if got, err := io.ReadAll(other); len(got) != 0 || err != nil {
			t.Errorf("the other side got %q, %v", got, err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		a, b := net.Pipe()
		late := s.WrapConn(a, far)
		if _, err := late.Write([]byte("x")); err == nil {
			t.Error("a connection made after Close works")
		}
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("its other end: %v", err)
		}
	})
}

func TestTLSOnTop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, near, other := pipe(t)
		key := certs.NewMeshKey()
		a, err := key.Authority()
		if err != nil {
			t.Fatal(err)
		}
		issue := func(id string) tls.Certificate {
			c, err := a.Issue(id, certs.RoleEdge)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		server := tls.Server(other, a.ServerConfig(issue("server"), "p/1"))
		client := tls.Client(near, a.ClientConfig(issue("client"), "server", "p/1"))
		served := make(chan error)
		go func() {
			_, err := io.Copy(server, server) // echo, until the client's goodbye
			_ = server.Close()
			served <- err
		}()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := a.Handshake(ctx, client); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 2*oneWay {
			t.Errorf("the client's handshake took %v, want one round trip", d)
		}
		want := bytes.Repeat([]byte("0123456789"), 50_000)
		go func() { _, _ = client.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
			t.Fatal("the echo differs", err)
		}
		_ = client.Close()
		if err := <-served; err != nil {
			t.Errorf("the server's end: %v", err)
		}
	})
}
