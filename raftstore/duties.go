package raftstore

import (
	"context"
	"errors"
	"sort"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

const (
	// sweepKeys is how many expired keys one command deletes: a small step, so that writes are not held up.
	sweepKeys = 1000
	// sweepSteps is how many such steps are taken before the other duties have their turn.
	sweepSteps = 16
	// dutyTimeout bounds one round of duties, so that a leader without a quorum does not hold on to a proposal.
	dutyTimeout = 10 * time.Second
)

// duties is what a leader does on its own account, and what it remembers of it for one term: the first command of a mesh,
// expired keys, a change index that has grown too long, what a restore has left behind.
type duties struct {
	s *Store

	oldest kv.Revision // the change index reaches back to here
	looked bool        // whether oldest is known
}

func newDuties(s *Store) *duties { return &duties{s: s} }

func (d *duties) perform(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	if d.s.state.Applied().Cluster.IsZero() {
		if d.s.opts.Init == nil {
			return nil
		}
		op, err := d.s.opts.Init()
		if err != nil {
			return err
		}
		if _, err := d.propose(ctx, op); err != nil {
			return err
		}
	}
	return errors.Join(d.allow(ctx), d.sweep(ctx), d.trim(ctx), d.dropRestore(ctx))
}

func (d *duties) propose(ctx context.Context, op command.Op) (command.OpResult, error) {
	res, err := d.s.Propose(ctx, []command.Op{op})
	if err != nil {
		return command.OpResult{}, err
	}
	if code := res.Ops[0].Code; code != "" {
		return res.Ops[0], kv.Errorf(code, "a command of kind %d was refused", op.Kind)
	}
	return res.Ops[0], nil
}

// sweep deletes expired keys, in small steps. Readers judge expiry by themselves, so it frees space and tells the feed, and
// can wait for the next turn. It proposes nothing unless something has expired: a mesh that is idle stays silent.
func (d *duties) sweep(ctx context.Context) error {
	for range sweepSteps {
		at, ok, err := d.s.state.NextExpiry()
		// An entry's time is never before this one.
		if err != nil || !ok || at > max(d.s.meshNow(), d.s.state.Applied().MeshTime)/1000 {
			return err
		}
		if _, err := d.propose(ctx, command.Op{Kind: command.KindSweep, Limit: sweepKeys, Expiry: at}); err != nil {
			return err
		}
	}
	return nil
}

// trim cuts the change index back to three quarters of its limit when it has passed it.
func (d *duties) trim(ctx context.Context) error {
	last, limit := d.s.state.Applied().Revision, d.s.set.changes
	if last <= limit {
		return nil
	}
	if !d.looked {
		oldest, err := oldestChange(d.s.state, last)
		if err != nil {
			return err
		}
		d.oldest, d.looked = oldest, true
	}
	if last-d.oldest <= limit {
		return nil
	}
	upTo := last - limit/4*3
	if _, err := d.propose(ctx, command.Op{Kind: command.KindTrim, Revision: upTo}); err != nil {
		return err
	}
	d.oldest = upTo
	return nil
}

// dropRestore removes what a restore has left: what it staged when it came to no end, what it replaced when it did.
func (d *duties) dropRestore(ctx context.Context) error {
	for range sweepSteps {
		r := d.s.state.Restore()
		silent := d.s.meshNow()-r.Touched >= state.RestoreIdle
		if r.Phase == state.RestoreNone || r.Phase == state.RestoreStaging && !silent {
			return nil
		}
		_, err := d.propose(ctx, command.Op{
			Kind: command.KindRestoreEnd, Limit: sweepKeys,
			Restore: &command.Restore{ID: r.ID, Drop: true, Touched: r.Touched},
		})
		if kv.CodeOf(err) == kv.CodeNotFound { // it has spoken just now, or somebody else was faster
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oldestChange is the lowest revision after which the change index has everything up to last. The index is dense, so a
// binary search finds it.
func oldestChange(st *state.State, last kv.Revision) (kv.Revision, error) {
	var failed error
	n := sort.Search(int(last), func(i int) bool {
		_, err := st.Changes(kv.Revision(i), 1)
		if err != nil && !errors.Is(err, state.ErrTrimmed) {
			failed = err
		}
		return err == nil
	})
	return kv.Revision(n), failed
}
