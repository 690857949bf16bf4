package peer

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"kvmesh/node/certs"
)

// Both sides of every connection must notice within half a minute that the other machine is gone.
func TestSocketOptions(t *testing.T) {
	m := newMesh(t, false)
	server := make(chan *net.TCPConn, 1)
	m.server("n1", Options{}, func(s *Server) {
		s.Handle(ALPNFeed, nil, func(ctx context.Context, c *Conn) {
			server <- c.raw.(*net.TCPConn)
			<-c.Draining()
		})
	})
	c, err := m.dialer("caller", certs.RoleEdge).Dial(patient(t), "n1", ALPNFeed)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for side, tc := range map[string]*net.TCPConn{"dialled": c.tcp, "accepted": <-server} {
		raw, err := tc.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		get := func(level, opt int) (v int) {
			cerr := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, opt) })
			if cerr != nil || err != nil {
				t.Fatal(cerr, err)
			}
			return v
		}
		if ms := get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); ms < 20_000 || ms > 30_000 {
			t.Errorf("%s: TCP_USER_TIMEOUT is %d ms", side, ms)
		}
		if get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 0 {
			t.Errorf("%s: no keepalive", side)
		}
		probing := get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL) * get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
		s := get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE) + probing
		if s < 20 || s > 30 {
			t.Errorf("%s: keepalive gives up after %d s", side, s)
		}
	}
}
