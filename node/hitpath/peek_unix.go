//go:build unix

package hitpath

import (
	"errors"
	"net"
	"syscall"
)

// hasLeft reports whether the client has ended its side of c, or reset it. Requests that were sent before and are unread
// hide that.
func hasLeft(c net.Conn) (left bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true // it is closed
	}
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == nil:
			left = n == 0
		default:
			left = !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
		}
	})
	return left || err != nil
}
