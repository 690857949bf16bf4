package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
)

const (
	maxValueBytes = 25 << 20
	maxShown      = 20 // differences that are printed; all are counted
)

// expectation is what one key must hold.
type expectation struct {
	key  string
	sum  [sha256.Size]byte
	size int64
}

// failures collects differences from several goroutines.
type failures struct {
	mu    sync.Mutex // guards the fields below
	count int
	shown []string
}

func (f *failures) addf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count++; len(f.shown) < maxShown {
		f.shown = append(f.shown, fmt.Sprintf(format, args...))
	}
}

// err is nil when nothing was added.
func (f *failures) err(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == 0 {
		return nil
	}
	text := fmt.Sprintf("%s: %d differences", what, f.count)
	if f.count > len(f.shown) {
		text += fmt.Sprintf(", the first %d", len(f.shown))
	}
	return errors.New(text + "\n  " + strings.Join(f.shown, "\n  "))
}

// forEach calls do for 0 to n-1 from a few goroutines and returns when all calls have ended. It stops early, with the
// cause, when ctx ends.
func forEach(ctx context.Context, n int, do func(i int)) error {
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	var err error
	for i := 0; i < n && err == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
			err = fmt.Errorf("ended after %d of %d: %w", i, n, context.Cause(ctx))
		}
	}
	close(next)
	wg.Wait()
	return err
}

// compare reads every key at every edge, and one whole listing at each, and holds them against want, which is sorted by
// key. It returns the bytes that were read.
func (c *client) compare(ctx context.Context, edges []edge, want []expectation) (int64, error) {
	var bad failures
	sizes := make([]int64, len(edges)*len(want))
	err := forEach(ctx, len(sizes), func(i int) {
		e, w := edges[i%len(edges)], want[i/len(edges)]
		got, err := c.get(ctx, e, w.key, -1)
		sizes[i] = got.size
		switch {
		case err != nil:
			bad.addf("%s: %q: %v", e.name, w.key, err)
		case got.sum != w.sum:
			bad.addf("%s: %q: %d bytes with SHA-256 %x (Kv-Cache: %s), want %d bytes with %x",
				e.name, w.key, got.size, got.sum, got.tier, w.size, w.sum)
		}
	})
	var total int64
	for _, n := range sizes {
		total += n
	}
	if err != nil {
		return total, errors.Join(err, bad.err("compare"))
	}
	names := make([]string, len(want))
	for i, w := range want {
		names[i] = w.key
	}
	for _, e := range edges {
		got, err := c.list(ctx, e)
		if err != nil {
			bad.addf("%s: %v", e.name, err)
			continue
		}
		compareLists(&bad, e.name, got, names)
	}
	return total, bad.err("compare")
}

// compareLists reports what is missing, unexpected, doubled or out of order in got.
func compareLists(bad *failures, where string, got, want []string) {
	if slices.Equal(got, want) {
		return
	}
	if !slices.IsSorted(got) {
		bad.addf("%s: the listing is not in the order of the keys' bytes", where)
		got = slices.Sorted(slices.Values(got))
	}
	i, j := 0, 0
	for i < len(got) || j < len(want) {
		switch {
		case j == len(want) || (i < len(got) && got[i] < want[j]):
			bad.addf("%s: the listing has %q, which was not written, or has it twice", where, got[i])
			i++
		case i == len(got) || want[j] < got[i]:
			bad.addf("%s: the listing misses %q", where, want[j])
			j++
		default:
			i++
			j++
		}
	}
}

// namesLimit matches a message that tells the largest size of a value.
var namesLimit = regexp.MustCompile(`\b26214400\b|\b25 ?MiB\b`)

// limits writes key with exactly size bytes, the largest there may be, and reads it at the edges, then offers one byte more, with and without
// a declared length, which must be refused with 413 and the limit in the message, and change nothing.
func (c *client) limits(ctx context.Context, from edge, edges []edge, key string, size int) (expectation, error) {
	value := make([]byte, size+1)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte([]byte("kvmesh: the largest value of all"))), value); err != nil {
		return expectation{}, err
	}
	want := expectation{key, sha256.Sum256(value[:size]), int64(size)}
	if err := c.put(ctx, from, key, value[:size]); err != nil {
		return want, fmt.Errorf("a value of exactly %d bytes: %w", size, err)
	}
	for _, declared := range []bool{true, false} {
		if err := c.tooLarge(ctx, from, key, value, declared); err != nil {
			return want, fmt.Errorf("a value of %d bytes (length declared: %v): %w", len(value), declared, err)
		}
	}
	var bad failures
	for _, e := range edges {
		switch got, err := c.get(ctx, e, key, 0); {
		case err != nil:
			bad.addf("%s: %v", e.name, err)
		case got.sum != want.sum:
			bad.addf("%s: %d bytes with SHA-256 %x, want %d with %x", e.name, got.size, got.sum, want.size, want.sum)
		}
	}
	return want, bad.err("the largest value")
}

func (c *client) tooLarge(ctx context.Context, e edge, key string, value []byte, declared bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.keyURL(e, key), bytes.NewReader(value))
	if err != nil {
		return err
	}
	if declared {
		// As curl does for large bodies: a node that refuses by the length alone is heard before the body is sent.
		req.Header.Set("Expect", "100-continue")
	} else {
		req.ContentLength = -1
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusRequestEntityTooLarge:
		return fmt.Errorf("status %d instead of 413: %s", resp.StatusCode, text)
	case !namesLimit.Match(text):
		return fmt.Errorf("the message does not name the limit of 25 MiB (26214400 bytes): %s", text)
	}
	return nil
}
