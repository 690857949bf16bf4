// Command connections opens many connections to a node, asks each for one value, and holds them, idle, until its standard
// input ends. Once all are open it prints how many are held, were refused with 503, and failed. They are in a process of their
// own because descriptors are limited. A node closes them after 90 s. Usage: connections HOST:PORT PATH COUNT
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialers connect at a time.
	dialers = 64
	// dialTimeout is what a connection and its first answer may take: longer is a hang.
	dialTimeout = 10 * time.Second
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: connections HOST:PORT PATH COUNT")
		os.Exit(2)
	}
	count, err := strconv.Atoi(os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	h := holder{addr: os.Args[1], request: "GET " + os.Args[2] + " HTTP/1.1\r\nHost: x\r\n\r\n", held: make([]net.Conn, count)}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range dialers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(count); i = next.Add(1) - 1 {
				h.hold(int(i))
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d %d %d\n", h.open.Load(), h.refused.Load(), h.failed.Load())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for _, c := range h.held {
		if c != nil {
			_ = c.Close() // the process ends
		}
	}
}

type holder struct {
	addr, request         string
	held                  []net.Conn // each written by one goroutine
	open, refused, failed atomic.Int64
	said                  sync.Once
}

// hold opens one connection, and keeps it if it is answered well.
func (h *holder) hold(i int) {
	status, c, err := h.ask()
	switch {
	case err == nil && status == http.StatusOK:
		h.open.Add(1)
		h.held[i] = c
		return
	case err == nil && status == http.StatusServiceUnavailable:
		h.refused.Add(1)
	default:
		h.failed.Add(1)
		h.said.Do(func() { fmt.Fprintf(os.Stderr, "status %d, %v\n", status, err) })
	}
	if c != nil {
		_ = c.Close() // it was not answered well
	}
}

func (h *holder) ask() (int, net.Conn, error) {
	c, err := net.DialTimeout("tcp", h.addr, dialTimeout)
	if err != nil {
		return 0, nil, err
	}
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return 0, c, err
	}
	if _, err := io.WriteString(c, h.request); err != nil {
		return 0, c, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
	if err != nil {
		return 0, c, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, c, err
}
