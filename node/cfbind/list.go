package cfbind

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// maxCursorBytes is more than any cursor of a listing has.
const maxCursorBytes = 4 << 10

// pageDoc is a page of keys as workerd reads it.
type pageDoc struct {
	Keys     []keyDoc `json:"keys"`
	Complete bool     `json:"list_complete"`
	Cursor   string   `json:"cursor,omitempty"` // left out on the last page
}

type keyDoc struct {
	Name       string `json:"name"`
	Expiration int64  `json:"expiration,omitempty"`
	Metadata   string `json:"metadata,omitempty"` // JSON in a string, which workerd parses
}

// list answers a page of keys.
func (h *Handler) list(c *call) error {
	req := api.ListRequest{}
	var problem *cfkv.Problem
	if req.Limit, problem = cfkv.ListLimit(c.query.number("key_count_limit")); problem != nil {
		return refuse(problem)
	}
	var err error
	if req.Prefix, err = c.query.prefix(); err != nil {
		return err
	}
	if req.Cursor, _ = c.query.get("cursor"); len(req.Cursor) > maxCursorBytes {
		return refuse(cfkv.BadCursor())
	}
	if req.Consistency, err = api.Demands(c.Request()); err != nil {
		return err
	}
	ctx, cancel := h.ask(c)
	defer cancel()
	if req.Namespace, err = h.namespace(ctx, c); err != nil {
		return err
	}
	page, err := h.svc.List(ctx, req)
	if err != nil {
		if kv.CodeOf(err) == kv.CodeInvalidCursor {
			return refuse(cfkv.BadCursor())
		}
		return err
	}
	doc := pageDoc{Keys: []keyDoc{}, Complete: page.Complete}
	if !page.Complete {
		doc.Cursor = page.Cursor
	}
	now := h.svc.MeshTime()
	for i := range page.Keys {
		if k := &page.Keys[i]; !api.Expired(k.Expiry, now) {
			doc.Keys = append(doc.Keys, keyDoc{k.Name, k.Expiry, string(k.Metadata)})
		}
	}
	var body bytes.Buffer // a thousand keys of 512 bytes with 1 KiB of metadata
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return err
	}
	head := c.Writer().Header()
	jsonHeaders(head)
	head.Set("Content-Length", strconv.Itoa(body.Len()))
	c.Writer().WriteHeader(http.StatusOK)
	_, err = c.Writer().Write(body.Bytes())
	return err
}

func jsonHeaders(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}
