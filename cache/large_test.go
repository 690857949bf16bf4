package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"kvmesh/raftstore/kv"
)

// largeRig is a cache with a source of large values, each of one byte over and over.
type largeRig struct {
	*rig
	loads atomic.Int64
	gate  chan struct{} // when not nil, a load waits for it after its first step
	cut   int64         // when not 0, loads break off there
}

type largeSource struct {
	io.Reader
	read int64
	r    *largeRig
	ctx  context.Context
}

func (s *largeSource) Read(p []byte) (int, error) {
	if s.r.cut > 0 && s.read >= s.r.cut {
		return 0, errDown
	}
	if s.r.gate != nil && s.read >= loadStep {
		select {
		case <-s.r.gate:
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	n, err := s.Reader.Read(p)
	s.read += int64(n)
	return n, err
}

func (s *largeSource) Close() error { return nil }

func largeBytes(blob byte, size int64) []byte { return bytes.Repeat([]byte{blob}, int(size)) }

func (r *largeRig) large(blob byte, size int64) *LargeValue {
	return r.c.Large(LargeKey{nsA, kv.BlobID{blob}}, size, func(ctx context.Context) (io.ReadCloser, error) {
		r.loads.Add(1)
		return &largeSource{Reader: bytes.NewReader(largeBytes(blob, size)), r: r, ctx: ctx}, nil
	})
}

// whole reads a value that must be in the pool, or on its way.
func (r *largeRig) whole(v *LargeValue, blob byte, offset, length int64) {
	r.t.Helper()
	if v == nil {
		r.t.Fatalf("value %d is not in the pool", blob)
	}
	rd, err := v.Open(r.t.Context(), offset, length, func(at, n int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(largeBytes(blob, n))), nil
	})
	must(r.t, err)
	got, err := io.ReadAll(rd)
	must(r.t, errors.Join(err, rd.Close()))
	if !bytes.Equal(got, largeBytes(blob, length)) {
		r.t.Fatalf("%d bytes of value %d are wrong", len(got), blob)
	}
}

func newLargeRig(t *testing.T, size int64) *largeRig {
	return &largeRig{rig: newRig(t, func(o *Options) { o.Bytes = size })}
}

// settled waits for the loads that run.
func (r *largeRig) settled() {
	r.c.fills.Wait()
}

const big = 2 << 20

// TestLarge: kept when it is read again, loaded once however many read it, found in any part, and counted by the byte.
func TestLarge(t *testing.T) {
	r := newLargeRig(t, 64<<20)
	if r.large(1, big) != nil {
		t.Error("a value is kept that was read once")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { r.whole(r.large(1, big), 1, 0, big) })
	}
	wg.Wait()
	r.settled()
	if n := r.loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
	r.whole(r.large(1, big), 1, big-10, 10)
	r.whole(r.large(1, big), 1, 100, 1)
	if s := r.c.Stats(); s.Bytes != big {
		t.Errorf("%+v", s)
	}
	for _, part := range [][2]int64{{-1, 2}, {0, 0}, {big - 1, 2}, {big, 1}} {
		if _, err := r.large(1, big).Open(t.Context(), part[0], part[1], nil); err == nil {
			t.Errorf("%v: opened", part)
		}
	}
	if r.large(1, big+1) != nil {
		t.Error("a value of another size was given")
	}
}

// TestLargeLeavesSmall: eight values of 25 MiB take no more than their share, and most of what is small stays.
func TestLargeLeavesSmall(t *testing.T) {
	const bytes = 120 << 20
	r := newLargeRig(t, bytes)
	n := 0
	for ; r.c.Stats().Bytes < bytes-4096 && n < 2*bytes>>15; n++ {
		must(t, r.c.BeginWrite(nsA, fmt.Sprint(n)).Done(State{Epoch: epoch1, AsOf: 1, Revision: 1, Value: make([]byte, 32<<10)}))
	}
	small := r.c.Stats().Entries
	for range 3 {
		for blob := byte(1); blob <= 8; blob++ {
			r.large(blob, kv.MaxValueBytes)
			if s := r.c.Stats(); s.Bytes > bytes || r.c.large.bytes.Load() > bytes/largeShare {
				t.Fatalf("%+v, %d of it large", s, r.c.large.bytes.Load())
			}
		}
		r.settled()
	}
	if s := r.c.Stats(); s.Entries < small*7/10 || r.loads.Load() == 0 || r.c.large.bytes.Load() != kv.MaxValueBytes {
		t.Errorf("%d of %d entries are left after %d loads; %d bytes are large", s.Entries, small, r.loads.Load(), r.c.large.bytes.Load())
	}
}

// TestLargeLoading: what is being loaded at once is bounded, and its readers see it as it comes.
func TestLargeLoading(t *testing.T) {
	r := newLargeRig(t, 32*big) // 8 of them fit, 4 may be loaded at once
	r.gate = make(chan struct{})
	under := 0
	for range 2 {
		for blob := byte(1); blob <= 20; blob++ {
			if r.large(blob, big) != nil {
				under++
			}
		}
	}
	if under != 4 || r.c.large.loading != 4*big {
		t.Errorf("%d are being loaded, %d bytes", under, r.c.large.loading)
	}
	v := r.large(1, big)
	rd, err := v.Open(t.Context(), 0, big, nil)
	must(t, err)
	if n, err := io.ReadFull(rd, make([]byte, loadStep)); err != nil {
		t.Errorf("%d bytes, %v while the load is under way", n, err)
	}
	if _, err := v.Open(t.Context(), big-1, 1, nil); err != errAhead {
		t.Errorf("%v, want that this is still to come", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	gone, err := v.Open(ctx, 0, big, nil)
	must(t, err)
	if _, err := io.Copy(io.Discard, gone); !errors.Is(err, context.Canceled) {
		t.Errorf("%v to a reader who left", err)
	}
	close(r.gate)
	rest, err := io.ReadAll(rd)
	if err != nil || len(rest) != big-loadStep {
		t.Errorf("%d bytes more, %v", len(rest), err)
	}
	r.settled()
	if r.c.large.loading != 0 || r.c.large.bytes.Load() != 4*big {
		t.Errorf("%d bytes are being loaded, %d are held", r.c.large.loading, r.c.large.bytes.Load())
	}
}

// TestLargeFails: a load that breaks off leaves nothing behind, and its readers go on elsewhere at the same place.
func TestLargeFails(t *testing.T) {
	r := newLargeRig(t, 64<<20)
	r.cut = loadStep + 1000
	r.large(1, big)
	v := r.large(1, big)
	rd, err := v.Open(t.Context(), 0, big, func(at, n int64) (io.ReadCloser, error) {
		if at+n != big || at < loadStep || at > 2*loadStep {
			t.Errorf("%d bytes are wanted at %d", n, at)
		}
		return io.NopCloser(bytes.NewReader(largeBytes(1, n))), nil
	})
	must(t, err)
	if got, err := io.ReadAll(rd); err != nil || !bytes.Equal(got, largeBytes(1, big)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.settled()
	if n := r.c.large.bytes.Load() + r.c.large.loading; n != 0 || len(r.c.large.values) != 0 {
		t.Errorf("%d bytes are left of a failed load", n)
	}
	r.c.Large(LargeKey{nsB, kv.BlobID{2}}, big, nil)
	v = r.c.Large(LargeKey{nsB, kv.BlobID{2}}, big, func(context.Context) (io.ReadCloser, error) { panic("on purpose") })
	if _, err := v.Open(t.Context(), 0, big, nil); err == nil {
		t.Error("a load that panics gives bytes")
	}
	r.settled()
	r.c.Close()
	r.cut = 0
	r.large(3, big)
	if r.large(3, big) != nil {
		t.Error("a load begins after the end")
	}
}
