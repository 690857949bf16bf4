package cfrest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
)

// lookup finds the key in the path, as a native GET does that says nothing about freshness. A key that is not there is an
// error.
func (s *surface) lookup(c *call, headOnly bool) (*api.Value, error) {
	if p := cfkv.CheckKey(c.key); p != nil {
		return nil, p
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := s.svc.Get(ctx, api.GetRequest{
		Namespace: ns, Key: c.key, CacheTTL: cfkv.DefaultCacheTTL, HeadOnly: headOnly, Timing: c.Timing(),
	})
	if err != nil {
		return nil, err
	}
	s.frame.Read(v)
	c.w.Header().Set("Kv-Cache", string(v.Tier))
	// The service judged expiry when it looked; what has expired since is absent too.
	if v.Absent || api.Expired(v.Expiry, s.svc.MeshTime()) {
		return nil, keyNotFound()
	}
	return v, nil
}

// getValue answers with the value's bytes, the one answer that is no envelope.
func (s *surface) getValue(c *call) error {
	head := c.r.Method == http.MethodHead
	v, err := s.lookup(c, head)
	if err != nil {
		return err
	}
	ctx, touch, stop := api.IdleContext(c.r.Context(), s.timeout)
	defer stop()
	var body io.ReadCloser = http.NoBody
	if !head {
		if body, err = api.OpenValue(ctx, v, touch); err != nil {
			return err
		}
	}
	h := c.w.Header()
	if v.Expiry != 0 {
		h.Set("Expiration", strconv.FormatInt(v.Expiry, 10))
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.FormatInt(v.Size, 10))
	c.w.WriteHeader(http.StatusOK)
	if head {
		return body.Close()
	}
	return errors.Join(s.send(c.w, body, v.Size), body.Close())
}

// send copies a value to the client.
func (s *surface) send(w io.Writer, body io.Reader, size int64) error {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	// Without methods that would let the copy go another way than through buf.
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(body, size)}, *buf)
	if err == nil && n < size {
		err = fmt.Errorf("value: %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return err
}

// getMetadata answers with the metadata of a key, null when it has none.
func (s *surface) getMetadata(c *call) error {
	v, err := s.lookup(c, true)
	if err != nil {
		return err
	}
	if v.Metadata == nil {
		return c.ok(nil, nil)
	}
	return c.ok(json.RawMessage(v.Metadata), nil)
}

// deleteValue removes a key; a missing one too. What the request's body says does not matter.
func (s *surface) deleteValue(c *call) error {
	if p := cfkv.CheckKey(c.key); p != nil {
		return p
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	if !s.limit.Allow(ns.ID, c.key) {
		return throttled()
	}
	if _, err := s.svc.Delete(ctx, api.DeleteRequest{Namespace: ns, Key: c.key, Timing: c.Timing()}); err != nil {
		return api.WriteFailed(err)
	}
	return c.ok(nil, nil)
}
