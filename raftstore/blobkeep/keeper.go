// Package blobkeep keeps the large values on a voter's disk in step with its state. The log and the state only carry the
// ids of blobs; the files lie beside them (package blob), and the two meet here:
//
//   - The list of missing blobs: what the state names and the disk lacks is found when the process starts, when a commit
//     names it and when a checkpoint replaces the state, and is fetched at once from the other voters.
//   - Damage: what a reader found damaged is moved aside and fetched again.
//   - The sweep: a blob goes when the write that replaced it was applied a while ago and nobody holds it. One that nothing
//     ever named goes when it was certainly never named for an hour.
//
// A Keeper decides by the state and by its own clock; it has no part in what is written.
package blobkeep

import (
	"container/heap"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

const (
	// parallel is how many blobs are fetched at once: enough to fill a line while one waits for an fsync.
	parallel = 3
	// A fetch that failed everywhere is tried again after firstPause, then after twice as long, up to lastPause.
	firstPause = 500 * time.Millisecond
	lastPause  = 30 * time.Second
	// uploadPause is how long a blob that is being written here just now is left alone before it is looked for again.
	uploadPause = 250 * time.Millisecond
	// maxListed bounds the list in memory, about 200 bytes each. More are counted, and found by another scan later.
	maxListed = 64 << 10
	// maxReports bounds what readers have found and nobody has looked at yet. What does not fit is found by the next reader.
	maxReports = 256
	// scanPause is the pause after a scan of the state that failed, viewPause that before one whose commit cannot be seen yet.
	scanPause = time.Second
	viewPause = 5 * time.Millisecond
	// sweepEvery is how often the sweep looks for what may go.
	sweepEvery = time.Minute
)

// State is what a Keeper asks the state machine; *state.State is one. Nothing in it blocks for long.
type State interface {
	Applied() state.Applied
	EachBlob(fn func(ns kv.NamespaceID, id kv.BlobID, size int64) error) error
	BlobSize(ns kv.NamespaceID, id kv.BlobID) (size int64, named bool, err error)
	EachReleased(fn func(state.Released) error) error
	ForgetReleased(rs []state.Released) error
}

// Peers gives blobs of the other voters.
type Peers interface {
	// Voters lists whom to ask, the nearest first. It does not block.
	Voters() []string
	// Open asks one voter for a blob on its own disk. The error wraps fs.ErrNotExist when it lacks the blob as well.
	Open(ctx context.Context, voter string, ref blob.Ref) (Transfer, error)
}

// Transfer is one blob of one voter, on its way. For one goroutine.
type Transfer interface {
	// Head is the size of the sealed blob, and the checksums of its segments.
	Head() (size int64, sums []byte)
	// From gives the blob's bytes from offset on. It is called once; the reader ends with ctx or with Close.
	From(ctx context.Context, offset int64) (io.Reader, error)
	Close() error
}

// Options of New. All but Logger and Metrics are required.
type Options struct {
	Store *blob.Store
	Peers Peers
	// MeshNow is the mesh time in unix milliseconds.
	MeshNow func() int64
	// Term is the Raft term that this voter is in.
	Term func() uint64
	// Current reports whether the state has held, within the last few seconds, everything that was committed by then. A voter
	// that is cut off must say no: what it knows nothing of may have been named without it.
	Current func() bool
	Logger  *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // nil = none
}

// Keeper is the keeper of one voter. Run does the work; the other methods may be called from anywhere, before it too, and
// block for nothing but a mutex.
type Keeper struct {
	opts    Options
	metrics *metrics
	wake    chan struct{}

	mu       sync.Mutex // guards all below; held for work in memory only
	missing  map[blob.Ref]*item
	due      dueHeap           // of missing, but for those that are being fetched
	named    []state.Blob      // by commits, and not looked for yet
	reports  map[blob.Ref]bool // by readers; true: it is proven that the file is damaged
	more     int               // missing blobs that the list had no room for
	scan     bool              // the state must be scanned
	scanning bool
	fetching int
	holds    map[int]int64 // the mesh time at which each hold began
	lastHold int
	applied  state.Applied // by the last commit
	termAt   time.Time     // when the first commit of its term was seen

	limit   int     // maxListed, less in tests
	sweeper sweeper // of Run's goroutine
}

// item is a blob that is missing.
type item struct {
	ref   blob.Ref
	size  int64 // of the value, in plaintext
	next  time.Time
	tries int
	pos   int // in due, -1 = being fetched
}

// New makes a keeper that believes that anything may be missing, until Run has looked.
func New(opts Options) (*Keeper, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{
		opts: opts, wake: make(chan struct{}, 1), missing: make(map[blob.Ref]*item), reports: make(map[blob.Ref]bool),
		holds: make(map[int]int64), scan: true, limit: maxListed, sweeper: newSweeper(),
	}
	var err error
	k.metrics, err = newMetrics(opts.Metrics, k)
	return k, err
}

// MissingBlobs is how many blobs the state names and the disk lacks, as far as is known; at least 1 while that is not known
// for sure. A voter for which it is not 0 must not count as a full copy.
func (k *Keeper) MissingBlobs() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.missing) + len(k.named) + k.more
	if k.scan || k.scanning {
		n = max(n, 1)
	}
	return n
}

// Observe is told of every commit, in order; see state.State.Observe.
func (k *Keeper) Observe(c state.Committed) {
	k.mu.Lock()
	if c.Applied.Term != k.applied.Term {
		k.termAt = time.Now()
	}
	k.applied = c.Applied
	for _, b := range c.Released {
		k.forget(blob.Ref{Namespace: b.Namespace, ID: b.ID})
	}
	if c.Replaced || len(k.named)+len(c.Named) > k.limit {
		k.scan, k.named = true, nil
	} else {
		k.named = append(k.named, c.Named...)
	}
	work := k.scan || len(c.Named) > 0
	k.mu.Unlock()
	if work {
		k.wakeUp()
	}
}

// Report says what a reader has found: a blob that the state names is not there, or cannot be read as it was written. With
// proven its file is known to be damaged although its checksums hold, because another voter's copy of it could be opened.
func (k *Keeper) Report(ns kv.NamespaceID, id kv.BlobID, proven bool) {
	ref := blob.Ref{Namespace: ns, ID: id}
	k.mu.Lock()
	if before, ok := k.reports[ref]; ok || len(k.reports) < maxReports {
		k.reports[ref] = before || proven
	}
	k.mu.Unlock()
	k.wakeUp()
}

// Hold keeps the files of all blobs that the state names now, whatever happens to them later, until release is called: for
// as long as a checkpoint or a backup is on its way. It must be called before the view is taken.
func (k *Keeper) Hold() (release func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastHold++
	id := k.lastHold
	k.holds[id] = k.applied.MeshTime
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.holds, id)
	}
}

func (k *Keeper) wakeUp() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, and waits for what it has begun.
func (k *Keeper) Run(ctx context.Context, st State) {
	var fetches sync.WaitGroup
	defer fetches.Wait()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		pause := k.look(ctx, st)
		if next := k.dispatch(ctx, st, &fetches); next < pause {
			pause = next
		}
		timer.Reset(pause)
		select {
		case <-k.wake:
		case <-timer.C:
		case <-sweep.C:
			if err := k.sweep(ctx, st); err != nil && ctx.Err() == nil {
				k.opts.Logger.Warn("the sweep of large values has to wait", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// idle is the pause when there is nothing to do.
const idle = time.Hour

// look finds out what is missing: by a scan, from commits and from readers. It returns the pause until it must be called
// again.
func (k *Keeper) look(ctx context.Context, st State) time.Duration {
	pause := k.scanIfDue(ctx, st)
	for ctx.Err() == nil {
		b, ok := k.nextNamed()
		if !ok {
			break
		}
		k.check(b)
		k.checked()
	}
	k.inspect(ctx, st)
	return pause
}

func (k *Keeper) scanIfDue(ctx context.Context, st State) time.Duration {
	k.mu.Lock()
	// Readers, and so a scan, see a commit a moment later than Observe hears of it.
	due := k.scan && st.Applied().Index >= k.applied.Index
	pause := time.Duration(idle)
	if k.scan && !due {
		pause = viewPause
	}
	if due {
		k.scan, k.scanning, k.more, k.named = false, true, 0, nil
	}
	k.mu.Unlock()
	if !due {
		return pause
	}
	err := st.EachBlob(func(ns kv.NamespaceID, id kv.BlobID, size int64) error {
		k.check(state.Blob{Namespace: ns, ID: id, Size: size})
		return ctx.Err()
	})
	k.mu.Lock()
	k.scanning = false
	if err != nil {
		k.scan, pause = true, scanPause
	}
	n := len(k.missing) + k.more
	k.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		k.opts.Logger.Warn("the large values that the state names could not all be looked for", "err", err)
	case n > 0:
		k.opts.Logger.Info("large values are missing on this voter's disk and will be fetched", "blobs", n)
	}
	return pause
}

// nextNamed is the first blob that a commit has named. It stays in the queue, and so is counted, until checked.
func (k *Keeper) nextNamed() (state.Blob, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.named) == 0 {
		return state.Blob{}, false
	}
	return k.named[0], true
}

func (k *Keeper) checked() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.named) > 0 { // else a scan has taken its place
		k.named = k.named[1:]
	}
	if len(k.named) == 0 {
		k.named = nil
	}
}

// dueHeap is a container/heap with what is due first at its front.
type dueHeap []*item

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (h *dueHeap) Push(x any) {
	it := x.(*item)
	it.pos = len(*h)
	*h = append(*h, it)
}

func (h *dueHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	it.pos = -1
	return it
}

// add puts a blob on the list, to be fetched after a pause. The caller does not hold mu.
func (k *Keeper) add(ref blob.Ref, size int64, pause time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.missing[ref] != nil {
		return
	}
	if len(k.missing) >= k.limit {
		k.more++
		return
	}
	it := &item{ref: ref, size: size, next: time.Now().Add(pause)}
	k.missing[ref] = it
	heap.Push(&k.due, it)
}

// forget takes a blob off the list. The caller holds mu.
func (k *Keeper) forget(ref blob.Ref) {
	it := k.missing[ref]
	if it == nil {
		return
	}
	delete(k.missing, ref)
	if it.pos >= 0 {
		heap.Remove(&k.due, it.pos)
	}
	if k.more > 0 && len(k.missing) <= k.limit/2 {
		k.scan = true
	}
}
