// Command policy compares which reads a full cache of kvmesh still answers by itself with what LRU, otter (W-TinyLFU) and the
// offline optimum would, on seeded traces. It drives the real cache through its API: shards, share for absences and all. It is
// a module of its own, so that otter is no dependency of kvmesh. scripts/bench/policy.sh builds and runs it.
package main

import (
	"container/heap"
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"text/tabwriter"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/raftstore/kv"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "policy:", err)
		os.Exit(1)
	}
}

// trace is a sequence of keys, by number.
type trace struct {
	name string
	keys []uint32
}

func traces(n int) []trace {
	const keys = 200_000
	zipf := func(theta float64, seed uint64) func() uint32 {
		rng := rand.New(rand.NewPCG(seed, 1))
		sum := make([]float64, keys+1)
		for i := 1; i <= keys; i++ {
			sum[i] = sum[i-1] + math.Pow(float64(i), -theta)
		}
		spread := rng.Perm(keys)
		return func() uint32 { // by bisection of the exact distribution
			u := rng.Float64() * sum[keys]
			lo, hi := 1, keys
			for lo < hi {
				if mid := (lo + hi) / 2; sum[mid] < u {
					lo = mid + 1
				} else {
					hi = mid
				}
			}
			return uint32(spread[lo-1])
		}
	}
	make := func(name string, next func(i int) uint32) trace {
		t := trace{name: name, keys: make([]uint32, n)}
		for i := range t.keys {
			t.keys[i] = next(i)
		}
		return t
	}
	plain := func(theta float64) func(int) uint32 {
		z := zipf(theta, 7)
		return func(int) uint32 { return z() }
	}
	// scanned is zipf, interrupted by scans over keys that nobody else reads: a crawler, an export.
	scanned := func(every, length int) func(int) uint32 {
		z, next := zipf(0.99, 7), uint32(keys)
		return func(i int) uint32 {
			if i%every < length {
				next++
				return next
			}
			return z()
		}
	}
	// moving is zipf whose popular keys are others after a while: news.
	moving := func(every int) func(int) uint32 {
		z := zipf(0.99, 7)
		return func(i int) uint32 { return (z() + uint32(i/every)*7919) % keys }
	}
	// loop reads the same keys in the same order again and again: a nightly job. It is the worst that can happen to LRU.
	loop := func(length int) func(int) uint32 {
		z := zipf(0.99, 7)
		return func(i int) uint32 {
			if i%4 == 0 {
				return keys + uint32(i/4%length)
			}
			return z()
		}
	}
	return []trace{
		make("zipf 0.99", plain(0.99)),
		make("zipf 0.8", plain(0.8)),
		make("zipf 0.99, scans of 20,000 in 100,000", scanned(100_000, 20_000)),
		make("zipf 0.99, one read in 5 of a scan", scanned(5, 1)),
		make("zipf 0.99, other favourites every 200,000", moving(200_000)),
		make("zipf 0.99, one read in 4 of a loop of 30,000", loop(30_000)),
	}
}

// policy decides what a cache of a certain number of entries holds. read reports whether it was a hit.
type policy struct {
	name string
	make func(size int, t trace) (read func(i int, key uint32) bool, close func())
}

func policies() []policy {
	return []policy{
		{"LRU", func(size int, _ trace) (func(int, uint32) bool, func()) {
			order, at := list.New(), make(map[uint32]*list.Element)
			return func(_ int, key uint32) bool {
				if e, ok := at[key]; ok {
					order.MoveToFront(e)
					return true
				}
				at[key] = order.PushFront(key)
				if order.Len() > size {
					delete(at, order.Remove(order.Back()).(uint32))
				}
				return false
			}, func() {}
		}},
		{"otter", func(size int, _ trace) (func(int, uint32) bool, func()) {
			c := otter.Must(&otter.Options[uint32, struct{}]{MaximumSize: size, Executor: func(fn func()) { fn() }})
			n := 0
			return func(_ int, key uint32) bool {
				if _, ok := c.GetIfPresent(key); ok {
					return true
				}
				c.Set(key, struct{}{})
				if n++; n%64 == 0 {
					c.CleanUp() // its maintenance is lazy; a server would be as busy with it
				}
				return false
			}, func() { c.StopAllGoroutines() }
		}},
		{"kvmesh", kvmesh},
		{"optimum", optimum},
	}
}

// source answers every fill.
type source struct{ fills int }

func (s *source) Route(uint64, int) []cache.Hop {
	return []cache.Hop{{Node: "v", Tier: cache.TierCentral}}
}

func (s *source) Ask(_ context.Context, _ cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	s.fills++
	return cache.FillAnswer{Epoch: req.Epoch, Revision: 1, AsOf: max(1, req.Least), Value: make([]byte, 8)}, nil
}

// kvmesh is the real cache, with memory for size entries.
func kvmesh(size int, _ trace) (func(int, uint32) bool, func()) {
	read, c := open(1 << 40)
	for key := range uint32(size) {
		read(0, key)
	}
	bytes := c.Stats().Bytes
	c.Close()
	read, c = open(bytes)
	return read, c.Close
}

func open(bytes int64) (read func(int, uint32) bool, c *cache.Cache) {
	src := new(source)
	begun := time.Now()
	c = cache.New(cache.Options{
		Bytes: bytes, Clock: func() cache.Mono { return cache.Mono(time.Since(begun)) },
		Asker: src, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	c.Adopt(kv.NewEpoch(1, kv.Epoch{}), 1)
	ns := kv.NewNamespaceID()
	return func(_ int, key uint32) bool {
		before := src.fills
		if _, err := c.Get(context.Background(), cache.Read{Namespace: ns, Key: fmt.Sprintf("%08d", key), Limit: 24 * time.Hour}); err != nil {
			panic(err) // no tier is ever short of anything here
		}
		return src.fills == before
	}, c
}

// optimum evicts what is read again last (Belady, "A Study of Replacement Algorithms for a Virtual-Storage Computer", IBM
// Systems Journal 1966), and does not keep what would be evicted first.
func optimum(size int, t trace) (func(int, uint32) bool, func()) {
	next := make([]int, len(t.keys))
	last := make(map[uint32]int)
	for i := len(t.keys) - 1; i >= 0; i-- {
		next[i] = math.MaxInt
		if at, ok := last[t.keys[i]]; ok {
			next[i] = at
		}
		last[t.keys[i]] = i
	}
	due := make(map[uint32]int) // what is held, and when it is read again
	var far farthest
	return func(i int, key uint32) bool {
		_, hit := due[key]
		due[key] = next[i]
		heap.Push(&far, use{key, next[i]})
		for len(due) > size {
			u := heap.Pop(&far).(use)
			if at, ok := due[u.key]; ok && at == u.at {
				delete(due, u.key)
			}
		}
		return hit
	}, func() {}
}

type use struct {
	key uint32
	at  int
}

type farthest []use

func (f farthest) Len() int           { return len(f) }
func (f farthest) Less(i, j int) bool { return f[i].at > f[j].at }
func (f farthest) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *farthest) Push(x any)        { *f = append(*f, x.(use)) }
func (f *farthest) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

func run() error {
	const reads = 2_000_000
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	head := "entries\t"
	for _, p := range policies() {
		head += p.name + "\t"
	}
	for _, t := range traces(reads) {
		fmt.Fprintf(out, "%s\n%skvmesh - LRU\tkvmesh - otter\t\n", t.name, head)
		for _, size := range []int{2_000, 10_000, 40_000} {
			line, rate := fmt.Sprintf("%d\t", size), make(map[string]float64)
			for _, p := range policies() {
				read, done := p.make(size, t)
				hits := 0
				for i, key := range t.keys {
					if hit := read(i, key); hit && i >= reads/5 { // the first fifth fills it
						hits++
					}
				}
				done()
				rate[p.name] = 100 * float64(hits) / (reads * 4 / 5)
				line += fmt.Sprintf("%.2f %%\t", rate[p.name])
			}
			fmt.Fprintf(out, "%s%+.2f\t%+.2f\t\n", line, rate["kvmesh"]-rate["LRU"], rate["kvmesh"]-rate["otter"])
		}
		fmt.Fprintln(out)
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}
