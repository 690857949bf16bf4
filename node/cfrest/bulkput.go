package cfrest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// minValueBuffer is what the buffer for values of a bulk put begins with.
	minValueBuffer = 64 << 10
	// maxValueText is the longest string that can be a value: base64 of the largest one, and some line breaks.
	maxValueText = kv.MaxValueBytes/3*4 + kv.MaxValueBytes/16
	// itemOverhead is about what an item takes beside its value.
	itemOverhead = 512
	maxNumber    = 64
)

// bulkPutDoc is a bulk put while its document is read. Every item is checked, and its value staged, before the first one is
// written.
type bulkPutDoc struct {
	s      *surface
	d      *document
	ns     kv.Namespace
	lease  *lease
	buf    []byte // the value that is being read
	writes []api.Write
	seen   map[string][sha256.Size]byte // what each key is to become
}

// putItem is one item as the document has it. In JSON, `base64` may come after the value that it is about.
type putItem struct {
	key              string
	hasKey, hasValue bool
	size             int64 // of value
	coded            bool
	metadata         []byte
	expiration, ttl  string
}

// bulkPut answers PUT of many keys.
func (s *surface) bulkPut(c *call) error {
	ctx, touch, stop := api.IdleContext(c.r.Context(), s.timeout)
	defer stop()
	d, err := s.document(c, s.maxBulk, touch)
	if err != nil {
		return err
	}
	b := &bulkPutDoc{s: s, d: d, lease: &lease{b: s.memory}, seen: map[string][sha256.Size]byte{}}
	defer b.lease.release()
	if b.ns, err = s.namespace(ctx, c); err != nil {
		return err
	}
	err = d.r.Array(func(i int) error {
		if i == cfkv.MaxBulkItems {
			return tooManyItems()
		}
		return b.item(ctx, i)
	})
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return d.told(err, "")
	}
	b.buf = nil
	return s.writeAll(ctx, c, b.writes, touch)
}

func tooManyItems() error {
	return kv.Errorf(kv.CodeInvalidParameter, "You can request a maximum of %d keys", cfkv.MaxBulkItems)
}

// item reads, checks and stages one item.
func (b *bulkPutDoc) item(ctx context.Context, i int) error {
	var it putItem
	pointer := "/" + strconv.Itoa(i)
	err := b.d.r.Object(func(name string) error {
		return b.d.told(b.member(ctx, &it, name, pointer+"/"+name), pointer+"/"+name)
	})
	switch {
	case err != nil:
		return b.d.told(err, pointer)
	case !it.hasKey:
		return at(cfkv.CheckKey(""), pointer+"/key")
	case !it.hasValue:
		return invalid(pointer+"/value", "the item has no value; give a string, which may be empty")
	}
	return b.stage(ctx, &it, pointer)
}

// member reads one member of an item. Members that nobody knows are passed over.
func (b *bulkPutDoc) member(ctx context.Context, it *putItem, name, pointer string) (err error) {
	switch name {
	case "key":
		it.hasKey = true
		it.key, err = b.d.key(pointer)
		return err
	case "value":
		it.hasValue = true
		b.buf, it.size, err = b.d.value(ctx, b.buf, maxValueText, b.lease)
		return err
	case "base64", "metadata", "expiration", "expiration_ttl":
		if kind, err := b.d.r.Kind(); err != nil {
			return err
		} else if kind == jsonstream.Null {
			return b.d.r.Skip()
		}
	}
	switch name {
	case "base64":
		it.coded, err = b.d.r.Bool()
	case "metadata":
		it.metadata, err = b.metadata(pointer)
	case "expiration":
		it.expiration, err = b.number(pointer)
	case "expiration_ttl":
		it.ttl, err = b.number(pointer)
	default:
		err = b.d.r.Skip()
	}
	return err
}

func (b *bulkPutDoc) metadata(pointer string) ([]byte, error) {
	raw, err := b.d.r.Raw(maxMetadataText)
	if value := new(jsonstream.ValueError); errors.As(err, &value) {
		return nil, at(cfkv.MetadataTooLarge(maxMetadataText+1), pointer)
	}
	if err != nil {
		return nil, err
	}
	text, err := compactMetadata(raw)
	if err != nil {
		e := *asAPIError(err)
		e.pointer = pointer
		return nil, &e
	}
	return text, nil
}

// number reads a number as text.
func (b *bulkPutDoc) number(pointer string) (string, error) {
	if kind, err := b.d.r.Kind(); err != nil {
		return "", err
	} else if kind != jsonstream.Number {
		return "", invalid(pointer, "it is %v, not a number", kind)
	}
	raw, err := b.d.r.Raw(maxNumber)
	return string(raw), err
}

// stage checks an item as a whole and hands its value to the store, which keeps it sealed: in memory, or, when it is large,
// on the disks of the voters.
func (b *bulkPutDoc) stage(ctx context.Context, it *putItem, pointer string) error {
	value, err := b.decoded(it, pointer)
	if err != nil {
		return err
	}
	expiry, p := cfkv.Expiry(it.ttl, it.expiration, b.s.svc.MeshTime())
	if p != nil {
		return at(p, pointer)
	}
	what := digest(value, it)
	if before, twice := b.seen[it.key]; twice {
		if before == what {
			return nil
		}
		return bare(invalid(pointer, "received duplicate key with different values or expiration parameters: %s",
			strconv.Quote(cfkv.Shown(it.key))))
	}
	b.seen[it.key] = what
	kept := int64(itemOverhead + len(it.key) + len(it.metadata))
	if len(value) <= kv.MaxInlineValueBytes {
		kept += int64(len(value))
	}
	if err := b.lease.grow(ctx, kept); err != nil {
		return err
	}
	staged, err := b.s.svc.Stage(ctx, api.StageRequest{
		Namespace: b.ns, Key: it.key, Body: bytes.NewReader(value), Size: int64(len(value)), Forget: true,
	})
	if err != nil {
		return err
	}
	b.writes = append(b.writes, api.Write{Namespace: b.ns, Key: it.key, Value: staged, Metadata: it.metadata, Expiry: expiry})
	return nil
}

// decoded is the value of an item, in the buffer.
func (b *bulkPutDoc) decoded(it *putItem, pointer string) ([]byte, error) {
	pointer += "/value"
	switch {
	case !it.coded && it.size > kv.MaxValueBytes:
		return nil, at(cfkv.ValueTooLarge(it.size), pointer)
	case !it.coded:
		return b.buf, nil
	case it.size > maxValueText:
		return nil, at(cfkv.ValueTooLarge(it.size/4*3), pointer)
	}
	n, err := base64.StdEncoding.Decode(b.buf, b.buf) // what is written is behind what is read
	if err != nil {
		return nil, bare(invalid(pointer, "Invalid base64 value"))
	}
	if n > kv.MaxValueBytes {
		return nil, at(cfkv.ValueTooLarge(int64(n)), pointer)
	}
	return b.buf[:n], nil
}

// digest tells items of one key apart.
func digest(value []byte, it *putItem) (sum [sha256.Size]byte) {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d,%d,%q,%q,", len(value), len(it.metadata), it.expiration, it.ttl) // to a hash
	_, _ = h.Write(value)
	_, _ = h.Write(it.metadata)
	h.Sum(sum[:0])
	return sum
}

// bulkDelete answers both ways of deleting many keys.
func (s *surface) bulkDelete(c *call) error {
	ctx, touch, stop := api.IdleContext(c.r.Context(), s.timeout)
	defer stop()
	d, err := s.document(c, s.maxBulk, touch)
	if err != nil {
		return err
	}
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	mem := &lease{b: s.memory}
	defer mem.release()
	keys, n, err := d.keys(cfkv.MaxBulkItems, "", func(n int64) error { return mem.grow(ctx, n) })
	if err == nil && n > cfkv.MaxBulkItems {
		err = tooManyItems()
	}
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return d.told(err, "")
	}
	writes := make([]api.Write, len(keys))
	for i, key := range keys {
		writes[i] = api.Write{Namespace: ns, Key: key}
	}
	return s.writeAll(ctx, c, writes, touch)
}

// errUntold is the outcome of a write of which the service has said nothing.
var errUntold = errors.New("the service did not say what became of the write")

type bulkDoc struct {
	Successful   int      `json:"successful_key_count"`
	Unsuccessful []string `json:"unsuccessful_keys"`
}

// writeAll carries out writes, each for itself, and names those that did not come through. When none did, the call has
// failed: clients that only look at its status must not take it for done.
func (s *surface) writeAll(ctx context.Context, c *call, writes []api.Write, touch func()) error {
	if len(writes) == 0 {
		return c.ok(bulkDoc{Unsuccessful: []string{}}, nil)
	}
	outcomes := make([]error, len(writes))
	for i := range outcomes {
		outcomes[i] = errUntold
	}
	err := s.svc.WriteEach(ctx, func(yield func(api.Write, func(api.WriteResult, error)) bool) {
		for i, w := range writes {
			if !s.limit.Allow(w.Namespace.ID, w.Key) {
				outcomes[i] = throttled()
				continue
			}
			told := func(_ api.WriteResult, err error) {
				touch()
				if outcomes[i] = nil; err != nil {
					outcomes[i] = api.WriteFailed(err)
				}
			}
			if !yield(w, told) {
				return
			}
		}
	})
	if err != nil {
		return err // nothing was taken
	}
	doc := bulkDoc{Unsuccessful: []string{}}
	var first error
	for i, err := range outcomes {
		if err == nil {
			doc.Successful++
			continue
		}
		doc.Unsuccessful = append(doc.Unsuccessful, writes[i].Key)
		if first == nil || kv.CodeOf(err) == kv.CodeOutcomeUnknown {
			first = err
		}
	}
	if first == nil {
		return c.ok(doc, nil)
	}
	if doc.Successful == 0 {
		return first
	}
	s.frame.Note(&c.Exchange, first)
	e := c.told(first)
	answer(c.w, c.r, http.StatusOK, envelope{Success: true, Result: doc, Messages: []message{{Code: e.code, Message: e.text}}})
	return nil
}
