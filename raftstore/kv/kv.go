// Package kv is the vocabulary of kvmesh: keys, namespaces, revisions, epochs, change records, limits and error codes.
// It holds no behaviour beyond parsing, ordering and validation, imports only the standard library, and may be imported
// by every other package.
package kv

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Limits. Those of the wire contract of Workers KV come first, ours after them.
const (
	// MaxKeyBytes is the longest key, in bytes of UTF-8.
	MaxKeyBytes = 512
	// MaxValueBytes is the largest value: 25 MiB.
	MaxValueBytes = 25 << 20
	// MaxMetadataBytes is the largest metadata, in bytes of serialised JSON.
	MaxMetadataBytes = 1024
	// MaxTitleBytes is the longest namespace title, in bytes of UTF-8.
	MaxTitleBytes = 512
	// MaxListLimit is the most keys that one page of a listing holds, and the default.
	MaxListLimit = 1000

	// MaxInlineValueBytes is the largest value that travels inside a log entry. hashicorp/raft limits everything by the
	// number of entries and nothing by bytes, so larger values go out of band as blobs and the log carries a pointer.
	MaxInlineValueBytes = 64 << 10
	// MaxCachedValueBytes is the largest value that a cache holds as one piece, and that a fill carries in its answer;
	// larger ones are streamed from the store that holds their blob.
	MaxCachedValueBytes = 1 << 20
	// MaxBatchOps and MaxBatchBytes bound one log entry.
	MaxBatchOps   = 1024
	MaxBatchBytes = 256 << 10
)

// Revision is the dense counter of the state machine: every changed key gets the next one. Revision 0 is the empty store.
// It is the version of everything and the position in the feed, within one Epoch.
type Revision uint64

// Epoch identifies one history. Epochs are ordered: eight bytes of mesh time (unix milliseconds, big endian), then eight
// random bytes. The zero Epoch is "none known yet" and is smaller than every other.
type Epoch [16]byte

// NewEpoch returns an epoch that is greater than prev and carries the given mesh time.
func NewEpoch(meshTimeMillis int64, prev Epoch) Epoch {
	var e Epoch
	if last := int64(binary.BigEndian.Uint64(prev[:8])); meshTimeMillis <= last {
		meshTimeMillis = last + 1
	}
	binary.BigEndian.PutUint64(e[:8], uint64(meshTimeMillis))
	mustRandom(e[8:])
	return e
}

// Compare orders epochs: -1 when e is older than o, 0 when they are the same, +1 when e is newer.
func (e Epoch) Compare(o Epoch) int { return bytes.Compare(e[:], o[:]) }

// IsZero reports whether e is the "none known yet" epoch.
func (e Epoch) IsZero() bool { return e == Epoch{} }

// String is the 32 hex digits of the epoch, as a bookmark shows them.
func (e Epoch) String() string { return hex.EncodeToString(e[:]) }

// Tag is the last 8 hex digits: the epoch's part of an ETag.
func (e Epoch) Tag() string { return hex.EncodeToString(e[12:]) }

// ParseEpoch reads the 32 hex digits that String wrote.
func ParseEpoch(s string) (Epoch, error) {
	var e Epoch
	err := parseHex(e[:], s, "epoch")
	return e, err
}

// NamespaceID is the 128-bit id of a namespace; clients see it as 32 hex digits.
type NamespaceID [16]byte

// NewNamespaceID returns a random id.
func NewNamespaceID() NamespaceID {
	var n NamespaceID
	mustRandom(n[:])
	return n
}

func (n NamespaceID) String() string { return hex.EncodeToString(n[:]) }

// IsZero reports whether n is unset.
func (n NamespaceID) IsZero() bool { return n == NamespaceID{} }

// ParseNamespaceID reads 32 hex digits.
func ParseNamespaceID(s string) (NamespaceID, error) {
	var n NamespaceID
	err := parseHex(n[:], s, "namespace id")
	return n, err
}

// WriteID names one write for ever. It is part of the associated data of everything that the write sealed.
type WriteID [16]byte

// NewWriteID returns a random id.
func NewWriteID() WriteID {
	var w WriteID
	mustRandom(w[:])
	return w
}

// BlobID names one large value's file on the voters. The zero BlobID is "the value is not a blob".
type BlobID [16]byte

// NewBlobID returns a random id.
func NewBlobID() BlobID {
	var b BlobID
	mustRandom(b[:])
	return b
}

func (b BlobID) String() string { return hex.EncodeToString(b[:]) }

// IsZero reports whether b is unset.
func (b BlobID) IsZero() bool { return b == BlobID{} }

// ClusterID names one mesh for ever. It is made when the first voters bootstrap.
type ClusterID [16]byte

// NewClusterID returns a random id.
func NewClusterID() ClusterID {
	var c ClusterID
	mustRandom(c[:])
	return c
}

func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// IsZero reports whether c is unset: the node belongs to no mesh yet.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// ParseClusterID reads 32 hex digits.
func ParseClusterID(s string) (ClusterID, error) {
	var c ClusterID
	err := parseHex(c[:], s, "cluster id")
	return c, err
}

// Item is one key's state as the central store holds it: metadata and value are sealed.
type Item struct {
	// Absent says that the key does not exist; every other field is zero then, except Revision.
	Absent bool
	// Revision of the last write to the key, 0 if Absent.
	Revision Revision
	// Expiry is in unix seconds of mesh time; 0 is never.
	Expiry int64
	// Size of the value in plaintext bytes.
	Size int64
	// WriteID of the write that sealed Metadata and Value.
	WriteID WriteID
	// Metadata is sealed; nil when the key has none.
	Metadata []byte
	// Value is sealed; nil when Blob is set or when the caller asked for the head only.
	Value []byte
	// Blob names the file that holds the sealed value, when it is larger than MaxInlineValueBytes.
	Blob BlobID
}

// Namespace is the control state of one namespace, as every node holds it.
type Namespace struct {
	ID    NamespaceID `msgpack:"id"`
	Title string      `msgpack:"title"`
	// WrappedKey is the namespace's data key, wrapped by the key-encryption key.
	WrappedKey []byte `msgpack:"key"`
	// Created is the revision at which the namespace was made.
	Created Revision `msgpack:"created"`
}

// Control is the control state: what every node must know to decide who may do what. Revision is that of its last change.
type Control struct {
	Cluster    ClusterID   `msgpack:"cluster"`
	Epoch      Epoch       `msgpack:"epoch"`
	Revision   Revision    `msgpack:"revision"`
	Namespaces []Namespace `msgpack:"namespaces"`
}

// RecordKind says what a change record covers.
type RecordKind uint8

const (
	// RecordKeys names the changed keys by their hashes; none at all is valid (a revision that changed no key).
	RecordKeys RecordKind = 1
	// RecordNamespace says that anything in one namespace may have changed.
	RecordNamespace RecordKind = 2
	// RecordAll says that anything may have changed.
	RecordAll RecordKind = 3
	// RecordFloors names the namespaces in which anything may have changed, each with the last revision at which something
	// did. In all others nothing has changed.
	RecordFloors RecordKind = 4
)

// Floor says that anything in a namespace may have changed up to and including a revision.
type Floor struct {
	Namespace NamespaceID
	Revision  Revision
}

// Record says what changed at the revisions (Prev, To] of one epoch. Revisions are dense, so a missing record is a
// visible gap. Applying a record twice, late or early is harmless.
type Record struct {
	Epoch     Epoch
	Prev, To  Revision
	Kind      RecordKind
	Hashes    []uint64    // RecordKeys
	Namespace NamespaceID // RecordNamespace
	Floors    []Floor     // RecordFloors
}

// Bookmark is a position in one history, given to clients so that later reads are at least that new.
type Bookmark struct {
	Epoch    Epoch
	Revision Revision
}

// String is 32 hex digits, a dot, and the decimal revision.
func (b Bookmark) String() string { return fmt.Sprintf("%s.%d", b.Epoch, b.Revision) }

// ParseBookmark reads what String wrote.
func ParseBookmark(s string) (Bookmark, error) {
	epoch, rev, ok := strings.Cut(s, ".")
	var b Bookmark
	var err error
	if b.Epoch, err = ParseEpoch(epoch); err != nil || !ok {
		return Bookmark{}, fmt.Errorf("bookmark: want 32 hex digits, a dot and a revision")
	}
	n, err := strconv.ParseUint(rev, 10, 64)
	if err != nil || rev[0] == '+' {
		return Bookmark{}, fmt.Errorf("bookmark: %q is not a revision", rev)
	}
	b.Revision = Revision(n)
	return b, nil
}

func parseHex(dst []byte, s, what string) error {
	if len(s) != 2*len(dst) {
		return &hexError{what, s, 2 * len(dst)}
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return &hexError{what, s, 2 * len(dst)}
	}
	return nil
}

// hexError is worded when it is read: whoever asks whether a title is an id does not read it.
type hexError struct {
	what, text string
	digits     int
}

func (e *hexError) Error() string {
	return fmt.Sprintf("%s %q: want %d hex digits", e.what, e.text, e.digits)
}

// mustRandom fills b. crypto/rand.Read never returns an error; it ends the process when the system has no randomness.
func mustRandom(b []byte) { _, _ = rand.Read(b) }
