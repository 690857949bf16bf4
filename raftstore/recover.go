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
	"kvmesh/raftstore/state"
)

// RecoverOptions name the central store of a node that is stopped. Dir and NodeID are required.
type RecoverOptions struct {
	Dir, NodeID string
	LogStore    LogStore     // nil = BoltLog
	FS          vfs.FS       // nil = the operating system's
	Logger      *slog.Logger // nil = discard
	// Look is called with the state as it is on disk, before anything is changed. May be nil.
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
	return s.survey()
}

// openStopped opens the parts of a directory on disk without starting Raft.
func openStopped(opts RecoverOptions) (_ *Store, undo teardown, err error) {
	if opts.FS == nil {
		if _, err := os.Stat(filepath.Join(opts.Dir, stateDir)); err != nil {
			return nil, nil, fmt.Errorf("%s holds no central store (%w): name the data directory of a voter or learner", opts.Dir, err)
		}
	}
	s := &Store{opts: withDefaults(Options{
		Dir: opts.Dir, NodeID: opts.NodeID, LogStore: opts.LogStore, FS: opts.FS, Logger: opts.Logger,
	})}
	if err := s.openDisk(&undo); err != nil {
		return nil, nil, errors.Join(err, undo.run())
	}
	if s.state.Applied().Cluster.IsZero() {
		return nil, nil, errors.Join(fmt.Errorf("%s: this node had not received any data yet, so there is nothing to recover", opts.Dir), undo.run())
	}
	if opts.Look != nil {
		if err := opts.Look(s.state); err != nil {
			return nil, nil, errors.Join(err, undo.run())
		}
	}
	return s, undo, nil
}

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
	err = s.eachEntry(out.Members.Index+1, last, func(l *raft.Log) error {
		if l.Type == raft.LogConfiguration {
			out.Members = membersOf(raft.DecodeConfiguration(l.Data), l.Index)
		}
		if l.Index > out.LastIndex {
			out.LastIndex, out.LastTerm = l.Index, l.Term
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	out.Ahead = out.LastIndex - out.Applied.Index
	target, err := s.unfinishedRecovery()
	out.Unfinished = target != nil
	return out, err
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
	Survivor               // as it was before
	Epoch      kv.Epoch    // the new one
	Revision   kv.Revision // at which the state stands now
	NewLineage kv.Lineage
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
	out := Recovered{}
	if out.Survivor, err = s.survey(); err != nil {
		return out, err
	}
	target, err := s.unfinishedRecovery()
	if err != nil {
		return out, err
	}
	if target == nil {
		if target, err = s.beginRecovery(out.Survivor); err != nil {
			return out, err
		}
	}
	for _, step := range []func(*recovery) error{
		s.leaveLineage, s.applyRest, s.appendEpoch, s.applyRest, s.takeOver, s.endRecovery,
	} {
		if err := step(target); err != nil {
			return out, fmt.Errorf("recover: %w", err)
		}
	}
	applied := s.state.Applied()
	out.Epoch, out.Revision, out.NewLineage = applied.Epoch, applied.Revision, target.lineage
	return out, nil
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
	if err := s.log.Set(recoveryKey, r.encode()); err != nil {
		return nil, fmt.Errorf("note the recovery: %w", err)
	}
	return r, nil
}

func (s *Store) leaveLineage(r *recovery) error {
	if err := s.log.SetUint64(termKey, r.term); err != nil {
		return fmt.Errorf("write the term: %w", err)
	}
	return s.lineages.set(r.lineage)
}

// applyRest applies what the log holds beyond the state.
func (s *Store) applyRest(*recovery) error {
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	var failed error
	machine := &fsm{state: s.state, snaps: s.snaps, log: s.opts.Logger, fatal: func(err error) { failed = err }}
	var batch []*raft.Log
	flush := func() error {
		machine.ApplyBatch(batch)
		batch = nil
		return failed
	}
	err = s.eachEntry(s.state.Applied().Index+1, last, func(l *raft.Log) error {
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

func (s *Store) endRecovery(*recovery) error { return s.log.Set(recoveryKey, []byte{}) }
