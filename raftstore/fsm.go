package raftstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/state"
)

// maxApplyBytes bounds what is applied as one Pebble batch while a long log is replayed.
const maxApplyBytes = 4 << 20

// errBroken is the answer to everything after an entry could not be applied.
var errBroken = errors.New("the state machine has stopped, because an entry could not be applied")

// fsm gives committed entries to the state. It decides nothing.
type fsm struct {
	state *state.State
	snaps *snapshotStore
	// committed is told of the newest committed entry before it is applied. It must not block.
	committed func(index uint64)
	// applied is called after entries were. It must not block.
	applied func()
	fatal   func(error)
	log     *slog.Logger
	// broken is set for ever by the first entry that cannot be applied. Later ones must not be applied on top of the hole,
	// and no snapshot may claim to hold it, for as long as the process still lives.
	broken atomic.Bool
	// members is the newest membership that is committed, nil when none was since the start.
	members atomic.Pointer[Membership]
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply is called by the library for entries outside a batch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch answers each entry with a command.Result or an error.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	f.committed(logs[len(logs)-1].Index)
	for start := 0; start < len(logs); {
		end, bytes := start, 0
		for end < len(logs) && (end == start || bytes+len(logs[end].Data) <= maxApplyBytes) {
			bytes += len(logs[end].Data)
			end++
		}
		f.apply(logs[start:end], answers[start:end])
		start = end
	}
	return answers
}

func (f *fsm) apply(logs []*raft.Log, answers []any) {
	entries := make([]state.Entry, 0, len(logs))
	at := make([]int, 0, len(logs))
	var bad error
	for i := range answers {
		answers[i] = errBroken
	}
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			if l.Type == raft.LogConfiguration { // Raft keeps them itself, but does not tell their index
				m := membersOf(raft.DecodeConfiguration(l.Data), l.Index)
				f.members.Store(&m)
			}
			answers[i] = nil
			continue
		}
		batch, err := command.Decode(l.Data)
		if err != nil {
			bad = fmt.Errorf("entry %d of term %d: %w", l.Index, l.Term, err)
			break
		}
		entries = append(entries, state.Entry{Index: l.Index, Term: l.Term, Batch: batch})
		at = append(at, i)
	}
	if f.broken.Load() {
		return
	}
	if len(entries) > 0 { // also what came before a bad entry
		if mutLoseWrite {
			loseWrites(entries)
		}
		results, err := f.state.Apply(entries)
		if err == nil && len(results) != len(entries) {
			err = fmt.Errorf("%d results for %d entries", len(results), len(entries))
		}
		if err != nil {
			f.stop(fmt.Errorf("apply entries %d to %d: %w", entries[0].Index, entries[len(entries)-1].Index, err))
			return
		}
		for i, r := range results {
			answers[at[i]] = r
		}
		f.applied()
	}
	if bad != nil {
		f.stop(bad)
	}
}

func (f *fsm) stop(err error) {
	f.broken.Store(true)
	if errors.Is(err, command.ErrUnknown) {
		err = fmt.Errorf("%w; a newer kvmesh has written it: upgrade this node", err)
	}
	f.fatal(err)
}

// Snapshot costs nothing: the state is on disk already.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken.Load() {
		return nil, errBroken
	}
	return snapshot{f}, nil
}

// Restore swaps in the checkpoint that was received just before; r holds nothing but its id.
func (f *fsm) Restore(r io.ReadCloser) error {
	id, err := io.ReadAll(io.LimitReader(r, 256))
	if err != nil {
		return err
	}
	if f.broken.Load() {
		return errBroken
	}
	applied, err := f.snaps.install(string(id), f.state)
	if err != nil {
		return err
	}
	f.log.Info("installed a checkpoint", "index", applied.Index, "revision", applied.Revision)
	return nil
}

// snapshot is a moment of the state machine. What it promises is made durable by Persist; there is nothing to write.
type snapshot struct{ f *fsm }

// Persist witnesses the snapshot's index: no-op and barrier entries never reach the state, so only Raft knows how far it
// is, and once the log is cut the state must say so itself. Witness also makes everything that was applied durable, which
// has to happen before the log, its write-ahead log, may be cut.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	own, ok := sink.(*snapshotSink)
	if !ok {
		return fmt.Errorf("a sink of another store: %T", sink)
	}
	if s.f.broken.Load() {
		return errBroken
	}
	if err := s.f.state.Witness(own.meta.Index, own.meta.Term); err != nil {
		return fmt.Errorf("witness entry %d: %w", own.meta.Index, err)
	}
	own.witnessed = true
	return nil
}

func (snapshot) Release() {}
