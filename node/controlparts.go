package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// controlPart is about how large one message of a control state gets; maxControl bounds a whole one, which is enough for
// some hundred thousand namespaces.
const (
	controlPart = 256 << 10
	maxControl  = 64 << 20
)

// controlParts puts a control state together from the messages that carry it. The zero value is ready for the first one.
type controlParts struct {
	c     wire.Control
	bytes int
}

// add takes the next message, and returns the whole state with the last one.
func (p *controlParts) add(payload []byte) (c kv.Control, whole bool, err error) {
	var part wire.Control
	if err := peer.Decode(payload, &part); err != nil {
		return c, false, err
	}
	if p.bytes > 0 && (part.Cluster != p.c.Cluster || part.Epoch != p.c.Epoch || part.Revision != p.c.Revision) {
		return c, false, errors.New("parts of different control states")
	}
	if p.bytes += len(payload); p.bytes > maxControl {
		return c, false, fmt.Errorf("the control state has more than %d bytes", maxControl)
	}
	part.Namespaces = append(p.c.Namespaces, part.Namespaces...)
	if p.c = part; part.More {
		return c, false, nil
	}
	c = p.c.KV()
	*p = controlParts{}
	return c, true, nil
}

// appendControl appends a control state as frames: what the feed sends, a voter answers, and the copy on disk holds.
func appendControl(dst []byte, c kv.Control) ([]byte, error) {
	for _, part := range wire.FromControl(c, controlPart) {
		msg, err := peer.Encode(&part)
		if err == nil {
			dst, err = peer.AppendFrame(dst, wire.FeedControl, msg)
		}
		if err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// readControl is the inverse of appendControl.
func readControl(b []byte) (kv.Control, error) {
	var parts controlParts
	r := bytes.NewReader(b)
	for {
		kind, payload, err := peer.ReadFrame(r, nil)
		if err == nil && kind != wire.FeedControl {
			err = fmt.Errorf("unexpected frame %d", kind)
		}
		var c kv.Control
		whole := false
		if err == nil {
			c, whole, err = parts.add(payload)
		}
		switch {
		case errors.Is(err, io.EOF):
			return c, errors.New("the control state is cut off")
		case err != nil:
			return c, err
		case whole && r.Len() > 0:
			return c, fmt.Errorf("%d bytes after the control state", r.Len())
		case whole:
			return c, nil
		}
	}
}
