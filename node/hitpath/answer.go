package hitpath

import (
	"bytes"
	"strconv"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// answer answers a read from memory, if it can be. When it reports false, nothing has been answered.
func (c *conn) answer(w *want) bool {
	began := c.s.now()
	if !w.quick || !c.admitted() {
		return false
	}
	ns, ok := c.s.opts.Source.Namespace(w.ns, w.byID)
	if !ok {
		return false
	}
	v := &c.value
	if !c.s.opts.Source.Held(v, ns, w.key, w.limit) || !writable(w.shape, v) {
		return false
	}
	body := v.Bytes
	if w.isHEAD {
		body = nil
	}
	short := len(body) <= copied
	room := 0
	if short {
		room = len(body)
	}
	out, ok := c.room(room)
	if !ok {
		return true // the next write fails as this one did
	}
	switch w.shape {
	case nativeShape:
		out = appendNative(out, v, c.epochs(v))
	case restShape:
		out = appendREST(out, v)
	case bindingShape:
		out = appendBinding(out, v)
	}
	out = append(out, *c.s.date.Load()...)
	out = append(out, "\r\n"...)
	if short {
		*c.out = append(out, body...)
	} else {
		*c.out = out
		c.writeLarge(body)
	}
	which := 0
	if w.isHEAD {
		which = 1
	}
	c.s.counts[w.shape][which].Answered(v, (c.s.now() - began).Seconds())
	return true
}

// admitted reports whether the request may be answered at all. One that may not is for the handlers to refuse.
func (c *conn) admitted() bool {
	if c.s.opts.Accepts == nil {
		return true
	}
	if c.head.auths != 1 {
		return false
	}
	given := c.head.auth.of(c.in[c.start:c.end])
	if len(c.accepted) > 0 && bytes.Equal(given, c.accepted) {
		return true
	}
	if !c.s.opts.Accepts(given) {
		return false
	}
	if len(given) <= maxAccepted {
		c.accepted = append(c.accepted[:0], given...)
	}
	return true
}

// writable reports whether the head of an answer can be written as plainly as it is here.
func writable(s shape, v *api.Value) bool {
	if v.Absent || v.Open != nil || v.StaleReason != "" || v.Staleness < 0 || int64(len(v.Bytes)) != v.Size {
		return false
	}
	switch s {
	case nativeShape:
		return printable(v.Metadata)
	case bindingShape:
		return bytes.IndexByte(v.Metadata, 0x7f) < 0
	}
	return true
}

// printable reports whether metadata stands in a header as it is.
func printable(metadata []byte) bool {
	for _, b := range metadata {
		if b < ' ' || b > '~' {
			return false
		}
	}
	return true
}

// writeLarge writes what waits, and a value that is too large to be copied behind it. A failure shows at the next read.
func (c *conn) writeLarge(body []byte) {
	first := min(len(body), pieceBytes)
	c.two = [...][]byte{*c.out, body[:first]}
	c.vec = c.two[:]
	c.standing.set(phaseWrite, c.s.tick.Load())
	_, err := c.vec.WriteTo(c.raw)
	c.two = [2][]byte{} // an idle connection keeps no value alive
	*c.out = (*c.out)[:0]
	if body = body[first:]; err == nil && len(body) > 0 {
		var done bool
		if done, err = c.writeRest(body); done {
			body = nil
		}
	}
	for ; err == nil && len(body) > 0; body = body[min(len(body), pieceBytes):] {
		c.standing.set(phaseWrite, c.s.tick.Load())
		_, err = c.raw.Write(body[:min(len(body), pieceBytes)])
	}
	if err != nil {
		c.cut()
	}
}

// epochText is what the heads of native answers have of an epoch. It changes when the mesh is restored, if ever.
type epochText struct {
	epoch    kv.Epoch
	etag     [len("Etag: \"") + 8 + len("-")]byte
	bookmark [len("Kv-Bookmark: ") + 32 + len(".")]byte
}

// epochs is the text of v's epoch.
func (c *conn) epochs(v *api.Value) *epochText {
	e := &c.epoch
	if e.epoch != v.Epoch || e.etag[0] == 0 {
		e.epoch = v.Epoch
		copy(e.etag[:], "Etag: \""+v.Epoch.Tag()+"-")
		copy(e.bookmark[:], "Kv-Bookmark: "+v.Epoch.String()+".")
	}
	return e
}

// The heads, with their fields in the order in which net/http sorts them. Date and the empty line follow.

func appendNative(b []byte, v *api.Value, e *epochText) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nAge: "...)
	b = strconv.AppendInt(b, int64(v.Staleness/time.Second), 10)
	b = appendLength(append(b, "\r\n"...), v)
	b = append(b, e.etag[:]...)
	b = strconv.AppendUint(b, uint64(v.Revision), 10)
	b = append(b, "\"\r\n"...)
	if !v.Epoch.IsZero() {
		b = append(b, e.bookmark[:]...)
		b = strconv.AppendUint(b, uint64(v.AsOf), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "Kv-Cache: "...)
	b = append(b, v.Tier...)
	b = append(b, "\r\n"...)
	b = appendExpiry(b, "Kv-Expiration: ", v)
	if v.Metadata != nil {
		b = append(b, "Kv-Metadata: "...)
		b = append(b, v.Metadata...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "Kv-Revision: "...)
	b = strconv.AppendUint(b, uint64(v.Revision), 10)
	b = append(b, "\r\nKv-Staleness-Ms: "...)
	b = strconv.AppendInt(b, int64((v.Staleness+time.Millisecond-1)/time.Millisecond), 10)
	return append(b, "\r\nX-Content-Type-Options: nosniff\r\n"...)
}

func appendREST(b []byte, v *api.Value) []byte {
	b = appendLength(append(b, "HTTP/1.1 200 OK\r\n"...), v)
	b = appendExpiry(b, "Expiration: ", v)
	b = append(b, "Kv-Cache: "...)
	b = append(b, v.Tier...)
	return append(b, "\r\nX-Content-Type-Options: nosniff\r\n"...)
}

func appendBinding(b []byte, v *api.Value) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nCf-Cache-Status: "...)
	switch v.Tier {
	case api.TierHit:
		b = append(b, "HIT\r\n"...)
	case api.TierStale:
		b = append(b, "STALE\r\n"...)
	default:
		b = append(b, "MISS\r\n"...)
	}
	b = appendExpiry(b, "Cf-Expiration: ", v)
	if v.Metadata != nil {
		b = append(b, "Cf-Kv-Metadata: "...)
		b = append(b, v.Metadata...)
		b = append(b, "\r\n"...)
	}
	b = appendLength(b, v)
	return append(b, "X-Content-Type-Options: nosniff\r\n"...)
}

func appendLength(b []byte, v *api.Value) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, v.Size, 10)
	return append(b, "\r\nContent-Type: application/octet-stream\r\n"...)
}

func appendExpiry(b []byte, name string, v *api.Value) []byte {
	if v.Expiry == 0 {
		return b
	}
	b = append(b, name...)
	b = strconv.AppendInt(b, v.Expiry, 10)
	return append(b, "\r\n"...)
}
