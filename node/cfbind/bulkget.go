package cfbind

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxBulkGetBody is the largest body of a bulk get: a hundred keys, each byte of them escaped, have a third of it.
	maxBulkGetBody = 1 << 20
	// getsAtOnce is how many keys of one call are looked up at a time.
	getsAtOnce = 16
)

// bulkGet is a call for many keys.
type bulkGet struct {
	keys         []string // each once, in the order of the document
	kind         string   // text or json
	withMetadata bool
	ttl          time.Duration
}

// bulkGet answers the values of many keys: all of them, or an error.
func (h *Handler) bulkGet(c *call) error {
	r := c.Request()
	if err := api.PlainEncoding(r); err != nil {
		return err
	}
	b, err := readBulkGet(r.Body)
	if err != nil {
		return err
	}
	req := api.GetRequest{CacheTTL: b.ttl}
	if req.Consistency, err = api.Demands(r); err != nil {
		return err
	}
	values, err := h.lookupAll(c, b.keys, req)
	if err != nil {
		return err
	}
	var total int64
	now := h.svc.MeshTime()
	for i, v := range values {
		if v.Absent || api.Expired(v.Expiry, now) {
			values[i] = nil
			continue
		}
		total += v.Size
	}
	if total > cfkv.MaxBulkGetBytes {
		return refuse(cfkv.BulkGetTooLarge())
	}
	ctx, touch, stop := api.IdleContext(r.Context(), h.timeout)
	defer stop()
	// A status can be given only once, so what has to be JSON is looked through before it.
	if b.kind == "json" {
		for _, v := range values {
			if err := isJSON(ctx, v, touch); err != nil {
				return err
			}
		}
	}
	jsonHeaders(c.Writer().Header())
	c.Writer().WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(c.Writer(), 32<<10)
	if err := b.write(ctx, out, values, touch); err != nil {
		return err
	}
	return out.Flush()
}

// lookupAll looks keys up, a few at a time. The failure of the first key that has one is that of the call.
func (h *Handler) lookupAll(c *call, keys []string, req api.GetRequest) ([]*api.Value, error) {
	ctx, cancel := h.ask(c)
	defer cancel()
	var err error
	if req.Namespace, err = h.namespace(ctx, c); err != nil {
		return nil, err
	}
	values, errs := make([]*api.Value, len(keys)), make([]error, len(keys))
	slots := make(chan struct{}, getsAtOnce)
	var running sync.WaitGroup
	for i, key := range keys {
		one := req
		one.Key = key
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			if values[i], errs[i] = h.svc.Get(ctx, one); errs[i] == nil {
				h.frame.Read(values[i])
			}
		})
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return values, nil
}

// isJSON looks whether a value, nil if there is none, is one JSON document. Bytes within its strings that are not UTF-8 are
// let through: a Worker replaces them, as it does when it parses such a value itself.
func isJSON(ctx context.Context, v *api.Value, touch func()) error {
	if v == nil {
		return nil
	}
	if v.Open == nil {
		if !json.Valid(v.Bytes) {
			return refuse(cfkv.NotOfType("json"))
		}
		return nil
	}
	body, err := api.OpenValue(ctx, v, touch)
	if err != nil {
		return err
	}
	doc := jsonstream.New(body)
	err = doc.Skip()
	if err == nil {
		err = doc.End()
	}
	if closed := body.Close(); err == nil {
		err = closed
	}
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	if errors.As(err, &syntax) || errors.As(err, &value) {
		return refuse(cfkv.NotOfType("json"))
	}
	return err
}

// write writes the answer: an object with a member for each key. bufio keeps its first error and gives it back at Flush.
func (b *bulkGet) write(ctx context.Context, out *bufio.Writer, values []*api.Value, touch func()) error {
	_ = out.WriteByte('{')
	for i, key := range b.keys {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.Write(jsonText(key))
		_ = out.WriteByte(':')
		v := values[i]
		if v == nil {
			_, _ = out.WriteString("null")
			continue
		}
		if b.withMetadata {
			_, _ = out.WriteString(`{"value":`)
		}
		if err := b.writeValue(ctx, out, v, touch); err != nil {
			return err
		}
		if b.withMetadata {
			metadata := "null"
			if v.Metadata != nil {
				metadata = string(v.Metadata)
			}
			_, _ = fmt.Fprintf(out, `,"metadata":%s}`, metadata)
		}
	}
	return out.WriteByte('}')
}

// writeValue writes one value: JSON as it is, text as a string.
func (b *bulkGet) writeValue(ctx context.Context, out *bufio.Writer, v *api.Value, touch func()) error {
	body, err := api.OpenValue(ctx, v, touch)
	if err != nil {
		return err
	}
	if b.kind == "json" {
		return send(out, body, v.Size)
	}
	_ = out.WriteByte('"')
	text := &textWriter{out: out}
	if err := send(text, body, v.Size); err != nil {
		return err
	}
	text.end()
	return out.WriteByte('"')
}

// textWriter writes text as the inside of a JSON string, as it comes. Bytes that are not UTF-8 become U+FFFD, as in a
// Worker's text.
type textWriter struct {
	out  *bufio.Writer
	held []byte // the beginning of a character
}

func (t *textWriter) Write(p []byte) (int, error) {
	b := append(t.held, p...)
	whole := len(b)
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				whole = len(b) - i
			}
			break
		}
	}
	text := jsonText(string(b[:whole]))
	t.held = append([]byte(nil), b[whole:]...)
	if _, err := t.out.Write(text[1 : len(text)-1]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end writes what is left of a text that ends within a character.
func (t *textWriter) end() {
	text := jsonText(string(t.held))
	_, _ = t.out.Write(text[1 : len(text)-1])
}

// jsonText is a text as JSON, without escaping for HTML.
func jsonText(s string) []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // strings can be encoded, and a Builder cannot fail
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}

// readBulkGet reads the document of a bulk get and checks it.
func readBulkGet(body io.Reader) (*bulkGet, error) {
	b := &bulkGet{kind: "text"}
	counted := &counter{r: io.LimitReader(body, maxBulkGetBody+1)}
	rd := &bulkReader{b: b, r: jsonstream.New(counted), seen: map[string]bool{}}
	err := rd.r.Object(rd.member)
	if err == nil {
		err = rd.r.End()
	}
	var problem *cfkv.Problem
	switch {
	case errors.As(err, &problem):
		return nil, err
	case counted.n.Load() > maxBulkGetBody:
		return nil, kv.FieldErrorf(kv.CodeTooLarge, "body", "the body has more than %d bytes", maxBulkGetBody)
	case err != nil:
		return nil, badDocument(err)
	}
	if problem := cfkv.CheckBulkGet(rd.n, b.kind); problem != nil {
		return nil, refuse(problem)
	}
	if rd.problem != nil {
		return nil, refuse(rd.problem)
	}
	var bad *cfkv.Problem
	if b.ttl, bad = cfkv.CacheTTL(rd.ttl); bad != nil {
		return nil, refuse(bad)
	}
	return b, nil
}

// badDocument says what is wrong with a document that is not the one of a bulk get.
func badDocument(err error) error {
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	switch {
	case errors.As(err, &syntax):
		return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is %v", syntax)
	case errors.As(err, &value):
		return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is not that of a bulk get: %v", value)
	}
	return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body could not be read: %v", err)
}

// bulkReader reads the document of a bulk get.
type bulkReader struct {
	b       *bulkGet
	r       *jsonstream.Reader
	n       int // keys, with those that are there twice
	seen    map[string]bool
	ttl     string
	problem *cfkv.Problem // with the first bad key
}

func (rd *bulkReader) member(name string) error {
	kind, err := rd.r.Kind()
	if err != nil {
		return err
	}
	if kind == jsonstream.Null {
		return rd.r.Skip()
	}
	switch name {
	case "keys":
		return rd.r.Array(rd.key)
	case "type":
		given, err := rd.r.String(maxShort)
		if given != "" {
			rd.b.kind = given
		}
		return err
	case "withMetadata":
		rd.b.withMetadata, err = rd.r.Bool()
		return err
	case "cacheTtl": // workerd sends it as a string
		if kind == jsonstream.String {
			rd.ttl, err = rd.r.String(maxShort)
		} else {
			var raw []byte
			raw, err = rd.r.Raw(maxShort)
			rd.ttl = string(raw)
		}
		rd.ttl = query{{"cacheTtl", rd.ttl}}.number("cacheTtl")
		return err
	}
	return rd.r.Skip()
}

// maxShort bounds the short members of the document, in bytes.
const maxShort = 64

func (rd *bulkReader) key(i int) error {
	if rd.n++; rd.n > cfkv.MaxBulkGetKeys {
		return refuse(cfkv.CheckBulkGet(rd.n, rd.b.kind)) // the rest need not be read
	}
	key, err := rd.r.String(maxBulkGetBody)
	if value := new(jsonstream.ValueError); errors.As(err, &value) {
		if rd.problem == nil {
			rd.problem = cfkv.BadKeyEncoding()
		}
		return nil
	}
	if err != nil {
		return err
	}
	if problem := cfkv.CheckKey(key); problem != nil && rd.problem == nil {
		rd.problem = problem
	}
	if !rd.seen[key] {
		rd.seen[key] = true
		rd.b.keys = append(rd.b.keys, key)
	}
	return nil
}
