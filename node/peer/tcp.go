package peer

import (
	"fmt"
	"net"
	"time"
)

// deadAfter is when a connection is given up whose other side has vanished without a word: by keepalive while nothing is
// sent, by TCP_USER_TIMEOUT while something is. Without it a half-dead link would hold a snapshot transfer for days, and
// the kernel's own patience is about a quarter of an hour.
const deadAfter = 25 * time.Second

// tuneTCP sets keepalive and the user timeout, on both sides of every connection. It returns nil for a connection that is
// not TCP, which only in-memory transports are.
func tuneTCP(c net.Conn) (*net.TCPConn, error) {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil, nil
	}
	err := tc.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable:   true,
		Idle:     10 * time.Second,
		Interval: 5 * time.Second,
		Count:    3,
	})
	if err != nil {
		return nil, fmt.Errorf("keepalive: %w", err)
	}
	if err := setUserTimeout(tc, deadAfter); err != nil {
		return nil, fmt.Errorf("user timeout: %w", err)
	}
	return tc, nil
}
