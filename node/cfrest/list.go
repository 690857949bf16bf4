package cfrest

import (
	"encoding/json"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
)

// maxCursorBytes is more than any cursor has: two names, base64url.
const maxCursorBytes = 4 << 10

type keyDoc struct {
	Name       string          `json:"name"`
	Expiration int64           `json:"expiration,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
}

// cursorInfo gives the cursor in both places: half of the SDKs look for it in the one, half in the other. On the last page
// it is there, and empty.
type cursorInfo struct {
	Count   int    `json:"count"`
	Cursor  string `json:"cursor"`
	Cursors struct {
		After string `json:"after"`
	} `json:"cursors"`
}

func (s *surface) listKeys(c *call) error {
	req := api.ListRequest{Prefix: c.q.Get("prefix"), Cursor: c.q.Get("cursor")}
	if p := cfkv.CheckPrefix(req.Prefix); p != nil {
		return p
	}
	var p *cfkv.Problem
	if req.Limit, p = cfkv.ListLimit(c.q.Get("limit")); p != nil {
		return p
	}
	if len(req.Cursor) > maxCursorBytes {
		return cfkv.BadCursor()
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	var err error
	if req.Namespace, err = s.namespace(ctx, c); err != nil {
		return err
	}
	docs := []keyDoc{}
	var info cursorInfo
	// The SDKs take an empty page for the last one, so pages of which every key has expired are passed over.
	for {
		page, err := s.svc.List(ctx, req)
		if err != nil {
			return err
		}
		now := s.svc.MeshTime()
		for i := range page.Keys {
			if k := &page.Keys[i]; !api.Expired(k.Expiry, now) {
				docs = append(docs, keyDoc{k.Name, k.Expiry, k.Metadata})
			}
		}
		if page.Complete {
			break
		}
		if req.Cursor = page.Cursor; len(docs) > 0 {
			info.Cursor = page.Cursor
			break
		}
	}
	info.Count, info.Cursors.After = len(docs), info.Cursor
	return c.ok(docs, info)
}
