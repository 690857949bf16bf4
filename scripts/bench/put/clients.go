package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdClient is etcd's own client, with a connection of its own.
type etcdClient struct{ *clientv3.Client }

func (c etcdClient) put(ctx context.Context, key string, value []byte) error {
	_, err := c.Put(ctx, key, string(value))
	return err
}

func (c etcdClient) get(ctx context.Context, key string) error {
	_, err := c.Get(ctx, key)
	return err
}

func (c etcdClient) close() error { return c.Close() }

// httpClient speaks HTTP/1.1 over one connection, with less CPU time than net/http, so that the load generator's core is
// not what is measured.
type httpClient struct {
	conn net.Conn
	r    *bufio.Reader
	head []byte
}

func dialHTTP(addr string) (client, error) {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &httpClient{conn: conn, r: bufio.NewReader(conn)}, nil
}

func (c *httpClient) close() error { return c.conn.Close() }

func (c *httpClient) put(ctx context.Context, key string, value []byte) error {
	c.head = fmt.Appendf(c.head[:0], "PUT /v1/kv/default/%s HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n", key, len(value))
	return c.do(ctx, value, 200)
}

func (c *httpClient) get(ctx context.Context, key string) error {
	c.head = fmt.Appendf(c.head[:0], "GET /v1/kv/default/%s?consistency=strong HTTP/1.1\r\nHost: bench\r\n\r\n", key)
	return c.do(ctx, nil, 200, 404)
}

func (c *httpClient) do(ctx context.Context, body []byte, good ...int) error {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return err
	}
	bufs := net.Buffers{c.head, body}
	if _, err := bufs.WriteTo(c.conn); err != nil {
		return err
	}
	status, length, err := c.readHead()
	if err != nil {
		return err
	}
	answer := make([]byte, length)
	if _, err := io.ReadFull(c.r, answer); err != nil {
		return err
	}
	for _, g := range good {
		if status == g {
			return nil
		}
	}
	return fmt.Errorf("status %d: %s", status, answer)
}

// readHead reads status line and headers; only Content-Length is of interest.
func (c *httpClient) readHead() (status, length int, err error) {
	length = -1
	for first := true; ; first = false {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case len(line) == 0:
			if length < 0 {
				return 0, 0, errors.New("an answer without Content-Length")
			}
			return status, length, nil
		case first:
			if len(line) < 12 {
				return 0, 0, fmt.Errorf("status line %q", line)
			}
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, 0, err
			}
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, 0, err
			}
		}
	}
}
