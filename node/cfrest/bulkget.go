package cfrest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"unicode/utf8"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxBulkGetBody is more than 100 keys can take, with every byte escaped.
	maxBulkGetBody = 1_000_000
	// getsAtOnce is how many keys of one call are looked up at a time.
	getsAtOnce = 16
)

// bulkGetDoc is what a bulk get asks for.
type bulkGetDoc struct {
	keys         []string
	n            int // keys in the document, duplicates too
	kind         string
	withMetadata bool
}

// bulkGet answers with many values, or with an error: it has all of them before it answers any.
func (s *surface) bulkGet(c *call) error {
	ctx, touch, stop := api.IdleContext(c.r.Context(), s.timeout)
	defer stop()
	d, err := s.document(c, maxBulkGetBody, touch)
	if err != nil {
		return err
	}
	req, err := readBulkGet(d)
	if err != nil {
		return err
	}
	if p := cfkv.CheckBulkGet(req.n, req.kind); p != nil {
		return p
	}
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	found, err := s.getAll(ctx, ns, req.keys, touch)
	if err != nil {
		return err
	}
	mem := &lease{b: s.memory}
	defer mem.release()
	if err := s.loadAll(ctx, found, req.kind, mem, touch); err != nil {
		return err
	}
	jsonHeader(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	return writeFound(c.w, req, found)
}

func readBulkGet(d *document) (*bulkGetDoc, error) {
	req := &bulkGetDoc{kind: "text"}
	err := d.r.Object(func(name string) (err error) {
		pointer := "/" + name
		if name == "type" || name == "withMetadata" {
			if kind, err := d.r.Kind(); err != nil {
				return err
			} else if kind == jsonstream.Null {
				return d.r.Skip()
			}
		}
		switch name {
		case "keys":
			req.keys, req.n, err = d.keys(cfkv.MaxBulkGetKeys, pointer, func(int64) error { return nil }) // a few
		case "type":
			req.kind, _, err = d.text(maxNumber * 2)
		case "withMetadata":
			req.withMetadata, err = d.r.Bool()
		default:
			err = d.r.Skip()
		}
		return d.told(err, pointer)
	})
	if err == nil {
		err = d.end()
	}
	return req, d.told(err, "")
}

// foundValue is one key of a bulk get.
type foundValue struct {
	v     *api.Value // Absent when there is none
	bytes []byte
}

// getAll looks keys up, a few at a time.
func (s *surface) getAll(ctx context.Context, ns kv.Namespace, keys []string, touch func()) ([]foundValue, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	found := make([]foundValue, len(keys))
	slots := make(chan struct{}, getsAtOnce)
	var running sync.WaitGroup
	for i, key := range keys {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			v, err := s.svc.Get(ctx, api.GetRequest{Namespace: ns, Key: key, CacheTTL: cfkv.DefaultCacheTTL})
			touch()
			if err != nil {
				cancel(err) // the first one counts
				return
			}
			found[i].v = v
		})
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return found, nil
}

// loadAll brings all values into memory and looks whether they are what was asked for.
func (s *surface) loadAll(ctx context.Context, found []foundValue, kind string, mem *lease, touch func()) error {
	var total int64
	now := s.svc.MeshTime()
	for i := range found {
		v := found[i].v
		s.frame.Read(v)
		if !v.Absent && api.Expired(v.Expiry, now) {
			found[i].v = &api.Value{Absent: true}
		} else if !v.Absent {
			total += v.Size
		}
	}
	if total > cfkv.MaxBulkGetBytes {
		return cfkv.BulkGetTooLarge()
	}
	for i := range found {
		f := &found[i]
		if f.v.Absent {
			continue
		}
		if err := f.load(ctx, mem, touch); err != nil {
			return err
		}
		if !utf8.Valid(f.bytes) || kind == "json" && !json.Valid(f.bytes) {
			return cfkv.NotOfType(kind)
		}
	}
	return nil
}

func (f *foundValue) load(ctx context.Context, mem *lease, touch func()) error {
	if f.v.Open == nil {
		f.bytes = f.v.Bytes // of the cache
		return nil
	}
	if err := mem.grow(ctx, f.v.Size); err != nil {
		return err
	}
	body, err := api.OpenValue(ctx, f.v, touch)
	if err != nil {
		return err
	}
	f.bytes = make([]byte, f.v.Size)
	_, err = io.ReadFull(body, f.bytes)
	if closed := body.Close(); err == nil {
		err = closed
	}
	return err
}

// writeFound writes the envelope around all values, text piece by piece: as one string it would take several times its
// size.
func writeFound(w io.Writer, req *bulkGetDoc, found []foundValue) error {
	// bufio keeps its first error and gives it back at Flush.
	out := bufio.NewWriterSize(w, copyBufferBytes)
	_, _ = out.WriteString(`{"success":true,"errors":[],"messages":[],"result":{"values":{`)
	for i, f := range found {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		writeString(out, []byte(req.keys[i]))
		_ = out.WriteByte(':')
		if f.v.Absent {
			_, _ = out.WriteString("null")
			continue
		}
		if req.withMetadata {
			_, _ = out.WriteString(`{"value":`)
		}
		if req.kind == "json" {
			_, _ = out.Write(bytes.TrimSpace(f.bytes))
		} else {
			writeString(out, f.bytes)
		}
		if req.withMetadata {
			_, _ = out.WriteString(`,"metadata":`)
			if f.v.Metadata == nil {
				_, _ = out.WriteString("null")
			}
			_, _ = out.Write(f.v.Metadata)
			if f.v.Expiry != 0 {
				_, _ = out.WriteString(`,"expiration":`)
				_, _ = out.Write(jsonOf(f.v.Expiry))
			}
			_ = out.WriteByte('}')
		}
	}
	_, _ = out.WriteString("}}}\n")
	return out.Flush()
}

// writeString writes UTF-8 as a JSON string.
func writeString(out *bufio.Writer, text []byte) {
	const piece = 16 << 10
	_ = out.WriteByte('"')
	for len(text) > 0 {
		n := min(len(text), piece)
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n--
		}
		quoted := jsonOf(string(text[:n]))
		_, _ = out.Write(quoted[1 : len(quoted)-1])
		text = text[n:]
	}
	_ = out.WriteByte('"')
}

// jsonOf is v as JSON; v is a string or a number.
func jsonOf(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // of these, it cannot fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
