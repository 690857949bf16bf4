package raftstore

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// Log is where Raft keeps its entries, its term and its vote. StoreLogs and the setters return after what they were given
// is durable; GetLog returns raft.ErrLogNotFound for an entry that is not there.
type Log interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// LogStore opens the log that belongs to a data directory. It is the seam for logs in memory and for tests that break one.
type LogStore func(dir string) (Log, error)

// MemoryLog keeps the log in memory, one for each directory, also across Close: what a crash would leave. For tests in
// virtual time.
func MemoryLog() LogStore {
	var mu sync.Mutex // guards logs
	logs := make(map[string]Log)
	return func(dir string) (Log, error) {
		mu.Lock()
		defer mu.Unlock()
		if logs[dir] == nil {
			logs[dir] = memoryLog{raft.NewInmemStore()}
		}
		return logs[dir], nil
	}
}

type memoryLog struct{ *raft.InmemStore }

func (memoryLog) Close() error { return nil }

// DeleteRange leaves index 0 out, which an empty log gives as its first: InmemStore would take one less than that for its
// last index.
func (m memoryLog) DeleteRange(lo, hi uint64) error { return m.InmemStore.DeleteRange(max(lo, 1), hi) }

// logEvents hears of appends to the log before and after they are durable, and when one failed and left nothing behind.
// The methods are called on Raft's main goroutine and must not block.
type logEvents interface {
	storing(logs []*raft.Log)
	stored(logs []*raft.Log)
	refused(logs []*raft.Log)
}

// watchedLog is the log with everything that this package wants to know about it: when an entry began to be written, when
// it is durable, how many bytes lie in the log, which entries of the present term never reach the state, how long the disk
// takes, and what is to be done when it is full, broken or damaged.
type watchedLog struct {
	Log
	dog    *watchdog
	events logEvents
	meter  *logMeter
	fatal  func(error)
	grown  func() // the log has grown; must not block
	// full is told, again and again, when the log meets a full disk; must not block.
	full func()
	// damaged is told of an entry that cannot be read. It returns what the library should be told.
	damaged  func(index uint64, err error) error
	snapshot func() uint64   // index of the newest snapshot
	closing  <-chan struct{} // ends what waits for space

	// cut is set while entries at the end have been deleted and those that replace them are not written yet.
	// Raft's main goroutine alone uses it.
	cut bool

	mu    sync.Mutex // guards all below
	term  uint64     // of the newest no-op, with which every leader begins
	noop  uint64     // its index
	blank map[uint64]struct{}
}

// diskRetry is the pause between two attempts at what must not fail because the disk is full.
const diskRetry = 250 * time.Millisecond

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// try runs one operation of the disk. After a failed fsync nobody knows what the disk holds, and asking again would lie:
// the kernel has dropped the dirty pages. Only a full disk is known to heal.
func (w *watchedLog) try(name string, op func() error) error {
	o := w.dog.begin(name)
	err := op()
	o.done()
	switch {
	case err == nil, errors.Is(err, raft.ErrLogNotFound), errors.Is(err, errDamagedEntry), errors.Is(err, errNotFound):
	case isFull(err):
		w.full()
	default:
		select {
		case <-w.closing:
		default:
			w.fatal(fmt.Errorf("%s: %w", name, err))
		}
	}
	return err
}

// patiently waits for space when the disk is full, because the library cannot go on without: it panics when it cannot save
// its term, and forgets where its log ends when entries are gone and those in their place are not written. Whoever waits
// here neither votes nor follows, and the others go on. It does not come back after an error that ends the process, or
// when the store is closed meanwhile: the library's goroutine ends instead of its process.
func (w *watchedLog) patiently(name string, op func() error) {
	for {
		err := w.try(name, op)
		if err == nil {
			return
		}
		if !isFull(err) {
			runtime.Goexit()
		}
		select {
		case <-time.After(diskRetry):
		case <-w.closing:
			runtime.Goexit()
		}
	}
}

func (w *watchedLog) StoreLog(l *raft.Log) error { return w.StoreLogs([]*raft.Log{l}) }

func (w *watchedLog) StoreLogs(logs []*raft.Log) error {
	w.note(logs)
	w.events.storing(logs)
	store := func() error { return w.Log.StoreLogs(logs) }
	if w.cut && !mutKeepCut {
		w.patiently("append to the log", store)
		w.cut = false
	} else if err := w.try("append to the log", store); err != nil {
		if isFull(err) {
			w.events.refused(logs)
		}
		return err
	}
	w.meter.add(logs)
	w.events.stored(logs)
	w.grown()
	return nil
}

func (w *watchedLog) GetLog(index uint64, l *raft.Log) error {
	err := w.try("read the log", func() error { return w.Log.GetLog(index, l) })
	if errors.Is(err, errDamagedEntry) {
		return w.damaged(index, err)
	}
	return err
}

func (w *watchedLog) DeleteRange(lo, hi uint64) error {
	if err := w.try("cut the log", func() error { return w.Log.DeleteRange(lo, hi) }); err != nil {
		return err
	}
	if lo > w.snapshot() { // entries of a former leader, about to be replaced; snapshots cut what lies below them
		w.cut = true
	}
	w.meter.drop(lo, hi)
	return nil
}

func (w *watchedLog) Set(key, val []byte) error {
	w.patiently("save the vote", func() error { return w.Log.Set(key, val) })
	return nil
}

func (w *watchedLog) SetUint64(key []byte, val uint64) error {
	w.patiently("save "+string(key), func() error { return w.Log.SetUint64(key, val) })
	return nil
}

// note remembers, for the newest term, which entries are no commands. It runs before the entries can commit.
func (w *watchedLog) note(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range logs {
		switch {
		case l.Type == raft.LogCommand:
		case l.Type == raft.LogNoop && l.Term > w.term:
			w.term, w.noop, w.blank = l.Term, l.Index, make(map[uint64]struct{})
		case l.Term == w.term && w.blank != nil:
			w.blank[l.Index] = struct{}{} // barriers and configurations: a handful a term
		}
	}
}

// lastCommand returns the last entry at or below index that reaches the state. It knows the entries after the no-op of the
// given term only: 0 means that none of them is a command, and that everything up to the no-op is enough. It fails when
// the log has moved on to another term.
func (w *watchedLog) lastCommand(term, index uint64) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if term != w.term {
		return 0, false
	}
	for ; index > w.noop; index-- {
		if _, blank := w.blank[index]; !blank {
			return index, true
		}
	}
	return 0, true
}

// meterChunk is how many entries share one counter of the meter: coarse enough to keep few of them, and fine enough that
// the largest entries (256 KiB) make it wrong by 8 MiB only.
const meterChunk = 32

// entryOverhead is about what bbolt and msgpack add to an entry's data.
const entryOverhead = 96

// logMeter counts the bytes of the log, because every limit of the library counts entries.
type logMeter struct {
	mu     sync.Mutex // guards all below
	chunks map[uint64]int64
	total  int64
	last   uint64
	// Since the last snapshot.
	sinceBytes   int64
	sinceEntries uint64
}

// newLogMeter estimates what log holds from a sample of its entries; snapshot is the index of the newest snapshot.
func newLogMeter(log raft.LogStore, snapshot uint64) (*logMeter, error) {
	const sample = 256
	m := &logMeter{chunks: make(map[uint64]int64)}
	first, err := log.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := log.LastIndex()
	if err != nil || last == 0 {
		return m, err
	}
	var bytes, n int64
	for i := first; i <= last; i += max(1, (last-first)/sample) {
		var l raft.Log
		switch err := log.GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound): // below an installed checkpoint
			continue
		case err != nil:
			return nil, fmt.Errorf("read entry %d of the log: %w", i, err)
		}
		bytes += entryBytes(&l)
		n++
	}
	if n > 0 {
		for i := first / meterChunk; i <= last/meterChunk; i++ {
			lo, hi := max(first, i*meterChunk), min(last, i*meterChunk+meterChunk-1)
			m.chunks[i] = int64(hi-lo+1) * bytes / n
			m.total += m.chunks[i]
		}
		if last > snapshot {
			m.sinceEntries = last - max(snapshot, first-1)
			m.sinceBytes = int64(m.sinceEntries) * bytes / n
		}
	}
	m.last = last
	return m, nil
}

func entryBytes(l *raft.Log) int64 { return int64(len(l.Data) + len(l.Extensions) + entryOverhead) }

func (m *logMeter) add(logs []*raft.Log) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last != 0 && logs[0].Index > m.last+1 { // behind a checkpoint the log begins anew
		clear(m.chunks)
		m.total = 0
	}
	for _, l := range logs {
		n := entryBytes(l)
		m.chunks[l.Index/meterChunk] += n
		m.total += n
		m.sinceBytes += n
		m.sinceEntries++
		m.last = max(m.last, l.Index)
	}
}

// drop forgets the entries lo..hi, whole chunks exactly and cut ones in proportion.
func (m *logMeter) drop(lo, hi uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, n := range m.chunks {
		from, to := max(lo, i*meterChunk), min(hi, i*meterChunk+meterChunk-1)
		if from > to {
			continue
		}
		gone := n * int64(to-from+1) / meterChunk
		if m.chunks[i] -= gone; to-from+1 == meterChunk {
			delete(m.chunks, i)
		}
		m.total -= gone
	}
	if hi >= m.last && lo > 0 {
		m.last = min(m.last, lo-1)
	}
}

// minTrailing is how many of the newest entries stay whatever their size. A checkpoint may be installed that stands before
// what was applied while its request waited in line; the library then goes back there and needs the entries since.
const minTrailing = 64

// trailing is how many of the newest entries fit into bytes, at least minTrailing and at most limit.
func (m *logMeter) trailing(bytes int64, limit uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var n uint64
	for i := m.last / meterChunk; n < limit; i-- {
		if bytes -= m.chunks[i]; bytes < 0 || m.chunks[i] == 0 {
			break
		}
		n = m.last - i*meterChunk + 1
		if i == 0 {
			break
		}
	}
	return min(max(n, minTrailing), limit)
}

func (m *logMeter) bytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// since is what was logged since the last snapshot.
func (m *logMeter) since() (bytes int64, entries uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sinceBytes, m.sinceEntries
}

// snapshotted says that a snapshot was begun when since returned these values.
func (m *logMeter) snapshotted(bytes int64, entries uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sinceBytes -= bytes
	m.sinceEntries -= entries
}
