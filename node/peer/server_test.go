package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// echo answers every frame with its own payload, and its type byte with the connection's protocol.
func echo(tag byte) func(context.Context, *Conn) {
	return func(_ context.Context, c *Conn) {
		for {
			_, p, err := ReadFrame(c, nil)
			if err != nil || WriteFrame(c, tag, p) != nil {
				return
			}
		}
	}
}

// ask sends one frame and returns the type of the answer.
func ask(t *testing.T, c net.Conn, payload string) (byte, error) {
	t.Helper()
	if err := WriteFrame(c, 0, []byte(payload)); err != nil {
		return 0, err
	}
	typ, p, err := ReadFrame(c, nil)
	if err == nil && string(p) != payload {
		t.Errorf("the echo of %q is %q", payload, p)
	}
	return typ, err
}

func TestALPNChooses(t *testing.T) {
	m := newMesh(t, false)
	m.server("n1", Options{}, func(s *Server) {
		s.Handle(ALPNFeed, nil, echo('f'))
		s.Handle(ALPNBlob, nil, echo('b'))
	})
	d := m.dialer("caller", certs.RoleEdge)
	for alpn, tag := range map[string]byte{ALPNFeed: 'f', ALPNBlob: 'b'} {
		c, err := d.Dial(patient(t), "n1", alpn)
		if err != nil {
			t.Fatal(err)
		}
		if id := (certs.Identity{NodeID: "n1", Role: certs.RoleVoter}); c.Peer() != id || c.ALPN() != alpn {
			t.Errorf("connected to %v, %s", c.Peer(), c.ALPN())
		}
		for range 2 { // the hello comes with the first answer only
			if typ, err := ask(t, c, "hello"); err != nil || typ != tag {
				t.Errorf("%s: served by %q, %v", alpn, typ, err)
			}
		}
		_ = c.Close()
	}
	if c, err := d.Dial(patient(t), "n1", ALPNRPC); err == nil {
		_ = c.Close()
		t.Error("a protocol that nobody serves is accepted")
	}
}

func TestWhoGetsIn(t *testing.T) {
	m := newMesh(t, false)
	reg := prometheus.NewRegistry()
	var layer *StreamLayer
	s := m.server("n1", Options{Metrics: reg}, func(s *Server) {
		layer = NewStreamLayer(s, m.dialer("n1", certs.RoleVoter))
		s.Handle(ALPNFeed, nil, echo('f'))
	})
	raftDone := make(chan struct{})
	go func() { // as Raft does: serve each connection until it ends
		defer close(raftDone)
		for {
			c, err := layer.Accept()
			if err != nil {
				return
			}
			_, _ = ask(t, c, "raft") // also the called side may begin
			_ = c.Close()
		}
	}()

	for _, role := range []string{certs.RoleVoter, certs.RoleLearner} {
		l := &StreamLayer{dialer: m.dialer(role, role)}
		c, err := l.DialNode(patient(t), "n1")
		if err != nil {
			t.Fatal(err)
		}
		if _, p, err := ReadFrame(c, nil); err != nil || string(p) != "raft" {
			t.Errorf("%s: %q, %v", role, p, err)
		}
		_ = c.Close()
	}
	t.Run("an edge speaks Raft", func(t *testing.T) {
		c, err := m.dialer("e1", certs.RoleEdge).Dial(patient(t), "n1", ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(make([]byte, 100_000)) // what is on its way must not drown the reason
		for range 2 {
			_, err = c.Read(make([]byte, 10))
			if kv.CodeOf(err) != kv.CodeUnauthorized || !strings.Contains(err.Error(), "e1 (edge)") ||
				!strings.Contains(err.Error(), ALPNRaft) {
				t.Errorf("read: %v, want a refusal that names the role and the protocol", err)
			}
		}
		if n := metric(t, reg, "kvmesh_peer_refused_total", "role"); n != 1 {
			t.Errorf("%v refusals counted", n)
		}
	})
	t.Run("wrong mesh key", func(t *testing.T) {
		d := newMesh(t, false).dialer("caller", certs.RoleVoter)
		d.Resolve = m.resolve
		if _, err := d.Dial(patient(t), "n1", ALPNFeed); !errors.Is(err, certs.ErrWrongMeshKey) ||
			!strings.Contains(err.Error(), "n1 at 127.0.0.1:") {
			t.Errorf("dial: %v, want wrong mesh key, the node and its address", err)
		}
	})
	t.Run("another node at the address", func(t *testing.T) {
		d := m.dialer("caller", certs.RoleVoter)
		d.Resolve = func(string) (string, bool) { return m.resolve("n1") }
		if _, err := d.Dial(patient(t), "n2", ALPNFeed); !errors.Is(err, certs.ErrOtherNode) {
			t.Errorf("dial: %v, want another node", err)
		}
		c, err := d.DialAddr(patient(t), s.Addr().String(), "", ALPNFeed)
		if err != nil || c.Peer().NodeID != "n1" {
			t.Fatalf("any node: %v", err)
		}
		_ = c.Close()
	})
	t.Run("an unknown node", func(t *testing.T) {
		if _, err := m.dialer("caller", certs.RoleVoter).Dial(patient(t), "n9", ALPNFeed); kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("dial: %v", err)
		}
	})
	_ = layer.Close()
	<-raftDone
	if err := s.Close(patient(t)); err != nil { // a dialler may see its error before the server sees the alert
		t.Errorf("Close: %v", err)
	}
	if n := metric(t, reg, "kvmesh_peer_handshakes_total", "wrong_mesh_key"); n != 1 {
		t.Errorf("%v wrong mesh keys counted", n)
	}
}

// Whatever is thrown at the port, the next caller is served.
func TestGarbageOnThePort(t *testing.T) {
	m := newMesh(t, false)
	s := m.server("n1", Options{}, func(s *Server) {
		s.Handle(ALPNFeed, nil, echo('f'))
		s.Handle(ALPNRPC, nil, NewMux(MuxOptions{}).Serve)
	})
	garbage := make([]byte, 10_000)
	_, _ = rand.Read(garbage)
	for name, b := range map[string][]byte{
		"random": garbage,
		"http":   []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls":    append([]byte{22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb}, garbage...),
		"none":   nil,
	} {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the connection is kept", name)
		}
		_ = c.Close()
	}
	d := m.dialer("caller", certs.RoleEdge)
	c, err := d.Dial(patient(t), "n1", ALPNRPC) // garbage from a member
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(garbage)
	if _, err := io.ReadAll(c); err == nil {
		_ = c.Close()
	}
	c, err = d.Dial(patient(t), "n1", ALPNFeed)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := ask(t, c, "still there"); err != nil {
		t.Error(err)
	}
}

func TestMaxConns(t *testing.T) {
	m := newMesh(t, false)
	reg := prometheus.NewRegistry()
	s := m.server("n1", Options{MaxConns: 2, Metrics: reg}, func(s *Server) { s.Handle(ALPNFeed, nil, echo('f')) })
	d := m.dialer("caller", certs.RoleEdge)
	var conns []*Conn
	for range 2 {
		c, err := d.Dial(patient(t), "n1", ALPNFeed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t, c, "x"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if c, err := d.Dial(patient(t), "n1", ALPNFeed); err == nil {
		_ = c.Close()
		t.Fatal("a third connection was accepted")
	}
	if n := metric(t, reg, "kvmesh_peer_refused_total", "max_conns"); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
	_ = conns[0].Close()
	<-waitFor(t, func() bool { return len(s.slots) == 1 })
	c, err := d.Dial(patient(t), "n1", ALPNFeed)
	if err != nil {
		t.Fatalf("after one has gone: %v", err)
	}
	_ = c.Close()
	_ = conns[1].Close()
}

// waitFor returns a channel that closes when cond holds. For what the other end of a real socket does in its own time.
func waitFor(t *testing.T, cond func() bool) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	defer close(done)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Minute); !cond(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatal("it does not happen")
		}
	}
	return done
}

func TestAPanicEndsOneConnection(t *testing.T) {
	m := newMesh(t, false)
	m.server("n1", Options{}, func(s *Server) {
		s.Handle(ALPNBlob, nil, func(context.Context, *Conn) { panic("broken") })
		s.Handle(ALPNFeed, nil, echo('f'))
	})
	d := m.dialer("caller", certs.RoleEdge)
	other, err := d.Dial(patient(t), "n1", ALPNFeed)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c, err := d.Dial(patient(t), "n1", ALPNBlob)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := ask(t, other, "x"); err != nil {
		t.Errorf("another connection: %v", err)
	}
}

func TestClose(t *testing.T) {
	t.Run("handlers finish", func(t *testing.T) {
		m := newMesh(t, false)
		s := m.server("n1", Options{}, func(s *Server) {
			s.Handle(ALPNFeed, nil, func(_ context.Context, c *Conn) {
				_ = WriteFrame(c, 'a', nil)
				<-c.Draining()
				_ = WriteFrame(c, 'z', nil)
			})
		})
		c, err := m.dialer("caller", certs.RoleEdge).Dial(patient(t), "n1", ALPNFeed)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if typ, _, err := ReadFrame(c, nil); err != nil || typ != 'a' {
			t.Fatal(typ, err)
		}
		if err := s.Close(patient(t)); err != nil {
			t.Errorf("Close: %v", err)
		}
		if typ, _, err := ReadFrame(c, nil); err != nil || typ != 'z' {
			t.Errorf("the last word: type %q, %v", typ, err)
		}
		if err := s.Close(patient(t)); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if c, err := m.dialer("caller", certs.RoleEdge).Dial(patient(t), "n1", ALPNFeed); err == nil {
			_ = c.Close()
			t.Error("the port is still open")
		}
	})
	t.Run("handlers are cut", func(t *testing.T) {
		m := newMesh(t, false)
		cut := make(chan struct{})
		s := m.server("n1", Options{}, func(s *Server) {
			s.Handle(ALPNFeed, nil, func(ctx context.Context, c *Conn) {
				_ = WriteFrame(c, 'a', nil)
				_, _ = c.Read(make([]byte, 1)) // takes no notice of draining
				<-ctx.Done()
				close(cut)
			})
		})
		c, err := m.dialer("caller", certs.RoleEdge).Dial(patient(t), "n1", ALPNFeed)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, _, err := ReadFrame(c, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(ended()); !errors.Is(err, context.Canceled) {
			t.Errorf("Close: %v, want that it was not patient", err)
		}
		<-cut // before Close returned
	})
	t.Run("never served", func(t *testing.T) {
		s, err := NewServer(Options{Addr: "127.0.0.1:0", Authority: newMesh(t, false).authority})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(patient(t)); err != nil {
			t.Error(err)
		}
		if err := s.Serve(patient(t)); err != nil { // start and stop may cross each other
			t.Errorf("Serve after Close: %v", err)
		}
	})
	t.Run("a port in use", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if _, err := NewServer(Options{Addr: ln.Addr().String(), Authority: newMesh(t, false).authority}); err == nil ||
			!strings.Contains(err.Error(), ln.Addr().String()) {
			t.Errorf("%v, want the address in it", err)
		}
	})
}

func TestStreamLayerClose(t *testing.T) {
	m := newMesh(t, false)
	var layer *StreamLayer
	m.server("n1", Options{}, func(s *Server) { layer = NewStreamLayer(s, m.dialer("n1", certs.RoleVoter)) })
	c, err := layer.DialNode(patient(t), "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := layer.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	_ = layer.Close()
	_ = layer.Close()
	if _, err := layer.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("its connections go on")
	}
}
