package jsonstream

import (
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// Text gives the bytes of one string, unescaped, as they come. It is an io.Reader that must be read to io.EOF or closed
// before anything else is read of the document.
type Text struct {
	r     *Reader
	utf8  utf8State
	held  [utf8.UTFMax]byte // of an escape, what did not fit
	nHeld int
	ended bool  // the closing quote has been read
	err   error // sticky
}

// errUnicode is what a string fails with that holds no text.
var errUnicode = &ValueError{"it is not valid Unicode: half a surrogate pair, or bytes that are not UTF-8"}

// Text reads the string that comes next as a stream. A value of another kind is passed over.
func (r *Reader) Text() (*Text, error) {
	if err := r.expect(String); err != nil {
		return nil, err
	}
	r.skip(1)
	return &Text{r: r}, nil
}

// Read gives text. The error is io.EOF at the end of the string, a *ValueError when it is not valid Unicode (Close then reads
// on to its end), and otherwise one that ends the document.
func (t *Text) Read(p []byte) (n int, err error) {
	for n < len(p) && t.err == nil {
		n += t.fill(p[n:])
	}
	if n > 0 {
		return n, nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, t.err
}

// fill gives what is at hand, or sets err.
func (t *Text) fill(p []byte) int {
	if t.nHeld > 0 {
		n := copy(p, t.held[:t.nHeld])
		t.nHeld = copy(t.held[:], t.held[n:t.nHeld])
		return n
	}
	run, err := t.r.run(len(p))
	if err != nil {
		t.err = err
		return 0
	}
	if len(run) > 0 {
		n := copy(p, run)
		if !t.utf8.valid(p[:n]) {
			t.err = errUnicode
			return 0
		}
		t.r.skip(n)
		return n
	}
	c, err := t.r.byte()
	switch {
	case err != nil:
		t.err = err
	case c == '"':
		t.ended, t.err = true, io.EOF
		if !t.utf8.complete() {
			t.err = errUnicode
		}
	case c == '\\':
		t.escape()
	default:
		t.r.off--
		t.err = t.r.syntax("the control character %q in a string; write it as an escape", rune(c))
	}
	return 0
}

// escape reads what follows a backslash into held.
func (t *Text) escape() {
	k := keeper{limit: 5, kept: make([]byte, 0, 5)}
	if t.err = t.r.escape(&k); t.err != nil {
		return
	}
	if !t.utf8.complete() {
		t.err = errUnicode
		return
	}
	if c := k.kept[0]; c != 'u' {
		t.held[0], t.nHeld = plainEscape(c), 1
		return
	}
	char := hex4(k.kept[1:])
	if utf16.IsSurrogate(char) {
		char = t.lowSurrogate(char)
	}
	if char == utf8.RuneError && t.err == nil && !isReplacement(k.kept[1:]) {
		t.err = errUnicode
	}
	if t.err == nil {
		t.nHeld = utf8.EncodeRune(t.held[:], char)
	}
}

// lowSurrogate reads the second half of a pair, which has to follow at once, and returns the character;
// utf8.RuneError when there is none.
func (t *Text) lowSurrogate(high rune) rune {
	b, err := t.r.in.Peek(6)
	if err != nil && !isEOF(err) {
		t.err = t.r.fail(err)
		return utf8.RuneError
	}
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return utf8.RuneError
	}
	for _, c := range b[2:6] {
		if _, ok := hexDigit(c); !ok {
			return utf8.RuneError
		}
	}
	char := utf16.DecodeRune(high, hex4(b[2:6]))
	if char != utf8.RuneError {
		t.r.skip(6)
	}
	return char
}

// isReplacement says whether four hex digits are U+FFFD itself.
func isReplacement(hex []byte) bool { return hex4(hex) == utf8.RuneError }

func plainEscape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

// Close reads on to the end of the string. Its error is one that ends the document.
func (t *Text) Close() error {
	if t.ended {
		return nil
	}
	var k keeper
	for {
		run, err := t.r.run(bufferBytes)
		if err != nil {
			return err
		}
		t.r.skip(len(run))
		c, err := t.r.byte()
		switch {
		case err != nil:
			return err
		case c == '"':
			t.ended = true
			if t.err == nil {
				t.err = io.EOF
			}
			return nil
		case c == '\\':
			if err := t.r.escape(&k); err != nil {
				return err
			}
		case c < ' ':
			t.r.off--
			return t.r.syntax("the control character %q in a string; write it as an escape", rune(c))
		}
	}
}

func isEOF(err error) bool { return err == io.EOF }

// hex4 reads four digits that have been checked.
func hex4(b []byte) (v rune) {
	for _, c := range b[:4] {
		d, _ := hexDigit(c)
		v = v<<4 | rune(d)
	}
	return v
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case isDigit(c):
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// utf8State checks UTF-8 that comes in pieces (The Unicode Standard, table 3-7).
type utf8State struct {
	need   int  // continuation bytes that are missing
	lo, hi byte // of the next one
}

func (s *utf8State) complete() bool { return s.need == 0 }

func (s *utf8State) valid(p []byte) bool {
	if s.need == 0 && utf8.Valid(p) { // it is fast, and nearly always enough
		return true
	}
	for _, c := range p {
		if s.need > 0 {
			if c < s.lo || c > s.hi {
				return false
			}
			s.need, s.lo, s.hi = s.need-1, 0x80, 0xbf
			continue
		}
		if c < utf8.RuneSelf {
			continue
		}
		s.lo, s.hi = 0x80, 0xbf
		switch {
		case c < 0xc2 || c > 0xf4:
			return false
		case c < 0xe0:
			s.need = 1
		case c < 0xf0:
			s.need = 2
		default:
			s.need = 3
		}
		switch c {
		case 0xe0: // no longer forms than needed
			s.lo = 0xa0
		case 0xed: // no surrogates
			s.hi = 0x9f
		case 0xf0:
			s.lo = 0x90
		case 0xf4: // nothing above U+10FFFF
			s.hi = 0x8f
		}
	}
	return true
}
