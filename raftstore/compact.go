package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// A checkpoint that is on its way needs the log from its snapshot on, so no snapshot is taken meanwhile, until this
	// many times what makes one due has been logged.
	compactPatience = 4
	// checkpointPatience is how long the sender of a checkpoint waits for somebody who needs it. It is also the pause between
	// two complaints of the library about a follower that is down.
	checkpointPatience = 2 * time.Second
	// compactRetry is the pause after a snapshot that failed.
	compactRetry = time.Second
)

func (s *Store) wakeCompactor() {
	select {
	case s.compact <- struct{}{}:
	default:
	}
}

// runCompactor takes a snapshot, and lets the library cut the log behind it, whenever enough has been logged, counted in
// bytes and in entries. The library itself can do the latter only.
func (s *Store) runCompactor(ctx context.Context) {
	for {
		select {
		case <-s.compact:
		case <-ctx.Done():
			return
		}
		if !s.snapshotDue() {
			continue
		}
		if err := s.snapshot(ctx); err != nil && ctx.Err() == nil {
			s.opts.Logger.Warn("a snapshot has to wait", "err", err)
			select {
			case <-time.After(compactRetry):
				s.wakeCompactor()
			case <-ctx.Done():
				return
			}
		}
	}
}

func (s *Store) snapshotDue() bool {
	bytes, entries := s.log.meter.since()
	if s.snaps.transfers() > 0 {
		bytes, entries = bytes/compactPatience, entries/compactPatience
	}
	return bytes >= s.set.snapshotBytes || entries >= s.set.snapshotEntries
}

func (s *Store) snapshot(ctx context.Context) error {
	bytes, entries := s.log.meter.since()
	conf := s.raft.ReloadableConfig()
	conf.TrailingLogs = s.log.meter.trailing(s.set.trailingBytes, s.set.trailingEntries)
	if err := s.raft.ReloadConfig(conf); err != nil {
		return err
	}
	start := s.mono()
	err := s.await(ctx, func() raft.Future { return s.raft.Snapshot() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) { // nothing was applied since the start; more will come
		return nil
	}
	if err != nil {
		return err
	}
	s.log.meter.snapshotted(bytes, entries)
	s.metrics.snapshot()
	s.opts.Logger.Info("took a snapshot", "index", s.snaps.newestIndex(), "took", s.mono()-start,
		"log_bytes", s.log.meter.bytes())
	return nil
}

// checkpointWanted waits until a member that answers heartbeats is behind the beginning of the log. It is called on the
// goroutine that replicates to one member, which has nothing else to do.
func (s *Store) checkpointWanted() error {
	timeout := time.NewTimer(checkpointPatience)
	defer timeout.Stop()
	tick := time.NewTicker(s.set.heartbeat / 2)
	defer tick.Stop()
	for {
		term, ok := s.leaderTerm()
		if !ok {
			return s.errNotLeader()
		}
		first, err := s.log.FirstIndex()
		if err != nil {
			return err
		}
		if first == 0 { // all of it has been cut
			first = s.snaps.newestIndex() + 1
		}
		for _, m := range s.configuration().Servers {
			// What counts is what the library knows: it goes on from there, wherever notices have brought the member.
			if a, ok := s.acks.of(term, m.ID); ok && s.heard(a) && s.trans.carried(term, m.ID).match < first {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return errors.New("the members that need a checkpoint do not answer")
		case <-s.dead:
			return errClosed()
		}
	}
}

// staleCheckpoint refuses a checkpoint that stands before what was applied here and is no longer in the log. The library
// would go back to it, and end the process because the entries since are missing.
func (s *Store) staleCheckpoint(index uint64) error {
	applied := s.raft.AppliedIndex()
	if index >= applied {
		return nil
	}
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	if first == 0 || first > index+1 || last < applied {
		return fmt.Errorf("a checkpoint at entry %d comes too late: entry %d has been applied, and the log holds %d to %d", index, applied, first, last)
	}
	return nil
}
