package cfrest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// maxNamespaceBody is more than a title can take, with every byte escaped.
const maxNamespaceBody = 16 << 10

type namespaceDoc struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	// URLEncoding says that keys in a path are percent-decoded; terraform and cloudflare-rs insist on it.
	URLEncoding bool `json:"supports_url_encoding"`
}

func showNamespace(ns kv.Namespace) namespaceDoc { return namespaceDoc{ns.ID.String(), ns.Title, true} }

// namespace resolves the id in the path. Titles are not taken here, not even those that look like ids.
func (s *surface) namespace(ctx context.Context, c *call) (kv.Namespace, error) {
	id, err := kv.ParseNamespaceID(c.ns)
	if err != nil {
		return kv.Namespace{}, badNamespaceID(c.ns)
	}
	ns, err := s.svc.Namespace(ctx, id.String())
	if err == nil && ns.ID != id {
		err = kv.Errorf(kv.CodeNamespaceNotFound, "namespace not found")
	}
	return ns, err
}

func (s *surface) listNamespaces(c *call) error {
	p, err := c.page()
	if err != nil {
		return err
	}
	less := func(a, b kv.Namespace) int { return strings.Compare(a.Title, b.Title) }
	switch order := c.q.Get("order"); order {
	case "", "title":
	case "id":
		less = func(a, b kv.Namespace) int { return bytes.Compare(a.ID[:], b.ID[:]) }
	default:
		return invalid("", "order=%s is neither id nor title", cfkv.Shown(order))
	}
	direction := c.q.Get("direction")
	switch direction {
	case "", "asc", "desc":
	default:
		return invalid("", "direction=%s is neither asc nor desc", cfkv.Shown(direction))
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	all, err := s.svc.Namespaces(ctx)
	if err != nil {
		return err
	}
	all = slices.SortedFunc(slices.Values(all), less)
	if direction == "desc" {
		slices.Reverse(all)
	}
	docs := make([]namespaceDoc, len(all))
	for i, ns := range all {
		docs[i] = showNamespace(ns)
	}
	return listPage(c, p, docs)
}

func (s *surface) getNamespace(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	return c.ok(showNamespace(ns), nil)
}

func (s *surface) createNamespace(c *call) error {
	title, err := readTitle(c.r, true)
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.svc.CreateNamespace(ctx, title)
	if err != nil {
		return api.WriteFailed(err)
	}
	return c.ok(showNamespace(ns), nil)
}

func (s *surface) renameNamespace(c *call) error {
	title, err := readTitle(c.r, false)
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	if ns.Title != title {
		if ns, err = s.svc.RenameNamespace(ctx, ns.ID, title); err != nil {
			return api.WriteFailed(err)
		}
	}
	return c.ok(showNamespace(ns), nil)
}

func (s *surface) deleteNamespace(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	if err := s.svc.DeleteNamespace(ctx, ns.ID); err != nil {
		return api.WriteFailed(err)
	}
	return c.ok(nil, nil)
}

// readTitle reads {"title": …} and what a new namespace is to be. Members that nobody knows are passed over, as Cloudflare
// does; a promise that cannot be kept (data that stays in one jurisdiction) is refused.
func readTitle(r *http.Request, create bool) (string, error) {
	if err := api.PlainEncoding(r); err != nil {
		return "", err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxNamespaceBody+1))
	switch {
	case err != nil:
		return "", badBody("the body could not be read: %v", err)
	case len(body) > maxNamespaceBody:
		return "", badBody(`the body has more than %d bytes; send {"title": "…"}`, maxNamespaceBody)
	case !utf8.Valid(body):
		return "", badBody("the body is not valid UTF-8")
	}
	// Not a struct: decoding into one takes {"TITLE"} for a title.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return "", badBody(`the body is not a JSON object; send {"title": "…"}`)
	}
	text := func(name string) (string, error) {
		var s *string
		if raw, ok := fields[name]; ok {
			if err := json.Unmarshal(raw, &s); err != nil {
				return "", invalid("/"+name, "%s is not a string", name)
			}
		}
		if s == nil {
			return "", nil
		}
		return *s, nil
	}
	if create {
		for name, why := range map[string]string{
			"jurisdiction": "the nodes of a mesh all hold its data; leave jurisdiction out",
			"mode":         `the only mode is "instant", which every namespace of a mesh is in; leave mode out`,
		} {
			got, err := text(name)
			if err != nil {
				return "", err
			}
			if got != "" && (name != "mode" || got != "instant") {
				return "", invalid("/"+name, "%s %s is not supported: %s", name, cfkv.Shown(got), why)
			}
		}
	}
	title, err := text("title")
	if err == nil && title == "" {
		return "", bare(refuse(http.StatusBadRequest, codeNoTitle, "request is missing a title definition"))
	}
	if err == nil {
		err = kv.ValidateTitle(title)
	}
	return title, err
}
