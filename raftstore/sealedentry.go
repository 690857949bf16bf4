package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/seal"
)

// errDamagedEntry says that an entry of the log is there and cannot be read.
var errDamagedEntry = errors.New("a damaged entry of the log")

// entryMeta is what an entry of the log on disk carries beside what the library knows.
//
// A seal says that an entry is what was written under its index; it cannot say that the entries around it are those that
// were written last. tx, before and first do: the file's header, which has a checksum, says which transaction was the last,
// the last entry says whether that one wrote it and where the log began, and every entry says which transaction wrote
// the entry before it. An older version of an entry, or a log that ends or begins elsewhere, does not fit. Transactions that
// write no entries are noted elsewhere (logNote).
type entryMeta struct {
	config uint64 // index of the newest membership entry, this one included; so it can be told whether a damaged one was one. 0 = none
	tx     uint64 // the transaction of the file that wrote it
	before uint64 // the one that wrote the entry before it, 0 = there is none, or it is not known
	first  uint64 // the index at which the log began then
}

// sealEntry makes what raft-boltdb stores: an entry that has sealed data and nothing else. Index, term and type are
// associated data. That hides the names of keys, and turns a flipped bit, which bbolt does not notice, into an error.
//
//	sealed: appended at varint (unix ns, 0 = not known) | config, tx, before, first: uvarints | length uvarint, extensions | data
func sealEntry(key *seal.LogKey, l *raft.Log, m entryMeta) (*raft.Log, error) {
	plain := make([]byte, 0, 6*binary.MaxVarintLen64+len(l.Extensions)+len(l.Data))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	plain = binary.AppendVarint(plain, at)
	for _, v := range []uint64{m.config, m.tx, m.before, m.first, uint64(len(l.Extensions))} {
		plain = binary.AppendUvarint(plain, v)
	}
	plain = append(append(plain, l.Extensions...), l.Data...)
	data, err := key.SealEntry(make([]byte, 0, seal.Overhead+len(plain)), l.Index, l.Term, byte(l.Type), plain)
	return &raft.Log{Index: l.Index, Term: l.Term, Type: l.Type, Data: data}, err
}

// openEntry makes l what was stored as the entry at index.
func openEntry(key *seal.LogKey, index uint64, stored, l *raft.Log) (m entryMeta, err error) {
	if stored.Index != index || len(stored.Extensions) > 0 || !stored.AppendedAt.IsZero() {
		return m, fmt.Errorf("%w: entry %d is not what was written there", errDamagedEntry, index)
	}
	*l = raft.Log{Index: index, Type: stored.Type, Term: stored.Term}
	plain, err := key.OpenEntry(index, l.Term, byte(l.Type), stored.Data)
	if err != nil {
		return m, fmt.Errorf("%w: %w", errDamagedEntry, err)
	}
	at, n := binary.Varint(plain)
	plain = plain[max(n, 0):]
	var extensions uint64
	for _, v := range []*uint64{&m.config, &m.tx, &m.before, &m.first, &extensions} {
		var k int
		*v, k = binary.Uvarint(plain)
		plain, n = plain[max(k, 0):], min(n, k)
	}
	if n <= 0 || extensions > uint64(len(plain)) {
		return m, fmt.Errorf("%w: entry %d is sealed and makes no sense", errDamagedEntry, index)
	}
	if at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if extensions > 0 {
		l.Extensions = plain[:extensions:extensions]
	}
	l.Data = plain[extensions:]
	return m, nil
}

// storedCodec reads entries from the bytes that raft-boltdb has for them.
type storedCodec struct {
	handle codec.MsgpackHandle // raft-boltdb's, with MsgpackUseNewTimeFormat
}

// decode holds an entry to the one way in which it is written: what is written otherwise is damaged, also where it means the
// same.
func (c *storedCodec) decode(value []byte) (*raft.Log, error) {
	l := new(raft.Log)
	if err := codec.NewDecoderBytes(value, &c.handle).Decode(l); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedEntry, err)
	}
	var again []byte
	if err := codec.NewEncoderBytes(&again, &c.handle).Encode(l); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedEntry, err)
	}
	if !bytes.Equal(value, again) {
		return nil, fmt.Errorf("%w: it is not written as it should be", errDamagedEntry)
	}
	return l, nil
}
