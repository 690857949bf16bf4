package blobkeep

import (
	"context"
	"errors"
	"time"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

const (
	// grace is how long, in mesh time, a replaced blob is kept for those who are reading it, or are about to because their
	// entry is not marked yet.
	grace = 10 * time.Minute
	// unnamedAge is how long a blob must have been unnamed before it counts as never to be named. A write is given up after
	// seconds; an hour covers whatever kept it in a queue.
	unnamedAge = time.Hour
	// sweepBatch is how many released blobs are deleted before the state is told.
	sweepBatch = 512
	// walkTurns is every how many turns of the sweep all files are looked at.
	walkTurns = 10
	// maxUnnamed bounds what is remembered of unnamed blobs. What does not fit is remembered when others have gone.
	maxUnnamed = 64 << 10
	// asideAge is how long a damaged file is kept for whoever wants to look at it, once it has been replaced; maxAside is how
	// many are kept, so that a dying disk is not filled with them.
	asideAge = 24 * time.Hour
	maxAside = 16
)

// sweeper is what the sweep remembers between its turns.
type sweeper struct {
	turns   int
	unnamed map[blob.Ref]time.Time // since when
	aside   map[string]time.Time   // damaged files: since when they are known
}

func newSweeper() sweeper {
	return sweeper{unnamed: make(map[blob.Ref]time.Time), aside: make(map[string]time.Time)}
}

// sweep deletes what is not needed.
func (k *Keeper) sweep(ctx context.Context, st State) error {
	err := k.sweepReleased(ctx, st)
	if k.sweeper.turns++; k.sweeper.turns%walkTurns == 1 {
		err = errors.Join(err, k.sweepUnnamed(ctx, st), k.sweepPartials(st), k.sweepAside(st))
	}
	return err
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// sweepReleased deletes the blobs whose replacement was applied a while ago. Mesh time never goes back in the log, so what
// was released before a hold's mesh time was released before the hold, and is in no view that was taken after it.
func (k *Keeper) sweepReleased(ctx context.Context, st State) error {
	for ctx.Err() == nil {
		before := k.opts.MeshNow() - grace.Milliseconds()
		k.mu.Lock()
		for _, at := range k.holds {
			before = min(before, at)
		}
		k.mu.Unlock()
		var due []state.Released
		err := st.EachReleased(func(r state.Released) error {
			if r.MeshTime < before {
				due = append(due, r)
			}
			if len(due) >= sweepBatch {
				return errEnough
			}
			return ctx.Err()
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		for _, r := range due {
			if err := k.remove(st, blob.Ref{Namespace: r.Namespace, ID: r.Blob}, "replaced"); err != nil {
				return err
			}
		}
		if err := st.ForgetReleased(due); err != nil {
			return err
		}
		if len(due) < sweepBatch {
			return nil
		}
	}
	return ctx.Err()
}

// remove deletes a blob's file, unless the state names the blob after all.
func (k *Keeper) remove(st State, ref blob.Ref, reason string) error {
	_, named, err := st.BlobSize(ref.Namespace, ref.ID)
	if err != nil || named && !mutSweepNamed {
		return err
	}
	if err := k.opts.Store.Delete(ref.Namespace, ref.ID); err != nil {
		return err
	}
	k.metrics.swept.WithLabelValues(reason).Inc()
	return nil
}

// sweepUnnamed deletes the blobs that nothing ever named: their write failed, or was given up. An entry that names one may
// still be on its way, so nothing is deleted before it has been unnamed for unnamedAge
//
//   - as this process has seen it, by its own clock, whatever the file's date says,
//   - since the first entry of the present term was applied: an entry of an earlier term that has not been applied by then
//     never will be,
//   - in a state that is known to be current: a voter that is cut off applies nothing, and hears of no new term.
//
// A checkpoint that replaces the state leaves behind what the old one named; with a hold there may be somebody who wants it.
func (k *Keeper) sweepUnnamed(ctx context.Context, st State) error {
	k.mu.Lock()
	held, term, since := len(k.holds) > 0, k.applied.Term, k.termAt
	k.mu.Unlock()
	now := time.Now()
	certain := !held && term != 0 && k.opts.Term() == term && k.opts.Current()
	seen := make(map[blob.Ref]time.Time)
	var due []blob.Ref
	err := k.opts.Store.Walk(func(ns kv.NamespaceID, id kv.BlobID, _ int64, _ time.Time) error {
		ref := blob.Ref{Namespace: ns, ID: id}
		if _, named, err := st.BlobSize(ns, id); err != nil || named && !mutSweepNamed {
			return err
		}
		first, ok := k.sweeper.unnamed[ref]
		if !ok {
			first = now
		}
		if first.Before(since) {
			first = since
		}
		if now.Sub(first) >= unnamedAge && certain {
			due = append(due, ref)
		} else if len(seen) < maxUnnamed {
			seen[ref] = first
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	k.sweeper.unnamed = seen
	for _, ref := range due {
		if err := k.remove(st, ref, "unnamed"); err != nil {
			return err
		}
	}
	return nil
}

// sweepPartials removes what is left of fetches of blobs that are no longer missing.
func (k *Keeper) sweepPartials(st State) error {
	return k.opts.Store.Partials(func(ref blob.Ref) error {
		size, named, err := st.BlobSize(ref.Namespace, ref.ID)
		if err != nil {
			return err
		}
		if named && !k.whole(ref, size) {
			return nil
		}
		return k.opts.Store.DropPartial(ref)
	})
}

// whole says whether the disk has the blob, as far as its length tells.
func (k *Keeper) whole(ref blob.Ref, size int64) bool {
	got, err := k.opts.Store.Stat(ref.Namespace, ref.ID)
	return err == nil && got == seal.SealedSize(size)
}

// sweepAside removes damaged files a day after they have been replaced; at once when there are many. One whose blob is still
// missing is kept: it may be all that is left of it.
func (k *Keeper) sweepAside(st State) error {
	now, known, kept := time.Now(), make(map[string]time.Time), 0
	err := k.opts.Store.Damaged(func(ref blob.Ref, name string, _ time.Time) error {
		size, named, err := st.BlobSize(ref.Namespace, ref.ID)
		if err != nil {
			return err
		}
		first, ok := k.sweeper.aside[name]
		if !ok || named && !k.whole(ref, size) {
			first = now
		}
		if replaced := !named || k.whole(ref, size); replaced && (now.Sub(first) >= asideAge || kept >= maxAside) {
			return k.opts.Store.RemoveDamaged(name)
		}
		kept++
		known[name] = first
		return nil
	})
	if err == nil {
		k.sweeper.aside = known
	}
	return err
}
