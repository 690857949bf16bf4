package jsonstream

import "bytes"

// keeper takes the bytes of a value up to a limit, and counts them.
type keeper struct {
	limit int
	kept  []byte // nil: only passed over
	n     int64
}

func (k *keeper) add(b ...byte) {
	k.n += int64(len(b))
	if k.kept != nil {
		k.kept = append(k.kept, b[:min(len(b), k.limit-len(k.kept))]...)
	}
}

// scan reads one value. White space inside it counts.
func (r *Reader) scan(k *keeper) error {
	if _, err := r.next(); err != nil { // white space before it does not
		return err
	}
	var open []byte // the closing bytes of what is open
	for {
		c, err := r.space(k)
		if err != nil {
			return err
		}
		if isObject := c == '{'; isObject || c == '[' {
			if len(open) == maxDepth {
				return r.syntax("nested deeper than %d levels", maxDepth)
			}
			r.take(k, c)
			open = append(open, c+2) // '{' and '}', '[' and ']' are two apart
			if c, err = r.space(k); err != nil {
				return err
			}
			if c != open[len(open)-1] { // its first element
				if isObject {
					if err := r.name(k); err != nil {
						return err
					}
				}
				continue
			}
		} else if err := r.scalar(k, c); err != nil {
			return err
		}
		if open, err = r.after(k, open); err != nil || len(open) == 0 {
			return err
		}
	}
}

// after takes what follows a value within what is open: the ends of things, then a comma and, in an object, the next name.
func (r *Reader) after(k *keeper, open []byte) ([]byte, error) {
	for len(open) > 0 {
		end := open[len(open)-1]
		c, err := r.space(k)
		if err != nil {
			return nil, err
		}
		switch c {
		case end:
			r.take(k, c)
			open = open[:len(open)-1]
			continue
		case ',':
			r.take(k, c)
			if end == '}' {
				err = r.name(k)
			}
			return open, err
		}
		return nil, r.unexpected(c, "a comma or "+string(end))
	}
	return open, nil
}

// space keeps white space and returns the byte after it, which it leaves.
func (r *Reader) space(k *keeper) (byte, error) {
	before := r.off
	c, err := r.next()
	for range r.off - before {
		k.add(' ') // any white space is as good
	}
	return c, err
}

func (r *Reader) take(k *keeper, c byte) {
	k.add(c)
	r.skip(1)
}

// name reads the name of a member and its colon.
func (r *Reader) name(k *keeper) error {
	c, err := r.space(k)
	if err != nil {
		return err
	}
	if c != '"' {
		return r.unexpected(c, "a name in quotes")
	}
	if err := r.quoted(k); err != nil {
		return err
	}
	if c, err = r.space(k); err != nil {
		return err
	}
	if c != ':' {
		return r.unexpected(c, "a colon")
	}
	r.take(k, c)
	return nil
}

// scalar reads a string, a number or a word that begins with c.
func (r *Reader) scalar(k *keeper, c byte) error {
	switch {
	case c == '"':
		return r.quoted(k)
	case c == 't':
		return r.word(k, "true")
	case c == 'f':
		return r.word(k, "false")
	case c == 'n':
		return r.word(k, "null")
	case c == '-' || isDigit(c):
		return r.number(k)
	}
	return r.unexpected(c, "a value")
}

func (r *Reader) word(k *keeper, word string) error {
	for i := range len(word) {
		c, err := r.byte()
		if err != nil {
			return err
		}
		if c != word[i] {
			r.off--
			return r.unexpected(c, word)
		}
		k.add(c)
	}
	return nil
}

// quoted reads a string as it stands.
func (r *Reader) quoted(k *keeper) error {
	r.take(k, '"')
	for {
		run, err := r.run(bufferBytes)
		if err != nil {
			return err
		}
		k.add(run...)
		r.skip(len(run))
		c, err := r.byte()
		if err != nil {
			return err
		}
		k.add(c)
		switch {
		case c == '"':
			return nil
		case c == '\\':
			if err := r.escape(k); err != nil {
				return err
			}
		case c < ' ':
			r.off--
			return r.syntax("the control character %q in a string; write it as an escape", rune(c))
		}
	}
}

// escape keeps what follows a backslash.
func (r *Reader) escape(k *keeper) error {
	c, err := r.byte()
	if err != nil {
		return err
	}
	k.add(c)
	if c != 'u' {
		if bytes.IndexByte([]byte(`"\/bfnrt`), c) < 0 {
			r.off--
			return r.unexpected(c, "the rest of an escape")
		}
		return nil
	}
	for range 4 {
		if c, err = r.byte(); err != nil {
			return err
		}
		if _, ok := hexDigit(c); !ok {
			r.off--
			return r.unexpected(c, "a hex digit")
		}
		k.add(c)
	}
	return nil
}

// number reads -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
func (r *Reader) number(k *keeper) error {
	c, ok, err := r.peekRaw()
	if ok && c == '-' {
		r.take(k, c)
		c, ok, err = r.peekRaw()
	}
	if err == nil && ok && c == '0' {
		r.take(k, c)
	} else if err == nil {
		err = r.digits(k)
	}
	if err != nil {
		return err
	}
	if c, ok, err = r.peekRaw(); ok && c == '.' {
		r.take(k, c)
		if err = r.digits(k); err != nil {
			return err
		}
		c, ok, err = r.peekRaw()
	}
	if ok && (c == 'e' || c == 'E') {
		r.take(k, c)
		if c, ok, err = r.peekRaw(); ok && (c == '+' || c == '-') {
			r.take(k, c)
		}
		if err == nil {
			err = r.digits(k)
		}
	}
	return err
}

// digits reads one or more.
func (r *Reader) digits(k *keeper) error {
	for n := 0; ; n++ {
		c, ok, err := r.peekRaw()
		switch {
		case err != nil:
			return err
		case ok && isDigit(c):
			r.take(k, c)
		case n > 0:
			return nil
		case !ok:
			return r.cut()
		default:
			return r.unexpected(c, "a digit")
		}
	}
}

// peekRaw looks at the next byte; ok is false at the end of the document, where a number may end too.
func (r *Reader) peekRaw() (c byte, ok bool, err error) {
	if r.err != nil {
		return 0, false, r.err
	}
	b, err := r.in.Peek(1)
	if len(b) == 0 {
		if isEOF(err) {
			return 0, false, nil
		}
		return 0, false, r.fail(err)
	}
	return b[0], true, nil
}
