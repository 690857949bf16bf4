package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"kvmesh/raftstore/kv"
)

// namespace resolves the namespace in the path.
func (s *surface) namespace(ctx context.Context, c *call) (kv.Namespace, error) {
	if err := validateRef(c.ns); err != nil {
		return kv.Namespace{}, err
	}
	return s.svc.Namespace(ctx, c.ns)
}

// validateRef checks a name that may be an id or a title.
func validateRef(ref string) error {
	if _, err := kv.ParseNamespaceID(ref); err == nil {
		return nil
	}
	if err := kv.ValidateTitle(ref); err != nil {
		e := *asError(err)
		e.Field = "namespace"
		return &e
	}
	return nil
}

// ask returns the context of a question to the service, which ends with the request or after s.timeout.
func (s *surface) ask(c *call) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.r.Context(), s.timeout)
}

// getValue answers GET and HEAD of a key.
func (s *surface) getValue(c *call) error {
	if err := kv.ValidateKey(c.rest); err != nil {
		return err
	}
	ttl, err := c.q.cacheTTL()
	if err != nil {
		return err
	}
	ifMatch, err := parseTags(c.r, "If-Match")
	if err != nil {
		return err
	}
	ifNone, err := parseTags(c.r, "If-None-Match")
	if err != nil {
		return err
	}
	v, err := s.lookup(c, ttl)
	if err != nil {
		return err
	}
	s.metrics.read(v)

	h := c.w.Header()
	freshnessHeaders(h, v)
	// The service judged expiry when it looked; what has expired since is absent too.
	if v.Absent || (v.Expiry != 0 && expired(v.Expiry, s.svc.MeshTime())) {
		return errKeyNotFound()
	}
	tag := etag(v.Epoch, v.Revision)
	stateHeaders(h, tag, v.Revision, v.Expiry)
	if v.Metadata != nil {
		h.Set("Kv-Metadata", asciiJSON(v.Metadata))
	}
	switch {
	case ifMatch.given && !ifMatch.has(tag, false):
		return &kv.Error{Code: kv.CodeConditionFailed, Field: "If-Match", Revision: v.Revision}
	case ifNone.given && ifNone.has(tag, true):
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return s.sendValue(c, v, tag)
}

func (s *surface) lookup(c *call, ttl time.Duration) (*Value, error) {
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.svc.Get(ctx, GetRequest{
		Namespace: ns, Key: c.rest, CacheTTL: ttl, HeadOnly: c.r.Method == http.MethodHead, Consistency: c.demands,
		Timing: c.Timing(),
	})
}

func errKeyNotFound() *kv.Error {
	return kv.Errorf(kv.CodeKeyNotFound, "the key does not exist in this namespace")
}

// expired reports whether mesh time has reached a key's expiry.
func expired(expiry int64, now time.Time) bool { return expiry != 0 && expiry <= now.Unix() }

// freshnessHeaders says who answered and how old the answer may be; a miss says so too.
func freshnessHeaders(h http.Header, v *Value) {
	bookmarkHeader(h, v.Epoch, v.AsOf)
	h.Set("Kv-Cache", string(v.Tier))
	stalenessHeader(h, v.Staleness)
	if v.StaleReason != "" {
		h.Set("Kv-Stale-Reason", v.StaleReason)
	}
}

// stalenessHeader states the bound, rounded up; a negative one is not known.
func stalenessHeader(h http.Header, d time.Duration) {
	if d >= 0 {
		h.Set("Kv-Staleness-Ms", strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10))
		h.Set("Age", strconv.FormatInt(int64(d/time.Second), 10))
	}
}

func bookmarkHeader(h http.Header, epoch kv.Epoch, asOf kv.Revision) {
	if !epoch.IsZero() {
		h.Set("Kv-Bookmark", kv.Bookmark{Epoch: epoch, Revision: asOf}.String())
	}
}

// stateHeaders describes a state of a key that exists.
func stateHeaders(h http.Header, tag string, rev kv.Revision, expiry int64) {
	h.Set("ETag", tag)
	h.Set("Kv-Revision", strconv.FormatUint(uint64(rev), 10))
	if expiry != 0 {
		h.Set("Kv-Expiration", strconv.FormatInt(expiry, 10))
	}
}

// asciiJSON writes JSON text so that it can stand in a header: everything beyond printable ASCII as \u escapes, which
// only strings can hold in compact JSON. Field values are ASCII by RFC 9110, and JavaScript reads them as Latin-1.
func asciiJSON(text []byte) string {
	var b strings.Builder
	for _, r := range string(text) {
		switch {
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// sendValue answers with a value's bytes or a part of them.
func (s *surface) sendValue(c *call, v *Value, tag string) error {
	h := c.w.Header()
	part := span{length: v.Size}
	status := http.StatusOK
	if c.r.Method == http.MethodGet && rangeApplies(c.r, tag) {
		var err error
		if part, status, err = parseRange(strings.Join(c.r.Header.Values("Range"), ","), v.Size); err != nil {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", v.Size))
			// The one status that has no code of its own.
			c.code = kv.CodeInvalidParameter
			writeErrorStatus(c.w, c.r, http.StatusRequestedRangeNotSatisfiable, asError(err))
			return nil
		}
	}
	var body io.ReadCloser
	switch {
	case c.r.Method == http.MethodHead || part.length == 0:
	case v.Open == nil:
		if int64(len(v.Bytes)) != v.Size {
			return fmt.Errorf("value: %d bytes in memory, %d announced", len(v.Bytes), v.Size)
		}
	default:
		ctx, touch, stop := idleContext(c.r.Context(), s.timeout)
		defer stop()
		began := c.Timing().Now()
		opened, err := v.Open(ctx, part.start, part.length)
		c.Timing().Since(TimingOpen, "", began)
		if err != nil {
			return err
		}
		body = &touchingBody{ReadCloser: opened, touch: touch}
	}
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.start, part.start+part.length-1, v.Size))
	}
	c.w.WriteHeader(status)
	if body != nil {
		return s.stream(c, body, part.length)
	}
	if c.r.Method == http.MethodHead || part.length == 0 {
		return nil
	}
	_, err := c.w.Write(v.Bytes[part.start : part.start+part.length])
	return err
}

// stream copies n bytes of body to the client through one buffer, and closes it.
func (s *surface) stream(c *call, body io.ReadCloser, n int64) (err error) {
	defer func() { err = errors.Join(err, body.Close()) }()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for n > 0 {
		got, err := body.Read((*buf)[:min(n, copyBufferBytes)])
		if got > 0 {
			n -= int64(got)
			if _, err := c.w.Write((*buf)[:got]); err != nil {
				return err
			}
		}
		if n > 0 && err == io.EOF {
			return fmt.Errorf("value: %d bytes short: %w", n, io.ErrUnexpectedEOF)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// touchingBody reports progress at every read, before it as well: the time that the client took is not the mesh's.
type touchingBody struct {
	io.ReadCloser
	touch func()
}

func (b *touchingBody) Read(p []byte) (int, error) {
	b.touch()
	return b.ReadCloser.Read(p)
}
