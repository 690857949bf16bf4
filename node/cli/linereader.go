package cli

import (
	"bufio"
	"bytes"
	"io"
)

// lineReader gives one line at a time, without its end, as a document that ends there.
type lineReader struct {
	in     *bufio.Reader
	offset int64 // in the stream
	ended  bool  // the line's end has been read
	last   bool  // and the stream's
	begun  bool
	err    error // of the stream
}

// next goes to the next line, past what is left of the last one. A line that is not wanted is passed over. more is false at
// the end of the stream.
func (l *lineReader) next(wanted bool) (more bool, err error) {
	if l.begun {
		if err := l.rest(); err != nil {
			return false, err
		}
	}
	l.begun, l.ended = true, false
	if l.last {
		return false, nil
	}
	if _, err := l.in.Peek(1); err == io.EOF {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if !wanted {
		return true, l.rest()
	}
	return true, nil
}

// rest reads to the end of the line.
func (l *lineReader) rest() error {
	for !l.ended && l.err == nil {
		_, _ = l.piece(valueChunk)
	}
	return l.err
}

// piece takes up to n bytes of the line.
func (l *lineReader) piece(n int) (b []byte, err error) {
	if l.err != nil {
		return nil, l.err
	}
	if l.ended {
		return nil, io.EOF
	}
	if _, err := l.in.Peek(1); err == io.EOF {
		l.ended, l.last = true, true
		return nil, io.EOF
	} else if err != nil {
		l.err = err
		return nil, err
	}
	b, _ = l.in.Peek(min(l.in.Buffered(), n)) // they are there
	took := len(b)
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		l.ended = true
		b, took = b[:i], i+1
	}
	_, _ = l.in.Discard(took)
	l.offset += int64(took)
	return b, nil
}

// Read gives what is left of the line. io.Reader.
func (l *lineReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := l.piece(len(p))
	if len(b) == 0 && err == nil {
		err = io.EOF // the line is over
	}
	return copy(p, b), err
}
