package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// maxNamespaceBody is more than a title can take, with every byte escaped.
const maxNamespaceBody = 16 << 10

// namespaceDoc shows a namespace. Its data key never leaves the node here. The counters are left out where nobody was asked
// for them, or no voter could be.
type namespaceDoc struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Keys  *int64 `json:"keys,omitempty"`
	Bytes *int64 `json:"bytes,omitempty"`
}

// counted shows namespaces with their counters. These are no reason to fail: the rest is known on every node.
func (s *surface) counted(ctx context.Context, all ...kv.Namespace) []namespaceDoc {
	ids := make([]kv.NamespaceID, len(all))
	docs := make([]namespaceDoc, len(all))
	for i, ns := range all {
		ids[i], docs[i] = ns.ID, namespaceDoc{ID: ns.ID.String(), Title: ns.Title}
	}
	stats, err := s.svc.NamespaceStats(ctx, ids)
	if err != nil {
		s.log.Debug("namespaces are shown without their counters", "err", err)
	}
	for i, id := range ids {
		if st, ok := stats[id]; ok {
			docs[i].Keys, docs[i].Bytes = &st.Keys, &st.Bytes
		}
	}
	return docs
}

func showNamespace(c *call, status int, ns kv.Namespace) error {
	writeJSON(c.w, c.r, status, namespaceDoc{ID: ns.ID.String(), Title: ns.Title})
	return nil
}

func (s *surface) listNamespaces(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	all, err := s.svc.Namespaces(ctx)
	if err != nil {
		return err
	}
	writeJSON(c.w, c.r, http.StatusOK, struct {
		Namespaces []namespaceDoc `json:"namespaces"`
	}{s.counted(ctx, all...)})
	return nil
}

func (s *surface) getNamespace(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	writeJSON(c.w, c.r, http.StatusOK, s.counted(ctx, ns)[0])
	return nil
}

// putNamespace creates the namespace in the path or, when the body names another title, renames it. Sent again it
// changes nothing: a namespace that exists with the wanted title is answered 200.
func (s *surface) putNamespace(c *call) error {
	if err := validateRef(c.ns); err != nil {
		return err
	}
	title, err := readTitle(c.r)
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.svc.Namespace(ctx, c.ns)
	switch {
	case err == nil && (title == "" || title == ns.Title):
		return showNamespace(c, http.StatusOK, ns)
	case err == nil:
		if ns, err = s.svc.RenameNamespace(ctx, ns.ID, title); err != nil {
			return writeFailed(err)
		}
		return showNamespace(c, http.StatusOK, ns)
	case kv.CodeOf(err) != kv.CodeNamespaceNotFound, title != "" && title != c.ns:
		return err
	}
	// An id that nobody has is no title.
	if err := kv.ValidateTitle(c.ns); err != nil {
		return err
	}
	ns, err = s.svc.CreateNamespace(ctx, c.ns)
	if kv.CodeOf(err) == kv.CodeNamespaceExists {
		// Somebody else created it since it was looked up, which is as good.
		if ns, err = s.svc.Namespace(ctx, c.ns); err != nil {
			return err
		}
		return showNamespace(c, http.StatusOK, ns)
	}
	if err != nil {
		return writeFailed(err)
	}
	return showNamespace(c, http.StatusCreated, ns)
}

func (s *surface) deleteNamespace(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	if err := s.svc.DeleteNamespace(ctx, ns.ID); err != nil {
		return writeFailed(err)
	}
	return showNamespace(c, http.StatusOK, ns)
}

// readTitle reads the body of a PUT of a namespace, {"title": "…"}, and returns the title, "" when there is none.
func readTitle(r *http.Request) (string, error) {
	if err := plainEncoding(r); err != nil {
		return "", err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxNamespaceBody+1))
	switch {
	case err != nil:
		return "", kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body could not be read: %v", err)
	case len(body) > maxNamespaceBody:
		return "", kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body has more than %d bytes; send {\"title\": \"…\"}", maxNamespaceBody)
	case !utf8.Valid(body):
		return "", kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is not valid UTF-8")
	}
	if body = bytes.TrimSpace(body); len(body) == 0 {
		return "", nil
	}
	// Not a struct: decoding into one takes {"TITLE"} for a title.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return "", kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is not a JSON object; send {\"title\": \"…\"} or nothing")
	}
	raw, ok := fields["title"]
	delete(fields, "title")
	for name := range fields {
		return "", kv.FieldErrorf(kv.CodeInvalidBody, shown(name), "the field is unknown; the only one is title")
	}
	if !ok {
		return "", nil
	}
	var title *string
	if err := json.Unmarshal(raw, &title); err != nil || title == nil {
		return "", kv.FieldErrorf(kv.CodeInvalidTitle, "title", "the title is not a string")
	}
	return *title, kv.ValidateTitle(*title)
}

func (s *surface) cluster(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	status, err := s.svc.Cluster(ctx)
	if err != nil {
		return err
	}
	if status == nil {
		return errors.New("cluster: no status")
	}
	writeJSON(c.w, c.r, http.StatusOK, status)
	return nil
}
