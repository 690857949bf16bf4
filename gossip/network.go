package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// Network opens sockets: the seam below everything that this package sends and receives. gossiptest.Net is the other
// implementation, for virtual time.
type Network interface {
	// Listen opens a packet socket and a stream listener on the same host and port; port 0 takes one that is free for
	// both. Addresses of incoming packets and streams are only shown in logs.
	Listen(ctx context.Context, hostport string) (net.PacketConn, net.Listener, error)
	// Dial opens a stream to addr (IP:port). It gives up when ctx ends.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// sockets is the machine's own network.
type sockets struct{}

// autoPortTries bounds the search for a port that is free for TCP and UDP: the kernel picks for one of them only.
const autoPortTries = 16

// udpBufferBytes is asked for, so that a burst of gossip outlives a pause of the process; less is no error.
const udpBufferBytes = 1 << 20

func (sockets) Listen(ctx context.Context, hostport string) (net.PacketConn, net.Listener, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, nil, err
	}
	var lc net.ListenConfig
	for try := 1; ; try++ {
		ln, err := lc.Listen(ctx, "tcp", hostport)
		if err != nil {
			return nil, nil, listenError(hostport, "TCP", err)
		}
		bound := net.JoinHostPort(host, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
		pc, err := lc.ListenPacket(ctx, "udp", bound)
		if err == nil {
			if u, ok := pc.(*net.UDPConn); ok {
				_ = u.SetReadBuffer(udpBufferBytes) // a wish: the kernel may grant less
			}
			return pc, ln, nil
		}
		err = errors.Join(listenError(bound, "UDP", err), ln.Close())
		if port != "0" || try == autoPortTries {
			return nil, nil, err
		}
	}
}

func listenError(addr, proto string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("gossip: %s port of %s is in use by another process: stop it, or choose another address with --gossip: %w",
			proto, addr, err)
	}
	return fmt.Errorf("gossip: cannot listen on %s (--gossip): %w", addr, err)
}

func (sockets) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
