package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// A voter that has found damage gets a snapshot with a checkpoint from another voter, while its own Raft does not run, and
// goes on under its own id. It may do so because of what it asks for; vote and term are never damaged (see votes).
//
// With its log whole it asks any voter for a snapshot at or beyond the beginning of its log. State and snapshot are made
// from committed entries only, and log and vote, which are all that Raft's safety rests on, stay as they are.
//
// With entries lost it must not vote, nor acknowledge, before it has again every entry that it may have acknowledged and
// that is committed, or may yet be. So it asks the leader, which must be of the same term as its own or a later one, for a
// snapshot beyond everything in the leader's log when the request arrived. Claim: such a snapshot, of index S, covers every
// entry e that was or will ever be committed with this voter's lost acknowledgement.
//   - e was acknowledged to a leader of a term t ≤ own term ≤ T, T the term of the leader that is asked, and before the
//     request, because this voter's Raft has not run since.
//   - t < T: if e is ever committed in t, the leader of T has it (leader completeness; the proof counts acknowledgements
//     that were true when they were given, and this voter's votes were all given when its log was whole). So e's index
//     is at most that of the last entry of T's log at any time.
//   - t = T: e is in the log of the leader that is asked, for it came from there.
//
// In both cases the index of e is below S. And a log that consists of a committed snapshot at S alone is at least as new as
// the lost one was where that mattered, so this voter refuses whom it would have refused. That the leader is still the
// leader is shown by an entry of its own that is committed after the request arrived, without this voter.

// RescueRequest says what a voter needs.
type RescueRequest struct {
	Cluster kv.ClusterID
	Lineage kv.Lineage
	Term    uint64 // of the voter that asks
	Least   uint64 // index that the snapshot must have
	Leader  bool   // only the leader can help, and Least does not count
}

// Offer serves a RescueRequest: a snapshot's file, and the archive of a checkpoint that stands there or further on, with
// its size in bytes. The caller closes the archive.
//
// Errors are *kv.Error: CodeNotLeader, CodeNoLeader and CodeNoQuorum say whom to ask, or to ask again; CodeUnavailable that
// another voter may be able to help.
func (s *Store) Offer(ctx context.Context, req RescueRequest) (meta []byte, archive io.ReadCloser, size int64, err error) {
	if own := s.state.Applied().Cluster; own.IsZero() || own != req.Cluster {
		return nil, nil, 0, kv.Errorf(kv.CodeInvalidParameter, "this voter belongs to mesh %s, not to %s", own, req.Cluster)
	}
	if own := s.Lineage(); own != req.Lineage {
		return nil, nil, 0, kv.Errorf(kv.CodeInvalidParameter,
			"this voter's log is of generation %d (%s), that of the one that asks of generation %d (%s): it cannot go on under its own id",
			own.Generation, own.ID, req.Lineage.Generation, req.Lineage.ID)
	}
	least := req.Least
	if req.Leader {
		if least, err = s.beyondEverything(ctx, req.Term); err != nil {
			return nil, nil, 0, err
		}
	}
	if m := s.snaps.newest(); m == nil || m.Index < least {
		if err := s.snapshot(ctx); err != nil {
			return nil, nil, 0, kv.Errorf(kv.CodeUnavailable, "this voter cannot take a snapshot: %v", err)
		}
	}
	m := s.snaps.newest()
	if m == nil || m.Index < least {
		return nil, nil, 0, kv.Errorf(kv.CodeUnavailable, "this voter's state stands before entry %d", least)
	}
	if meta, err = json.Marshal(m); err != nil {
		return nil, nil, 0, err
	}
	sent, archive, err := s.snaps.send(m)
	if err != nil {
		s.Noticed(err)
		return nil, nil, 0, kv.Errorf(kv.CodeUnavailable, "this voter cannot cut a checkpoint: %v", err)
	}
	return meta, archive, sent.Size, nil
}

// beyondEverything returns an index beyond every entry in this leader's log, with everything up to it committed in its own
// term, which is least or later.
func (s *Store) beyondEverything(ctx context.Context, least uint64) (uint64, error) {
	term, ok := s.leaderTerm()
	if !ok {
		return 0, s.errNotLeader()
	}
	if term < least {
		// The one that asks was a candidate once. Any election brings a later term.
		return 0, errors.Join(errNoLeader(fmt.Sprintf("term %d is asked for, this leader's is %d; another one is being elected", least, term)),
			s.TransferLeadership(ctx, ""))
	}
	last := s.raft.LastIndex()
	if err := s.await(ctx, func() raft.Future { return s.raft.Barrier(0) }); err != nil {
		return 0, errNoQuorum(fmt.Sprintf("an entry of the leader's own could not be committed: %v", err))
	}
	if now, ok := s.leaderTerm(); !ok || now != term {
		return 0, s.errNotLeader()
	}
	return last, nil
}

// Ask gets what Offer gives from another voter. The caller closes the archive.
type Ask func(ctx context.Context, req RescueRequest) (meta []byte, archive io.ReadCloser, err error)

// rescueDir holds the checkpoint that is being received.
const rescueDir = "rescue"

// Rescue repairs the directory of opts, which nobody may have open, with the help of another voter of the mesh. It returns
// nil when nothing is damaged (any more). A Rescue that was interrupted is begun anew; Open refuses the directory until one
// has come to its end.
func Rescue(ctx context.Context, opts Options, mesh kv.ClusterID, ask Ask) error {
	opts = withDefaults(opts)
	d, err := readDamage(opts.Dir)
	if err != nil || d == nil {
		return err
	}
	r := &rescuer{opts: opts, damage: d}
	req := RescueRequest{Cluster: mesh}
	if req, err = r.standing(req); err != nil {
		return err
	}
	if req.Leader = d.Log; !d.Log && req.Least == 0 {
		opts.Logger.Warn("the state is damaged and is made again from the log, which has everything", "err", d.Err)
		return r.replay()
	}
	opts.Logger.Warn("asking another voter for what is damaged here", "log", d.Log, "term", req.Term, "least", req.Least, "err", d.Err)
	text, archive, err := ask(ctx, req)
	if err != nil {
		return err
	}
	m, applied, err := r.receive(text, archive)
	if err != nil {
		return fmt.Errorf("what another voter sent is of no use: %w", err)
	}
	switch {
	case !req.Leader && m.Index < req.Least:
		return fmt.Errorf("a snapshot at entry %d was sent, one at %d is needed", m.Index, req.Least)
	case applied.Index < m.Index, applied.Cluster != mesh:
		return fmt.Errorf("a checkpoint of mesh %s at entry %d was sent, with a snapshot at %d", applied.Cluster, applied.Index, m.Index)
	}
	if err := r.replace(m, applied); err != nil {
		return fmt.Errorf("repair %s: %w", opts.Dir, err)
	}
	opts.Logger.Warn("repaired", "snapshot", m.Index, "state", applied.Index, "term", m.Term)
	return nil
}

type rescuer struct {
	opts   Options
	damage *Damage
}

// standing fills in the own term and lineage, and how far back the own log needs a snapshot to reach. It finds out whether
// the log is whole.
func (r *rescuer) standing(req RescueRequest) (RescueRequest, error) {
	if !r.damage.Log {
		log, err := r.opts.LogStore(r.opts.Dir)
		switch {
		case err == nil:
			at, lost, err := logStanding(log)
			req.Term, req.Least = at.term, max(at.recorded, max(at.first, 1)-1)
			var lerr error
			req.Lineage, lerr = storedLineage(log)
			if err = errors.Join(err, lerr, log.Close()); err != nil || !lost {
				return req, err
			}
			r.damage.Log = true
		case errors.Is(err, errStructure):
			r.damage.Log = true
		default:
			return req, err
		}
		if err := r.damage.note(); err != nil {
			return req, err
		}
	}
	v, _, err := openVotes(r.opts.Dir, r.opts.KEK)
	if err != nil {
		return req, err
	}
	req.Term, err = v.GetUint64(termKey)
	if errors.Is(err, errNotFound) {
		err = nil
	}
	var lerr error
	req.Lineage, lerr = storedLineage(v)
	return req, errors.Join(err, lerr, v.close())
}

// logStanding reads what the log says, and whether entries that no snapshot covers are lost.
func logStanding(log Log) (at standing, lost bool, err error) {
	if at, err = standingOf(log, &snapshotStore{}, state.Applied{}); err != nil {
		return at, false, err
	}
	d, ok := log.(*diskLog)
	return at, ok && d.audit.worst(at.recorded) > 0, nil
}

// replay leaves an empty state: the log, which is whole and begins at the first entry, is applied to it.
func (r *rescuer) replay() error {
	for _, gone := range []string{stateDir, snapshotsDir} {
		if err := r.opts.FS.RemoveAll(r.opts.FS.PathJoin(r.opts.Dir, gone)); err != nil {
			return err
		}
	}
	return r.healed()
}

// healed takes the mark away.
func (r *rescuer) healed() error {
	if err := os.Remove(filepath.Join(r.opts.Dir, damageFile)); err != nil {
		return err
	}
	return syncDir(vfs.Default, r.opts.Dir)
}

// receive unpacks and verifies what was sent.
func (r *rescuer) receive(text []byte, archive io.ReadCloser) (m *snapshotMeta, applied state.Applied, err error) {
	defer func() { err = errors.Join(err, archive.Close()) }()
	fs, dir := r.opts.FS, filepath.Join(r.opts.Dir, rescueDir)
	m = new(snapshotMeta)
	if err := m.decode(text); err != nil {
		return nil, applied, err
	}
	if err := errors.Join(fs.RemoveAll(dir), fs.MkdirAll(dir, 0o700)); err != nil {
		return nil, applied, err
	}
	if err := unpack(fs, dir, archive); err != nil {
		return nil, applied, err
	}
	applied, err = state.InspectFS(fs, dir)
	return m, applied, err
}

// replace puts the checkpoint into the state's place and the snapshot in the log's. Whatever it leaves undone when it is
// interrupted, the directory stays marked as damaged until the end.
func (r *rescuer) replace(m *snapshotMeta, applied state.Applied) error {
	fs, dir := r.opts.FS, r.opts.Dir
	if r.damage.Log {
		if err := replaceDiskLog(dir, r.opts.KEK); err != nil {
			return err
		}
	}
	for _, gone := range []string{stateDir, snapshotsDir} {
		if err := fs.RemoveAll(fs.PathJoin(dir, gone)); err != nil {
			return err
		}
	}
	if err := r.install(m, applied); err != nil {
		return err
	}
	return r.healed()
}

// install does it with what a start uses, too.
func (r *rescuer) install(m *snapshotMeta, applied state.Applied) (err error) {
	fs, dir := r.opts.FS, r.opts.Dir
	log, err := r.opts.LogStore(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	st, err := state.Open(filepath.Join(dir, stateDir), state.Options{Logger: r.opts.Logger, FS: fs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	snaps, err := openSnapshots(fs, dir, log, st.Applied())
	if err != nil {
		return err
	}
	snaps.staged[rescueDir] = &stagedCheckpoint{meta: *m, dir: filepath.Join(dir, rescueDir), applied: applied}
	if _, err := snaps.install(rescueDir, st); err != nil {
		return err
	}
	return r.align(log, m, applied)
}

// align drops a log that ends before the snapshot, or that belongs to another history than the committed one, and lets the
// term be no older than what is known now. In a term that it has not seen before this voter has not voted.
func (r *rescuer) align(log Log, m *snapshotMeta, applied state.Applied) error {
	at, _, err := logStanding(log)
	if err != nil {
		return err
	}
	if term := max(m.Term, applied.Term); at.term < term {
		if err := log.SetUint64(termKey, term); err != nil {
			return err
		}
	}
	if at.last == 0 {
		return nil
	}
	var l raft.Log
	switch err := log.GetLog(m.Index, &l); {
	case err == nil && l.Term == m.Term: // the entries behind it are good for others, those after it for this voter
		return nil
	case err == nil, at.last <= m.Index:
		return log.DeleteRange(at.first, at.last)
	case at.first == m.Index+1, errors.Is(err, errDamagedEntry):
		return nil
	default:
		return fmt.Errorf("read entry %d of the log: %w", m.Index, err)
	}
}
