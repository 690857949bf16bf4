package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

const (
	// getsAtOnce is how many keys of one bulk call are looked up at a time.
	getsAtOnce = 16
	// maxBulkValues bounds the values in one answer, in bytes: as much as a body may bring.
	maxBulkValues = maxDocBody
)

// itemDoc is the outcome of one item. Revision is what the write took (0 when it changed nothing), what a read found, or what
// a failed condition met.
type itemDoc struct {
	Key        string          `json:"key"`
	Status     int             `json:"status"`
	Revision   kv.Revision     `json:"revision"`
	ETag       string          `json:"etag,omitempty"`
	Expiration int64           `json:"expiration,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	// Of reads.
	Cache       Tier   `json:"cache,omitempty"`
	StalenessMs *int64 `json:"staleness_ms,omitempty"`
	StaleReason string `json:"stale_reason,omitempty"`

	Error *errorDoc `json:"error,omitempty"`
}

// bareETag is an entity tag without its quotes, as JSON shows it.
func bareETag(epoch kv.Epoch, rev kv.Revision) string {
	tag := etag(epoch, rev)
	return tag[1 : len(tag)-1]
}

func (o *outcome) doc() itemDoc {
	if o.err != nil {
		return failedDoc(o.key, o.err)
	}
	d := itemDoc{Key: o.key, Status: http.StatusOK, Revision: o.res.Revision, Expiration: o.res.Expiry}
	if d.Revision != 0 && o.put {
		d.ETag = bareETag(o.res.Epoch, o.res.Revision)
	}
	return d
}

func failedDoc(key string, err error) itemDoc {
	e := asError(err)
	if len(key) > kv.MaxKeyBytes {
		key = shown(key)
	}
	told := errorBody(e)
	return itemDoc{Key: key, Status: statusOf(e.Code), Revision: e.Revision, Error: &told}
}

// bulkAnswer is an answer that is being written. bufio keeps its first error and gives it back at Flush.
type bulkAnswer struct {
	out    *bufio.Writer
	put    func(any) error
	failed int
	left   int64 // bytes of values that still fit
	mark   kv.Bookmark
}

// answerBulk names the outcome of every item. Gets are made now, and not at all when the call has failed as a whole.
func (s *surface) answerBulk(ctx context.Context, c *call, d *bulkDoc, get GetRequest, touch func()) error {
	a := &bulkAnswer{out: bufio.NewWriterSize(&touchingWriter{c.w, touch}, copyBufferBytes), left: maxBulkValues, mark: d.bookmark()}
	a.put = jsonTo(a.out)
	status := http.StatusOK
	failure := d.failure()
	h := c.w.Header()
	jsonHeader(h)
	if failure != nil {
		s.note(c, failure)
		e := asError(failure)
		status = statusOf(e.Code)
		retryHeader(h, status, e)
	} else if len(d.gets) == 0 {
		bookmarkHeader(h, a.mark.Epoch, a.mark.Revision)
	}
	c.w.WriteHeader(status)
	_ = a.out.WriteByte('{')
	if failure != nil {
		_, _ = a.out.WriteString(`"error":`)
		if err := a.put(errorBody(asError(failure))); err != nil {
			return err
		}
		_ = a.out.WriteByte(',')
	}
	if err := errors.Join(a.list("put", d.puts), a.list("delete", d.deletes)); err != nil {
		return err
	}
	if failure == nil {
		if err := s.answerGets(ctx, a, d.gets, get, touch); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(a.out, `"failed":%d`, a.failed)
	if !a.mark.Epoch.IsZero() {
		_, _ = fmt.Fprintf(a.out, `,"bookmark":"%s"`, a.mark)
	}
	_, _ = a.out.WriteString("}\n")
	return a.out.Flush()
}

// touchingWriter reports progress with every piece that the client takes.
type touchingWriter struct {
	w     io.Writer
	touch func()
}

func (t *touchingWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = t.w.Write(p[n:min(len(p), n+progressBytes)])
		n += m
		t.touch()
	}
	return n, err
}

// list writes the outcomes of writes.
func (a *bulkAnswer) list(name string, outcomes []*outcome) error {
	_, _ = fmt.Fprintf(a.out, `"%s":[`, name)
	for i, o := range outcomes {
		if i > 0 {
			_ = a.out.WriteByte(',')
		}
		if o.err != nil {
			a.failed++
		}
		if err := a.put(o.doc()); err != nil {
			return err
		}
	}
	_, _ = a.out.WriteString("],")
	return nil
}

// found is what a look-up gave.
type found struct {
	v   *Value
	err error
}

// answerGets looks keys up, a few at a time, and writes them in their order.
func (s *surface) answerGets(ctx context.Context, a *bulkAnswer, gets []*outcome, req GetRequest, touch func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	queue := make(chan chan found, getsAtOnce)
	running.Go(func() {
		defer close(queue)
		for _, o := range gets {
			ch := make(chan found, 1)
			select {
			case queue <- ch:
			case <-ctx.Done():
				return
			}
			if o.err != nil {
				ch <- found{err: o.err}
				continue
			}
			one := req
			one.Key = o.key
			running.Go(func() {
				v, err := s.svc.Get(ctx, one)
				ch <- found{v, err}
			})
		}
	})
	_, _ = a.out.WriteString(`"get":[`)
	for i, o := range gets {
		ch, ok := <-queue
		if !ok {
			return context.Cause(ctx)
		}
		f := <-ch
		touch()
		if i > 0 {
			_ = a.out.WriteByte(',')
		}
		if err := s.answerGet(ctx, a, o.key, f, touch); err != nil {
			return err
		}
	}
	_, _ = a.out.WriteString("],")
	return nil
}

// answerGet writes what one look-up gave. An error cuts the answer.
func (s *surface) answerGet(ctx context.Context, a *bulkAnswer, key string, f found, touch func()) error {
	if f.err != nil {
		a.failed++
		return a.put(failedDoc(key, f.err))
	}
	v := f.v
	s.metrics.read(v)
	if !v.Epoch.IsZero() {
		a.mark = newer(a.mark, kv.Bookmark{Epoch: v.Epoch, Revision: v.AsOf})
	}
	d := itemDoc{Key: key, Status: http.StatusOK, Cache: v.Tier, StaleReason: v.StaleReason}
	if v.Staleness >= 0 {
		ms := int64((v.Staleness + time.Millisecond - 1) / time.Millisecond)
		d.StalenessMs = &ms
	}
	var refused *kv.Error
	var body io.ReadCloser
	switch {
	case v.Absent || expired(v.Expiry, s.svc.MeshTime()):
		refused = errKeyNotFound()
	case v.Size > a.left:
		refused = kv.FieldErrorf(kv.CodeTooLarge, "get",
			"the values of this answer have %d bytes already, and this one %d; the limit is %d: get it in another call",
			maxBulkValues-a.left, v.Size, int64(maxBulkValues))
	case v.Open != nil && v.Size > 0:
		opened, err := v.Open(ctx, 0, v.Size)
		if err != nil {
			refused = asError(err)
			break
		}
		body = &touchingBody{ReadCloser: opened, touch: touch}
	}
	if refused != nil {
		a.failed++
		told := errorBody(refused)
		d.Status, d.Error = statusOf(refused.Code), &told
		return a.put(d)
	}
	a.left -= v.Size
	d.Revision, d.ETag, d.Expiration, d.Metadata = v.Revision, bareETag(v.Epoch, v.Revision), v.Expiry, v.Metadata
	return a.value(d, v, body)
}

// value writes an item with its value: text as text, everything else, and what is streamed, in base64.
func (a *bulkAnswer) value(d itemDoc, v *Value, body io.ReadCloser) (err error) {
	if body != nil {
		defer func() { err = errors.Join(err, body.Close()) }()
	}
	head, err := marshal(d)
	if err != nil {
		return err
	}
	_, _ = a.out.Write(bytes.TrimSuffix(head, []byte("}\n")))
	if body == nil && utf8.Valid(v.Bytes) {
		_, _ = a.out.WriteString(`,"value":`)
		err = a.put(string(v.Bytes))
	} else {
		_, _ = a.out.WriteString(`,"value_base64":"`)
		enc := base64.NewEncoder(base64.StdEncoding, a.out)
		if body == nil {
			body = io.NopCloser(bytes.NewReader(v.Bytes))
		}
		if _, err = io.CopyN(enc, body, v.Size); err == nil {
			err = enc.Close()
		}
		_ = a.out.WriteByte('"')
	}
	_ = a.out.WriteByte('}')
	return err
}
