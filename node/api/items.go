package api

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxEarlyValue is how much of a value is kept when it comes before the names that it is sealed for.
	maxEarlyValue = kv.MaxInlineValueBytes
	// maxItemText bounds the small strings of an item: a key that is too long, or a title, is cut here.
	maxItemText = 4 << 10
)

// item is one put, delete or comparison of a bulk call or a transaction, as the document has it.
type item struct {
	ns              kv.Namespace
	hasNS           bool
	key             string
	hasKey          bool
	value           Staged
	hasValue        bool
	early           []byte // the value, while it waits for the key
	metadata        []byte
	expiration, ttl *int64
	cond            Cond
	demanded        string // the member that gave cond, "" = none
	// err is the first thing that is wrong with it; the rest of the item is passed over then.
	err error
}

// itemReader reads items off a document. Errors that it returns end the document; those about one item are the item's.
type itemReader struct {
	r   *jsonstream.Reader
	now func() time.Time // mesh time
	ns  kv.Namespace     // of all items, where resolve is nil
	// resolve finds the namespace that an item names; nil where items have none.
	resolve func(ref string) (kv.Namespace, error)
	// stage takes a value once its names are known.
	stage func(StageRequest) (Staged, error)
}

// known are the members that an item of a list may have.
type known map[string]func(*itemReader, *item) error

var (
	putMembers = known{
		"key": (*itemReader).key, "value": (*itemReader).text, "value_base64": (*itemReader).base64,
		"metadata": (*itemReader).metadata, "expiration": (*itemReader).expiration, "expiration_ttl": (*itemReader).ttl,
		"if_match": (*itemReader).ifMatch, "if_none_match": (*itemReader).ifNoneMatch,
	}
	deleteMembers    = known{"key": (*itemReader).key, "if_match": (*itemReader).ifMatch}
	getMembers       = known{"key": (*itemReader).key}
	txnPutMembers    = without(putMembers, "if_match", "if_none_match")
	txnDeleteMembers = known{"namespace": (*itemReader).namespace, "key": (*itemReader).key}
	compareMembers   = known{
		"namespace": (*itemReader).namespace, "key": (*itemReader).key,
		"revision": (*itemReader).revision, "exists": (*itemReader).exists, "etag": (*itemReader).etag,
	}
)

// without is the members of a transaction's put: those of a bulk put but for the conditions, and the namespace.
func without(all known, names ...string) known {
	out := known{"namespace": (*itemReader).namespace}
	maps.Copy(out, all)
	for _, name := range names {
		delete(out, name)
	}
	return out
}

func (k known) names() string {
	return strings.Join(slices.Sorted(maps.Keys(k)), ", ")
}

// item reads one object. plain says that a string will do, which is the key.
func (ir *itemReader) item(members known, plain bool) (*item, error) {
	it := &item{ns: ir.ns, hasNS: ir.resolve == nil}
	if kind, err := ir.r.Kind(); err != nil {
		return nil, err
	} else if plain && kind == jsonstream.String {
		return it, ir.key(it)
	}
	seen := make(map[string]bool, len(members))
	err := ir.r.Object(func(name string) error {
		read, ok := members[name]
		switch {
		case !ok:
			it.fail(kv.FieldErrorf(kv.CodeInvalidBody, shown(name), "the member %q is unknown here; there are %s", shown(name), members.names()))
		case seen[name]:
			it.fail(kv.FieldErrorf(kv.CodeInvalidBody, name, "the member %q is given twice; give it once", name))
		default:
			seen[name] = true
			if it.err == nil || name == "key" || name == "namespace" { // a failure is named by its key
				return it.told(name, read(ir, it))
			}
		}
		return ir.r.Skip()
	})
	if err = it.told("", err); err != nil {
		return nil, err
	}
	if !it.hasKey {
		it.fail(kv.FieldErrorf(kv.CodeInvalidKey, "key", "the item has no key"))
	}
	if !it.hasNS {
		it.fail(kv.FieldErrorf(kv.CodeInvalidTitle, "namespace", "the item has no namespace; name one by its title or its id"))
	}
	return it, nil
}

func (it *item) fail(err error) {
	if it.err == nil {
		it.err = err
	}
}

// told makes an error the item's. What ends the document is returned: that it is not JSON, or that the body broke.
func (it *item) told(name string, err error) error {
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	var told *kv.Error
	switch {
	case err == nil:
	case errors.As(err, &syntax), errors.As(err, &told) && told.Field == "body":
		return err
	case errors.As(err, &value) && name == "":
		it.fail(kv.FieldErrorf(kv.CodeInvalidBody, "", "the item is wrong: %v", value))
	case errors.As(err, &value):
		it.fail(kv.FieldErrorf(kv.CodeInvalidBody, name, "the member %s is wrong: %v", name, value))
	default:
		it.fail(err)
	}
	return nil
}

func (ir *itemReader) key(it *item) error {
	key, err := ir.r.String(maxItemText)
	it.key, it.hasKey = key, true
	var value *jsonstream.ValueError
	switch {
	case err == nil:
		err = kv.ValidateKey(key)
	case errors.As(err, &value) && len(key) == maxItemText:
		err = kv.FieldErrorf(kv.CodeKeyTooLong, "key", "the key has more than %d bytes; the limit is %d bytes of UTF-8", maxItemText, kv.MaxKeyBytes)
	case errors.As(err, &value):
		err = kv.FieldErrorf(kv.CodeInvalidKey, "key", "the key is wrong: %v", value)
	}
	if err = it.told("key", err); err != nil {
		return err
	}
	return ir.settle(it)
}

func (ir *itemReader) namespace(it *item) error {
	ref, err := ir.r.String(maxItemText)
	if err != nil {
		return err
	}
	it.hasNS = true
	if it.ns, err = ir.resolve(ref); err != nil {
		return err
	}
	return ir.settle(it)
}

// settle stages a value that came before its names, once both are known.
func (ir *itemReader) settle(it *item) (err error) {
	if it.early == nil || !it.hasKey || !it.hasNS || it.err != nil {
		return nil
	}
	it.value, err = ir.stage(StageRequest{Namespace: it.ns, Key: it.key, Body: bytes.NewReader(it.early), Size: int64(len(it.early))})
	it.early = nil
	return err
}

func (ir *itemReader) text(it *item) error   { return ir.readValue(it, "value", false) }
func (ir *itemReader) base64(it *item) error { return ir.readValue(it, "value_base64", true) }

// readValue seals a value while it comes. Whatever becomes of that, the string is read to its end.
func (ir *itemReader) readValue(it *item, name string, coded bool) (err error) {
	if it.hasValue {
		it.fail(kv.FieldErrorf(kv.CodeInvalidBody, name, "the item has both value and value_base64; give one of them"))
		return ir.r.Skip()
	}
	it.hasValue = true
	text, err := ir.r.Text()
	if err != nil {
		return err
	}
	body := &itemValue{name: name, text: text, r: text}
	if coded {
		body.r = base64.NewDecoder(base64.StdEncoding, text)
	}
	if it.hasKey && it.hasNS {
		it.value, err = ir.stage(StageRequest{Namespace: it.ns, Key: it.key, Body: body, Size: -1})
	} else {
		it.early, err = io.ReadAll(io.LimitReader(body, maxEarlyValue+1))
		if len(it.early) > maxEarlyValue {
			it.early, err = nil, kv.FieldErrorf(kv.CodeInvalidBody, name,
				"a value of more than %d bytes stands before the key that it belongs to; put the key (and the namespace) first", maxEarlyValue)
		}
	}
	if broken := text.Close(); broken != nil {
		return broken
	}
	if body.err != nil { // on its way through the service it may have lost its form
		return body.err
	}
	return err
}

// itemValue is the body of one value. It turns what is wrong with the text into errors about the value.
type itemValue struct {
	name string
	text *jsonstream.Text
	r    io.Reader
	err  error // what was wrong with the value, nil until then
}

func (v *itemValue) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	var value *jsonstream.ValueError
	var corrupt base64.CorruptInputError
	switch {
	case err == nil, err == io.EOF:
		return n, err
	case errors.As(err, &value):
		v.err = kv.FieldErrorf(kv.CodeInvalidBody, v.name, "the value is no text (%v); send it as value_base64", value)
	case errors.As(err, &corrupt), errors.Is(err, io.ErrUnexpectedEOF):
		v.err = kv.FieldErrorf(kv.CodeInvalidBody, v.name, "the value is not base64 with its padding, in the alphabet with + and /")
	default:
		return n, err
	}
	return n, v.err
}

func (ir *itemReader) metadata(it *item) error {
	raw, err := ir.r.Raw(kv.MaxMetadataBytes)
	if err != nil {
		if value := new(jsonstream.ValueError); errors.As(err, &value) {
			return kv.FieldErrorf(kv.CodeMetadataTooLarge, "metadata", "the metadata is too large: %v", value)
		}
		return err
	}
	if string(raw) != "null" { // as most encoders write "none"
		it.metadata, err = kv.CompactMetadata(raw)
	}
	return err
}

func (ir *itemReader) expiration(it *item) (err error) {
	it.expiration, err = ir.optionalInt()
	return err
}

func (ir *itemReader) ttl(it *item) (err error) {
	it.ttl, err = ir.optionalInt()
	return err
}

// optionalInt reads a whole number, or null, which is none.
func (ir *itemReader) optionalInt() (*int64, error) {
	kind, err := ir.r.Kind()
	if err != nil {
		return nil, err
	}
	if kind == jsonstream.Null {
		return nil, ir.r.Skip()
	}
	n, err := ir.r.Int()
	return &n, err
}

func (ir *itemReader) ifMatch(it *item) error {
	return ir.condition(it, "if_match", func(text string) (Cond, error) {
		if text == "*" {
			return Cond{Kind: CondPresent}, nil
		}
		return etagCond("if_match", text)
	})
}

func (ir *itemReader) ifNoneMatch(it *item) error {
	return ir.condition(it, "if_none_match", func(text string) (Cond, error) {
		if text != "*" {
			return Cond{}, kv.FieldErrorf(kv.CodeInvalidParameter, "if_none_match", `if_none_match is "*" or not given; to replace a state that you know, send its etag as if_match`)
		}
		return Cond{Kind: CondAbsent}, nil
	})
}

func (ir *itemReader) etag(it *item) error {
	return ir.condition(it, "etag", func(text string) (Cond, error) { return etagCond("etag", text) })
}

// condition reads a condition that is a string; null is none.
func (ir *itemReader) condition(it *item, name string, parse func(string) (Cond, error)) error {
	if kind, err := ir.r.Kind(); err != nil {
		return err
	} else if kind == jsonstream.Null {
		return ir.r.Skip()
	}
	text, err := ir.r.String(maxItemText)
	if err != nil {
		return err
	}
	cond, err := parse(text)
	if err != nil {
		return err
	}
	return it.demand(name, cond)
}

// demand sets the one condition of an item.
func (it *item) demand(name string, cond Cond) error {
	if it.demanded != "" {
		return kv.FieldErrorf(kv.CodeInvalidBody, name, "the item has two conditions; give one of them")
	}
	it.cond, it.demanded = cond, name
	return nil
}

func (ir *itemReader) revision(it *item) error {
	n, err := ir.r.Int()
	switch {
	case err != nil:
		return err
	case n < 0:
		return kv.FieldErrorf(kv.CodeInvalidBody, "revision", "the revision %d is negative; 0 stands for a key that does not exist", n)
	case n == 0:
		return it.demand("revision", Cond{Kind: CondAbsent})
	}
	return it.demand("revision", Cond{Kind: CondRevision, Revision: kv.Revision(n)})
}

func (ir *itemReader) exists(it *item) error {
	yes, err := ir.r.Bool()
	if err != nil {
		return err
	}
	if yes {
		return it.demand("exists", Cond{Kind: CondPresent})
	}
	return it.demand("exists", Cond{Kind: CondAbsent})
}

// etagCond reads an entity tag, with or without its quotes.
func etagCond(name, text string) (Cond, error) {
	quoted := text
	if !strings.HasSuffix(text, `"`) {
		quoted = `"` + text + `"`
	}
	t, after, ok := cutTag(quoted)
	if !ok || after != "" {
		return Cond{}, kv.FieldErrorf(kv.CodeInvalidParameter, name, "%s is no entity tag; send one back as an answer gave it", name)
	}
	return tagCond(t), nil
}

// write makes the write of a put or a delete, and says what is wrong with it.
func (ir *itemReader) write(it *item, put bool) (w Write, err error) {
	if it.err != nil {
		return w, it.err
	}
	w = Write{Namespace: it.ns, Key: it.key, Value: it.value, Metadata: it.metadata, Cond: it.cond}
	if put && w.Value == nil {
		return w, kv.FieldErrorf(kv.CodeInvalidBody, "value", "the item has no value; give value or value_base64, which may be empty")
	}
	w.Expiry, err = lifetime(it.expiration, it.ttl, ir.now())
	return w, err
}

// lifetime is expiry for numbers.
func lifetime(at, ttl *int64, now time.Time) (int64, error) {
	var q params
	if at != nil {
		q = append(q, param{paramExpiration, strconv.FormatInt(*at, 10)})
	}
	if ttl != nil {
		q = append(q, param{paramExpirationTTL, strconv.FormatInt(*ttl, 10)})
	}
	return q.expiry(now)
}
