package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
)

// Options of a Bench.
type Options struct {
	URLs      []string // of nodes, "http://host:port"; connections are spread over them in turn
	Path      string   // of the keys, with a slash at the end: "/v1/kv/default/"
	Token     string
	Load      Load
	Rate      float64 // requests a second, all together; 0 = as many as there are answers
	Workers   int     // requests under way at most, each on a connection of its own
	WarmUp    time.Duration
	During    time.Duration
	Transport http.RoundTripper
}

// grace is how long answers are waited for that are due at the end.
const grace = 10 * time.Second

// Bench is one run, to be filled and then run.
type Bench struct {
	opts   Options
	client *http.Client
	picker *picker
	value  []byte // of which all values are beginnings
	stored atomic.Int64
	asked  atomic.Int64
}

// New makes a Bench. It connects to nobody yet.
func New(o Options) *Bench {
	b := &Bench{opts: o, client: &http.Client{Transport: o.Transport}, picker: newPicker(o.Load.Keys, o.Load.Zipf)}
	longest := 0
	for i := range o.Load.Keys {
		longest = max(longest, o.Load.size(i))
	}
	b.value = make([]byte, longest)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(b.value) // never fails
	return b
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
	b.workers(func(w int) {
		for ctx.Err() == nil {
			i := int(next.Add(1) - 1)
			if i >= b.opts.Load.Keys {
				return
			}
			if a := b.ask(ctx, w, write, i); a.failed != "" {
				cancel(fmt.Errorf("%s: %s", keyName(i), a.detail))
				return
			}
			b.stored.Add(1)
		}
	})
	return context.Cause(ctx)
}

func (b *Bench) workers(do func(w int)) {
	var wg sync.WaitGroup
	for w := range b.opts.Workers {
		wg.Go(func() { do(w) })
	}
	wg.Wait()
}

// Run asks until the time is over. When ctx ends before, it says what was measured until then.
func (b *Bench) Run(ctx context.Context) (*Result, error) {
	rec := newRecorder()
	start := time.Now()
	measured, end := start.Add(b.opts.WarmUp), start.Add(b.opts.WarmUp+b.opts.During)
	asking, cancel := context.WithDeadline(ctx, end.Add(grace))
	defer cancel()
	var next atomic.Int64
	errs := make([]error, b.opts.Workers)
	b.workers(func(w int) {
		rng := rand.New(rand.NewPCG(uint64(w), uint64(start.UnixNano())))
		for errs[w] == nil {
			due := time.Now()
			if b.opts.Rate > 0 {
				due = start.Add(time.Duration(float64(next.Add(1)-1) / b.opts.Rate * float64(time.Second)))
			}
			if !due.Before(end) || !waitUntil(asking, due) {
				return
			}
			o := read
			if rng.Float64() >= b.opts.Load.Reads {
				o = write
			}
			a := b.ask(asking, w, o, b.picker.pick(rng))
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

// waitUntil reports whether at comes before ctx ends.
func waitUntil(ctx context.Context, at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask sends one request and reads its answer.
func (b *Bench) ask(ctx context.Context, w int, o op, key int) answer {
	a := answer{op: o}
	method, size := http.MethodGet, 0
	var body io.Reader
	if o == write {
		method, size = http.MethodPut, b.opts.Load.size(key)
		body = bytes.NewReader(b.value[:size])
	}
	fail := func(why string, err error) answer {
		a.failed, a.detail = why, err.Error()
		return a
	}
	req, err := http.NewRequestWithContext(ctx, method, b.opts.URLs[w%len(b.opts.URLs)]+b.opts.Path+keyName(key), body)
	if err != nil {
		return fail("request", err)
	}
	if b.opts.Token != "" {
		req.Header.Set("Authorization", "Bearer "+b.opts.Token)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return fail("transport", err)
	}
	defer func() { _ = resp.Body.Close() }()
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
