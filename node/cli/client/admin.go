package client

import (
	"context"
	"encoding/json"
	"net/http"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// Namespace is a namespace as clients see it.
type Namespace struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	// Keys and Bytes (of keys and values) are nil where no voter could be asked.
	Keys  *int64 `json:"keys,omitempty"`
	Bytes *int64 `json:"bytes,omitempty"`
}

// Namespaces lists all namespaces.
func (c *Client) Namespaces(ctx context.Context) ([]Namespace, error) {
	var doc struct {
		Namespaces []Namespace `json:"namespaces"`
	}
	err := c.readJSON(ctx, call{method: http.MethodGet, path: "/v1/namespaces", repeatable: true}, &doc)
	return doc.Namespaces, err
}

// Namespace finds one by id or title.
func (c *Client) Namespace(ctx context.Context, ref string) (Namespace, error) {
	return c.namespace(ctx, http.MethodGet, ref, nil)
}

// CreateNamespace makes one. A title that is taken is an Error with kv.CodeNamespaceExists.
func (c *Client) CreateNamespace(ctx context.Context, title string) (Namespace, error) {
	return c.namespace(ctx, http.MethodPut, title, nil)
}

// RenameNamespace gives the namespace another title. Its id and its keys stay.
func (c *Client) RenameNamespace(ctx context.Context, ref, title string) (Namespace, error) {
	if err := kv.ValidateTitle(title); err != nil { // encoding/json would replace what is not UTF-8
		return Namespace{}, err
	}
	b, err := json.Marshal(struct {
		Title string `json:"title"`
	}{title})
	if err != nil {
		return Namespace{}, err
	}
	body := BytesBody(b)
	return c.namespace(ctx, http.MethodPut, ref, &body)
}

func (c *Client) namespace(ctx context.Context, method, ref string, body *Body) (Namespace, error) {
	var ns Namespace
	path, err := namespacePath("/v1/namespaces/", ref)
	if err != nil {
		return ns, err
	}
	cl := call{method: method, path: path, body: body, repeatable: true}
	if body != nil {
		cl.header = http.Header{"Content-Type": {"application/json"}}
	}
	err = c.readJSON(ctx, cl, &ns)
	return ns, err
}

// DeleteNamespace removes a namespace and all that is in it.
func (c *Client) DeleteNamespace(ctx context.Context, ref string) error {
	path, err := namespacePath("/v1/namespaces/", ref)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, call{method: http.MethodDelete, path: path, repeatable: true})
	if err != nil {
		return err
	}
	return drain(resp)
}

// Cluster is the mesh as the node sees it.
func (c *Client) Cluster(ctx context.Context) (*api.ClusterStatus, error) {
	var st api.ClusterStatus
	err := c.readJSON(ctx, call{method: http.MethodGet, path: "/v1/cluster", repeatable: true}, &st)
	return &st, err
}
