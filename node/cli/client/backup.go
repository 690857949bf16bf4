package client

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Backup is a backup that is being made. Body ends with io.EOF when all has come that the node sent; whether it is whole,
// only its content says. Close Body.
type Backup struct {
	Body io.ReadCloser
	// Estimate is about how many bytes will come, 0 when the node did not say.
	Estimate int64
}

// SaveBackup begins a backup of the whole mesh; with stale, of what a voter has while there is no leader.
func (c *Client) SaveBackup(ctx context.Context, stale bool) (*Backup, error) {
	cl := call{method: http.MethodGet, path: "/v1/backup", query: url.Values{}, repeatable: true}
	if stale {
		cl.query.Set("stale", "true")
	}
	resp, err := c.do(ctx, cl)
	if err != nil {
		return nil, err
	}
	estimate, err := headerInt(resp.Header, "Kv-Estimated-Bytes", 0)
	if err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return &Backup{Body: resp.Body, Estimate: estimate}, nil
}

// Restored is what a restore has brought.
type Restored struct {
	Epoch       string `json:"epoch"`
	Revision    uint64 `json:"revision"`
	Bookmark    string `json:"bookmark"`
	From        uint64 `json:"from_revision"`
	Namespaces  uint64 `json:"namespaces"`
	Keys        uint64 `json:"keys"`
	Bytes       uint64 `json:"bytes"`
	LargeValues uint64 `json:"large_values"`
}

// RestoreBackup replaces the content of the mesh by a backup: all of it, or nothing of it.
func (c *Client) RestoreBackup(ctx context.Context, body Body, replace bool) (*Restored, error) {
	cl := call{method: http.MethodPost, path: "/v1/backup", query: url.Values{}, body: &body, repeatable: true}
	if replace {
		cl.query.Set("replace", "true")
	}
	var res Restored
	err := c.readJSON(ctx, cl, &res)
	return &res, err
}

// BackupAddress is what a backup of another mesh must be sealed for, and the id of the mesh's own key.
func (c *Client) BackupAddress(ctx context.Context) (key string, address []byte, err error) {
	var doc struct {
		Key     string `json:"key"`
		Address string `json:"address"`
	}
	if err = c.readJSON(ctx, call{method: http.MethodGet, path: "/v1/backup/address", repeatable: true}, &doc); err != nil {
		return "", nil, err
	}
	if address, err = base64.StdEncoding.DecodeString(doc.Address); err != nil {
		return "", nil, fmt.Errorf("the node's address for backups: %w", err)
	}
	return doc.Key, address, nil
}
