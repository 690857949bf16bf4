package backup

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Writer writes a backup. What it has written is nothing until Close has returned nil. For one goroutine.
type Writer struct {
	w     io.Writer
	head  *head
	kek   *seal.KEK // of the mesh
	own   *seal.KEK // of the backup
	order order
	part  []byte // records of the open part
	frame []byte // the part before it as it was written, for its memory
	parts uint64
	bytes uint64
	err   error // sticky
}

// NewWriter begins a backup that the holders of kek can open. The header's ID is made here.
func NewWriter(w io.Writer, h Header, kek *seal.KEK) (*Writer, error) {
	_, _ = rand.Read(h.ID[:]) // never fails: it ends the process when the system has no randomness
	key := make([]byte, seal.KEKBytes)
	_, _ = rand.Read(key)
	own, err := seal.NewKEK(key)
	if err != nil {
		return nil, err
	}
	hd, err := newHead(h)
	if err != nil {
		return nil, err
	}
	hd.kind = lockKEK
	if hd.lock, err = kek.Seal(hd.context(), key); err != nil {
		return nil, err
	}
	bw := &Writer{w: w, head: hd, kek: kek, own: own, part: make([]byte, 0, MaxPart)}
	bw.order.header = &hd.Header
	_, err = w.Write(hd.bytes())
	return bw, err
}

// Namespace begins a namespace. Its data key, wrapped by the mesh's key-encryption key, is wrapped by the backup's.
func (w *Writer) Namespace(ns kv.Namespace) error {
	if w.err != nil {
		return w.err
	}
	wrapped, err := w.kek.Rewrap(w.own, ns.ID, ns.WrappedKey)
	if err != nil {
		return w.fail(err)
	}
	ns.WrappedKey = wrapped
	if err := w.order.check(&Record{Kind: KindNamespace, Namespace: ns}); err != nil {
		return w.fail(err)
	}
	return w.add(appendNamespace(nil, &ns))
}

// Key adds a key to the namespace, with its value unless that is a large one: its sealed bytes follow, by Data.
func (w *Writer) Key(key string, it *kv.Item) error {
	if w.err != nil {
		return w.err
	}
	rec := Record{Kind: KindKey, Key: key, Item: *it}
	if !it.Blob.IsZero() {
		rec.Blob = seal.SealedSize(it.Size)
	}
	if err := w.order.check(&rec); err != nil {
		return w.fail(err)
	}
	return w.add(appendKey(nil, key, it))
}

// Data adds the next bytes of a large value.
func (w *Writer) Data(b []byte) error {
	for len(b) > 0 && w.err == nil {
		n := min(len(b), maxData)
		if err := w.order.check(&Record{Kind: KindData, Data: b[:n]}); err != nil {
			return w.fail(err)
		}
		if len(w.part)+n+8 > MaxPart {
			if err := w.flush(false); err != nil {
				return err
			}
		}
		w.part = appendData(w.part, b[:n])
		b = b[n:]
	}
	return w.err
}

// Totals count what was added so far.
func (w *Writer) Totals() Totals { return w.order.totals }

// Close writes the totals and the end. It does not close what w writes to.
func (w *Writer) Close() error {
	if w.err == nil && w.order.data > 0 {
		return w.fail(fmt.Errorf("a large value lacks %d bytes", w.order.data))
	}
	if w.err != nil {
		return w.err
	}
	if err := w.add(appendTotals(nil, &w.order.totals)); err != nil {
		return err
	}
	if err := w.flush(true); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint64([]byte{markEnd}, w.parts)
	end = binary.BigEndian.AppendUint64(end, w.bytes)
	_, err := w.w.Write(appendSum(end, end))
	w.err = fmt.Errorf("the backup is closed")
	return err
}

// add puts one record into the open part, or into the next one.
func (w *Writer) add(record []byte) error {
	if len(w.part)+len(record) > MaxPart {
		if err := w.flush(false); err != nil {
			return err
		}
	}
	w.part = append(w.part, record...)
	return nil
}

// flush seals and writes the open part.
func (w *Writer) flush(last bool) error {
	w.parts++
	sealed, err := w.own.Seal(w.head.partContext(w.parts, last), w.part)
	if err != nil {
		return w.fail(err)
	}
	mark := byte(markPart)
	if last {
		mark = markLast
	}
	w.frame = binary.BigEndian.AppendUint64(append(w.frame[:0], mark), w.parts)
	w.frame = binary.BigEndian.AppendUint32(w.frame, uint32(len(sealed)))
	w.frame = append(w.frame, sealed...)
	w.frame = appendSum(w.frame, w.frame)
	if _, err := w.w.Write(w.frame); err != nil {
		return w.fail(err)
	}
	w.bytes += uint64(len(sealed))
	w.part = w.part[:0]
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}
