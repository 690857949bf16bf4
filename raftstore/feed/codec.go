// Package feed holds what the change feed is made of: the binary codec of change records, the hash that names a key in
// them, and the ring of recent records that every node keeps and can serve. It has no I/O and no clock.
package feed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dchest/siphash"

	"kvmesh/raftstore/kv"
)

// codecVersion is the first byte of every encoded record.
const codecVersion = 1

const (
	headBytes = 1 + 1 + 16 + 8 + 8 // version, kind, epoch, prev, to

	// MaxHashes bounds one record. A log entry has at most kv.MaxBatchOps operations; records merged for catching up may
	// hold more, and must still fit a peer frame (1 MiB).
	MaxHashes = 64 << 10

	floorBytes = 16 + 8 // namespace id, revision

	// MaxFloors bounds the namespaces that one record names: 768 KiB, which fits a peer frame.
	MaxFloors = 32 << 10
)

// ErrMalformed is wrapped by every decoding error.
var ErrMalformed = errors.New("malformed change record")

// Append encodes rec after dst.
//
//	version 1 | kind 1 | epoch 16 | prev 8 | to 8 | (keys) n × hash 8 | (namespace) id 16 |
//	(floors) n × {id 16, revision 8}      big endian
func Append(dst []byte, rec kv.Record) []byte {
	dst = append(dst, codecVersion, byte(rec.Kind))
	dst = append(dst, rec.Epoch[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(rec.Prev))
	dst = binary.BigEndian.AppendUint64(dst, uint64(rec.To))
	switch rec.Kind {
	case kv.RecordKeys:
		for _, h := range rec.Hashes {
			dst = binary.BigEndian.AppendUint64(dst, h)
		}
	case kv.RecordNamespace:
		dst = append(dst, rec.Namespace[:]...)
	case kv.RecordFloors:
		for _, fl := range rec.Floors {
			dst = append(dst, fl.Namespace[:]...)
			dst = binary.BigEndian.AppendUint64(dst, uint64(fl.Revision))
		}
	}
	return dst
}

// Decode reads one record that fills all of b. The result shares no memory with b.
func Decode(b []byte) (kv.Record, error) {
	var rec kv.Record
	if len(b) < headBytes {
		return rec, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if b[0] != codecVersion {
		return rec, fmt.Errorf("%w: version %d, this node knows %d", ErrMalformed, b[0], codecVersion)
	}
	rec.Kind = kv.RecordKind(b[1])
	copy(rec.Epoch[:], b[2:18])
	rec.Prev = kv.Revision(binary.BigEndian.Uint64(b[18:]))
	rec.To = kv.Revision(binary.BigEndian.Uint64(b[26:]))
	if rec.To <= rec.Prev {
		return rec, fmt.Errorf("%w: covers (%d, %d]", ErrMalformed, rec.Prev, rec.To)
	}
	rest := b[headBytes:]
	switch rec.Kind {
	case kv.RecordKeys:
		if len(rest)%8 != 0 || len(rest)/8 > MaxHashes {
			return rec, fmt.Errorf("%w: %d bytes of hashes", ErrMalformed, len(rest))
		}
		rec.Hashes = make([]uint64, len(rest)/8)
		for i := range rec.Hashes {
			rec.Hashes[i] = binary.BigEndian.Uint64(rest[8*i:])
		}
	case kv.RecordNamespace:
		if len(rest) != len(rec.Namespace) {
			return rec, fmt.Errorf("%w: %d bytes of namespace id", ErrMalformed, len(rest))
		}
		copy(rec.Namespace[:], rest)
	case kv.RecordAll:
		if len(rest) != 0 {
			return rec, fmt.Errorf("%w: %d bytes left over", ErrMalformed, len(rest))
		}
	case kv.RecordFloors:
		var err error
		rec.Floors, err = decodeFloors(rest, rec.To)
		return rec, err
	default:
		return rec, fmt.Errorf("%w: kind %d", ErrMalformed, rec.Kind)
	}
	return rec, nil
}

// decodeFloors reads the list of a RecordFloors up to revision to. None lies above it: what the record does not cover, it
// cannot know.
func decodeFloors(b []byte, to kv.Revision) ([]kv.Floor, error) {
	if len(b)%floorBytes != 0 || len(b)/floorBytes > MaxFloors {
		return nil, fmt.Errorf("%w: %d bytes of floors", ErrMalformed, len(b))
	}
	floors := make([]kv.Floor, len(b)/floorBytes)
	for i := range floors {
		at := b[i*floorBytes:]
		copy(floors[i].Namespace[:], at)
		floors[i].Revision = kv.Revision(binary.BigEndian.Uint64(at[16:]))
		if floors[i].Revision > to {
			return nil, fmt.Errorf("%w: a floor at %d in a record up to %d", ErrMalformed, floors[i].Revision, to)
		}
	}
	return floors, nil
}

// Hasher computes hash64: SipHash-2-4 of (namespace id, 0, key), under a key that is made with the epoch and stays the
// same within it (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012). The key is derived from the epoch,
// so that whoever hears of an epoch can also read its records. Equal hashes of different keys cost a needless
// revalidation, never a wrong answer.
type Hasher struct{ k0, k1 uint64 }

// NewHasher returns the hash of one epoch.
func NewHasher(e kv.Epoch) Hasher {
	sum := sha256.Sum256(append([]byte("kvmesh/hash64/1"), e[:]...))
	return Hasher{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

// Key hashes one key. It does not allocate for keys within the limit of kv.MaxKeyBytes.
func (h Hasher) Key(ns kv.NamespaceID, key string) uint64 {
	var buf [len(ns) + 1 + kv.MaxKeyBytes]byte
	b := append(buf[:0], ns[:]...)
	b = append(b, 0)
	b = append(b, key...)
	return siphash.Hash(h.k0, h.k1, b)
}
