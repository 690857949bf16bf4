package api

import (
	"io"
	"net"
	"testing"
)

// TestOpaque: of what an HTTP/1 server writes, a refusal is worded anew; in HTTP/2's frames the same bytes may stand in a
// value, and stay.
func TestOpaque(t *testing.T) {
	const refusal = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
	for _, opaque := range []bool{false, true} {
		client, server := net.Pipe()
		taken := Taken{&limitedConn{Conn: server, release: func() {}}}
		conn := taken.HandOver([]byte("unread"))
		if opaque {
			conn = taken.HandOverOpaque([]byte("unread"))
		}
		unread := make([]byte, 6)
		if _, err := io.ReadFull(conn, unread); err != nil || string(unread) != "unread" {
			t.Errorf("%q, %v", unread, err)
		}
		go func() {
			_, _ = conn.Write([]byte(refusal)) // what comes is looked at
			_ = conn.Close()
		}()
		got, err := io.ReadAll(client)
		if err != nil || (string(got) == refusal) != opaque {
			t.Errorf("opaque %v: %q, %v", opaque, got, err)
		}
	}
}
