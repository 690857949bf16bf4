package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvmesh/node/certs"
)

// clients are the users of all nodes.
type clients struct {
	writer *http.Client
	urls   []string // of all nodes, where writes go
	edges  []*edge
}

func newClients(m *mesh) *clients {
	c := &clients{writer: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxPending}}}
	for _, n := range m.Nodes {
		c.urls = append(c.urls, n.HTTPURL())
	}
	for _, i := range m.of(certs.RoleEdge) {
		c.edges = append(c.edges, &edge{region: m.Members[i].Region, addr: strings.TrimPrefix(m.Nodes[i].HTTPURL(), "http://")})
	}
	return c
}

func (c *clients) close() {
	c.writer.CloseIdleConnections()
	for _, e := range c.edges {
		e.close()
	}
}

// writeTimeout bounds one write: a node gives up before.
const writeTimeout = 15 * time.Second

// put writes a key through one node and returns the write's revision.
func (c *clients) put(ctx context.Context, node int, key, value string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.urls[node]+keyPath(key), strings.NewReader(value))
	if err != nil {
		return 0, err
	}
	resp, err := c.writer.Do(req)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, err
	}
	if resp.StatusCode/100 != 2 {
		return 0, fmt.Errorf("status %d: %.200s", resp.StatusCode, body)
	}
	return strconv.ParseUint(resp.Header.Get("Kv-Revision"), 10, 64)
}

func keyPath(key string) string { return "/v1/kv/default/" + key }

// edge is one edge and the idle connections to it. Reads are many and small, so they are spoken without net/http's client.
type edge struct {
	region, addr string

	mu     sync.Mutex // guards the fields below
	idle   []*conn
	closed bool
}

type conn struct {
	net.Conn
	r    *bufio.Reader
	used time.Time
}

// idleFor is how long a connection is kept: the nodes close theirs later.
const idleFor = 5 * time.Second

// answer is what a GET gave.
type answer struct {
	key, edge  string
	start, end time.Time
	status     int
	value      string
	rev        uint64 // 0 = the key does not exist
	tier       string // Kv-Cache
	bounded    bool   // the answer states a bound
	bound      time.Duration
}

// readTimeout bounds one read: a node gives up before.
const readTimeout = 15 * time.Second

// get reads one key.
func (e *edge) get(key string) (answer, error) {
	c, err := e.take()
	if err != nil {
		return answer{}, err
	}
	a := answer{key: key, edge: e.region, start: time.Now()}
	_ = c.SetDeadline(a.start.Add(readTimeout)) // fails only on a closed connection, and so does the write
	if _, err = io.WriteString(c, "GET "+keyPath(key)+" HTTP/1.1\r\nHost: "+e.addr+"\r\n\r\n"); err == nil {
		err = a.receive(c.r)
	}
	if a.end = time.Now(); err != nil {
		_ = c.Close() // it cannot be used again
		return a, fmt.Errorf("%s at %s: %w", key, e.region, err)
	}
	e.put(c)
	return a, nil
}

func (a *answer) receive(r *bufio.Reader) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if a.status = resp.StatusCode; a.status == http.StatusOK {
		a.value = string(body)
		if a.rev, err = strconv.ParseUint(resp.Header.Get("Kv-Revision"), 10, 64); err != nil {
			return fmt.Errorf("Kv-Revision: %w", err)
		}
	}
	a.tier = resp.Header.Get("Kv-Cache")
	if s := resp.Header.Get("Kv-Staleness-Ms"); s != "" {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return fmt.Errorf("Kv-Staleness-Ms: %w", err)
		}
		a.bounded, a.bound = true, time.Duration(ms)*time.Millisecond
	}
	return nil
}

// take gives an idle connection, or a new one.
func (e *edge) take() (*conn, error) {
	e.mu.Lock()
	for n := len(e.idle); n > 0; n = len(e.idle) {
		c := e.idle[n-1]
		e.idle = e.idle[:n-1]
		if time.Since(c.used) < idleFor {
			e.mu.Unlock()
			return c, nil
		}
		_ = c.Close() // it is idle
	}
	e.mu.Unlock()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, r: bufio.NewReader(c)}, nil
}

func (e *edge) put(c *conn) {
	c.used = time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = c.Close() // it is idle
		return
	}
	e.idle = append(e.idle, c)
}

func (e *edge) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, c := range e.idle {
		_ = c.Close() // as above
	}
	e.idle = nil
}
