package nodetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// requestTimeout bounds one request: the longest one is 25 MiB to three busy voters.
const requestTimeout = 30 * time.Second

// Client asks one node. Targets go on the wire as they are given: nothing is cleaned, escaped or followed.
type Client struct {
	Name string
	Base string // http://host:port
	// Token is sent as a bearer token unless it is empty.
	Token string
	http  http.Client
}

// NewClient returns a client with connections of its own.
func NewClient(name, base string) *Client {
	c := &Client{Name: name, Base: base}
	c.http.Transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 5 * time.Second}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// Answer is one answer with its whole body.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Error is what the body of an answer says went wrong.
type Error struct{ Code, Message, Field string }

// Err decodes the answer's error; the zero Error when it is none of ours.
func (a Answer) Err() Error {
	var doc struct{ Error Error }
	if json.Unmarshal(a.Body, &doc) != nil {
		return Error{}
	}
	return doc.Error
}

func (a Answer) String() string {
	body := a.Body
	if len(body) > 300 {
		body = body[:300]
	}
	return fmt.Sprintf("status %d, Kv-Cache %q, %q", a.Status, a.Header.Get("Kv-Cache"), body)
}

// Do sends one request. headers are names and values in turn. A nil body sends none.
func (c *Client) Do(ctx context.Context, method, target string, body []byte, headers ...string) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.Base, nil)
	if err != nil {
		return Answer{}, err
	}
	path, query, _ := strings.Cut(target, "?")
	req.URL = &url.URL{Scheme: "http", Host: req.URL.Host, Opaque: path, RawQuery: query}
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		if len(body) == 0 {
			req.Body = http.NoBody
		}
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, fmt.Errorf("%s: %w", c.Name, err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or failed
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("%s: %s %s: %d bytes of the body, then: %w", c.Name, method, target, len(got), err)
	}
	return Answer{resp.StatusCode, resp.Header, got}, nil
}

// Must sends one request and fails the test unless it is answered with the status that is wanted.
func (c *Client) Must(t testing.TB, want int, method, target string, body []byte, headers ...string) Answer {
	t.Helper()
	a, err := c.Do(t.Context(), method, target, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != want {
		t.Fatalf("%s: %s %s: %v, want status %d", c.Name, method, target, a, want)
	}
	return a
}

// Sees fails unless the node answers GET target with these bytes.
func (c *Client) Sees(ctx context.Context, target string, want []byte) error {
	a, err := c.Do(ctx, http.MethodGet, target, nil)
	switch {
	case err != nil:
		return err
	case a.Status != http.StatusOK || !bytes.Equal(a.Body, want):
		return fmt.Errorf("%s: GET %s: %v, want %d bytes beginning %.40q", c.Name, target, a, len(want), want)
	}
	return nil
}

// Gone fails unless the node answers GET target with 404 and the code.
func (c *Client) Gone(ctx context.Context, target, code string) error {
	a, err := c.Do(ctx, http.MethodGet, target, nil)
	switch {
	case err != nil:
		return err
	case a.Status != http.StatusNotFound || a.Err().Code != code:
		return fmt.Errorf("%s: GET %s: %v, want 404 %s", c.Name, target, a, code)
	}
	return nil
}

// Raw sends bytes over a connection of their own and reads one answer. It is for what no HTTP library would send. With end
// it ends the sending side first, which tells the server that no more will come.
func (c *Client) Raw(t testing.TB, method, request string, end bool) Answer {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.Base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the answer has been read
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	if end {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s: answer to %.80q: %v", c.Name, request, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: answer to %.80q: %v", c.Name, request, err)
	}
	return Answer{resp.StatusCode, resp.Header, body}
}

// Status is the part of /v1/cluster that the tests look at.
type Status struct {
	Cluster, Epoch, Leader, Self string
	Revision                     uint64
	MeshTime                     time.Time `json:"mesh_time"`
	Members                      []struct {
		ID, Name, Role, Region, State, Raft, HTTP string
		W                                         uint64
		MissingBlobs                              int `json:"missing_blobs"`
	}
}

// Cluster asks the node what it knows of the mesh.
func (c *Client) Cluster(ctx context.Context) (Status, error) {
	var s Status
	a, err := c.Do(ctx, http.MethodGet, "/v1/cluster", nil)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("%s: GET /v1/cluster: %v", c.Name, a)
	}
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(a.Body, &s)
}

// CloseIdle closes the connections that are not in use.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }
