package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// measured is one cell of one round.
type measured struct {
	rate     float64 // operations per second
	p50, p99 time.Duration
	cpu      float64 // µs of all three server processes, per operation
}

// median takes each figure's median by itself.
func median(ms []measured) measured {
	pick := func(of func(measured) float64) float64 {
		vs := make([]float64, len(ms))
		for i, m := range ms {
			vs[i] = of(m)
		}
		slices.Sort(vs)
		return vs[len(vs)/2]
	}
	return measured{
		rate: pick(func(m measured) float64 { return m.rate }),
		p50:  time.Duration(pick(func(m measured) float64 { return float64(m.p50) })),
		p99:  time.Duration(pick(func(m measured) float64 { return float64(m.p99) })),
		cpu:  pick(func(m measured) float64 { return m.cpu }),
	}
}

// keys is how many keys the writers share: enough that they seldom meet, few enough that all have been written soon.
const keys = 10_000

// client does one operation at a time.
type client interface {
	put(ctx context.Context, key string, value []byte) error
	get(ctx context.Context, key string) error // linearizable
	close() error
}

// load runs clients that send one request after the other for a while. Every answer must be a good one.
func load(ctx context.Context, sys *system, clients, size int, during time.Duration, read bool) (measured, error) {
	workers := make([]client, clients)
	for i := range workers {
		c, err := sys.connect(i)
		if err != nil {
			return measured{}, err
		}
		defer c.close()
		workers[i] = c
	}
	ctx, cancel := context.WithTimeout(ctx, during+30*time.Second)
	defer cancel()
	var over atomic.Bool
	took := make([][]time.Duration, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	cpu, err := sys.cpu()
	if err != nil {
		return measured{}, err
	}
	start := time.Now()
	end := time.AfterFunc(during, func() { over.Store(true) })
	defer end.Stop()
	for i, c := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			value := make([]byte, size)
			for j := range value {
				value[j] = byte(rng.Uint32())
			}
			for !over.Load() {
				key := fmt.Sprintf("bench-%06d", rng.IntN(keys))
				began := time.Now()
				var err error
				if read {
					err = c.get(ctx, key)
				} else {
					err = c.put(ctx, key, value)
				}
				if err != nil {
					errs[i] = err
					over.Store(true)
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	after, err := sys.cpu()
	for _, err := range append(errs, err) {
		if err != nil { // one of them says enough
			return measured{}, err
		}
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return measured{}, errors.New("nothing was answered")
	}
	slices.Sort(all)
	return measured{
		rate: float64(len(all)) / elapsed.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100],
		cpu: float64(after-cpu) / float64(time.Microsecond) / float64(len(all)),
	}, nil
}

// uploadLarge puts values of 25 MiB, one after the other, until the function it returns is called, which says how many.
func uploadLarge(ctx context.Context, sys *system) (end func() (int, error)) {
	var over atomic.Bool
	done := make(chan struct{})
	n := 0
	var failed error
	go func() {
		defer close(done)
		c, err := sys.connect(0)
		if err != nil {
			failed = err
			return
		}
		defer c.close()
		value := make([]byte, 25<<20)
		for ; !over.Load(); n++ {
			if failed = c.put(ctx, fmt.Sprintf("large-%d", n%4), value); failed != nil {
				return
			}
		}
	}()
	return func() (int, error) {
		over.Store(true)
		<-done
		return n, failed
	}
}
