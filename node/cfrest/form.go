package cfrest

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"net/http"
	"strings"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

const (
	// maxFormExtra is what a form may have beside a value: its boundaries, the metadata, parts that nobody knows.
	maxFormExtra = 1 << 20
	// maxMetadataText is how much of a metadata part is kept, in bytes: white space does not count towards the limit.
	maxMetadataText = 64 << 10
)

// form is a PUT of a key as a form while it is read: `value`, and perhaps `metadata`, in any order. What it holds is small;
// the value goes to the store as it comes, and is written when the form has ended as it should.
type form struct {
	value       api.Staged // nil until it has come
	metadata    []byte
	hasMetadata bool
	fields      metaFields
}

// putForm streams a form's value into the store and writes it with its metadata.
func (s *surface) putForm(ctx context.Context, c *call, ns kv.Namespace, expiry int64, boundary string, touch func()) error {
	b := newBody(c.r, kv.MaxValueBytes+maxFormExtra, touch)
	b.tooLarge = func(int64) error {
		return cfkv.ValueTooLarge(max(c.r.ContentLength, kv.MaxValueBytes+1))
	}
	var f form
	tail := &tailReader{r: b}
	err := s.readForm(ctx, c, ns, &f, multipart.NewReader(tail, boundary))
	if err == nil && !tail.has("\n--"+boundary+"--") && !f.empty() {
		err = badBody("the form ends without its last boundary, and nothing was stored")
	}
	if err != nil {
		if e := b.failure.Load(); e != nil {
			return *e
		}
		return err
	}
	metadata, err := f.finish()
	if err != nil {
		return err
	}
	if !s.limit.Allow(ns.ID, c.key) {
		return throttled()
	}
	return s.writeOne(ctx, api.Write{Namespace: ns, Key: c.key, Value: f.value, Metadata: metadata, Expiry: expiry})
}

// readForm reads all parts.
func (s *surface) readForm(ctx context.Context, c *call, ns kv.Namespace, f *form, parts *multipart.Reader) error {
	for {
		part, err := parts.NextPart()
		if err == io.EOF { // as it is: the last boundary has come, or the form was cut before the header of a part
			return nil
		}
		if err != nil {
			return badBody("the form cannot be read, and nothing was stored: %v", err)
		}
		switch name := part.FormName(); {
		case name == "value":
			if f.value != nil {
				return badBody("the form has more than one field 'value'")
			}
			f.value, err = s.stagePart(ctx, c, ns, part)
		case name == "metadata":
			if f.hasMetadata {
				return badBody("the form has more than one field 'metadata'")
			}
			f.hasMetadata = true
			f.metadata, err = metadataPart(part)
		case strings.HasPrefix(name, "metadata[") || strings.HasPrefix(name, "metadata."):
			var text []byte
			if text, err = metadataPart(part); err == nil {
				err = f.fields.add(strings.TrimPrefix(name, "metadata"), string(text))
			}
		}
		// The rest of a part, and one that nobody knows, is passed over by NextPart.
		if err != nil {
			return err
		}
	}
}

// stagePart hands the value to the store.
func (s *surface) stagePart(ctx context.Context, c *call, ns kv.Namespace, part io.Reader) (api.Staged, error) {
	limited := &limitedPart{r: part}
	v, err := s.svc.Stage(ctx, api.StageRequest{Namespace: ns, Key: c.key, Body: limited, Size: -1})
	if limited.err != nil {
		return nil, limited.err
	}
	return v, err
}

// tailReader remembers the end of what was read: more than mime/multipart reads ahead.
type tailReader struct {
	r    io.Reader
	tail []byte
}

const tailBytes = 16 << 10

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if over := len(t.tail) + n - tailBytes; over > 0 {
		t.tail = t.tail[:copy(t.tail, t.tail[min(over, len(t.tail)):])]
	}
	t.tail = append(t.tail, p[max(0, n-tailBytes):n]...)
	return n, err
}

func (t *tailReader) has(text string) bool { return bytes.Contains(t.tail, []byte(text)) }

// empty says that no part of the form has come.
func (f *form) empty() bool { return f.value == nil && !f.hasMetadata && f.fields.n == 0 }

// limitedPart holds the limit of a value, and keeps the error of a form that was cut in its middle.
type limitedPart struct {
	r   io.Reader
	n   int64
	err error
}

func (l *limitedPart) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.r.Read(p)
	l.n += int64(n)
	switch {
	case l.n > kv.MaxValueBytes:
		l.err = cfkv.ValueTooLarge(l.n)
	case err != nil && err != io.EOF:
		l.err = badBody("the form cannot be read, and nothing was stored: %v", err)
	default:
		return n, err
	}
	return 0, l.err
}

// metadataPart is the text of a small part.
func metadataPart(part io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(part, maxMetadataText))
	if err != nil {
		return nil, badBody("the form cannot be read, and nothing was stored: %v", err)
	}
	rest, err := io.Copy(io.Discard, part)
	if err != nil {
		return nil, badBody("the form cannot be read, and nothing was stored: %v", err)
	}
	if rest > 0 {
		return nil, cfkv.MetadataTooLarge(int64(len(text)) + rest)
	}
	return text, nil
}

// finish checks the form as a whole and returns its metadata.
func (f *form) finish() ([]byte, error) {
	if f.value == nil {
		return nil, bare(refuse(http.StatusBadRequest, codeNoFormField,
			"multipart put request does not contain required form field 'value'"))
	}
	switch {
	case f.hasMetadata && f.fields.n > 0:
		return nil, badBody("the form has a field 'metadata' and fields of metadata beside it; send one or the other")
	case f.fields.n > 0:
		return compactMetadata(f.fields.json())
	}
	return compactMetadata(f.metadata)
}

// compactMetadata checks metadata, which has its limit without white space. null is none.
func compactMetadata(text []byte) ([]byte, error) {
	text, err := compactJSON(text)
	if err != nil {
		return nil, kv.FieldErrorf(kv.CodeInvalidMetadata, "metadata", "%v", err)
	}
	if string(text) == "null" {
		return nil, nil
	}
	if len(text) > kv.MaxMetadataBytes {
		return nil, cfkv.MetadataTooLarge(int64(len(text)))
	}
	return kv.CompactMetadata(text)
}

// writeOne carries out a write of which the value is staged.
func (s *surface) writeOne(ctx context.Context, w api.Write) error {
	outcome := errUntold
	err := s.svc.WriteEach(ctx, func(yield func(api.Write, func(api.WriteResult, error)) bool) {
		yield(w, func(_ api.WriteResult, err error) { outcome = err })
	})
	if err != nil {
		return err // it was not taken
	}
	if outcome != nil {
		return api.WriteFailed(outcome)
	}
	return nil
}
