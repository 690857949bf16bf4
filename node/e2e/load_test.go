package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// load is a set of writers, each with keys and a counter of its own, at one node each. What was acknowledged is remembered.
type load struct {
	t     *testing.T
	nodes []*nodetest.Proc
	stop  context.CancelFunc
	wg    sync.WaitGroup
	acks  atomic.Int64

	mu      sync.Mutex        // guards the fields below
	acked   map[string][]byte // target → value
	unknown int
	counts  map[string]*counter
	odd     []string // answers that no writer should get
}

// counter is a key that is overwritten with growing numbers.
type counter struct{ acked, tried int }

// sizes of the values that are written, a class each: in the log entry, apart in the state, out of band, streamed.
var loadSizes = []int{100, 2000, kv.MaxInlineValueBytes + 1, 300, 5000, 40, kv.MaxCachedValueBytes + 1}

func startLoad(t *testing.T, writers int, nodes []*nodetest.Proc) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, nodes: nodes, stop: cancel, acked: make(map[string][]byte), counts: make(map[string]*counter)}
	for w := range writers {
		l.wg.Go(func() { l.write(ctx, w) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

func (l *load) write(ctx context.Context, w int) {
	target := fmt.Sprintf("/v1/kv/default/count-%d", w)
	count := &counter{}
	l.mu.Lock()
	l.counts[target] = count
	l.mu.Unlock()
	for i := 0; ctx.Err() == nil; i++ {
		node := l.nodes[(w+i)%len(l.nodes)]
		if i%2 == 0 {
			l.mu.Lock()
			count.tried++
			tried := count.tried
			l.mu.Unlock()
			if l.put(ctx, node, target, []byte(strconv.Itoa(tried))) {
				l.mu.Lock()
				count.acked = tried
				l.mu.Unlock()
			}
			continue
		}
		key := fmt.Sprintf("/v1/kv/default/w%d-%d", w, i)
		value := randomBytes(loadSizes[rand.IntN(len(loadSizes))])
		if l.put(ctx, node, key, value) {
			l.mu.Lock()
			l.acked[key] = value
			l.mu.Unlock()
		}
	}
}

// put reports whether the write was acknowledged. Anything but 200 and 503 is odd; a connection that is refused or breaks
// is what a killed node does.
func (l *load) put(ctx context.Context, node *nodetest.Proc, target string, value []byte) bool {
	a, err := node.Do(ctx, http.MethodPut, target, value)
	switch {
	case err != nil:
		select {
		case <-time.After(nodetest.Pause):
		case <-ctx.Done():
		}
		return false
	case a.Status == http.StatusOK:
		l.acks.Add(1)
		return true
	case a.Status != http.StatusServiceUnavailable:
		l.mu.Lock()
		l.odd = append(l.odd, fmt.Sprintf("%s: PUT %s: %v", node.Name, target, a))
		l.mu.Unlock()
	case a.Err().Code == "outcome_unknown":
		l.mu.Lock()
		l.unknown++
		l.mu.Unlock()
	}
	return false
}

// more waits until n more writes were acknowledged.
func (l *load) more(n int64) {
	l.t.Helper()
	from := l.acks.Load()
	nodetest.Eventually(l.t, nodetest.Patience, fmt.Sprintf("%d more acknowledged writes", n), func() error {
		if got := l.acks.Load() - from; got < n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// verify ends the writers and finds everything that was acknowledged, at every one of the nodes.
func (l *load) verify(nodes []*nodetest.Proc) {
	l.t.Helper()
	l.end()
	if len(l.odd) > 0 {
		l.t.Errorf("%d odd answers, the first is: %s", len(l.odd), l.odd[0])
	}
	for _, n := range nodes {
		for target, value := range l.acked {
			nodetest.Eventually(l.t, visible, "acknowledged before the crash", func() error { return n.Sees(l.t.Context(), target, value) })
		}
		for target, c := range l.counts {
			nodetest.Eventually(l.t, visible, "acknowledged counter", func() error {
				a, err := n.Do(l.t.Context(), http.MethodGet, target, nil)
				if err != nil {
					return err
				}
				if got, err := strconv.Atoi(string(a.Body)); err != nil || got < c.acked || got > c.tried {
					return fmt.Errorf("%s: %s: %v, want %d to %d", n.Name, target, a, c.acked, c.tried)
				}
				return nil
			})
		}
	}
	l.t.Logf("%d values and %d counters found at %d nodes; %d writes were acknowledged, of %d the outcome was unknown",
		len(l.acked), len(l.counts), len(nodes), l.acks.Load(), l.unknown)
}

// slowPut sends the first half of a write, and returns what sends the second half and reads the answer.
func slowPut(t *testing.T, n *nodetest.Proc) func() nodetest.Answer {
	t.Helper()
	body, w := io.Pipe()
	answer := make(chan nodetest.Answer, 1)
	go func() {
		defer close(answer)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, n.Base+"/v1/kv/default/slow", body)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Error(err)
		}
		answer <- nodetest.Answer{Status: resp.StatusCode, Header: resp.Header, Body: text}
	}()
	if _, err := w.Write(randomBytes(1 << 20)); err != nil { // returns when the transport has taken it
		t.Fatal(err)
	}
	return func() nodetest.Answer {
		t.Helper()
		if _, err := w.Write(randomBytes(1 << 20)); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		return <-answer
	}
}

// politely sends a request as a load balancer would: to the first node that is ready, over a new connection, and to the next
// when the connection is refused. An answer other than 200 is an error.
func politely(ctx context.Context, method, target string, body []byte, nodes ...*nodetest.Proc) error {
	var last error
	for _, n := range nodes {
		if status, _, err := n.Readyz(ctx); err != nil || status != http.StatusOK {
			continue
		}
		a, err := nodetest.NewClient(n.Name, n.Base).Do(ctx, method, target, body, "Connection", "close")
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			last = err
			continue
		case err != nil:
			return err
		case a.Status != http.StatusOK:
			return fmt.Errorf("%s: %s %s: %v", n.Name, method, target, a)
		}
		return nil
	}
	return fmt.Errorf("no node is ready: %w", last)
}
