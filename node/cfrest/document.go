package cfrest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

// maxKeyText is how much of a key that is too long is kept, in bytes.
const maxKeyText = 4 << 10

// document is the JSON body of a bulk call while it is read.
type document struct {
	r    *jsonstream.Reader
	body *body
}

// document opens the body of a bulk call, of at most limit bytes.
func (s *surface) document(c *call, limit int64, touch func()) (*document, error) {
	if err := api.PlainEncoding(c.r); err != nil {
		return nil, err
	}
	tooLarge := func(int64) error {
		return kv.Errorf(kv.CodeTooLarge, "Total size of request exceeds the limit of %dMB", limit/1_000_000)
	}
	if c.r.ContentLength > limit {
		return nil, tooLarge(0)
	}
	b := newBody(c.r, limit, touch)
	b.tooLarge = tooLarge
	return &document{jsonstream.New(b), b}, nil
}

// told is what a client is told of err, met at a place of the document.
func (d *document) told(err error, pointer string) error {
	if err == nil {
		return nil
	}
	if e := d.body.failure.Load(); e != nil {
		return *e
	}
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	switch {
	case errors.As(err, &syntax):
		return badBody("the body is %v", syntax)
	case errors.As(err, &value):
		e := badBody("the body is not as this call takes it: %v", value)
		e.pointer = pointer
		return e
	}
	return err
}

// text reads a string and counts its bytes; of a long one the beginning is kept. A string that is no Unicode is a
// *jsonstream.ValueError.
func (d *document) text(limit int) (text string, size int64, err error) {
	t, err := d.r.Text()
	if err != nil {
		return "", 0, err
	}
	var kept []byte
	var buf [512]byte
	for {
		n, err := t.Read(buf[:])
		size += int64(n)
		kept = append(kept, buf[:min(n, limit-len(kept))]...)
		if err == io.EOF {
			return string(kept), size, nil
		}
		if err != nil {
			if broken := t.Close(); broken != nil {
				err = broken
			}
			return "", size, err
		}
	}
}

// key reads and checks the name of a key.
func (d *document) key(pointer string) (string, error) {
	key, size, err := d.text(maxKeyText)
	if err != nil {
		return "", d.told(err, pointer)
	}
	p := cfkv.CheckKey(key)
	if size > kv.MaxKeyBytes {
		p = cfkv.KeyTooLong(size)
	}
	return key, at(p, pointer)
}

// keys reads an array of keys, at most limit of them; more are counted, and passed over. Duplicates are dropped. hold is asked
// for the memory of each.
func (d *document) keys(limit int, pointer string, hold func(bytes int64) error) (keys []string, n int, err error) {
	seen := map[string]bool{}
	err = d.r.Array(func(i int) error {
		if n++; n > limit {
			return d.r.Skip()
		}
		key, err := d.key(pointer + "/" + strconv.Itoa(i))
		if err != nil || seen[key] {
			return err
		}
		seen[key] = true
		keys = append(keys, key)
		return hold(int64(itemOverhead + len(key)))
	})
	return keys, n, err
}

// end looks whether the document ends here.
func (d *document) end() error { return d.told(d.r.End(), "") }

// at makes a problem of one part of the body an error that names it; nil when there is none.
func at(p *cfkv.Problem, pointer string) error {
	if p == nil {
		return nil
	}
	e := asAPIError(p)
	e.pointer = pointer
	return e
}

// compactJSON removes white space; nothing is nil.
func compactJSON(text []byte) ([]byte, error) {
	if len(text) == 0 {
		return nil, nil
	}
	if !utf8.Valid(text) {
		return nil, errors.New("it is not valid UTF-8")
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// value reads a string into buf, which grows by what the lease allows, up to limit bytes; longer ones are counted and passed
// over.
func (d *document) value(ctx context.Context, buf []byte, limit int64, l *lease) (_ []byte, size int64, err error) {
	t, err := d.r.Text()
	if err != nil {
		return buf, 0, err
	}
	buf = buf[:0]
	for err == nil {
		if len(buf) == cap(buf) && int64(len(buf)) < limit+1 {
			more := min(max(int64(cap(buf)), minValueBuffer), limit+1-int64(cap(buf)))
			if err := l.grow(ctx, more); err != nil {
				return buf, size, err
			}
			buf = append(make([]byte, 0, int64(cap(buf))+more), buf...)
		}
		var n int
		if int64(len(buf)) > limit {
			var over [4 << 10]byte
			n, err = t.Read(over[:])
		} else {
			n, err = t.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
		}
		size += int64(n)
	}
	if err == io.EOF {
		return buf, size, nil
	}
	if broken := t.Close(); broken != nil {
		err = broken
	}
	return buf, size, err
}
