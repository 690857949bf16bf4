package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/hashicorp/raft"
)

// logAudit is what was found when every entry was read.
type logAudit struct {
	first, last uint64 // 0, 0 when it is empty
	bad         []span // missing or damaged, ascending, between first and last
}

// worst is the highest damaged index above floor, 0 when there is none: what lies below a snapshot is not needed.
func (a logAudit) worst(floor uint64) uint64 {
	if n := len(a.bad); n > 0 && a.bad[n-1].hi > floor {
		return a.bad[n-1].hi
	}
	return 0
}

func (a *logAudit) note(lo, hi uint64) {
	if n := len(a.bad); n > 0 && a.bad[n-1].hi+1 == lo {
		a.bad[n-1].hi = hi
		return
	}
	a.bad = append(a.bad, span{lo, hi})
}

// noteKey is where votes keep the newest logNote.
var noteKey = []byte("kvmesh/log")

// logNote is written before a transaction of the log's file that writes no entries: one that deletes some, and the one
// with which opening the file begins. Without it nobody could tell such transactions from lost entries.
type logNote struct {
	tx            uint64 // the file's newest transaction before
	before, after span   // what the log holds before, and after
}

const logNoteVersion = 1

func (n logNote) write(to raft.StableStore) error {
	b := []byte{logNoteVersion}
	for _, v := range []uint64{n.tx, n.before.lo, n.before.hi, n.after.lo, n.after.hi} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return to.Set(noteKey, b)
}

// readLogNote returns the zero note when there is none.
func readLogNote(from raft.StableStore) (n logNote, err error) {
	b, err := stableBytes(from, noteKey)
	if err != nil || len(b) == 0 {
		return n, err
	}
	if b[0] != logNoteVersion || len(b) != 1+5*8 {
		return n, fmt.Errorf("the note about the log is of version %d; start the kvmesh that wrote it", b[0])
	}
	for i, v := range []*uint64{&n.tx, &n.before.lo, &n.before.hi, &n.after.lo, &n.after.hi} {
		*v = binary.BigEndian.Uint64(b[1+8*i:])
	}
	return n, nil
}

// auditor reads all entries of a file that is not open yet.
type auditor struct {
	log    *sealedLog // its key is used, and its configs are found; what is below it is not touched
	stored storedCodec
	audit  logAudit
	next   uint64    // the index that should come next
	newest entryMeta // of the entry read last; tx 0 = it cannot be read, or there was none
}

// read audits a file. Errors wrap errStructure when nobody knows what the log held.
func (a *auditor) read(f io.ReaderAt, n logNote) (tx uint64, err error) {
	if tx, err = checkBolt(f, a.entry); err != nil {
		return 0, err
	}
	held := span{a.audit.first, a.audit.last}
	switch {
	case held.hi != 0 && a.newest.tx == 0: // the last entry is known to be damaged
		return tx, nil
	case held.hi != 0 && a.newest.tx == tx && a.newest.first == held.lo:
		return tx, nil
	case n.tx == tx && n.before == held, n.tx+1 == tx && n.after == held:
		return tx, nil
	case n == logNote{} && held.hi == 0: // it was just made
		return tx, nil
	}
	return 0, fmt.Errorf("%w: entries %d to %d are in it, the last one of transaction %d of %d; others were there before", errStructure,
		held.lo, held.hi, a.newest.tx, tx)
}

func (a *auditor) entry(key, value []byte) error {
	if len(key) != 8 {
		return fmt.Errorf("%w: an index of %d bytes", errStructure, len(key))
	}
	index := binary.BigEndian.Uint64(key)
	if index == 0 || index == math.MaxUint64 {
		return fmt.Errorf("%w: an entry at %d", errStructure, index)
	}
	before := a.newest
	a.newest = entryMeta{}
	if a.next == 0 {
		a.audit.first = index
	} else if index != a.next {
		a.audit.note(a.next, index-1)
		before = entryMeta{}
	}
	a.next, a.audit.last = index+1, index
	stored, err := a.stored.decode(value)
	var m entryMeta
	if err == nil {
		m, err = openEntry(a.log.key, index, stored, new(raft.Log))
	}
	if err != nil {
		a.audit.note(index, index)
		return nil
	}
	if before.tx != 0 && m.before != 0 && before.tx != m.before { // an older version of it
		a.audit.note(index-1, index-1)
	}
	if a.newest = m; m.config != 0 && m.config != a.log.newestConfig() {
		a.log.configs = append(a.log.configs, m.config)
	}
	return nil
}

// inspect reads the whole file before it is opened, and returns its newest transaction.
func (s *sealedLog) inspect(path string) (_ logAudit, tx uint64, err error) {
	note, err := readLogNote(s.notes)
	if err != nil {
		return logAudit{}, 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return logAudit{}, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := &auditor{log: s}
	if tx, err = a.read(f, note); err != nil {
		return a.audit, 0, fmt.Errorf("%s: %w", path, err)
	}
	s.held, s.tx = span{a.audit.first, a.audit.last}, a.newest.tx
	return a.audit, tx, nil
}
