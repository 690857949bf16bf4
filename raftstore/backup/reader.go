package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Summary is what can be seen of a backup without a key.
type Summary struct {
	Header
	// Key is the id of the key-encryption key that opens it.
	Key   string
	Parts uint64
	Bytes uint64 // of the sealed parts
}

// Inspect reads the head of a backup. Nothing of it is proven.
func Inspect(r io.Reader) (Summary, error) {
	h, err := readHead(r)
	if err != nil {
		return Summary{}, err
	}
	return h.summary()
}

func (h *head) summary() (Summary, error) {
	id, err := h.keyID()
	return Summary{Header: h.Header, Key: id}, err
}

// InspectEnd reads the last EndBytes bytes of a file. Without an error the file has an end, and so many parts of so many
// bytes; whether they are all there and good is not known.
func InspectEnd(b []byte) (parts, size uint64, err error) {
	if len(b) != EndBytes || b[0] != markEnd || checkSum(b, "the end") != nil {
		return 0, 0, ErrCut
	}
	return binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]), nil
}

// Check reads a whole backup and looks at every checksum. It needs no key: it finds damage, but not what somebody changed
// on purpose. The Summary is as far as it came.
func Check(r io.Reader) (Summary, error) {
	h, err := readHead(r)
	if err != nil {
		return Summary{}, err
	}
	s, err := h.summary()
	if err != nil {
		return s, err
	}
	f := frames{r: r}
	for err == nil {
		_, err = f.next()
		s.Parts, s.Bytes = f.parts, f.bytes
	}
	if err == io.EOF {
		err = nil
	}
	return s, err
}

// frames reads the frames behind the head.
type frames struct {
	r     io.Reader
	buf   bytes.Buffer // of the present frame
	parts uint64
	bytes uint64
	last  bool // the last part has come
}

// next returns the next part, sealed and valid until the next call; io.EOF behind the end, when everything fits.
func (f *frames) next() ([]byte, error) {
	f.buf.Reset()
	if err := f.more(1); err != nil {
		return nil, err
	}
	switch mark := f.buf.Bytes()[0]; {
	case f.last != (mark == markEnd), mark > markLast:
		return nil, fmt.Errorf("%w: part %d is followed by a frame of kind %d", ErrDamaged, f.parts, mark)
	case mark == markEnd:
		return nil, f.end()
	default:
		f.last = mark == markLast
	}
	if err := f.more(partHead - 1); err != nil {
		return nil, err
	}
	number, size := binary.BigEndian.Uint64(f.buf.Bytes()[1:]), binary.BigEndian.Uint32(f.buf.Bytes()[9:])
	if number != f.parts+1 || size > MaxPart+seal.Overhead {
		return nil, fmt.Errorf("%w: part %d is followed by part %d of %d bytes", ErrDamaged, f.parts, number, size)
	}
	if err := f.more(int64(size) + sumBytes); err != nil {
		return nil, err
	}
	frame := f.buf.Bytes()
	if err := checkSum(frame, fmt.Sprintf("part %d", number)); err != nil {
		return nil, err
	}
	f.parts++
	f.bytes += uint64(size)
	return frame[partHead : len(frame)-sumBytes], nil
}

// more reads n bytes more of the frame; memory grows with what has come, not with what was announced.
func (f *frames) more(n int64) error {
	_, err := io.CopyN(&f.buf, f.r, n)
	return cut(err)
}

func (f *frames) end() error {
	if err := f.more(EndBytes - 1); err != nil {
		return err
	}
	if err := checkSum(f.buf.Bytes(), "the end"); err != nil {
		return err
	}
	b := f.buf.Bytes()
	if parts, size := binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]); parts != f.parts || size != f.bytes {
		return fmt.Errorf("%w: it has %d parts of %d bytes, its end says %d of %d", ErrDamaged, f.parts, f.bytes, parts, size)
	}
	switch n, err := io.ReadFull(f.r, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("%w: something follows behind its end", ErrDamaged)
	default:
		return err // io.EOF, or why it could not be read
	}
}

// Reader reads a backup and proves it as it goes: no record is given out before its part has been opened. Only io.EOF says
// that all of it was there. For one goroutine.
type Reader struct {
	head   *head
	frames frames
	own    *seal.KEK // nil until Unlock
	order  order
	part   decoder // the records of the present part
	rec    Record  // the present one
	totals *Totals // those of the last part, once they have come
	err    error   // sticky
}

// NewReader reads the head.
func NewReader(r io.Reader) (*Reader, error) {
	h, err := readHead(r)
	if err != nil {
		return nil, err
	}
	b := &Reader{head: h, frames: frames{r: r}}
	b.order.header = &h.Header
	return b, nil
}

// Header is proven only by the first record.
func (r *Reader) Header() Header { return r.head.Header }

// Unlock opens the backup's key. seal.ErrWrongKey when it is sealed for another mesh.
func (r *Reader) Unlock(kek *seal.KEK) error {
	key, err := r.head.unlock(kek)
	if err != nil {
		return err
	}
	r.own, err = seal.NewKEK(key)
	return err
}

// Rewrap wraps a namespace's data key, as a record gave it, for a mesh.
func (r *Reader) Rewrap(to *seal.KEK, ns *kv.Namespace) ([]byte, error) {
	wrapped, err := r.own.Rewrap(to, ns.ID, ns.WrappedKey)
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, seal.ErrWrongKey) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return wrapped, err
}

// Next reads the next record, which is valid until the next call. io.EOF: that was all, and it fits the totals. Unlock comes before.
func (r *Reader) Next() (*Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.err = r.next(&r.rec); r.err != nil {
		return nil, r.err
	}
	return &r.rec, nil
}

func (r *Reader) next(rec *Record) error {
	if r.own == nil {
		return errors.New("the backup was not unlocked")
	}
	for len(r.part.rest) == 0 {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.totals != nil {
		return fmt.Errorf("%w: records behind the totals", ErrDamaged)
	}
	var totals Totals
	r.part.record(rec, &totals)
	if r.part.bad {
		return fmt.Errorf("%w: a record in part %d", ErrDamaged, r.frames.parts)
	}
	if err := r.order.check(rec); err != nil {
		return err
	}
	if rec.Kind != kindEnd {
		return nil
	}
	r.totals = &totals
	if totals != r.order.totals || !r.frames.last {
		return fmt.Errorf("%w: it holds %+v, its totals say %+v", ErrDamaged, r.order.totals, totals)
	}
	return r.next(rec) // there must be nothing more
}

// open reads and opens the next part.
func (r *Reader) open() error {
	sealed, err := r.frames.next()
	if err == io.EOF && r.totals == nil {
		return fmt.Errorf("%w: it has no totals", ErrDamaged)
	}
	if err != nil {
		return err
	}
	plain, err := r.own.Open(r.head.partContext(r.frames.parts, r.frames.last), sealed)
	if err != nil {
		return fmt.Errorf("%w: part %d is not what was sealed", ErrDamaged, r.frames.parts)
	}
	if len(plain) == 0 {
		return fmt.Errorf("%w: part %d is empty", ErrDamaged, r.frames.parts)
	}
	r.part = decoder{rest: plain}
	return nil
}

// Totals count what was read so far.
func (r *Reader) Totals() Totals { return r.order.totals }

// Summary is what was read so far.
func (r *Reader) Summary() Summary {
	s, _ := r.head.summary() // readHead has looked at the id
	s.Parts, s.Bytes = r.frames.parts, r.frames.bytes
	return s
}
