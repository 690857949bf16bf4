package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxValueText is the longest string that can be a value: base64 of the largest one, with some line breaks.
	maxValueText = (kv.MaxValueBytes+2)/3*4 + kv.MaxValueBytes/16
	// maxEntryText bounds the other strings of an entry; what is longer is over its limit anyway.
	maxEntryText = 4 << 10
	// valueChunk is how much of a stream is read or written at a time.
	valueChunk = 32 << 10
)

// entry is one key of a stream, in the form that `wrangler kv bulk put` takes.
type entry struct {
	key             string
	hasKey          bool
	value           []byte
	metadata        json.RawMessage // compact; nil: none
	expiration, ttl int64           // 0: none
	unknown         []string        // members that nobody knows
}

// entryReader reads entries off a JSON document.
type entryReader struct {
	r    *jsonstream.Reader
	text textBuffer // of the value that is being read
}

// unreadableError is an error after which the document cannot be read any further.
type unreadableError struct{ err error }

func (e *unreadableError) Error() string { return e.err.Error() }
func (e *unreadableError) Unwrap() error { return e.err }

// read reads one entry. Its error is an *unreadableError, or about this entry only.
func (er *entryReader) read() (e entry, err error) {
	var wrong error // the first thing that is wrong with it; the rest is passed over then
	var seen []string
	hasValue, coded := false, false
	err = er.r.Object(func(name string) error {
		for _, s := range seen {
			if s == name {
				wrong = errors.Join(wrong, fmt.Errorf("it has the member %q twice", name))
			}
		}
		seen = append(seen, name)
		if len(seen) > maxMembers {
			return &unreadableError{fmt.Errorf("it has more than %d members", maxMembers)}
		}
		if wrong != nil && name != "key" { // a failure is named by its key
			return er.r.Skip()
		}
		var err error
		switch name {
		case "value":
			hasValue = true
			err = er.value()
		case "base64":
			coded, err = er.flag()
		default:
			err = er.member(&e, name)
		}
		if fatal := fatalJSON(err); fatal != nil {
			return fatal
		}
		if err != nil {
			wrong = fmt.Errorf("%s: %w", name, err)
			var limit *kv.Error
			if errors.As(err, &limit) {
				wrong = err
			}
		}
		return nil
	})
	switch {
	case fatalJSON(err) != nil:
		return e, &unreadableError{fatalJSON(err)}
	case err != nil: // it is no object
		return e, err
	case wrong != nil:
		return e, wrong
	case !e.hasKey:
		return e, errors.New("it has no key")
	case !hasValue:
		return e, errors.New(`it has no value; write "value": "" for an empty one`)
	}
	e.value, err = er.decoded(coded)
	return e, err
}

// maxMembers bounds the members of an entry.
const maxMembers = 100

// fatalJSON is err if the document cannot be read any further after it.
func fatalJSON(err error) error {
	var value *jsonstream.ValueError
	var limit *kv.Error
	var decode base64.CorruptInputError
	if err == nil || errors.As(err, &value) || errors.As(err, &limit) || errors.As(err, &decode) {
		return nil
	}
	return err
}

// member reads a member of an entry that is not its value.
func (er *entryReader) member(e *entry, name string) (err error) {
	switch name {
	case "key":
		e.hasKey = true
		if e.key, err = er.r.String(maxEntryText); len(e.key) == maxEntryText && err != nil && fatalJSON(err) == nil {
			err = kv.FieldErrorf(kv.CodeKeyTooLong, "key", "the key has more than %d bytes; the limit is %d bytes of UTF-8", maxEntryText, kv.MaxKeyBytes)
		}
		return err
	case "metadata", "expiration", "expiration_ttl":
		if kind, err := er.r.Kind(); err != nil {
			return err
		} else if kind == jsonstream.Null {
			return er.r.Skip()
		}
	}
	switch name {
	case "metadata":
		raw, err := er.r.Raw(maxEntryText)
		if err != nil && fatalJSON(err) == nil {
			err = kv.FieldErrorf(kv.CodeMetadataTooLarge, "metadata", "the metadata has more than %d bytes; the limit is %d bytes of JSON", maxEntryText, kv.MaxMetadataBytes)
		}
		if err == nil {
			e.metadata, err = compacted(raw)
		}
		return err
	case "expiration":
		e.expiration, err = er.seconds()
	case "expiration_ttl":
		e.ttl, err = er.seconds()
	default:
		e.unknown = append(e.unknown, name)
		err = er.r.Skip()
	}
	return err
}

// compacted is metadata without insignificant white space, which does not count.
func compacted(raw []byte) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, kv.FieldErrorf(kv.CodeInvalidMetadata, "metadata", "the metadata is not JSON: %v", err)
	}
	return kv.CompactMetadata(b.Bytes())
}

// seconds reads a time, which is positive.
func (er *entryReader) seconds() (int64, error) {
	n, err := er.r.Int()
	if err == nil && n <= 0 {
		err = &jsonstream.ValueError{What: fmt.Sprintf("%d is not a number of seconds, 1 or more", n)}
	}
	return n, err
}

func (er *entryReader) flag() (bool, error) {
	if kind, err := er.r.Kind(); err != nil {
		return false, err
	} else if kind == jsonstream.Null {
		return false, er.r.Skip()
	}
	return er.r.Bool()
}

// value reads the text of a value, of which it is not known yet whether it is base64.
func (er *entryReader) value() error {
	t, err := er.r.Text()
	if err != nil {
		return err
	}
	err = er.text.fill(t)
	if broken := t.Close(); broken != nil {
		return broken
	}
	if err == nil && er.text.n > maxValueText {
		err = tooLarge(fmt.Sprintf("more than %d bytes of text", maxValueText))
	}
	return err
}

func tooLarge(size string) error {
	return kv.FieldErrorf(kv.CodeValueTooLarge, "value", "the value has %s; the limit is %d bytes", size, kv.MaxValueBytes)
}

// decoded is the value itself.
func (er *entryReader) decoded(coded bool) ([]byte, error) {
	text := er.text.reader()
	if !coded {
		if er.text.n > kv.MaxValueBytes {
			return nil, tooLarge(fmt.Sprintf("%d bytes", er.text.n))
		}
		value := make([]byte, er.text.n)
		_, err := io.ReadFull(text, value)
		return value, err
	}
	digits := er.text.digits()
	value := make([]byte, base64.StdEncoding.DecodedLen(digits))
	n, err := io.ReadFull(base64.NewDecoder(base64.StdEncoding, text), value)
	if err == io.EOF || err == io.ErrUnexpectedEOF { // padding has taken up to two bytes; what is too short is found below
		err = nil
	}
	if err != nil || digits%4 != 0 {
		return nil, errors.New("value: it is not base64 with its padding, in the alphabet with + and /")
	}
	if n > kv.MaxValueBytes {
		return nil, tooLarge(fmt.Sprintf("%d bytes", n))
	}
	return value[:n:n], nil
}

// textBlock is the size of the pieces of a textBuffer.
const textBlock = 256 << 10

// textBuffer holds one text in pieces that serve for the next one too, so that a large one is no garbage.
type textBuffer struct {
	blocks [][]byte
	n      int
}

// fill reads r to its end, or a little beyond maxValueText.
func (b *textBuffer) fill(r io.Reader) error {
	b.n = 0
	for i := 0; b.n <= maxValueText; i++ {
		if i == len(b.blocks) {
			b.blocks = append(b.blocks, make([]byte, textBlock))
		}
		n, err := io.ReadFull(r, b.blocks[i])
		b.n += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// digits counts what is no line break, which base64 may have anywhere.
func (b *textBuffer) digits() int {
	n := b.n
	for i, left := 0, b.n; left > 0; i++ {
		block := b.blocks[i][:min(left, textBlock)]
		n, left = n-bytes.Count(block, []byte{'\n'})-bytes.Count(block, []byte{'\r'}), left-len(block)
	}
	return n
}

func (b *textBuffer) reader() io.Reader {
	var parts []io.Reader
	for i, left := 0, b.n; left > 0; i++ {
		n := min(left, textBlock)
		parts, left = append(parts, bytes.NewReader(b.blocks[i][:n])), left-n
	}
	return io.MultiReader(parts...)
}
