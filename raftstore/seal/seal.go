// Package seal turns plaintext into what kvmesh keeps: values, metadata and large values under their namespace's data
// key, data keys and a node's own small files under the key-encryption key. The node that takes a write seals, a node that
// answers a request opens, and everything between them (log, state, blobs, snapshots, backups, disk caches) only carries
// the sealed bytes. The package is a leaf: no I/O of its own, no clock, no state beyond the keys.
//
// Everything sealed starts with the same five bytes, a version and the id of the key:
//
//	small things   1 | key id 4 | nonce 24 | ciphertext | tag 16             XAES-256-GCM (c2sp.org/XAES-256-GCM)
//	large values   1 | key id 4 | 40 | salt 32 | nonce prefix 7 | segments   streaming AEAD, see SealingReader
//
// A small thing is exactly the output of a Tink AEAD with a prefixed key, so any Tink opens it. Its nonce has 192 random
// bits: it may be drawn without counting, for ever, which AES-GCM's 96 bits do not allow (2^32 seals are five days at ten
// thousand writes a second). The price is a key schedule for every message: 1.5 to 2 µs for 300 bytes, five sixths of it
// in crypto/aes and crypto/cipher, so that an XAES-256-GCM of our own would not be much faster than Tink's.
package seal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"kvmesh/raftstore/kv"
)

// version is the first byte of everything sealed. It is also the first byte that Tink puts before a ciphertext.
const version = 1

const (
	prefixBytes = 1 + 4 // version, key id
	nonceBytes  = 24
	tagBytes    = 16

	// Overhead is how many bytes larger than its plaintext a sealed value or sealed metadata is. For large values see
	// SealedSize.
	Overhead = prefixBytes + nonceBytes + tagBytes
)

// What opening can fail with. A source that ends too early is none of them: that error wraps io.ErrUnexpectedEOF, because
// a cut connection looks the same as a cut file.
var (
	// ErrVersion: sealed by a newer release.
	ErrVersion = errors.New("sealed in a format that this release does not know")
	// ErrWrongKey: sealed under a key that this node does not have.
	ErrWrongKey = errors.New("sealed under another key")
	// ErrDamaged: the bytes were changed, or they belong to another namespace, key, field or write. The two cannot be told
	// apart.
	ErrDamaged = errors.New("the sealed bytes are damaged, or were sealed for something else")
)

// Field says which part of a key's state is sealed, so that one can never pass for another.
type Field byte

// The fields. The numbers are part of the associated data.
const (
	FieldValue    Field = 1
	FieldMetadata Field = 2
	// FieldBlob is a value in the streaming format: SealingReader and OpenReader.
	FieldBlob Field = 3
)

func (f Field) String() string {
	switch f {
	case FieldValue:
		return "value"
	case FieldMetadata:
		return "metadata"
	case FieldBlob:
		return "blob"
	}
	return fmt.Sprintf("field %d", byte(f))
}

// appendData appends the associated data of one sealed thing. Every part but the last has a fixed size and the last is
// framed by its length, so that two different tuples never give the same bytes.
//
//	version 1 | field 1 | namespace 16 | write id 16 | length 4 | key      big endian
func appendData(dst []byte, f Field, ns kv.NamespaceID, key string, id kv.WriteID) []byte {
	dst = append(dst, version, byte(f))
	dst = append(dst, ns[:]...)
	dst = append(dst, id[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(key)))
	return append(dst, key...)
}

// dataBytes is the length of what appendData appends.
func dataBytes(key string) int {
	return 1 + 1 + len(kv.NamespaceID{}) + len(kv.WriteID{}) + 4 + len(key)
}

// parsePrefix checks the version and returns the key id. least is the size of the smallest sealed thing of
// its kind.
func parsePrefix(sealed []byte, least int) (keyID uint32, err error) {
	if len(sealed) == 0 {
		return 0, fmt.Errorf("%w: nothing there", ErrDamaged)
	}
	if sealed[0] != version {
		return 0, fmt.Errorf("%w: version %d, this release knows version %d", ErrVersion, sealed[0], version)
	}
	if len(sealed) < least {
		return 0, fmt.Errorf("%w: %d bytes, at least %d are needed", ErrDamaged, len(sealed), least)
	}
	return binary.BigEndian.Uint32(sealed[1:]), nil
}
