//go:build !linux

package peer

import (
	"net"
	"time"
)

// setUserTimeout does nothing where TCP_USER_TIMEOUT does not exist; keepalive and the deadlines of each protocol remain.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }

// quiet cannot tell here; a connection that is dead shows it when it is used.
func quiet(*net.TCPConn) bool { return true }
