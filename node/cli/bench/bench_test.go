package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are made in memory, so that a server and its clients share a bubble's time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// idle is how long the server keeps a connection without a request.
const idle = 900 * time.Millisecond

// against runs a test in virtual time against a server with one handler.
func against(t *testing.T, serve http.HandlerFunc, test func(t *testing.T, o Options)) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		srv := &http.Server{Handler: serve, IdleTimeout: idle}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(l) }()
		test(t, Options{
			URLs: []string{"http://node"}, Path: "/v1/kv/default/", Dial: l.dial, wait: timer, Workers: 4,
			Load: Load{Reads: 0.5, Keys: 100, Zipf: 0.99, MedianBytes: 288, MaxBytes: 1 << 20, Spread: 1},
		})
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		time.Sleep(time.Minute) // requests that were given up end
	})
}

func newBench(t *testing.T, o Options) *Bench {
	t.Helper()
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A server that stands still for 200 ms of every second is seen as its users see it, a fifth of whom meet a pause; one that
// answers at once is not blamed for anything.
func TestPausesAreSeen(t *testing.T) {
	for name, pause := range map[string]time.Duration{"none": 0, "200 ms a second": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			serve := func(w http.ResponseWriter, r *http.Request) {
				if at := time.Duration(time.Now().UnixNano()) % time.Second; at < pause {
					time.Sleep(pause - at)
				}
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, "value")
			}
			against(t, serve, func(t *testing.T, o Options) {
				o.Rate, o.WarmUp, o.During, o.Workers = 200, time.Second, 5*time.Second, 2
				res, err := newBench(t, o).Run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var done int64
				for _, kind := range res.Ops {
					done += kind.Done
					// Of the 20 % that meet a pause half wait for more than 100 ms.
					if pause > 0 && (kind.Latency.P90 < 80 || kind.Latency.P90 > 130 || kind.Latency.P50 > 1 || kind.Latency.Max < 190) {
						t.Errorf("a pause of 200 ms in every second: %+v", kind.Latency)
					}
					if pause == 0 && kind.Latency.Max > 1 {
						t.Errorf("no pause: %+v", kind.Latency)
					}
				}
				if done != 1000 || res.Unsent != 0 || len(res.Failed) > 0 {
					t.Errorf("%d of 1000 answers, %d not sent, failed %v", done, res.Unsent, res.Failed)
				}
			})
		})
	}
}

// What a server is too slow for is told, and does not keep the run from ending.
func TestTooSlow(t *testing.T) {
	serve := func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(100 * time.Millisecond)
		w.WriteHeader(http.StatusOK)
	}
	against(t, serve, func(t *testing.T, o Options) {
		o.Rate, o.During, o.Load.Reads = 100, 10*time.Second, 1
		begun := time.Now()
		res, err := newBench(t, o).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > o.During+grace+time.Second {
			t.Errorf("it took %v", took)
		}
		// 40 a second for 20 seconds at most, of the 1,000 that were due.
		if done := res.Ops["read"].Done; done+res.Failed["transport"]+res.Unsent != 1000 || res.Unsent < 190 {
			t.Errorf("%d done, %d not sent, failed %v", done, res.Unsent, res.Failed)
		}
	})
}

func TestMaximum(t *testing.T) {
	serve := func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(10 * time.Millisecond)
		w.WriteHeader(http.StatusOK)
	}
	against(t, serve, func(t *testing.T, o Options) {
		o.During, o.WarmUp, o.Load.Reads = 10*time.Second, time.Second, 1
		res, err := newBench(t, o).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r := res.Ops["read"].PerSecond; r < 395 || r > 405 {
			t.Errorf("4 connections with 10 ms an answer made %v a second", r)
		}
	})
}

func TestFillAndFailures(t *testing.T) {
	var mu sync.Mutex // guards stored
	stored := make(map[string]int64)
	serve := func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.URL.Path, "/v1/kv/default/")
		mu.Lock()
		defer mu.Unlock()
		switch n, ok := stored[key]; {
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":{"code":"unauthorized","message":"no"}}`)
		case r.Method == http.MethodPut:
			stored[key], _ = io.Copy(io.Discard, r.Body)
		case key == keyName(7) || !ok:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":{"code":"no_leader","message":"there is none"}}`)
		default:
			w.Header().Set("Kv-Cache", "HIT")
			_, _ = w.Write(make([]byte, n))
		}
	}
	against(t, serve, func(t *testing.T, o Options) {
		if err := newBench(t, o).Fill(t.Context()); err == nil || !strings.Contains(err.Error(), "unauthorized") {
			t.Errorf("without a token: %v", err)
		}
		o.Token, o.Rate, o.During, o.Load.Zipf = "secret", 400, 5*time.Second, 0
		b := newBench(t, o)
		if err := b.Fill(t.Context()); err != nil || b.Stored() != 100 || len(stored) != 100 {
			t.Fatalf("%d of 100 keys, %d of them stored: %v", len(stored), b.Stored(), err)
		}
		res, err := b.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		reads, writes := res.Ops["read"], res.Ops["write"]
		if sum := reads.Done + writes.Done + res.Failed["no_leader"]; sum != 2000 || reads.Done < 800 || writes.Done < 800 || res.Failed["no_leader"] == 0 ||
			!strings.Contains(res.Example, "there is none") || res.Cache["HIT"] != reads.Done || reads.Bytes < 100*reads.Done {
			t.Errorf("%+v", res)
		}
	})
}

// Connections that the server has given up meanwhile, or gives up with its answer, are replaced and cost no request.
func TestConnectionsEnd(t *testing.T) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/kv/default/"+keyName(0) {
			w.Header().Set("Connection", "close")
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(make([]byte, 100<<10)) // in chunks
	}
	against(t, serve, func(t *testing.T, o Options) {
		o.Rate, o.During, o.Workers, o.Load.Keys = 1, time.Minute, 1, 2
		res, err := newBench(t, o).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := res.Ops["read"].Done + res.Ops["write"].Done; n != 60 || len(res.Failed) > 0 || res.Ops["read"].Bytes != res.Ops["read"].Done*100<<10 {
			t.Errorf("%d answers: %+v", n, res)
		}
	})
}

// An interrupted run tells what it has measured.
func TestInterrupted(t *testing.T) {
	serve := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }
	against(t, serve, func(t *testing.T, o Options) {
		o.Rate, o.During = 100, time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		res, err := newBench(t, o).Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n := res.Ops["read"].Done + res.Ops["write"].Done; n < 990 || n > 1000 || res.Seconds != 10 || res.Unsent != 0 {
			t.Errorf("%d answers in %v s, %d not sent", n, res.Seconds, res.Unsent)
		}
	})
}

func TestPicker(t *testing.T) {
	const n, draws = 1000, 200_000
	for _, theta := range []float64{0, 0.5, 0.99} {
		t.Run(fmt.Sprint(theta), func(t *testing.T) {
			p := newPicker(n, theta)
			rng := rand.New(rand.NewPCG(1, 2))
			counts := make([]int, n)
			for range draws {
				counts[p.pick(rng)]++
			}
			slices.SortFunc(counts, func(a, b int) int { return b - a })
			// The share of the most popular key, by the definition of the distribution.
			want := 1 / float64(n)
			if theta > 0 {
				want = 1 / p.zeta
			}
			if got := float64(counts[0]) / draws; got < want*0.9 || got > want*1.3 {
				t.Errorf("the most popular key has %v of all, not %v", got, want)
			}
			if theta < 0.99 && counts[n-1] == 0 {
				t.Error("a key is never picked")
			}
		})
	}
	for range 100 {
		if p := newPicker(1, 0.99); p.pick(rand.New(rand.NewPCG(1, 2))) != 0 {
			t.Fatal("of one key another was picked")
		}
	}
}

func TestSizes(t *testing.T) {
	l := Load{MedianBytes: 288, MaxBytes: 25 << 20, Spread: 2}
	var sizes []int
	for i := range 10_000 {
		sizes = append(sizes, l.size(i))
	}
	slices.Sort(sizes)
	if m := sizes[len(sizes)/2]; m < 260 || m > 320 {
		t.Errorf("the median is %d", m)
	}
	if sizes[len(sizes)-1] < 64<<10 || sizes[0] >= 16 {
		t.Errorf("from %d to %d", sizes[0], sizes[len(sizes)-1])
	}
	if l.Spread = 0; l.size(3) != 288 {
		t.Errorf("%d without a spread", l.size(3))
	}
	if l.MaxBytes = 100; l.size(3) != 100 {
		t.Errorf("%d of at most 100", l.size(3))
	}
}
