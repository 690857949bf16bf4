package node

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kvmesh/node/api"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

const (
	// restoreParallel is how many chunks are on their way to the leader at a time; the same number of large values may be
	// on their way to the voters.
	restoreParallel = 4
	// restoreLarge is the sealed size from which a large value is streamed and not held in memory while others go on.
	restoreLarge = 2 << 20
	// restoreBlobs and restoreHold are how many bytes of large values may lie on the voters, and how long, before a chunk
	// names them: nobody sweeps what is named, and what is not named is swept after an hour, however slowly the rest comes.
	restoreBlobs = 64 << 20
	restoreHold  = time.Minute
	// restoreAlive is how often a restore says that it is alive; see state.RestoreIdle.
	restoreAlive = 20 * time.Second
	// restorePatience is how long a restore waits for a mesh that takes no writes: some elections.
	restorePatience = time.Minute
	// restoreBusy is how long it waits for what an earlier one has left to be removed.
	restoreBusy = 5 * time.Second
	// restoreRetry is the pause between two attempts.
	restoreRetry = 200 * time.Millisecond
)

// restore is one restore on its way. Everything it sends may be sent again: chunks are numbered, the end is known by its id.
type restore struct {
	b      *backups
	id     command.RestoreID
	backup *backup.Reader
	ctx    context.Context
	cancel context.CancelCauseFunc

	chunks  errgroup.Group // on their way to the leader
	uploads errgroup.Group // large values on their way to the voters
	seq     uint64
	open    restoreChunk
	space   kv.NamespaceID
	ending  bool // everything is there, and the end is on its way to the leader
}

// Restore replaces the content of the mesh by a backup. Nothing changes unless all of it was there.
func (b *backups) Restore(ctx context.Context, req api.RestoreRequest) (_ *api.Restored, err error) {
	defer func() { b.count("restore", err) }()
	r := &restore{b: b, id: command.NewRestoreID()}
	r.chunks.SetLimit(restoreParallel)
	r.uploads.SetLimit(restoreParallel)
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	defer context.AfterFunc(b.leaving, func() {
		r.cancel(kv.Errorf(kv.CodeUnavailable, "this node is shutting down; nothing was restored, send it again to another one"))
	})()
	// Before the body is asked for: a client that waits to be told so has sent nothing yet.
	if err := r.begin(req.Replace); err != nil {
		return nil, err
	}
	res, err := r.run(req)
	if err == nil {
		b.log.Info("a backup was restored", "epoch", res.Epoch, "revision", res.Revision, "namespaces", res.Namespaces,
			"keys", res.Keys, "bytes", res.Bytes, "large_values", res.LargeValues)
		return res, nil
	}
	if r.ending && kv.CodeOf(err) == kv.CodeOutcomeUnknown {
		b.log.Warn("nobody knows whether a restore was carried out", "error", err)
		return nil, kv.Errorf(kv.CodeOutcomeUnknown,
			"the whole backup was staged, but nobody knows whether its end was carried out, or still will be; look at the epoch of the mesh, or restore it again (%v)", err)
	}
	if cause := context.Cause(r.ctx); cause != nil && ctx.Err() == nil { // what came first is why
		err = cause
	}
	b.log.Warn("a restore was given up", "error", err)
	r.drop(context.WithoutCancel(ctx))
	return nil, asRestoreError(err)
}

// asRestoreError says what a client is told: what is wrong with a backup is the client's to know.
func asRestoreError(err error) error {
	if errors.Is(err, backup.ErrCut) || errors.Is(err, backup.ErrDamaged) {
		return kv.FieldErrorf(kv.CodeInvalidBody, "body", "%v; nothing was restored, send another copy of it, or another backup", err)
	}
	for _, wrong := range []error{backup.ErrNotBackup, backup.ErrVersion} {
		if errors.Is(err, wrong) {
			return kv.FieldErrorf(kv.CodeInvalidBody, "body", "%v; nothing was restored", err)
		}
	}
	if kv.CodeOf(err) == kv.CodeOutcomeUnknown { // of a part, which nobody sees without the end
		return &kv.Error{
			Code: kv.CodeUnavailable, RetryAfter: time.Second,
			Message: "the mesh took no writes for too long; nothing was restored, send it again: " + err.Error(),
		}
	}
	if errors.Is(err, seal.ErrWrongKey) {
		return kv.FieldErrorf(kv.CodeInvalidBody, "body",
			"%v; nothing was restored. Restore it with --source-mesh-key and the mesh key of the mesh that made it", err)
	}
	return err
}

// run sends the whole backup and commits it.
func (r *restore) run(req api.RestoreRequest) (*api.Restored, error) {
	var alive sync.WaitGroup
	defer alive.Wait()
	quiet, stop := context.WithCancel(r.ctx)
	defer stop()
	alive.Go(func() { r.stayAlive(quiet, req.Replace) })

	err := r.stageAll(req.Body)
	if err != nil {
		r.cancel(err) // what is on its way is of no use
	}
	err = errors.Join(err, r.chunks.Wait(), r.uploads.Wait())
	if err != nil {
		return nil, err
	}
	stop()
	alive.Wait()
	if r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	// From here on it is not given up because the client is: somebody should know how it went.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), restorePatience)
	defer cancel()
	r.ending = true
	return r.commit(ctx)
}

// begin opens the staging area of the mesh.
func (r *restore) begin(replace bool) error {
	giveUp := time.Now().Add(restoreBusy)
	for {
		res, err := r.insist(r.ctx, beginOp(r.id, replace), restoreBusy)
		if err != nil {
			return err
		}
		switch res.Ops[0].Code {
		case "":
			return nil
		case kv.CodeConditionFailed:
			return r.b.notEmpty(res.Ops[0].Current)
		case kv.CodeUnavailable:
			if time.Now().Before(giveUp) {
				pause(r.ctx, restoreRetry)
				if r.ctx.Err() != nil {
					return context.Cause(r.ctx)
				}
				continue
			}
			return &kv.Error{
				Code: kv.CodeUnavailable, RetryAfter: 30 * time.Second,
				Message: "another restore is under way, or was given up less than two minutes ago; retry later",
			}
		default:
			return kv.Errorf(res.Ops[0].Code, "the store refused to begin a restore")
		}
	}
}

func beginOp(id command.RestoreID, replace bool) command.Op {
	return command.Op{Kind: command.KindRestoreBegin, Restore: &command.Restore{ID: id, Replace: replace}}
}

// notEmpty says what a restore would replace.
func (b *backups) notEmpty(keys kv.Revision) error {
	var titles []string
	for _, ns := range b.control.list() {
		titles = append(titles, ns.Title)
	}
	n := len(titles)
	if n > 5 {
		titles = append(titles[:5], "…")
	}
	return kv.FieldErrorf(kv.CodeInvalidParameter, "replace",
		"the mesh holds %d keys in %d namespaces (%s), and a restore replaces all of it; ask for that with replace=true (--replace)",
		keys, n, strings.Join(titles, ", "))
}

// stayAlive keeps the mesh from taking the restore for dead while a large value takes its time.
func (r *restore) stayAlive(ctx context.Context, replace bool) {
	tick := time.NewTicker(restoreAlive)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		res, err := r.insist(ctx, beginOp(r.id, replace), restorePatience)
		if err == nil && res.Ops[0].Code != "" {
			err = kv.Errorf(kv.CodeUnavailable, "the mesh has given the restore up (%s); nothing was restored", res.Ops[0].Code)
		}
		if err != nil && ctx.Err() == nil {
			r.cancel(err)
		}
	}
}

// commit makes what was staged the content of the mesh, in a new epoch.
func (r *restore) commit(ctx context.Context) (*api.Restored, error) {
	totals, header := r.backup.Totals(), r.backup.Header()
	known, _ := r.b.cache.Position()
	if header.Epoch.Compare(known) > 0 {
		known = header.Epoch
	}
	for {
		op := command.Op{
			Kind: command.KindRestoreEnd, Epoch: kv.NewEpoch(r.b.clock.Now(), known), Revision: header.Revision,
			Restore: &command.Restore{ID: r.id, Chunks: r.seq, Keys: totals.Keys, Bytes: totals.Bytes},
		}
		res, err := r.insist(ctx, op, restorePatience)
		if err != nil {
			return nil, err
		}
		switch end := res.Ops[0]; end.Code {
		case "":
			r.b.arrived(ctx, res.Epoch, end.Revision)
			return &api.Restored{
				Epoch: res.Epoch, Revision: end.Revision, From: header.Revision,
				Namespaces: totals.Namespaces, Keys: totals.Keys, Bytes: totals.Bytes, LargeValues: totals.Blobs,
			}, nil
		case kv.CodeEpochChanged: // another epoch has begun that this node has not heard of
			known = res.Epoch
		case kv.CodeConditionFailed:
			return nil, r.b.notEmpty(end.Current)
		case kv.CodeNotFound:
			return nil, kv.Errorf(kv.CodeUnavailable, "the mesh has given the restore up; nothing was restored")
		default:
			return nil, kv.Errorf(end.Code, "the store refused the end of the restore; nothing was restored")
		}
	}
}

// arrived takes this node into the new epoch, so that whoever restored finds the new content here.
func (b *backups) arrived(ctx context.Context, epoch kv.Epoch, rev kv.Revision) {
	b.cache.Adopt(epoch, 0)
	if err := b.control.await(ctx, epoch, rev); err != nil { // it is committed; the feed will bring it here
		b.log.Warn("the restored namespaces have not come to this node yet", "error", err)
	}
}

// drop removes what was staged, as far as the mesh lets it: the leader removes the rest some time later.
func (r *restore) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restoreBusy)
	defer cancel()
	for more := true; more; {
		res, err := r.insist(ctx, command.Op{
			Kind: command.KindRestoreEnd, Limit: 1000, Restore: &command.Restore{ID: r.id, Drop: true},
		}, restoreBusy)
		if err != nil {
			r.b.log.Info("what a restore has staged is left for the leader to remove", "error", err)
			return
		}
		more = res.Ops[0].Code == "" && res.Ops[0].Current != 0
	}
}

// insist sends one operation to the leader until it is answered; see insist.
func (r *restore) insist(ctx context.Context, op command.Op, patience time.Duration) (command.Result, error) {
	return insist(ctx, patience, func(ctx context.Context) (command.Result, error) {
		return r.b.proposer.propose(ctx, []command.Op{op})
	})
}

// insist proposes until that is answered, or the mesh has taken no writes for as long as patience. Nothing that a restore
// sends does harm when it comes twice, so an unknown outcome is tried again too. It stays the answer when no later attempt
// gets one: that the last one was certainly not written says nothing about those before it.
func insist(
	ctx context.Context, patience time.Duration, propose func(context.Context) (command.Result, error),
) (command.Result, error) {
	giveUp := time.Now().Add(patience)
	var unknown error
	for {
		res, err := propose(ctx)
		if err == nil {
			return res, nil
		}
		switch kv.CodeOf(err) {
		case kv.CodeOutcomeUnknown:
			if !mutForgetUnknown {
				unknown = err
			}
		case kv.CodeNoLeader, kv.CodeNotLeader, kv.CodeNoQuorum, kv.CodeOverloaded, kv.CodeUnavailable, kv.CodeDeadlineExceeded:
		default:
			return res, cmp.Or(unknown, err)
		}
		if time.Now().After(giveUp) {
			return res, cmp.Or(unknown, err)
		}
		pause(ctx, restoreRetry)
		if ctx.Err() != nil {
			return res, cmp.Or(unknown, errors.Join(err, context.Cause(ctx)))
		}
	}
}
