package raftstore

import (
	"fmt"
	"sort"
	"sync"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/seal"
)

// sealedLog is the LogStore over raft-boltdb: it seals every entry (see sealedentry.go), and keeps the account by which a
// start finds that entries have got lost.
type sealedLog struct {
	bolt  *boltLog
	key   *seal.LogKey
	notes raft.StableStore // see logNote

	// writing is taken in turns by those who write, Raft's main goroutine and the one that takes snapshots, and held during
	// their I/O: entries name the transaction that writes them. bbolt's own lock is held for as long. It guards all below.
	writing sync.Mutex
	held    span     // the entries in the file
	tx      uint64   // the transaction that wrote the last of them, 0 = not known
	configs []uint64 // indices of membership entries, ascending; the first may be cut from the log already
}

// span is a run of indices, both ends included; 0, 0 = none.
type span struct{ lo, hi uint64 }

// without is what remains of a log when the entries lo..hi are deleted.
func (s span) without(lo, hi uint64) (span, error) {
	lo, hi = max(lo, s.lo), min(hi, s.hi)
	switch {
	case s.hi == 0 || lo > hi:
		return s, nil
	case lo == s.lo && hi == s.hi:
		return span{}, nil
	case lo == s.lo:
		return span{hi + 1, s.hi}, nil
	case hi == s.hi:
		return span{s.lo, lo - 1}, nil
	}
	return s, fmt.Errorf("entries %d to %d are amid the log, which holds %d to %d", lo, hi, s.lo, s.hi)
}

func (s *sealedLog) FirstIndex() (uint64, error) { return s.bolt.FirstIndex() }

func (s *sealedLog) LastIndex() (uint64, error) { return s.bolt.LastIndex() }

// GetLog returns raft.ErrLogNotFound for an entry that is not there, and an error that wraps errDamagedEntry for one that
// cannot be opened.
func (s *sealedLog) GetLog(index uint64, l *raft.Log) error {
	_, err := s.read(index, l)
	return err
}

func (s *sealedLog) read(index uint64, l *raft.Log) (entryMeta, error) {
	var stored raft.Log
	if err := s.bolt.GetLog(index, &stored); err != nil {
		return entryMeta{}, err
	}
	return openEntry(s.key, index, &stored, l)
}

func (s *sealedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs takes entries that follow each other. When they do not follow what the log holds, a snapshot covers that, and it
// goes: the library would leave a hole.
func (s *sealedLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.held.hi != 0 && logs[0].Index > s.held.hi+1 {
		if err := s.deleteRange(s.held.lo, s.held.hi); err != nil {
			return err
		}
	}
	newest, err := s.bolt.transaction()
	if err != nil {
		return err
	}
	m := entryMeta{config: s.newestConfig(), tx: newest + 1, before: s.tx, first: s.held.lo}
	next := s.held.hi + 1
	if s.held.hi == 0 {
		m.before, m.first, next = 0, logs[0].Index, logs[0].Index
	}
	sealed := make([]*raft.Log, len(logs))
	var configs []uint64
	for i, l := range logs {
		if l.Index != next {
			return fmt.Errorf("entry %d is to follow entry %d", l.Index, next-1)
		}
		if next++; l.Type == raft.LogConfiguration {
			configs, m.config = append(configs, l.Index), l.Index
		}
		if sealed[i], err = sealEntry(s.key, l, m); err != nil {
			return err
		}
		m.before = m.tx
	}
	if err := s.bolt.StoreLogs(m.tx, sealed); err != nil {
		return err
	}
	s.held, s.tx, s.configs = span{m.first, next - 1}, m.tx, append(s.configs, configs...)
	return nil
}

// newestConfig is the index of the newest membership entry, 0 = none. The caller holds writing, or is alone.
func (s *sealedLog) newestConfig() uint64 {
	if n := len(s.configs); n > 0 {
		return s.configs[n-1]
	}
	return 0
}

// DeleteRange takes a beginning or an end of the log.
func (s *sealedLog) DeleteRange(lo, hi uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.deleteRange(lo, hi)
}

// deleteRange notes what is about to happen. The caller holds writing.
func (s *sealedLog) deleteRange(lo, hi uint64) error {
	after, err := s.held.without(lo, hi)
	if err != nil || after == s.held {
		return err
	}
	newest, err := s.bolt.transaction()
	if err != nil {
		return err
	}
	if err := (logNote{tx: newest, before: s.held, after: after}).write(s.notes); err != nil {
		return err
	}
	if err := s.bolt.DeleteRange(newest+1, lo, hi); err != nil {
		return err
	}
	if after.hi == s.held.hi {
		// Of the membership entries that are cut away at the beginning the newest is still the one in force.
		if cut := sort.Search(len(s.configs), func(i int) bool { return s.configs[i] >= after.lo }); cut > 1 {
			s.configs = append(s.configs[:0], s.configs[cut-1:]...)
		}
		s.held = after
		return nil
	}
	s.configs = s.configs[:sort.Search(len(s.configs), func(i int) bool { return s.configs[i] >= lo })]
	s.held, s.tx = after, 0
	if after.hi != 0 {
		if m, err := s.read(after.hi, new(raft.Log)); err == nil { // whoever reads a damaged one is told
			s.tx = m.tx
		}
	}
	return nil
}
