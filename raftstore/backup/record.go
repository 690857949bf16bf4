package backup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Kind says what a Record is.
type Kind byte

// The kinds. Namespaces come by id, the keys of each behind it in byte order, the data of a large value behind its key.
const (
	// KindNamespace is a namespace; its keys follow.
	KindNamespace Kind = 1
	// KindKey is a key with its small value, or the announcement of a large one.
	KindKey Kind = 2
	// KindData is the next piece of the large value.
	KindData Kind = 3

	kindEnd Kind = 4 // the totals, in the last part
)

// Record is one record of a backup. Its slices are valid until the next one is read.
type Record struct {
	Kind Kind
	// Namespace (KindNamespace). WrappedKey is wrapped by the backup's key: see Reader.Rewrap.
	Namespace kv.Namespace
	// Key and Item (KindKey): metadata and value are sealed; Blob is zero, because a restored value gets an id of its own.
	Key  string
	Item kv.Item
	// Blob is the sealed size of the large value whose data follows, 0 when the value is in Item (KindKey).
	Blob int64
	// Data is sealed (KindData).
	Data []byte
}

// Limits of what is decoded: the vocabulary's, with room for what sealing adds.
const (
	sealRoom      = 1 << 10
	maxMetadata   = kv.MaxMetadataBytes + sealRoom
	maxValue      = kv.MaxInlineValueBytes + sealRoom
	maxWrappedKey = 16 << 10
	// maxData is the largest piece of a large value.
	maxData = 256 << 10
)

//	namespace  1 | id 16 | created uvarint | title | wrapped key
//	key        2 | revision uvarint | write id 16 | expiry uvarint | size uvarint | key | metadata | 0 value, or 1 (large)
//	data       3 | bytes
//	totals     4 | namespaces uvarint | keys uvarint | bytes uvarint | blobs uvarint | blob bytes uvarint
//
// Texts and bytes are preceded by their length as a uvarint.

func appendNamespace(dst []byte, ns *kv.Namespace) []byte {
	dst = append(append(dst, byte(KindNamespace)), ns.ID[:]...)
	dst = binary.AppendUvarint(dst, uint64(ns.Created))
	dst = appendBytes(dst, ns.Title)
	return appendBytes(dst, ns.WrappedKey)
}

func appendKey(dst []byte, key string, it *kv.Item) []byte {
	dst = binary.AppendUvarint(append(dst, byte(KindKey)), uint64(it.Revision))
	dst = append(dst, it.WriteID[:]...)
	dst = binary.AppendUvarint(dst, uint64(it.Expiry))
	dst = binary.AppendUvarint(dst, uint64(it.Size))
	dst = appendBytes(dst, key)
	dst = appendBytes(dst, it.Metadata)
	if it.Blob.IsZero() {
		return appendBytes(append(dst, 0), it.Value)
	}
	return append(dst, 1)
}

func appendData(dst, data []byte) []byte { return appendBytes(append(dst, byte(KindData)), data) }

func appendTotals(dst []byte, t *Totals) []byte {
	dst = append(dst, byte(kindEnd))
	for _, n := range []uint64{t.Namespaces, t.Keys, t.Bytes, t.Blobs, t.BlobBytes} {
		dst = binary.AppendUvarint(dst, n)
	}
	return dst
}

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// decoder reads fields off the front of rest. Once something is missing or out of bounds, bad stays set and zeros are given.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) fail() { d.bad, d.rest = true, nil }

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.fail()
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) byte() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) int63() int64 {
	v := d.uvarint()
	if v > math.MaxInt64 {
		d.fail()
		return 0
	}
	return int64(v)
}

// bytes returns the next framed field, nil when it is empty.
func (d *decoder) bytes(limit int) []byte {
	n := d.uvarint()
	if n > uint64(limit) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	return d.take(int(n))
}

// record reads one record; a damaged one leaves d.bad.
func (d *decoder) record(rec *Record, totals *Totals) {
	*rec = Record{Kind: Kind(d.byte())}
	switch rec.Kind {
	case KindNamespace:
		copy(rec.Namespace.ID[:], d.take(len(rec.Namespace.ID)))
		rec.Namespace.Created = kv.Revision(d.uvarint())
		rec.Namespace.Title = string(d.bytes(kv.MaxTitleBytes))
		rec.Namespace.WrappedKey = d.bytes(maxWrappedKey)
	case KindKey:
		it := &rec.Item
		it.Revision = kv.Revision(d.uvarint())
		copy(it.WriteID[:], d.take(len(it.WriteID)))
		it.Expiry, it.Size = d.int63(), d.int63()
		rec.Key = string(d.bytes(kv.MaxKeyBytes))
		it.Metadata = d.bytes(maxMetadata)
		switch large := d.byte(); {
		case it.Size > kv.MaxValueBytes, large > 1:
			d.fail()
		case large == 1:
			rec.Blob = seal.SealedSize(it.Size)
		default:
			it.Value = d.bytes(maxValue)
		}
	case KindData:
		rec.Data = d.bytes(maxData)
		d.bad = d.bad || len(rec.Data) == 0
	case kindEnd:
		for _, n := range []*uint64{&totals.Namespaces, &totals.Keys, &totals.Bytes, &totals.Blobs, &totals.BlobBytes} {
			*n = d.uvarint()
		}
	default:
		d.fail()
	}
}

// order holds what a backup must look like beyond its format, on the writing and on the reading side.
type order struct {
	header *Header
	totals Totals
	space  kv.NamespaceID
	key    string
	data   int64 // of the large value, still to come
}

// check takes the next record into account, or says why it cannot come here.
func (o *order) check(rec *Record) error {
	if o.data > 0 && rec.Kind != KindData {
		return fmt.Errorf("%w: a large value lacks %d bytes", ErrDamaged, o.data)
	}
	switch rec.Kind {
	case KindNamespace:
		ns := &rec.Namespace
		if bytes.Compare(ns.ID[:], o.space[:]) <= 0 || kv.ValidateTitle(ns.Title) != nil || ns.Created > o.header.Revision {
			return fmt.Errorf("%w: namespace %s", ErrDamaged, ns.ID)
		}
		o.space, o.key = ns.ID, ""
		o.totals.Namespaces++
	case KindKey:
		if o.space.IsZero() || rec.Key <= o.key || kv.ValidateKey(rec.Key) != nil || rec.Item.Revision > o.header.Revision {
			return fmt.Errorf("%w: a key of namespace %s", ErrDamaged, o.space)
		}
		o.key, o.data = rec.Key, rec.Blob
		o.totals.Keys++
		o.totals.Bytes += uint64(len(rec.Key)) + uint64(rec.Item.Size)
		if rec.Blob > 0 {
			o.totals.Blobs++
			o.totals.BlobBytes += uint64(rec.Blob)
		}
	case KindData:
		if int64(len(rec.Data)) > o.data {
			return fmt.Errorf("%w: a large value is too long", ErrDamaged)
		}
		o.data -= int64(len(rec.Data))
	}
	return nil
}

func bytesReader(b []byte) io.Reader { return bytes.NewReader(b) }
