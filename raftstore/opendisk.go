package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"kvmesh/raftstore/state"
)

// openDisk opens log, state and snapshots, in the order that lets each finish what a crash interrupted, and checks that
// they fit together.
func (s *Store) openDisk(undo *teardown) error {
	dir, fs := s.opts.Dir, s.opts.FS
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if d, err := readDamage(dir); err != nil || d != nil {
		return errors.Join(err, orNil(d))
	}
	if err := s.space.look(); err != nil {
		return err
	}
	log, err := s.opts.LogStore(dir)
	if errors.Is(err, errStructure) {
		return s.damage(true, err)
	}
	if err != nil {
		return s.openFailed(err)
	}
	undo.push(log.Close)
	if s.lineages, err = openLineages(log); err != nil {
		return err
	}
	if err := s.openState(undo, log); err != nil {
		return err
	}
	if err := s.reconcile(log); err != nil {
		return err
	}
	meter, err := newLogMeter(log, s.snaps.newestIndex())
	if err != nil {
		return err
	}
	s.combiner = newCombiner(s)
	s.log = &watchedLog{
		Log: log, dog: s.dog, events: s.combiner, meter: meter, fatal: s.fatal, grown: s.wakeCompactor,
		full: s.diskIsFull, damaged: s.entryDamaged, snapshot: s.snaps.newestIndex, closing: s.dead,
	}
	s.notices = newAnnouncer(s)
	s.fsm = &fsm{
		state: s.state, snaps: s.snaps, committed: s.notices.committed, applied: s.applied(), fatal: s.applyFailed, log: s.opts.Logger,
	}
	return nil
}

// openState opens state and snapshots.
func (s *Store) openState(undo *teardown, log Log) (err error) {
	fs := s.opts.FS
	s.state, err = state.Open(filepath.Join(s.opts.Dir, stateDir), state.Options{
		Logger: s.opts.Logger, FS: fs, CacheBytes: s.opts.CacheBytes,
		Damaged: s.Noticed, Failed: s.fatal, Full: s.diskIsFull,
	})
	if errors.Is(err, state.ErrDamaged) {
		return s.damage(false, err)
	}
	if err != nil {
		return s.openFailed(err)
	}
	undo.push(s.state.Close)
	s.state.Observe(s.opts.Observe)
	s.snaps, err = openSnapshots(fs, s.opts.Dir, log, s.state.Applied())
	if errors.Is(err, errDamagedMeta) { // the note about an installation that was under way
		return s.damage(false, err)
	}
	if err != nil {
		return err
	}
	s.snaps.cut, s.snaps.hold, s.snaps.noticed = s.state.Checkpoint, s.opts.Hold, s.Noticed
	s.snaps.inspect = func(dir string) (state.Applied, error) { return state.InspectFS(fs, dir) }
	s.snaps.wanted, s.snaps.sent, s.snaps.stale = s.checkpointWanted, s.wakeCompactor, s.staleCheckpoint
	return nil
}

// reconcile mends what can be mended without help, and refuses what does not fit together.
func (s *Store) reconcile(log Log) error {
	if d, ok := log.(*diskLog); ok {
		if d.recovered != "" {
			s.opts.Logger.Warn("one copy of term and vote was damaged and is mended from the other", "err", d.recovered)
		}
		switch err := s.mendLog(d); {
		case errors.Is(err, errLost):
			return s.damage(true, err)
		case err != nil:
			return err
		}
	}
	at, err := standingOf(log, s.snaps, s.state.Applied())
	if err != nil {
		return err
	}
	if len(s.snaps.damaged) > 0 && at.last > 0 && at.first <= at.snapshot+1 && at.snapshot < at.recorded {
		// The log reaches back to what the older snapshot covers, so nothing is missing without the newer one.
		if err := log.SetUint64(snapshotKey, at.snapshot); err != nil {
			return err
		}
		at.recorded = at.snapshot
	}
	if err := at.check(s.opts.Dir); err != nil {
		if len(s.snaps.damaged) > 0 {
			return s.damage(false, errors.Join(s.snaps.damaged...))
		}
		return err
	}
	if err := s.snaps.dropDamaged(); err != nil {
		return err
	}
	cut, err := at.cutBootstrap(log)
	if err == nil && cut {
		if err = log.SetUint64(termKey, 0); err != nil {
			err = fmt.Errorf("forget a bootstrap that was cut: %w", err)
		}
	}
	return err
}

// orNil keeps a nil *Damage from becoming an error.
func orNil(d *Damage) error {
	if d == nil {
		return nil
	}
	return d
}

// openFailed names the remedy for a full disk.
func (s *Store) openFailed(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: the disk of %s is full; make space there and start again", err, s.opts.Dir)
	}
	return err
}
