package cfbind

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// The headers of the protocol.
const (
	headerMetadata    = "CF-KV-Metadata" // JSON, raw UTF-8, both ways
	headerExpiration  = "CF-Expiration"  // unix seconds
	headerCacheStatus = "CF-Cache-Status"
)

// get answers a read of one key.
func (h *Handler) get(c *call) error {
	key, err := c.key()
	if err != nil {
		return err
	}
	ttl, problem := cfkv.CacheTTL(c.query.number("cache_ttl"))
	if problem != nil {
		return refuse(problem)
	}
	if mutNoAgeLimit {
		ttl = cfkv.DefaultCacheTTL
	}
	req := api.GetRequest{Key: key, CacheTTL: ttl, Timing: c.Timing()}
	if req.Consistency, err = api.Demands(c.Request()); err != nil {
		return err
	}
	v, err := h.lookup(c, req)
	if err != nil {
		return err
	}
	head := c.Writer().Header()
	head.Set(headerCacheStatus, cacheStatus(v.Tier))
	if v.Absent || api.Expired(v.Expiry, h.svc.MeshTime()) {
		return kv.Errorf(kv.CodeKeyNotFound, "the key does not exist in this namespace")
	}
	ctx, touch, stop := api.IdleContext(c.Request().Context(), h.timeout)
	defer stop()
	body, err := api.OpenValue(ctx, v, touch)
	if err != nil {
		return err
	}
	head.Set("Content-Type", "application/octet-stream")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Length", strconv.FormatInt(v.Size, 10))
	if v.Metadata != nil {
		head.Set(headerMetadata, headerJSON(v.Metadata))
	}
	if v.Expiry != 0 {
		head.Set(headerExpiration, strconv.FormatInt(v.Expiry, 10))
	}
	c.Writer().WriteHeader(http.StatusOK)
	return send(c.Writer(), body, v.Size)
}

func (h *Handler) lookup(c *call, req api.GetRequest) (*api.Value, error) {
	ctx, cancel := h.ask(c)
	defer cancel()
	var err error
	if req.Namespace, err = h.namespace(ctx, c); err != nil {
		return nil, err
	}
	v, err := h.svc.Get(ctx, req)
	if err == nil {
		h.frame.Read(v)
	}
	return v, err
}

// send copies n bytes of body, and closes it.
func send(w io.Writer, body io.ReadCloser, n int64) error {
	_, err := io.CopyN(w, body, n)
	if closed := body.Close(); err == nil {
		err = closed
	}
	return err
}

// cacheStatus is how a Worker's cacheStatus shows who answered.
func cacheStatus(t api.Tier) string {
	switch t {
	case api.TierHit:
		return "HIT"
	case api.TierStale:
		return "STALE"
	}
	return "MISS"
}

// headerJSON is compact JSON as a header can hold it. The only byte of it that a header must not have is DEL, which JSON
// allows raw within strings, and nowhere else.
func headerJSON(compact []byte) string {
	return strings.ReplaceAll(string(compact), "\x7f", `\u007f`)
}

// put answers a write of one key. Everything that can be refused is refused before the body is read.
func (h *Handler) put(c *call) error {
	r := c.Request()
	key, err := c.key()
	if err != nil {
		return err
	}
	req := api.PutRequest{Key: key, Size: r.ContentLength, Timing: c.Timing()}
	var problem *cfkv.Problem
	req.Expiry, problem = cfkv.Expiry(c.query.number("expiration_ttl"), c.query.number("expiration"), h.svc.MeshTime())
	if problem != nil {
		return refuse(problem)
	}
	if req.Metadata, err = c.metadata(); err != nil {
		return err
	}
	if err := api.PlainEncoding(r); err != nil {
		return err
	}
	if req.Size > kv.MaxValueBytes {
		return refuse(cfkv.ValueTooLarge(req.Size))
	}
	ctx, touch, stop := api.IdleContext(r.Context(), h.timeout)
	defer stop()
	if req.Namespace, err = h.namespace(ctx, c); err != nil {
		return err
	}
	if err := h.mayWrite(req.Namespace, key); err != nil {
		return err
	}
	counted := &counter{r: r.Body}
	body := api.NewValueBody(counted, req.Size, touch)
	req.Body = body
	if _, err := h.svc.Put(ctx, req); err != nil {
		err = body.Explain(err)
		if kv.CodeOf(err) == kv.CodeValueTooLarge {
			rest, _ := drain(r)
			return refuse(cfkv.ValueTooLarge(counted.n.Load() + rest))
		}
		return err
	}
	done(c.Writer())
	return nil
}

// metadata is the compact JSON in the request's header, nil when there is none.
func (c *call) metadata() ([]byte, error) {
	given := c.header.Values(headerMetadata)
	if len(given) == 0 {
		return nil, nil
	}
	if len(given) > 1 {
		return nil, kv.FieldErrorf(kv.CodeInvalidMetadata, headerMetadata, "the header %s is given %d times", headerMetadata, len(given))
	}
	if n := len(given[0]); n > kv.MaxMetadataBytes {
		return nil, refuse(cfkv.MetadataTooLarge(int64(n)))
	}
	compact, err := kv.CompactMetadata([]byte(given[0]))
	if string(compact) == "null" {
		return nil, err // a Worker cannot tell it from none
	}
	return compact, err
}

// delete answers the removal of one key. To delete a key that does not exist succeeds.
func (h *Handler) delete(c *call) error {
	key, err := c.key()
	if err != nil {
		return err
	}
	ctx, cancel := h.ask(c)
	defer cancel()
	ns, err := h.namespace(ctx, c)
	if err != nil {
		return err
	}
	if err := h.mayWrite(ns, key); err != nil {
		return err
	}
	if _, err := h.svc.Delete(ctx, api.DeleteRequest{Namespace: ns, Key: key, Timing: c.Timing()}); err != nil {
		return api.WriteFailed(err)
	}
	done(c.Writer())
	return nil
}

// mayWrite holds the limit of writes to one key.
func (h *Handler) mayWrite(ns kv.Namespace, key string) error {
	if h.writes.Allow(ns.ID, key) {
		return nil
	}
	return kv.Errorf(kv.CodeTooManyRequests, "Too Many Requests")
}

// done answers a write.
func done(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
}
