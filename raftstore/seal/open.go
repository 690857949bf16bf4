package seal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"kvmesh/raftstore/kv"
)

// openReader gives out the plaintext of a sealed stream, one verified segment at a time.
type openReader struct {
	src    io.ReadCloser // at the start of segment next
	aead   *segmentAEAD
	next   int64 // segment
	last   int64 // segment
	sealed int64 // size of the whole stream
	buf    []byte
	plain  []byte // verified and not yet given out, a part of buf
	err    error  // sticky; io.EOF after the last segment
}

// OpenReader opens a large value of plainSize bytes that is sealed in sealedSize bytes, from the plaintext byte at offset
// to the end. open must return the sealed bytes from the given offset on; it is called for the header, and a second time
// when offset lies beyond the first segment, so that no segment before the one asked for is read. The header and the first
// segment are read and verified before OpenReader returns; no byte of a segment is given out before the segment has been
// verified, and the reader holds one segment at a time. The reader returned is for one goroutine; closing it closes what
// open returned.
//
// Errors: those of open; ErrVersion, ErrWrongKey, ErrDamaged (proof that the bytes are wrong, or the sizes); one that wraps
// io.ErrUnexpectedEOF when the source ends before sealedSize. A reader at offset == plainSize gives nothing, but has
// verified the end of the value.
func (d *DataKey) OpenReader(ns kv.NamespaceID, key string, id kv.WriteID, sealedSize, plainSize, offset int64,
	open func(sealedOffset int64) (io.ReadCloser, error),
) (io.ReadCloser, error) {
	r, err := d.openReader(ns, key, id, sealedSize, plainSize, offset, open)
	if err != nil {
		return nil, fmt.Errorf("open blob in namespace %s: %w", ns, err)
	}
	return r, nil
}

func (d *DataKey) openReader(ns kv.NamespaceID, key string, id kv.WriteID, sealedSize, plainSize, offset int64,
	open func(sealedOffset int64) (io.ReadCloser, error),
) (_ *openReader, err error) {
	if want := SealedSize(plainSize); want == 0 || want != sealedSize {
		return nil, fmt.Errorf("%w: a value of %d bytes is sealed in %d bytes, not in %d", ErrDamaged, plainSize, want, sealedSize)
	}
	if offset < 0 || offset > plainSize {
		return nil, fmt.Errorf("offset %d is outside a value of %d bytes", offset, plainSize)
	}
	// At the end of the value: read its last byte's segment and skip all of it.
	r := &openReader{next: segmentOf(max(min(offset, plainSize-1), 0)), last: lastSegment(plainSize), sealed: sealedSize}
	if r.src, err = open(0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()

	r.buf = make([]byte, min(SegmentSize, sealedSize))
	header := r.buf[:headerBytes]
	if err := r.fill(header, "the header"); err != nil {
		return nil, err
	}
	keyID, err := parsePrefix(header, headerBytes)
	if err != nil {
		return nil, err
	}
	streamKey, ok := d.streams[keyID]
	if !ok {
		return nil, d.wrongKey(keyID)
	}
	if header[prefixBytes] != tinkHeaderBytes {
		return nil, fmt.Errorf("%w: a header of %d bytes, want %d", ErrDamaged, header[prefixBytes], tinkHeaderBytes)
	}
	data := appendData(make([]byte, 0, dataBytes(key)), FieldBlob, ns, key, id)
	if r.aead, err = newSegmentAEAD(streamKey, header, data); err != nil {
		return nil, err
	}

	if r.next > 0 {
		if err := r.Close(); err != nil {
			return nil, err
		}
		if r.src, err = open(r.next * SegmentSize); err != nil {
			return nil, err
		}
	}
	start := segmentStart(r.next)
	if err := r.openNext(); err != nil {
		return nil, err
	}
	r.plain = r.plain[offset-start:]
	return r, nil
}

func (r *openReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !r.more() {
		return 0, r.err
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// WriteTo spares io.Copy a buffer and a copy of its own.
func (r *openReader) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for r.more() {
		n, err := w.Write(r.plain)
		written += int64(n)
		r.plain = r.plain[n:]
		if err != nil {
			return written, err
		}
		if len(r.plain) > 0 {
			return written, io.ErrShortWrite
		}
	}
	if r.err == io.EOF {
		return written, nil
	}
	return written, r.err
}

// more sees to it that plain holds something, and reports false when the value has ended or failed, with the reason in err.
func (r *openReader) more() bool {
	for len(r.plain) == 0 && r.err == nil {
		r.err = r.openNext()
	}
	return len(r.plain) > 0
}

// Close closes the source. Reading ends; closing again does nothing.
func (r *openReader) Close() error {
	if r.src == nil {
		return nil
	}
	src := r.src
	r.src, r.plain = nil, nil
	return src.Close()
}

// openNext reads, verifies and opens the next segment in place; io.EOF when there is none.
func (r *openReader) openNext() error {
	if r.next > r.last {
		return io.EOF
	}
	if r.src == nil {
		return fmt.Errorf("open blob: read after close: %w", fs.ErrClosed)
	}
	size := min(SegmentSize, r.sealed-r.next*SegmentSize)
	if r.next == 0 {
		size -= headerBytes
	}
	segment := r.buf[:size]
	if err := r.fill(segment, fmt.Sprintf("segment %d of %d", r.next, r.last+1)); err != nil {
		return err
	}
	plain, err := r.aead.gcm.Open(segment[:0], r.aead.setNonce(r.next, r.next == r.last), segment, nil)
	if err != nil {
		return fmt.Errorf("%w: segment %d of %d", ErrDamaged, r.next, r.last+1)
	}
	r.plain = plain
	r.next++
	return nil
}

// fill reads all of p.
func (r *openReader) fill(p []byte, what string) error {
	n, err := readFull(r.src, p)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return fmt.Errorf("the sealed value ends after %d of %d bytes of %s: %w", n, len(p), what, io.ErrUnexpectedEOF)
	default:
		return fmt.Errorf("read %s: %w", what, err)
	}
}
