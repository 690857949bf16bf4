package state

import (
	"encoding/binary"
	"fmt"

	"kvmesh/raftstore/kv"
)

// recordVersion is the first byte of every stored value.
const recordVersion = 1

// inlineBytes is the largest sealed value that stands in the key's head. A listing walks heads, so larger ones are kept
// apart, where Pebble separates them into blob files and compactions do not rewrite them.
const inlineBytes = 1 << 10

// errCorrupt is wrapped by every error about a stored value that this build cannot read although its schema matches.
var errCorrupt = fmt.Errorf("%w: a record makes no sense", ErrDamaged)

// Bits of a head's flags byte.
const (
	headExpiry   = 1 << iota // an expiry follows
	headSeparate             // the value stands in v/
	headBlob                 // a blob id follows; the value is a file
	headMetadata             // metadata follows
)

// head is a key's record without its metadata and inline value: what Apply needs of the present state.
type head struct {
	revision kv.Revision
	expiry   int64
	size     int64
	blob     kv.BlobID
	separate bool
}

// appendHead encodes
//
//	version 1 | flags 1 | revision uvarint | write id 16 | size uvarint | [expiry uvarint] | [blob 16] |
//	[length uvarint, metadata] | [value]
func appendHead(dst []byte, it *kv.Item) []byte {
	separate := it.Blob.IsZero() && len(it.Value) > inlineBytes
	var flags byte
	if it.Expiry != 0 {
		flags |= headExpiry
	}
	if separate {
		flags |= headSeparate
	}
	if !it.Blob.IsZero() {
		flags |= headBlob
	}
	if len(it.Metadata) != 0 {
		flags |= headMetadata
	}
	dst = append(dst, recordVersion, flags)
	dst = binary.AppendUvarint(dst, uint64(it.Revision))
	dst = append(dst, it.WriteID[:]...)
	dst = binary.AppendUvarint(dst, uint64(it.Size))
	if flags&headExpiry != 0 {
		dst = binary.AppendUvarint(dst, uint64(it.Expiry))
	}
	if flags&headBlob != 0 {
		dst = append(dst, it.Blob[:]...)
	}
	if flags&headMetadata != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(it.Metadata)))
		dst = append(dst, it.Metadata...)
	}
	if flags&(headSeparate|headBlob) == 0 {
		dst = append(dst, it.Value...)
	}
	return dst
}

// decodeHead reads a k/ value. With item nil it copies nothing; otherwise it fills item, copying metadata and, when
// withValue, the inline value (an empty value is not nil).
func decodeHead(b []byte, item *kv.Item, withValue bool) (head, error) {
	var h head
	d := fields{rest: b}
	d.version()
	flags := d.byte()
	h.revision = kv.Revision(d.uvarint())
	id := d.take(16)
	h.size = int64(d.uvarint())
	if flags&headExpiry != 0 {
		h.expiry = int64(d.uvarint())
	}
	if flags&headBlob != 0 {
		copy(h.blob[:], d.take(len(h.blob)))
	}
	h.separate = flags&headSeparate != 0
	var metadata []byte
	if flags&headMetadata != 0 {
		metadata = d.take(int(min(d.uvarint(), uint64(len(b)))))
	}
	if d.bad {
		return head{}, fmt.Errorf("%w: key head of %d bytes", errCorrupt, len(b))
	}
	if item == nil {
		return h, nil
	}
	*item = kv.Item{Revision: h.revision, Expiry: h.expiry, Size: h.size, Blob: h.blob}
	copy(item.WriteID[:], id)
	item.Metadata = append(item.Metadata, metadata...)
	if withValue && flags&(headSeparate|headBlob) == 0 {
		item.Value = append([]byte{}, d.rest...)
	}
	return h, nil
}

// namespace is a namespace's record. Keys that have expired and are not swept yet are counted.
type namespace struct {
	title        string
	created      kv.Revision
	lastModified kv.Revision
	keys         int64
	bytes        int64 // of keys and of plaintext values
	wrapped      []byte
	deleted      bool // a tombstone: only lastModified counts
}

// appendNamespace encodes version 1 | deleted 1 | last modified uvarint, and for a live one: created uvarint | keys uvarint |
// bytes uvarint | title. The wrapped key has a record of its own, because this one is rewritten with every change of a key.
func appendNamespace(dst []byte, n *namespace) []byte {
	if n.deleted {
		return binary.AppendUvarint(append(dst, recordVersion, 1), uint64(n.lastModified))
	}
	dst = binary.AppendUvarint(append(dst, recordVersion, 0), uint64(n.lastModified))
	dst = binary.AppendUvarint(dst, uint64(n.created))
	dst = binary.AppendUvarint(dst, uint64(n.keys))
	dst = binary.AppendUvarint(dst, uint64(n.bytes))
	return append(dst, n.title...)
}

func decodeNamespace(b []byte) (*namespace, error) {
	d := fields{rest: b}
	d.version()
	n := &namespace{deleted: d.byte() != 0, lastModified: kv.Revision(d.uvarint())}
	if !n.deleted {
		n.created = kv.Revision(d.uvarint())
		n.keys, n.bytes = int64(d.uvarint()), int64(d.uvarint())
		n.title = string(d.rest)
	}
	if d.bad {
		return nil, fmt.Errorf("%w: namespace of %d bytes", errCorrupt, len(b))
	}
	return n, nil
}

// appendApplied encodes version 1 | index 8 | term 8 | revision 8 | mesh time 8 | epoch 16 | cluster 16.
func appendApplied(dst []byte, a *Applied) []byte {
	dst = append(dst, recordVersion)
	for _, v := range []uint64{a.Index, a.Term, uint64(a.Revision), uint64(a.MeshTime)} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	dst = append(dst, a.Epoch[:]...)
	return append(dst, a.Cluster[:]...)
}

func decodeApplied(b []byte) (Applied, error) {
	var a Applied
	d := fields{rest: b}
	d.version()
	a.Index, a.Term = d.uint64(), d.uint64()
	a.Revision, a.MeshTime = kv.Revision(d.uint64()), int64(d.uint64())
	copy(a.Epoch[:], d.take(len(a.Epoch)))
	copy(a.Cluster[:], d.take(len(a.Cluster)))
	if d.bad {
		return Applied{}, fmt.Errorf("%w: %s of %d bytes", errCorrupt, keyApplied, len(b))
	}
	return a, nil
}

// changeKind says what happened at one revision of the change index.
type changeKind byte

const (
	changePut             changeKind = 1
	changeDelete          changeKind = 2 // by a client or by the sweep
	changeInit            changeKind = 3
	changeCreateNamespace changeKind = 4
	changeRenameNamespace changeKind = 5
	changeDeleteNamespace changeKind = 6
)

// appendChange encodes version 1 | kind 1 | namespace 16 | key.
func appendChange(dst []byte, kind changeKind, ns kv.NamespaceID, key string) []byte {
	dst = append(dst, recordVersion, byte(kind))
	return append(append(dst, ns[:]...), key...)
}

func decodeChange(b []byte) (kind changeKind, ns kv.NamespaceID, key string, err error) {
	d := fields{rest: b}
	d.version()
	kind = changeKind(d.byte())
	copy(ns[:], d.take(len(ns)))
	if d.bad || kind < changePut || kind > changeDeleteNamespace {
		return 0, ns, "", fmt.Errorf("%w: change of %d bytes", errCorrupt, len(b))
	}
	return kind, ns, string(d.rest), nil
}

// appendReleased encodes version 1 | namespace 16 | mesh time 8.
func appendReleased(dst []byte, ns kv.NamespaceID, meshTime int64) []byte {
	dst = append(append(dst, recordVersion), ns[:]...)
	return binary.BigEndian.AppendUint64(dst, uint64(meshTime))
}

func decodeReleased(b []byte) (ns kv.NamespaceID, meshTime int64, err error) {
	d := fields{rest: b}
	d.version()
	copy(ns[:], d.take(len(ns)))
	meshTime = int64(d.uint64())
	if d.bad {
		return ns, 0, fmt.Errorf("%w: released blob of %d bytes", errCorrupt, len(b))
	}
	return ns, meshTime, nil
}

// appendNumber encodes version 1 | uvarint: the record of a size, a revision, a schema version.
func appendNumber(dst []byte, v uint64) []byte {
	return binary.AppendUvarint(append(dst, recordVersion), v)
}

func decodeNumber(b []byte) (uint64, error) {
	d := fields{rest: b}
	d.version()
	v := d.uvarint()
	if d.bad {
		return 0, fmt.Errorf("%w: number of %d bytes", errCorrupt, len(b))
	}
	return v, nil
}

// fields reads fields off the front of rest. Once something is missing, bad stays set and zeros are given.
type fields struct {
	rest []byte
	bad  bool
}

func (d *fields) take(n int) []byte {
	if n > len(d.rest) {
		d.bad, d.rest = true, nil
		return nil
	}
	v := d.rest[:n]
	d.rest = d.rest[n:]
	return v
}

func (d *fields) version() {
	if d.byte() != recordVersion {
		d.bad = true
	}
}

func (d *fields) byte() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *fields) uint64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (d *fields) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}
