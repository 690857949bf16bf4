package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// The methods of these tests.
const (
	mEcho Method = iota + 1
	mFail
	mWait
	mIgnore
	mOther
)

type echoArgs struct {
	Text   string
	Reader bool // answer with a reader
	Short  int  // …that ends so many bytes early
}

type echoResult struct {
	Text string
	From certs.Identity
	Hops uint8
	Sum  [32]byte
}

// handleEcho answers with the arguments, the caller, and the body.
func handleEcho(_ context.Context, req *Request) (*Response, error) {
	var args echoArgs
	if err := Decode(req.Args, &args); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if int64(len(body)) != req.BodySize {
		return nil, fmt.Errorf("%d bytes of %d", len(body), req.BodySize)
	}
	resp := &Response{Result: echoResult{args.Text, req.From, req.Hops, sha256.Sum256(body)}, Body: body}
	if args.Reader {
		resp.Body, resp.BodySize = nil, int64(len(body))
		resp.BodyReader = iotest.HalfReader(bytes.NewReader(body[:len(body)-args.Short]))
	}
	return resp, nil
}

// rpc starts node n1 with a mux, and a client.
func rpc(t *testing.T, memory bool, o MuxOptions, co ClientOptions, setup func(*Mux)) (*mesh, *Server, *Client) {
	t.Helper()
	m, mux := newMesh(t, memory), NewMux(o)
	mux.Handle(mEcho, "echo", handleEcho)
	if setup != nil {
		setup(mux)
	}
	s := m.server("n1", Options{}, func(s *Server) { s.Handle(ALPNRPC, nil, mux.Serve) })
	return m, s, m.client(co)
}

func TestCallBodies(t *testing.T) {
	_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, nil)
	from := certs.Identity{NodeID: "caller", Role: certs.RoleEdge}
	for _, size := range []int{0, 1, smallBody - 1, smallBody, smallBody + 1, copyChunk, 1 << 20, 3<<20 + 7} {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(rand.Uint32())
		}
		for mode := range 8 { // request body by reader, reply body by reader, reply as a stream
			c := Call{
				Method: mEcho, Args: echoArgs{Text: "hi", Reader: mode&2 != 0}, Hops: uint8(mode),
				Stream: mode&4 != 0, MaxReply: 4 << 20, Body: body,
			}
			if mode&1 != 0 {
				c.Body, c.BodyReader, c.BodySize = nil, iotest.HalfReader(bytes.NewReader(body)), int64(size)
			}
			reply, err := cl.Call(patient(t), "n1", c)
			if err != nil {
				t.Fatalf("%d bytes, mode %b: %v", size, mode, err)
			}
			got := reply.Body
			if c.Stream {
				if got, err = io.ReadAll(reply.Stream); err != nil {
					t.Fatal(err)
				}
				_ = reply.Stream.Close()
			}
			var res echoResult
			if err := Decode(reply.Result, &res); err != nil {
				t.Fatal(err)
			}
			if want := (echoResult{"hi", from, uint8(mode), sha256.Sum256(body)}); res != want || !bytes.Equal(got, body) ||
				reply.BodySize != int64(size) {
				t.Fatalf("%d bytes, mode %b: got %d bytes, %+v", size, mode, len(got), res)
			}
		}
	}
	if n := idleConns(cl, "n1"); n != 1 {
		t.Errorf("%d idle connections after calls one by one; want the same one again and again", n)
	}
}

func idleConns(cl *Client, node string) int {
	cl.pool.mu.Lock()
	defer cl.pool.mu.Unlock()
	return len(cl.pool.idle[node])
}

func TestErrorsTravel(t *testing.T) {
	full := &kv.Error{
		Code: kv.CodeNotLeader, Message: "ask n2", Field: "f", RetryAfter: 1500 * time.Millisecond, Revision: 42, Leader: "n2",
	}
	var fail error
	_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
		m.Handle(mFail, "fail", func(context.Context, *Request) (*Response, error) { return nil, fail })
		m.Handle(mOther, "big", func(context.Context, *Request) (*Response, error) {
			return &Response{Result: echoResult{Text: strings.Repeat("x", MaxPayload-52)}}, nil
		})
		m.Handle(mIgnore, "panic", func(context.Context, *Request) (*Response, error) { panic("broken") })
	})
	for _, tc := range []struct {
		method Method
		err    error
		want   kv.Error
	}{
		{mFail, full, *full},
		{mFail, fmt.Errorf("propose: %w", full), *full},
		{mFail, errors.New("odd"), kv.Error{Code: kv.CodeInternal, Message: "odd"}},
		{
			mFail, fmt.Errorf("read: %w", context.DeadlineExceeded),
			kv.Error{Code: kv.CodeDeadlineExceeded, Message: "read: context deadline exceeded"},
		},
		{
			mFail, kv.Errorf(kv.CodeInternal, "%s", strings.Repeat("m", 2<<20)),
			kv.Error{Code: kv.CodeInternal, Message: strings.Repeat("m", maxWireText)},
		},
		{mIgnore, nil, kv.Error{Code: kv.CodeInternal, Message: "the node failed on method panic; its log has the details"}},
		{mOther, nil, kv.Error{Code: kv.CodeInternal, Message: "the result has 1048566 bytes, more than a frame holds"}},
		{99, nil, kv.Error{Code: kv.CodeUnsupportedByPeer, Message: "this node does not know method 99; upgrade it"}},
	} {
		fail = tc.err
		_, err := cl.Call(patient(t), "n1", Call{Method: tc.method})
		var got *kv.Error
		if !errors.As(err, &got) || *got != tc.want {
			t.Errorf("%v: %.200v, want %.200v", tc.err, err, &tc.want)
		}
		var ce *CallError
		if errors.As(err, &ce) {
			t.Errorf("%v counts as unanswered", tc.err)
		}
	}
	if n := idleConns(cl, "n1"); n != 1 {
		t.Errorf("%d idle connections: an error is an answer, the connection is as good as before", n)
	}
}

// The handler's time ends when the caller's does, although the caller is still there.
func TestDeadlineTravels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, cl := rpc(t, true, MuxOptions{}, ClientOptions{}, func(m *Mux) {
			m.Handle(mWait, "wait", func(ctx context.Context, _ *Request) (*Response, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			})
		})
		c, err := m.dialer("raw", certs.RoleEdge).Dial(patient(t), "n1", ALPNRPC)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		b, _ := appendRequest(nil, requestHeader{method: mWait, timeout: 1500*time.Millisecond - 1}, nil)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		_, payload, err := ReadFrame(c, nil)
		if err != nil || !bytes.Contains(payload, []byte(kv.CodeDeadlineExceeded)) {
			t.Errorf("%q, %v", payload, err)
		}
		if d := time.Since(begin); d != 1500*time.Millisecond {
			t.Errorf("answered after %v", d)
		}
		_ = c.Close()

		for idempotent, want := range map[bool]kv.Code{true: kv.CodeDeadlineExceeded, false: kv.CodeOutcomeUnknown} {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second+time.Microsecond)
			_, err = cl.Call(ctx, "n1", Call{Method: mWait, Idempotent: idempotent})
			cancel()
			var ce *CallError
			if !errors.As(err, &ce) || !ce.MaybeSent || kv.CodeOf(err) != want || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("idempotent %v: %v, want %s", idempotent, err, want)
			}
		}
		begin = time.Now() // no deadline of the caller's: the client has one
		_, err = cl.Call(context.Background(), "n1", Call{Method: mWait})
		if err == nil || time.Since(begin) != DefaultCallTimeout {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestTheHandlerNoticesThatTheCallerIsGone(t *testing.T) {
	for _, body := range []int{0, 100_000} {
		started, cause := make(chan struct{}), make(chan error)
		_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
			m.Handle(mWait, "wait", func(ctx context.Context, req *Request) (*Response, error) {
				_, _ = io.Copy(io.Discard, req.Body)
				close(started)
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return nil, ctx.Err()
			})
		})
		ctx, cancel := context.WithCancel(patient(t))
		result := make(chan error)
		go func() { _, err := cl.Call(ctx, "n1", Call{Method: mWait, Body: make([]byte, body)}); result <- err }()
		<-started
		cancel()
		if err := <-cause; !errors.Is(err, errPeerGone) {
			t.Errorf("the handler's context ended with %v", err)
		}
		if err := <-result; !errors.Is(err, context.Canceled) || kv.CodeOf(err) != kv.CodeOutcomeUnknown {
			t.Errorf("the call ended with %v", err)
		}
		if n := idleConns(cl, "n1"); n != 0 {
			t.Errorf("%d idle connections: the request is still on it", n)
		}
	}
}

func TestBodiesThatEndEarly(t *testing.T) {
	seen := make(chan error, 1)
	_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
		m.Handle(mWait, "read", func(_ context.Context, req *Request) (*Response, error) {
			_, err := io.Copy(io.Discard, req.Body)
			seen <- err
			return nil, err
		})
	})
	// The client's own source fails: its reason is the call's, and the handler does not take the part for the whole.
	tooLarge := kv.Errorf(kv.CodeValueTooLarge, "too large")
	r := io.MultiReader(bytes.NewReader(make([]byte, 50_000)), iotest.ErrReader(tooLarge))
	_, err := cl.Call(patient(t), "n1", Call{Method: mWait, BodyReader: r, BodySize: 200_000})
	if kv.CodeOf(err) != kv.CodeValueTooLarge {
		t.Errorf("failing source: %v", err)
	}
	if err := <-seen; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the handler read up to %v", err)
	}
	_, err = cl.Call(patient(t), "n1", Call{Method: mWait, BodyReader: strings.NewReader("short"), BodySize: 6})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "1 bytes early") {
		t.Errorf("short source: %v", err)
	}
	<-seen
	// The server's source fails, at the very end.
	for _, stream := range []bool{false, true} {
		reply, err := cl.Call(patient(t), "n1", Call{
			Method: mEcho, Args: echoArgs{Reader: true, Short: 1}, Body: make([]byte, 150_000), Stream: stream, Idempotent: true,
		})
		if stream && err == nil {
			var n int64
			n, err = io.Copy(io.Discard, reply.Stream)
			if n >= 150_000 {
				t.Errorf("the stream gave %d bytes", n)
			}
			_ = reply.Stream.Close()
		}
		if kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("stream %v: %v", stream, err)
		}
	}
	if n := idleConns(cl, "n1"); n != 0 {
		t.Errorf("%d idle connections", n)
	}
}

// A handler may answer without reading the body. The caller gets that answer, small body or large.
func TestAnswerBeforeTheBody(t *testing.T) {
	_, _, cl := rpc(t, false, MuxOptions{MaxBody: 24 << 20}, ClientOptions{}, func(m *Mux) {
		m.Handle(mIgnore, "ignore", func(context.Context, *Request) (*Response, error) {
			return nil, kv.Errorf(kv.CodeNoLeader, "no leader")
		})
	})
	for size, want := range map[int64]kv.Code{
		10: kv.CodeNoLeader, drainBody: kv.CodeNoLeader, drainBody + 1: kv.CodeNoLeader, 20 << 20: kv.CodeNoLeader,
		24<<20 + 1: kv.CodeInvalidBody,
	} {
		_, err := cl.Call(patient(t), "n1", Call{Method: mIgnore, BodyReader: zeros{}, BodySize: size})
		if kv.CodeOf(err) != want {
			t.Errorf("%d bytes: %v, want %s", size, err, want)
		}
		if kept := idleConns(cl, "n1") == 1; kept != (size <= drainBody) {
			t.Errorf("%d bytes: connection kept: %v", size, kept)
		}
	}
}

// A node may even hang up right after its answer. What stopped the sending is then not the error that counts.
func TestAnswerThenHangUp(t *testing.T) {
	m := newMesh(t, false)
	m.server("n1", Options{}, func(s *Server) {
		s.Handle(ALPNRPC, nil, func(_ context.Context, c *Conn) {
			if _, _, err := ReadFrame(c, nil); err != nil {
				return
			}
			reason, _ := Encode(NewFailure(kv.Errorf(kv.CodeDiskFull, "full")))
			b, _ := appendResponse(nil, responseHeader{failed: true}, reason)
			_, _ = c.Write(b)
		})
	})
	cl := m.client(ClientOptions{})
	_, err := cl.Call(patient(t), "n1", Call{Method: mIgnore, BodyReader: zeros{}, BodySize: 200 << 20})
	if kv.CodeOf(err) != kv.CodeDiskFull || idleConns(cl, "n1") != 0 {
		t.Errorf("%v, %d idle connections; want the answer, and none", err, idleConns(cl, "n1"))
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
