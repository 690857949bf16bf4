package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"kvmesh/raftstore/seal"
)

// The term, the vote and the log's key stand in two files with the same content, apart from the log. They are what a voter
// must never forget: one that has forgotten its vote may vote twice, while lost entries can be fetched again as long as the
// term is known. Each file is written in place, the second after the first is durable; so one of them is whole at every
// moment, what was acknowledged stands in both, a flipped bit in either changes nothing, and no free space is ever needed.
var voteFiles = [2]string{"vote.1", "vote.2"}

const (
	// voteFileBytes is the size of each file. The record takes about 300 bytes.
	voteFileBytes = 4096
	voteContext   = "vote"
	voteVersion   = 1
	maxVoteKeys   = 16
)

// errNotFound is what the library asks for by its text.
var errNotFound = errors.New("not found")

// errVoteLost says that neither copy can be read. Only a new identity helps then.
var errVoteLost = errors.New("this voter's term and vote cannot be read")

// votes is the StableStore. It is safe for concurrent use.
type votes struct {
	kek *seal.KEK

	mu sync.Mutex // taken in turns by those who write, and held during their I/O: turns are its purpose
	// files stay open; the lock on the first keeps other processes out.
	files [2]voteFile
	seq   uint64

	values    map[string][]byte // replaced, never changed
	reading   sync.RWMutex      // guards values
	wrapped   []byte            // the log's key
	recovered string            // what was wrong with one of the copies; "" = nothing
}

// voteFile is the seam at which tests break a disk.
type voteFile interface {
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
	Close() error
}

// openVotes opens the two files, or makes them in a directory that has none: made says so. A copy that is damaged or
// missing is written anew from the other.
func openVotes(dir string, kek *seal.KEK) (v *votes, made bool, err error) {
	v = &votes{kek: kek}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
			v = nil
		}
	}()
	there := 0
	var found [2]*voteRecord
	var wrong [2]error
	for i, name := range voteFiles {
		path := filepath.Join(dir, name)
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			wrong[i] = fmt.Errorf("%s is missing", path)
			continue
		}
		if err != nil {
			return v, false, err
		}
		v.files[i] = f
		there++
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return v, false, fmt.Errorf("%s is locked: another process uses this data directory; stop it or choose another directory", path)
		}
		if found[i], wrong[i] = v.read(f); wrong[i] != nil {
			wrong[i] = fmt.Errorf("%s: %w", path, wrong[i])
		}
	}
	if there == 0 {
		return v, true, v.create(dir)
	}
	newest := found[0]
	if newest == nil || found[1] != nil && found[1].seq > newest.seq {
		newest = found[1]
	}
	if newest == nil {
		return v, false, fmt.Errorf("%w: %w", errVoteLost, errors.Join(wrong[:]...)) // a wrong key says so, and which one is needed
	}
	v.seq, v.values, v.wrapped = newest.seq, newest.values, newest.wrapped
	if found[0] == nil || found[1] == nil || found[0].seq != found[1].seq {
		if err := errors.Join(wrong[:]...); err != nil {
			v.recovered = err.Error()
		}
		if err := v.createMissing(dir); err != nil {
			return v, false, err
		}
		return v, false, v.write(v.values) // also after a crash between the two
	}
	return v, false, nil
}

// create makes both files, with a fresh key for the log. A crash in between leaves one of them, which is enough.
func (v *votes) create(dir string) error {
	var err error
	if v.wrapped, err = v.kek.NewLogKey(); err != nil {
		return err
	}
	v.values = map[string][]byte{}
	return v.createMissing(dir)
}

func (v *votes) createMissing(dir string) error {
	record, err := v.encode(v.seq, v.values)
	if err != nil {
		return err
	}
	for i, name := range voteFiles {
		if v.files[i] != nil {
			continue
		}
		path := filepath.Join(dir, name)
		if err := writeWhole(path, record); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		v.files[i] = f
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fmt.Errorf("lock %s: %w", path, err)
		}
	}
	return nil
}

// writeWhole makes a file that is complete, and durable, or not there.
func writeWhole(path string, data []byte) error {
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// voteRecord is the content of a file.
type voteRecord struct {
	seq     uint64
	wrapped []byte
	values  map[string][]byte
}

// encode makes
//
//	length u32 | sealed by the KEK: version 1 | seq u64 | wrapped key | count u8 | (key | value) ... | zeros to voteFileBytes
//
// with a length u16 before each part of varying size.
func (v *votes) encode(seq uint64, values map[string][]byte) ([]byte, error) {
	plain := binary.BigEndian.AppendUint64([]byte{voteVersion}, seq)
	part := func(b []byte) {
		plain = binary.BigEndian.AppendUint16(plain, uint16(len(b)))
		plain = append(plain, b...)
	}
	part(v.wrapped)
	plain = append(plain, byte(len(values)))
	for k, val := range values {
		part([]byte(k))
		part(val)
	}
	sealed, err := v.kek.Seal(voteContext, plain)
	if err != nil {
		return nil, err
	}
	if len(sealed)+4 > voteFileBytes || len(values) > maxVoteKeys {
		return nil, fmt.Errorf("the record of term and vote has %d keys and %d bytes, %d and %d fit",
			len(values), len(sealed), maxVoteKeys, voteFileBytes-4)
	}
	file := make([]byte, voteFileBytes)
	binary.BigEndian.PutUint32(file, uint32(len(sealed)))
	copy(file[4:], sealed)
	return file, nil
}

func (v *votes) read(f *os.File) (*voteRecord, error) {
	file := make([]byte, voteFileBytes)
	n, err := f.ReadAt(file, 0)
	if n < voteFileBytes {
		return nil, fmt.Errorf("it has %d bytes instead of %d: %w", n, voteFileBytes, err)
	}
	size := binary.BigEndian.Uint32(file)
	if size > voteFileBytes-4 {
		return nil, fmt.Errorf("%w: a record of %d bytes", seal.ErrDamaged, size)
	}
	plain, err := v.kek.Open(voteContext, file[4:4+size])
	if err != nil {
		return nil, err
	}
	return decodeVote(plain)
}

func decodeVote(plain []byte) (*voteRecord, error) {
	short := fmt.Errorf("%w: a record of term and vote of %d bytes", seal.ErrVersion, len(plain))
	take := func(n int) (b []byte, ok bool) {
		if n > len(plain) {
			return nil, false
		}
		b, plain = plain[:n], plain[n:]
		return b, true
	}
	part := func() ([]byte, bool) {
		b, ok := take(2)
		if !ok {
			return nil, false
		}
		return take(int(binary.BigEndian.Uint16(b)))
	}
	head, ok := take(9)
	if !ok || head[0] != voteVersion {
		return nil, short
	}
	r := &voteRecord{seq: binary.BigEndian.Uint64(head[1:]), values: make(map[string][]byte)}
	if r.wrapped, ok = part(); !ok {
		return nil, short
	}
	count, ok := take(1)
	if !ok {
		return nil, short
	}
	for range count[0] {
		k, ok1 := part()
		val, ok2 := part()
		if !ok1 || !ok2 {
			return nil, short
		}
		r.values[string(k)] = val
	}
	return r, nil
}

// write makes values durable in both files. The caller holds mu, or is alone.
func (v *votes) write(values map[string][]byte) error {
	record, err := v.encode(v.seq+1, values)
	if err != nil {
		return err
	}
	for i, f := range v.files {
		if _, err := f.WriteAt(record, 0); err != nil {
			return fmt.Errorf("write %s: %w", voteFiles[i], err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("fsync %s: %w", voteFiles[i], err)
		}
	}
	v.seq++
	v.reading.Lock()
	v.values = values
	v.reading.Unlock()
	return nil
}

// Set returns once the value is durable. Setting what is set already costs nothing.
func (v *votes) Set(key, val []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, err := v.Get(key); err == nil && bytes.Equal(old, val) {
		return nil
	}
	next := make(map[string][]byte, len(v.values)+1)
	for k, old := range v.values {
		next[k] = old
	}
	next[string(key)] = bytes.Clone(val)
	return v.write(next)
}

// Get returns errNotFound for what was never set.
func (v *votes) Get(key []byte) ([]byte, error) {
	v.reading.RLock()
	defer v.reading.RUnlock()
	val, ok := v.values[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return val, nil
}

func (v *votes) SetUint64(key []byte, val uint64) error {
	return v.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

func (v *votes) GetUint64(key []byte) (uint64, error) {
	b, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%s has %d bytes, 8 are expected", key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

func (v *votes) close() error {
	var err error
	for i, f := range v.files {
		if f != nil {
			err = errors.Join(err, f.Close())
			v.files[i] = nil
		}
	}
	return err
}
