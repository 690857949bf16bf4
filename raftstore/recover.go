package raftstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// RecoverOptions name the central store of a node that is stopped. Dir and NodeID are required.
type RecoverOptions struct {
	Dir, NodeID string
	LogStore    LogStore // nil = DiskLog, which needs KEK
	KEK         *seal.KEK
	FS          vfs.FS       // nil = the operating system's
	Logger      *slog.Logger // nil = discard
	// Look is called by Survey with the state as a recovery would make it. May be nil.
	Look func(*state.State) error
}

// Survivor is what a stopped voter's or learner's disk holds.
type Survivor struct {
	// The end of its log: of two survivors, the one with the later term, and in one term with the larger index, has
	// everything the other one has, of what was ever acknowledged.
	LastIndex, LastTerm uint64
	// Applied is where its state stands. The log may hold Ahead entries more; nobody can tell any more which of them were
	// acknowledged, so a recovery applies them all.
	Applied state.Applied
	Ahead   uint64
	Members Membership
	Lineage kv.Lineage
	// Unfinished says that a recovery of this directory was begun and interrupted. It has to be finished.
	Unfinished bool
}

// Compare orders survivors by how much they have.
func (a Survivor) Compare(b Survivor) int {
	return cmp.Or(cmp.Compare(a.Lineage.Generation, b.Lineage.Generation), cmp.Compare(a.LastTerm, b.LastTerm),
		cmp.Compare(a.LastIndex, b.LastIndex))
}

// errUnfinished refuses a directory in the middle of a recovery.
func errUnfinished(dir string) error {
	return fmt.Errorf("%s: a recovery of this directory was begun and not finished; run \"kvmesh cluster recover\" on it again", dir)
}

// Survey reads what a stopped node's disk holds.
func Survey(opts RecoverOptions) (_ Survivor, err error) {
	s, undo, err := openStopped(opts)
	if err != nil {
		return Survivor{}, err
	}
	defer func() { err = errors.Join(err, undo.run()) }()
	out, err := s.survey()
	if err == nil {
		out.Applied, err = s.preview(opts.Look)
	}
	return out, err
}

// preview applies the log to a copy of the state, which takes hard links and no data, and leaves nothing behind.
func (s *Store) preview(look func(*state.State) error) (applied state.Applied, err error) {
	fs := s.opts.FS
	dir := fs.PathJoin(s.opts.Dir, outgoingDir, "preview")
	st, err := state.Open(dir, state.Options{Logger: s.opts.Logger, FS: fs})
	if err != nil {
		return state.Applied{}, err
	}
	defer func() { err = errors.Join(err, st.Close(), fs.RemoveAll(dir)) }()
	if s.state.Applied().Index > 0 {
		copied := dir + "-checkpoint"
		if _, err := s.state.Checkpoint(copied); err != nil {
			return state.Applied{}, err
		}
		if err := st.Replace(copied); err != nil {
			return state.Applied{}, err
		}
	}
	if err := s.applyTo(st); err != nil {
		return state.Applied{}, err
	}
	if look != nil {
		err = look(st)
	}
	return st.Applied(), err
}

// openStopped opens the parts of a directory on disk without starting Raft.
func openStopped(opts RecoverOptions) (_ *Store, undo teardown, err error) {
	if opts.FS == nil {
		if _, err := os.Stat(filepath.Join(opts.Dir, stateDir)); err != nil {
			return nil, nil, fmt.Errorf("%s holds no central store (%w): name the data directory of a voter or learner", opts.Dir, err)
		}
	}
	s := newStore(Options{
		Dir: opts.Dir, NodeID: opts.NodeID, LogStore: opts.LogStore, KEK: opts.KEK, FS: opts.FS, Logger: opts.Logger,
	})
	if err := s.openDisk(&undo); err != nil {
		return nil, nil, errors.Join(err, undo.run())
	}
	return s, undo, nil
}

// survey reads the standing of state, snapshots and log. The state of a node that was killed may lie far behind its log, or
// be empty: only the log is fsynced with every entry.
func (s *Store) survey() (Survivor, error) {
	out := Survivor{Applied: s.state.Applied(), Lineage: s.lineages.current()}
	out.LastIndex, out.LastTerm = out.Applied.Index, out.Applied.Term
	if m := s.snaps.newest(); m != nil {
		if m.Index > out.LastIndex {
			out.LastIndex, out.LastTerm = m.Index, m.Term
		}
		out.Members = membersOf(m.raft().Configuration, m.ConfigurationIndex)
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return out, fmt.Errorf("read the log: %w", err)
	}
	empty := out.Applied.Cluster.IsZero()
	err = s.eachEntry(out.Members.Index+1, last, func(l *raft.Log) error {
		switch l.Type {
		case raft.LogConfiguration:
			var err error
			if out.Members, err = decodeMembers(l); err != nil {
				return err
			}
		case raft.LogCommand:
			empty = false
		}
		if l.Index > out.LastIndex {
			out.LastIndex, out.LastTerm = l.Index, l.Term
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	if empty {
		return out, fmt.Errorf("%s: this node had not received any data yet, so there is nothing to recover", s.opts.Dir)
	}
	target, err := s.unfinishedRecovery()
	out.Unfinished = target != nil
	return out, err
}

// decodeMembers reads a membership from the log. The library panics on one that it cannot read.
func decodeMembers(l *raft.Log) (m Membership, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("entry %d of the log is damaged: %v", l.Index, p)
		}
	}()
	return membersOf(raft.DecodeConfiguration(l.Data), l.Index), nil
}

// eachEntry calls fn with the log's entries from..to. It passes over those that are missing below an installed checkpoint.
func (s *Store) eachEntry(from, to uint64, fn func(*raft.Log) error) error {
	first, err := s.log.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	for i := max(from, first, 1); i <= to; i++ {
		var l raft.Log
		err := s.log.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= s.state.Applied().Index {
			continue
		}
		if err != nil {
			return fmt.Errorf("read entry %d of the log: %w", i, err)
		}
		if err := fn(&l); err != nil {
			return err
		}
	}
	return nil
}

// recovery is what an unfinished recovery has decided. It is noted before anything is changed.
type recovery struct {
	index, term uint64 // of the entry that begins the new epoch; the log ends there
	lineage     kv.Lineage
}

const recoveryVersion = 1

func (r *recovery) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{recoveryVersion}, r.index)
	return kv.AppendLineage(binary.BigEndian.AppendUint64(b, r.term), r.lineage)
}

func (s *Store) unfinishedRecovery() (*recovery, error) {
	b, err := stableBytes(s.log, recoveryKey)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	r := new(recovery)
	if b[0] != recoveryVersion || len(b) < 17 {
		return nil, fmt.Errorf("the note about an unfinished recovery is of version %d; finish it with the kvmesh that began it", b[0])
	}
	r.index, r.term = binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])
	r.lineage, err = kv.DecodeLineage(b[17:])
	return r, err
}

// Recovered is what Recover has made.
type Recovered struct {
	Epoch    kv.Epoch    // the new one
	Revision kv.Revision // at which the state stands now
	Lineage  kv.Lineage
}

// Recover makes a stopped node the only voter of its mesh, when a majority of the voters is lost for good: everything its
// log holds is applied, a new epoch is begun behind it, the membership becomes this node alone, and the log a line of its
// own, so that the lost voters' disks can never be mixed with it. At its next start the node leads by itself.
//
// It follows hashicorp/raft's RecoverCluster, which cannot be used: the state is not restored from snapshots here, and its
// result could not be told from the old cluster. An interrupted call is finished by the next one; until then the directory
// cannot be opened.
func Recover(opts RecoverOptions) (_ Recovered, err error) {
	s, undo, err := openStopped(opts)
	if err != nil {
		return Recovered{}, err
	}
	defer func() { err = errors.Join(err, undo.run()) }()
	sv, err := s.survey()
	if err != nil {
		return Recovered{}, err
	}
	target, err := s.unfinishedRecovery()
	if err != nil {
		return Recovered{}, err
	}
	if target == nil {
		if target, err = s.beginRecovery(sv); err != nil {
			return Recovered{}, err
		}
	}
	for _, step := range []func(*recovery) error{
		s.leaveLineage, s.applyRest, s.appendEpoch, s.applyRest, s.takeOver, s.endRecovery,
	} {
		if err := step(target); err != nil {
			return Recovered{}, fmt.Errorf("recover: %w", err)
		}
	}
	applied := s.state.Applied()
	return Recovered{Epoch: applied.Epoch, Revision: applied.Revision, Lineage: target.lineage}, nil
}

// beginRecovery decides everything that must be the same when the recovery is interrupted, and notes it. From here on the
// directory belongs to nobody else.
func (s *Store) beginRecovery(sv Survivor) (*recovery, error) {
	term, err := s.log.GetUint64(termKey)
	if err != nil {
		return nil, fmt.Errorf("read the term: %w", err)
	}
	r := &recovery{
		index: sv.LastIndex + 1, term: max(term, sv.LastTerm) + 1,
		lineage: kv.Lineage{Generation: sv.Lineage.Generation + 1, ID: kv.NewEpoch(time.Now().UnixMilli(), sv.Lineage.ID)},
	}
	if err := s.log.Log.Set(recoveryKey, r.encode()); err != nil {
		return nil, fmt.Errorf("note the recovery: %w", err)
	}
	return r, nil
}

func (s *Store) leaveLineage(r *recovery) error {
	if err := s.log.Log.SetUint64(termKey, r.term); err != nil {
		return fmt.Errorf("write the term: %w", err)
	}
	return s.lineages.set(r.lineage)
}

// applyRest applies what the log holds beyond the state.
func (s *Store) applyRest(*recovery) error { return s.applyTo(s.state) }

func (s *Store) applyTo(st *state.State) error {
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	var failed error
	machine := &fsm{
		state: st, snaps: s.snaps, log: s.opts.Logger,
		committed: func(uint64) {}, applied: func() {}, // there is nobody to tell
		fatal: func(err error) { failed = err },
	}
	var batch []*raft.Log
	flush := func() error {
		if len(batch) == 0 {
			return failed
		}
		machine.ApplyBatch(batch)
		batch = nil
		return failed
	}
	err = s.eachEntry(st.Applied().Index+1, last, func(l *raft.Log) error {
		if batch = append(batch, l); len(batch) < 256 {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// appendEpoch writes the log's last entry, which begins the new epoch. It is an entry like any other, so that the state
// never stands where no log has been.
func (s *Store) appendEpoch(r *recovery) error {
	if last, err := s.log.LastIndex(); err != nil || last >= r.index || s.state.Applied().Index >= r.index {
		return err
	}
	now := s.state.Applied()
	op := command.Op{Kind: command.KindNewEpoch, Epoch: kv.NewEpoch(max(now.MeshTime, time.Now().UnixMilli()), now.Epoch)}
	// The batch carries no time of its own: mesh time never goes back, and this machine's clock may be wrong.
	data := command.Append(nil, &command.Batch{MeshTime: now.MeshTime, Ops: []command.Op{op}})
	return s.log.Log.StoreLogs([]*raft.Log{{Index: r.index, Term: r.term, Type: raft.LogCommand, Data: data}})
}

// takeOver makes this node the only member, by a snapshot that ends where the state does, and drops the log before it,
// which has other memberships in it.
func (s *Store) takeOver(r *recovery) error {
	if at := s.state.Applied().Index; at != r.index {
		return fmt.Errorf("the state stands at entry %d, not at %d", at, r.index)
	}
	if err := s.state.Witness(r.index, r.term); err != nil {
		return err
	}
	self := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(s.opts.NodeID), Address: raft.ServerAddress(s.opts.NodeID)}}}
	m, err := newSnapshotMeta(r.index, r.term, self, r.index)
	if err != nil {
		return err
	}
	if err := s.snaps.record(&m); err != nil {
		return err
	}
	first, err := s.log.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	return s.log.Log.DeleteRange(first, r.index)
}

func (s *Store) endRecovery(*recovery) error { return s.log.Log.Set(recoveryKey, []byte{}) }
