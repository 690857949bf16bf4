package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

const (
	// largeShare is the part of the memory that values beyond kv.MaxCachedValueBytes may take, those included that are being
	// loaded: 1/4. However large they are, three quarters of the cache stay with everything else.
	largeShare = 4
	// loadingShare is the part of that share which values that are being loaded may take: 1/2, or one value alone. What finds
	// no room there is streamed to its reader and not kept.
	loadingShare = 2
	// loadTimeout bounds one load. Who reads it sees its bytes as they come.
	loadTimeout = 2 * time.Minute
	// loadStep is how much a load reads before it tells its readers.
	loadStep = 256 << 10
	// maxOnce bounds the values that are remembered as read once.
	maxOnce = 256
)

// LargeKey names a value that is too large for an entry. A blob never changes: which one is a key's, and how fresh that is,
// its entry says.
type LargeKey struct {
	Namespace kv.NamespaceID
	Blob      kv.BlobID
}

// large keeps the plaintext of large values, by the byte. It takes a value when that is read for the second time, so that
// what is read once replaces nothing; and it loads each one once for all who read it.
type large struct {
	c     *Cache
	max   int64
	reads *prometheus.CounterVec

	mu      sync.Mutex // guards everything below; memory operations only
	values  map[LargeKey]*LargeValue
	order   []*LargeValue // of what is loaded, the oldest first
	loading int64
	once    []LargeKey // read once, the last one last

	bytes atomic.Int64 // of all values, with those that are being loaded; changed under mu
}

// LargeValue is a value of the pool, whole or being loaded.
type LargeValue struct {
	key     LargeKey
	buf     []byte // what lies below have is never written again
	visited bool   // under the pool's lock

	mu   sync.Mutex    // guards what follows
	have int           // bytes that have come
	err  error         // why no more will
	more chan struct{} // closed and replaced when have or err change
}

// Large finds a value of size bytes in the pool, or begins to load it. Where it gives nil the caller reads the value without
// the pool: it has not been read before, or there is no room for it now. load opens the whole value; it is called at most
// once, on a goroutine of the cache, and its context ends with the cache at the latest.
func (c *Cache) Large(key LargeKey, size int64, load func(ctx context.Context) (io.ReadCloser, error)) *LargeValue {
	v, result := c.large.find(key, size)
	c.large.reads.WithLabelValues(result).Inc()
	if result != "load" {
		return v
	}
	c.makeRoom()
	go func() {
		defer c.fills.Done()
		ctx, cancel := context.WithTimeout(c.ctx, loadTimeout)
		defer cancel()
		c.large.loaded(v, v.load(ctx, c, load))
	}()
	return v
}

// find returns a value that is there, or has been given room. In the latter case a fill has begun.
func (l *large) find(key LargeKey, size int64) (v *LargeValue, result string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.values[key]; v != nil && int64(len(v.buf)) == size {
		v.visited = true
		return v, "hit"
	} else if v != nil {
		return nil, "stream"
	}
	cost := int64(sizeClass(int(size)))
	if at := slices.Index(l.once, key); at < 0 {
		if l.once = append(l.once, key); len(l.once) > maxOnce {
			l.once = slices.Delete(l.once, 0, 1)
		}
		return nil, "once"
	} else if size <= 0 || size > kv.MaxValueBytes || cost > l.max ||
		(l.loading > 0 && l.loading+cost > l.max/loadingShare) || !l.c.begin() {
		return nil, "stream"
	} else {
		l.once = slices.Delete(l.once, at, at+1)
	}
	for l.bytes.Load()+cost > l.max && l.evict() { // all but what is being loaded can go, and with that there is room
	}
	l.bytes.Add(cost)
	l.loading += cost
	v = &LargeValue{key: key, buf: make([]byte, size), more: make(chan struct{})}
	l.values[key] = v
	return v, "load"
}

// evict removes the oldest value that was not read since it came, or was spared (the second chance of CLOCK). The caller
// holds the lock.
func (l *large) evict() bool {
	for len(l.order) > 0 {
		v := l.order[0]
		l.order = slices.Delete(l.order, 0, 1)
		if v.visited {
			v.visited = false
			l.order = append(l.order, v)
			continue
		}
		delete(l.values, v.key)
		l.bytes.Add(-v.cost())
		return true
	}
	return false
}

// loaded ends a load.
func (l *large) loaded(v *LargeValue, err error) {
	l.mu.Lock()
	l.loading -= v.cost()
	if err == nil {
		l.order = append(l.order, v)
	} else {
		delete(l.values, v.key)
		l.bytes.Add(-v.cost())
	}
	l.mu.Unlock()
	if err != nil {
		l.c.opts.Logger.Warn("a large value could not be loaded into the cache", "blob", v.key.Blob.String(), "error", err)
		v.advance(0, err)
	}
}

func (v *LargeValue) cost() int64 { return int64(sizeClass(len(v.buf))) }

// load reads the value. A panic in it fails this load and nothing else.
func (v *LargeValue) load(ctx context.Context, c *Cache, open func(context.Context) (io.ReadCloser, error)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the load panicked: %v", p)
		}
	}()
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for at := 0; at < len(v.buf); {
		n, err := io.ReadFull(r, v.buf[at:min(len(v.buf), at+loadStep)])
		at += n
		v.advance(n, nil)
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at, len(v.buf), err)
		}
	}
	return nil
}

func (v *LargeValue) advance(n int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.have += n
	v.err = err
	close(v.more)
	v.more = make(chan struct{})
}

// wait waits until there is something at an offset, and returns all that is there from it on.
func (v *LargeValue) wait(ctx context.Context, at int64) ([]byte, error) {
	for {
		v.mu.Lock()
		have, err, more := v.have, v.err, v.more
		v.mu.Unlock()
		switch {
		case int64(have) > at:
			return v.buf[at:have:have], nil
		case err != nil:
			return nil, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// errAhead says that a load has not come to where a reader wants to begin.
var errAhead = errors.New("the value is still being loaded, and the part begins later")

// Open gives a part of the value, which must lie within it. A part at the beginning is given as soon as its first byte is
// there; one further on that has not come yet is refused, for it is found sooner without the pool. Open fails also when the
// load fails, or ctx ends. When the load fails later, rest opens what is missing.
func (v *LargeValue) Open(ctx context.Context, offset, length int64,
	rest func(offset, length int64) (io.ReadCloser, error),
) (io.ReadCloser, error) {
	if offset < 0 || length <= 0 || offset+length > int64(len(v.buf)) {
		return nil, fmt.Errorf("%d bytes at %d of a value of %d", length, offset, len(v.buf))
	}
	v.mu.Lock()
	ahead := offset > 0 && int64(v.have) <= offset
	v.mu.Unlock()
	if ahead {
		return nil, errAhead
	}
	if _, err := v.wait(ctx, offset); err != nil {
		return nil, err
	}
	return &largeReader{v: v, ctx: ctx, pos: offset, end: offset + length, open: rest}, nil
}

// largeReader reads a part of a value, from the pool or, once a load has failed, from elsewhere.
type largeReader struct {
	v        *LargeValue
	ctx      context.Context
	pos, end int64
	open     func(offset, length int64) (io.ReadCloser, error)
	rest     io.ReadCloser
}

func (r *largeReader) Read(p []byte) (int, error) {
	switch {
	case r.rest != nil:
		return r.rest.Read(p)
	case r.pos == r.end:
		return 0, io.EOF
	}
	b, err := r.v.wait(r.ctx, r.pos)
	if err != nil {
		if r.ctx.Err() != nil {
			return 0, err
		}
		if r.rest, err = r.open(r.pos, r.end-r.pos); err != nil {
			r.rest = nil
			return 0, err
		}
		return r.rest.Read(p)
	}
	n := copy(p, b[:min(int64(len(b)), r.end-r.pos)])
	r.pos += int64(n)
	return n, nil
}

func (r *largeReader) Close() error {
	r.pos = r.end
	if r.rest != nil {
		return r.rest.Close()
	}
	return nil
}
