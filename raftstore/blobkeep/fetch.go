package blobkeep

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// copyBytes is the buffer of one fetch.
const copyBytes = 128 << 10

// check looks for a blob that the state names, and puts it on the list when the disk lacks it. A file of another length
// than the blob's is damaged.
func (k *Keeper) check(b state.Blob) {
	ref := blob.Ref{Namespace: b.Namespace, ID: b.ID}
	got, err := k.opts.Store.Stat(b.Namespace, b.ID)
	switch {
	case err == nil && got == seal.SealedSize(b.Size):
		return
	case err == nil:
		k.setAside(ref, fmt.Errorf("%w: %d bytes, %d were expected", blob.ErrDamaged, got, seal.SealedSize(b.Size)))
	case errors.Is(err, blob.ErrDamaged):
		k.setAside(ref, err)
	case !errors.Is(err, fs.ErrNotExist):
		k.opts.Logger.Warn("a large value cannot be looked for", "blob", ref, "err", err)
	}
	pause := time.Duration(0)
	if k.opts.Store.Writing(b.Namespace, b.ID) {
		pause = uploadPause
	}
	k.add(ref, b.Size, pause)
}

// setAside moves a damaged file out of the way of the one that will be fetched.
func (k *Keeper) setAside(ref blob.Ref, why error) {
	k.metrics.damaged.Inc()
	k.opts.Logger.Error("a large value is damaged on this voter's disk; it is moved aside and fetched from another voter",
		"blob", ref, "err", why)
	if err := k.opts.Store.Quarantine(ref.Namespace, ref.ID); err != nil {
		k.opts.Logger.Error("a damaged value could not be moved aside", "blob", ref, "err", err)
	}
}

// inspect looks at what readers have reported.
func (k *Keeper) inspect(ctx context.Context, st State) {
	k.mu.Lock()
	reports := k.reports
	k.reports = make(map[blob.Ref]bool)
	k.mu.Unlock()
	for ref, proven := range reports {
		if ctx.Err() != nil {
			return
		}
		err := k.verify(ref)
		switch {
		case err == nil && !proven:
			continue
		case err == nil:
			k.setAside(ref, fmt.Errorf("%w: its checksums hold, but it cannot be opened, and another voter's copy can", blob.ErrDamaged))
		case errors.Is(err, blob.ErrDamaged):
			k.setAside(ref, err)
		case !errors.Is(err, fs.ErrNotExist): // it may be readable the next time
			k.opts.Logger.Warn("a large value cannot be read", "blob", ref, "err", err)
			continue
		}
		if size, ok, err := st.BlobSize(ref.Namespace, ref.ID); err != nil {
			k.opts.Logger.Warn("a large value that is missing cannot be looked up", "blob", ref, "err", err)
		} else if ok {
			k.add(ref, size, 0)
		}
	}
}

// verify reads a whole blob.
func (k *Keeper) verify(ref blob.Ref) error {
	f, err := k.opts.Store.Open(ref.Namespace, ref.ID)
	if err != nil {
		return err
	}
	return errors.Join(f.Verify(), f.Close())
}

// dispatch begins to fetch what is due, and returns the time until something will be.
func (k *Keeper) dispatch(ctx context.Context, st State, fetches *sync.WaitGroup) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for len(k.due) > 0 && k.fetching < parallel {
		it := k.due[0]
		if wait := it.next.Sub(now); wait > 0 {
			return wait
		}
		heap.Pop(&k.due)
		k.fetching++
		fetches.Go(func() {
			k.fetched(it, k.try(ctx, st, it))
			k.wakeUp()
		})
	}
	return idle // a fetch that ends wakes the keeper
}

// errUploading says that somebody is writing the blob here just now.
var errUploading = errors.New("the blob is being written")

// try brings one blob to this disk, or finds that it is not needed.
func (k *Keeper) try(ctx context.Context, st State, it *item) error {
	ref := it.ref
	if _, ok, err := st.BlobSize(ref.Namespace, ref.ID); err != nil || !ok {
		return err
	}
	if got, err := k.opts.Store.Stat(ref.Namespace, ref.ID); err == nil && got == seal.SealedSize(it.size) {
		return nil
	}
	if k.opts.Store.Writing(ref.Namespace, ref.ID) {
		return errUploading
	}
	return k.fetch(ctx, ref, it.size)
}

// fetched notes how an attempt ended.
func (k *Keeper) fetched(it *item, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetching--
	if k.missing[it.ref] != it { // released meanwhile; the sweep takes what has come
		return
	}
	if err == nil {
		k.forget(it.ref)
		return
	}
	pause := time.Duration(uploadPause)
	if !errors.Is(err, errUploading) {
		pause = min(firstPause<<min(it.tries, 16), lastPause)
		pause = pause/2 + rand.N(pause) // voters that came back together do not ask together
		it.tries++
		k.metrics.failures.Inc()
		k.opts.Logger.Warn("a missing large value could not be fetched yet", "blob", it.ref, "tries", it.tries, "err", err)
	}
	it.next = time.Now().Add(pause)
	heap.Push(&k.due, it)
}

// fetch copies a blob from the nearest voter that has it. What one voter could give is kept, and the next one goes on.
func (k *Keeper) fetch(ctx context.Context, ref blob.Ref, size int64) error {
	errs := []error{errors.New("no other voter could give it")}
	for _, voter := range k.opts.Peers.Voters() {
		err := k.fetchFrom(ctx, voter, ref, size)
		if err == nil || errors.Is(err, blob.ErrExists) {
			return nil
		}
		errs = append(errs, fmt.Errorf("voter %s: %w", voter, err))
		if ctx.Err() != nil || errors.Is(err, syscall.ENOSPC) {
			break
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) fetchFrom(ctx context.Context, voter string, ref blob.Ref, size int64) error {
	t, err := k.opts.Peers.Open(ctx, voter, ref)
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }() // what came is verified
	total, sums := t.Head()
	if want := seal.SealedSize(size); total != want {
		return fmt.Errorf("its blob has %d bytes, %d were expected", total, want)
	}
	w, err := k.opts.Store.Resume(ref.Namespace, ref.ID, total, sums)
	if err != nil {
		return err
	}
	defer func() { _ = w.Abort() }() // after Commit it does nothing, else it leaves the copy for the next attempt
	have := w.Size()
	r, err := t.From(ctx, have)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, copyBytes))
	k.metrics.bytes.Add(float64(n))
	if err == nil && w.Size() < total {
		err = fmt.Errorf("it gave %d of %d bytes: %w", w.Size(), total, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	k.metrics.fetched.Inc()
	k.metrics.resumed.Add(float64(have))
	return nil
}
