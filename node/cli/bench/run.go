package bench

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
)

// Options of a Bench.
type Options struct {
	URLs    []string // of nodes, "http://host:port"; connections are spread over them in turn
	Path    string   // of the keys, with a slash at the end: "/v1/kv/default/"
	Token   string
	Load    Load
	Rate    float64 // requests a second, all together; 0 = as many as there are answers
	Workers int     // requests under way at most, each on a connection of its own
	WarmUp  time.Duration
	During  time.Duration
	TLS     *tls.Config                                                       // for nodes behind https; nil: TLS 1.2 and up, by the system's roots
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: a net.Dialer's, with a limit of 5 s

	wait waiter // nil: as exact as the system can
}

// grace is how long answers are waited for that are due at the end.
const grace = 10 * time.Second

// Bench is one run, to be filled and then run.
type Bench struct {
	opts   Options
	nodes  []*node
	picker *picker
	value  []byte // of which all values are beginnings
	stored atomic.Int64
	asked  atomic.Int64
}

// New makes a Bench. It connects to nobody yet. An error says which URL is none.
func New(o Options) (*Bench, error) {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	b := &Bench{opts: o, picker: newPicker(o.Load.Keys, o.Load.Zipf)}
	for _, u := range o.URLs {
		n, err := newNode(o, u)
		if err != nil {
			return nil, err
		}
		b.nodes = append(b.nodes, n)
	}
	longest := 0
	for i := range o.Load.Keys {
		longest = max(longest, o.Load.size(i))
	}
	b.value = make([]byte, longest)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(b.value) // never fails
	return b, nil
}

// Stored is how many of the keys Fill has written, and Asked how many requests Run has answered, warm-up included.
func (b *Bench) Stored() int64 { return b.stored.Load() }

// Asked is how many requests Run has got an answer for.
func (b *Bench) Asked() int64 { return b.asked.Load() }

// Fill writes every key once. It ends with the first that cannot be written.
func (b *Bench) Fill(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	b.workers(func(_ int, c *conn) {
		for ctx.Err() == nil {
			i := int(next.Add(1) - 1)
			if i >= b.opts.Load.Keys {
				return
			}
			if a := b.ask(ctx, c, write, i); a.failed != "" {
				cancel(fmt.Errorf("%s: %s", keyName(i), a.detail))
				return
			}
			b.stored.Add(1)
		}
	})
	return context.Cause(ctx)
}

// workers runs all workers, each with a connection of its own.
func (b *Bench) workers(do func(w int, c *conn)) {
	var wg sync.WaitGroup
	for w := range b.opts.Workers {
		wg.Go(func() {
			c := &conn{dial: b.opts.Dial, node: b.nodes[w%len(b.nodes)]}
			defer c.close()
			do(w, c)
		})
	}
	wg.Wait()
}

// Run asks until the time is over. When ctx ends before, it says what was measured until then.
func (b *Bench) Run(ctx context.Context) (*Result, error) {
	rec := newRecorder()
	wait, stop := b.opts.wait, func() {}
	if wait == nil {
		wait, stop = newWaiter()
	}
	defer stop()
	start := time.Now()
	measured, end := start.Add(b.opts.WarmUp), start.Add(b.opts.WarmUp+b.opts.During)
	asking, cancel := context.WithDeadline(ctx, end.Add(grace))
	defer cancel()
	next := func() (time.Time, bool) {
		now := time.Now()
		return now, now.Before(end) && asking.Err() == nil
	}
	if b.opts.Rate > 0 {
		moments := pace(asking, wait, start, end, b.opts.Rate)
		defer func() { // its goroutine has ended when the channel is closed
			cancel()
			for range moments { //nolint:revive // nobody asks any more
			}
		}()
		next = func() (time.Time, bool) {
			due, ok := <-moments
			return due, ok
		}
	}
	errs := make([]error, b.opts.Workers)
	b.workers(func(w int, c *conn) {
		rng := rand.New(rand.NewPCG(uint64(w), uint64(start.UnixNano())))
		for errs[w] == nil {
			due, ok := next()
			if !ok {
				return
			}
			o := read
			if rng.Float64() >= b.opts.Load.Reads {
				o = write
			}
			a := b.ask(asking, c, o, b.picker.pick(rng))
			if ctx.Err() != nil {
				return // interrupted: nothing can be said of this one
			}
			b.asked.Add(1)
			a.took = time.Since(due)
			if !due.Before(measured) {
				errs[w] = rec.add(w, a)
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	during := b.opts.During
	if now := time.Now(); now.Before(end) { // interrupted
		during = max(now.Sub(measured), time.Millisecond)
	}
	var unsent int64
	if b.opts.Rate > 0 && ctx.Err() == nil {
		due := int64(math.Ceil(b.opts.Rate * (b.opts.WarmUp + b.opts.During).Seconds()))
		unsent = max(0, due-b.asked.Load())
	}
	return rec.result(during, unsent), nil
}

// ask sends one request and reads its answer.
func (b *Bench) ask(ctx context.Context, c *conn, o op, key int) answer {
	a := answer{op: o}
	req, size := getRequest, 0
	var body []byte
	if o == write {
		req, size = putRequest, b.opts.Load.size(key)
		body = b.value[:size]
	}
	fail := func(why string, err error) answer {
		a.failed, a.detail = why, err.Error()
		return a
	}
	resp, err := c.do(ctx, req, b.opts.Path, keyName(key), body)
	if err != nil {
		return fail("transport", err)
	}
	defer c.done(resp)
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return fail(refusal(resp))
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return fail("transport", err)
	}
	if a.bytes = size; o == read {
		a.bytes, a.cache = int(n), resp.Header.Get("Kv-Cache")
	}
	return a
}

// The requests that http.ReadResponse asks about: an answer's body depends on the method.
var (
	getRequest = &http.Request{Method: http.MethodGet}
	putRequest = &http.Request{Method: http.MethodPut}
)

// refusal is a node's error code and the whole error; the rest of the body is read, so that the connection can be used again.
func refusal(resp *http.Response) (string, error) {
	var doc struct {
		Error struct {
			Code    kv.Code `json:"code"`
			Message string  `json:"message"`
		} `json:"error"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "transport", err
	}
	if json.Unmarshal(body, &doc) != nil || doc.Error.Code == "" {
		return fmt.Sprintf("status %d", resp.StatusCode), fmt.Errorf("%s, and no error of kvmesh", resp.Status)
	}
	return string(doc.Error.Code), fmt.Errorf("%s (%s)", doc.Error.Message, doc.Error.Code)
}
