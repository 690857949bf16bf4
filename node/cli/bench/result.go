package bench

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// op is a kind of request.
type op uint8

const (
	read op = iota
	write
	ops
)

func (o op) String() string { return [ops]string{"read", "write"}[o] }

// Latency is a distribution in milliseconds.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// Op is what came of one kind of request. Only answers that are as they should be count for Done, PerSecond, Bytes and
// Latency.
type Op struct {
	Done      int64   `json:"done"`
	PerSecond float64 `json:"per_second"`
	Bytes     int64   `json:"bytes"` // of values
	Latency   Latency `json:"latency_ms"`
}

// Result is what came of a run. The warm-up is not in it.
type Result struct {
	Seconds float64       `json:"seconds"`
	Ops     map[string]Op `json:"ops"`
	// Cache counts reads by what the nodes said of where they came from (Kv-Cache).
	Cache map[string]int64 `json:"cache"`
	// Failed counts requests without a good answer, by why: the node's error code, or "transport".
	Failed map[string]int64 `json:"failed"`
	// Example is one of those failures in full.
	Example string `json:"example,omitempty"`
	// Unsent were due, and no connection came free for them before the end: the servers, or this machine, are slower than the
	// rate that was asked for.
	Unsent int64 `json:"unsent"`
}

const (
	// slowest is the longest latency that is told apart from longer ones.
	slowest = 10 * time.Minute
	// digits of a latency are exact.
	digits = 3
	// shards keep the workers from waiting for each other.
	shards = 8
)

// recorder collects. Its shards are merged at the end.
type recorder struct{ shards [shards]shard }

type shard struct {
	mu      sync.Mutex // guards all below
	took    [ops]*hdrhistogram.Histogram
	bytes   [ops]int64
	cache   map[string]int64
	failed  map[string]int64
	example string
}

func newRecorder() *recorder {
	r := new(recorder)
	for i := range r.shards {
		s := &r.shards[i]
		s.cache, s.failed = make(map[string]int64), make(map[string]int64)
		for o := range s.took {
			s.took[o] = hdrhistogram.New(1, slowest.Microseconds(), digits)
		}
	}
	return r
}

// answer is what came of one request.
type answer struct {
	op     op
	took   time.Duration
	bytes  int
	cache  string
	failed string // why; "" = a good answer
	detail string
}

func (r *recorder) add(worker int, a answer) error {
	s := &r.shards[worker%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.failed != "" {
		s.failed[a.failed]++
		s.example = a.detail
		return nil
	}
	s.bytes[a.op] += int64(a.bytes)
	if a.cache != "" {
		s.cache[a.cache]++
	}
	if err := s.took[a.op].RecordValue(max(1, min(a.took, slowest).Microseconds())); err != nil {
		return fmt.Errorf("a latency of %v: %w", a.took, err)
	}
	return nil
}

func (r *recorder) result(during time.Duration, unsent int64) *Result {
	res := &Result{
		Seconds: during.Seconds(), Ops: make(map[string]Op), Cache: make(map[string]int64), Failed: make(map[string]int64), Unsent: unsent,
	}
	for o := range ops {
		all := hdrhistogram.New(1, slowest.Microseconds(), digits)
		var bytes int64
		for i := range r.shards {
			all.Merge(r.shards[i].took[o])
			bytes += r.shards[i].bytes[o]
		}
		if all.TotalCount() == 0 {
			continue
		}
		ms := func(us int64) float64 { return float64(us) / 1000 }
		at := func(p float64) float64 { return ms(all.ValueAtQuantile(p)) }
		res.Ops[o.String()] = Op{
			Done: all.TotalCount(), PerSecond: float64(all.TotalCount()) / during.Seconds(), Bytes: bytes,
			Latency: Latency{Mean: all.Mean() / 1000, P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: ms(all.Max())},
		}
	}
	for i := range r.shards {
		s := &r.shards[i]
		for k, n := range s.cache {
			res.Cache[k] += n
		}
		for k, n := range s.failed {
			res.Failed[k] += n
			res.Example = s.example
		}
	}
	return res
}
