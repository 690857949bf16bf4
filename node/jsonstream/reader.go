// Package jsonstream reads one JSON document (RFC 8259) of any size in bounded memory, value by value as the caller asks for
// them. It is for bodies of bulk calls: encoding/json's Decoder holds each string as a whole, several times, and decides
// only then whether it was too large; here a string is a stream, and one that is not wanted is passed over as it comes.
//
// Two kinds of errors are told apart. After a *SyntaxError, or an error of the source, the document cannot be read any
// further, and every later call fails with the same error. A *ValueError is about one value, which has been read to its
// end: the next one can be read. A string that is not valid Unicode (bytes that are no UTF-8, half a surrogate pair) is
// the latter, and never replaced by something else, as encoding/json does.
package jsonstream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	bufferBytes = 16 << 10
	// maxDepth is how deep arrays and objects may nest within a value that is passed over or kept as it is.
	maxDepth = 1000
	// maxName is how much of a member's name is kept, in bytes: more than any name that a caller knows.
	maxName = 64
)

// SyntaxError says that the document is not JSON.
type SyntaxError struct {
	Offset int64 // of the byte at which that was found
	What   string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("not JSON at byte %d: %s", e.Offset, e.What) }

// ValueError says that one value is not what was asked for. It has been read to its end.
type ValueError struct{ What string }

func (e *ValueError) Error() string { return e.What }

func wrongKind(want string, got Kind) error {
	return &ValueError{fmt.Sprintf("it is %s, not %s", got, want)}
}

// Kind is the kind of a value, as its first byte tells.
type Kind byte

// The kinds.
const (
	Object Kind = '{'
	Array  Kind = '['
	String Kind = '"'
	Number Kind = '0'
	Bool   Kind = 't'
	Null   Kind = 'n'
)

func (k Kind) String() string {
	switch k {
	case Object:
		return "an object"
	case Array:
		return "an array"
	case String:
		return "a string"
	case Number:
		return "a number"
	case Bool:
		return "a truth value"
	case Null:
		return "null"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Reader reads one document. It is for one goroutine.
type Reader struct {
	in  *bufio.Reader
	off int64
	err error // sticky
}

// New returns a reader of the document that r gives. It may read beyond the document's end.
func New(r io.Reader) *Reader { return &Reader{in: bufio.NewReaderSize(r, bufferBytes)} }

// Reset makes it a reader of another document, with the same buffer.
func (r *Reader) Reset(in io.Reader) {
	r.in.Reset(in)
	r.off, r.err = 0, nil
}

// Offset is how many bytes of the document have been read.
func (r *Reader) Offset() int64 { return r.off }

// Kind tells the kind of the next value without reading it.
func (r *Reader) Kind() (Kind, error) {
	c, err := r.next()
	if err != nil {
		return 0, err
	}
	switch c {
	case '{', '[', '"', 'n':
		return Kind(c), nil
	case 't', 'f':
		return Bool, nil
	}
	if c == '-' || isDigit(c) {
		return Number, nil
	}
	return 0, r.unexpected(c, "a value")
}

// Object reads an object, and calls member with the name of each member; member must read its value, and nothing else. The
// first error that it returns is returned at once, with the rest of the document unread. Names are cut after 64 bytes.
func (r *Reader) Object(member func(name string) error) error {
	return r.list(Object, '}', func(int) error {
		c, err := r.next()
		if err != nil {
			return err
		}
		if c != '"' {
			return r.unexpected(c, "a name in quotes")
		}
		name, _, err := r.shortString(maxName)
		if err != nil && !isValueError(err) {
			return err
		}
		if c, err = r.next(); err != nil {
			return err
		}
		if c != ':' {
			return r.unexpected(c, "a colon")
		}
		r.skip(1)
		return member(name)
	})
}

// Array reads an array, and calls element before each element, which it must read, and nothing else.
func (r *Reader) Array(element func(i int) error) error { return r.list(Array, ']', element) }

func (r *Reader) list(kind Kind, end byte, each func(i int) error) error {
	if err := r.expect(kind); err != nil {
		return err
	}
	r.skip(1)
	for i := 0; ; i++ {
		c, err := r.next()
		switch {
		case err != nil:
			return err
		case c == end && i == 0:
			r.skip(1)
			return nil
		}
		if err := each(i); err != nil {
			return err
		}
		if c, err = r.next(); err != nil {
			return err
		}
		r.skip(1)
		switch c {
		case end:
			return nil
		case ',':
		default:
			r.off--
			return r.unexpected(c, "a comma or the end of "+kind.String())
		}
	}
}

// expect looks whether the next value is of a kind. One of another kind is passed over.
func (r *Reader) expect(want Kind) error {
	got, err := r.Kind()
	if err != nil || got == want {
		return err
	}
	if err := r.Skip(); err != nil {
		return err
	}
	return wrongKind(want.String(), got)
}

// String reads a string of at most limit bytes. A longer one is passed over, and the error says so; its beginning is
// returned with the error.
func (r *Reader) String(limit int) (string, error) {
	if err := r.expect(String); err != nil {
		return "", err
	}
	s, n, err := r.shortString(limit)
	if err == nil && n > int64(limit) {
		err = &ValueError{fmt.Sprintf("it has %d bytes; the limit is %d", n, limit)}
	}
	return s, err
}

// shortString reads the string that comes next, keeps up to limit bytes of it and counts all.
func (r *Reader) shortString(limit int) (s string, n int64, err error) {
	t, err := r.Text()
	if err != nil {
		return "", 0, err
	}
	var kept []byte
	buf := make([]byte, 512)
	for {
		got, err := t.Read(buf)
		n += int64(got)
		kept = append(kept, buf[:min(got, limit-len(kept))]...)
		if err == io.EOF {
			return string(kept), n, nil
		}
		if err != nil {
			if broken := t.Close(); broken != nil {
				err = broken
			}
			return string(kept), n, err
		}
	}
}

// Int reads a whole number that fits into an int64.
func (r *Reader) Int() (int64, error) {
	if err := r.expect(Number); err != nil {
		return 0, err
	}
	raw, err := r.Raw(maxName)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, &ValueError{fmt.Sprintf("%s is not a whole number", raw)}
	}
	return n, nil
}

// Bool reads true or false.
func (r *Reader) Bool() (bool, error) {
	if err := r.expect(Bool); err != nil {
		return false, err
	}
	raw, err := r.Raw(maxName)
	return string(raw) == "true", err
}

// Raw reads any value as it stands in the document, at most limit bytes. A longer one is passed over.
func (r *Reader) Raw(limit int) ([]byte, error) {
	k := &keeper{limit: limit, kept: []byte{}}
	if err := r.scan(k); err != nil {
		return nil, err
	}
	if k.n > int64(limit) {
		return nil, &ValueError{fmt.Sprintf("it has %d bytes; the limit is %d", k.n, limit)}
	}
	return k.kept, nil
}

// Skip passes over any value.
func (r *Reader) Skip() error { return r.scan(&keeper{}) }

// Empty tells whether nothing but white space is left, without taking anything else.
func (r *Reader) Empty() (bool, error) {
	_, err := r.peek()
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// End looks whether nothing but white space is left.
func (r *Reader) End() error {
	c, err := r.peek()
	switch {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return r.unexpected(c, "nothing more")
}

// peek returns the next byte that is no white space, without taking it; io.EOF at the end.
func (r *Reader) peek() (byte, error) {
	if r.err != nil {
		return 0, r.err
	}
	for {
		c, err := r.in.ReadByte()
		if err == io.EOF {
			return 0, io.EOF
		}
		if err != nil {
			return 0, r.fail(err)
		}
		if c == ' ' || c == '\n' || c == '\t' || c == '\r' {
			r.off++
			continue
		}
		return c, r.in.UnreadByte() // cannot fail after ReadByte
	}
}

// next is peek where the document must go on.
func (r *Reader) next() (byte, error) {
	c, err := r.peek()
	if err == io.EOF {
		return 0, r.cut()
	}
	return c, err
}

// byte takes the next byte, white space too.
func (r *Reader) byte() (byte, error) {
	if r.err != nil {
		return 0, r.err
	}
	c, err := r.in.ReadByte()
	switch {
	case err == io.EOF:
		return 0, r.cut()
	case err != nil:
		return 0, r.fail(err)
	}
	r.off++
	return c, nil
}

// skip takes bytes that are buffered.
func (r *Reader) skip(n int) {
	_, _ = r.in.Discard(n) // they are there
	r.off += int64(n)
}

// run returns up to limit bytes that come before the next one that ends a plain run of a string; it is empty when that comes
// at once. The caller takes them with skip.
func (r *Reader) run(limit int) ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.in.Buffered() == 0 {
		if _, err := r.in.Peek(1); err == io.EOF {
			return nil, r.cut()
		} else if err != nil {
			return nil, r.fail(err)
		}
	}
	b, _ := r.in.Peek(min(r.in.Buffered(), limit)) // no more than there is
	for _, end := range []byte{'"', '\\'} {
		if i := bytes.IndexByte(b, end); i >= 0 {
			b = b[:i]
		}
	}
	return b[:plain(b)], nil
}

// plain is the number of bytes before the first control character. It looks at eight bytes at a time: subtracting 0x20 from
// each borrows from the high bit of those that are smaller.
func plain(b []byte) int {
	const low, high = 0x2020202020202020, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		if (x-low)&^x&high != 0 {
			break
		}
	}
	for ; i < len(b); i++ {
		if b[i] < ' ' {
			return i
		}
	}
	return i
}

func (r *Reader) fail(err error) error {
	if r.err == nil {
		r.err = err
	}
	return r.err
}

func (r *Reader) syntax(format string, args ...any) error {
	return r.fail(&SyntaxError{r.off, fmt.Sprintf(format, args...)})
}

func (r *Reader) cut() error { return r.syntax("it ends too early") }

func (r *Reader) unexpected(c byte, want string) error {
	return r.syntax("%q where %s is expected", rune(c), want)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isValueError(err error) bool {
	var v *ValueError
	return errors.As(err, &v)
}
