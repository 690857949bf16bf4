package node

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// lister answers listings from the nearest voter's state, at least as new as anything this node has shown.
type lister struct {
	self      string
	dir       *directory
	rpc       *peer.Client
	cache     *cache.Cache
	control   *controlState
	local     *answerer // nil on edges
	cursorKey []byte    // authenticates cursors, the same on every node
}

// maxListBody bounds one page on the wire: about 4 MiB of values, and a thousand keys with their metadata.
const maxListBody = 8 << 20

// List reads one page.
func (s *service) List(ctx context.Context, req api.ListRequest) (*api.ListPage, error) {
	l := s.lists
	after, err := l.openCursor(req)
	if err != nil {
		return nil, err
	}
	args := &wire.ListArgs{
		Namespace: req.Namespace.ID, Prefix: req.Prefix, Delimiter: req.Delimiter, After: after,
		Limit: req.Limit, Values: req.Values, MaxAgeNs: -1, Strong: req.Consistency.Strong,
	}
	args.Epoch, args.Least = l.cache.LeastForList()
	if b := req.Consistency.Bookmark; b.Revision > 0 {
		if b.Epoch == args.Epoch {
			args.Least = max(args.Least, b.Revision)
		} else {
			args.Strong = true
		}
	}
	if req.Consistency.Bounded {
		args.MaxAgeNs = int64(req.Consistency.MaxStaleness)
	}
	page, err := l.ask(ctx, args)
	if err != nil {
		return nil, err
	}
	key, err := l.control.dataKey(req.Namespace.ID)
	if err != nil {
		return nil, err
	}
	out := &api.ListPage{Prefixes: page.Prefixes, Complete: page.Complete, Epoch: page.Epoch, AsOf: page.AsOf, Staleness: time.Duration(page.AgeNs)}
	for i := range page.Items {
		it := &page.Items[i]
		k := api.ListKey{Name: it.Key, Revision: it.Revision, Expiry: it.Expiry, Size: it.Size}
		if k.Metadata, err = openMetadata(key, req.Namespace.ID, it.Key, it.WriteID, it.Metadata); err != nil {
			return nil, err
		}
		if it.HasValue {
			if k.Value, err = openValue(key, req.Namespace.ID, it.Key, it.WriteID, kv.BlobID{}, it.Size, it.Value); err != nil {
				return nil, err
			}
			k.HasValue = true
		}
		out.Keys = append(out.Keys, k)
		l.cache.Shown(page.Epoch, req.Namespace.ID, it.Key, it.Revision)
	}
	l.cache.NoteListed(page.Epoch, page.AsOf)
	if !page.Complete {
		out.Cursor = l.sealCursor(page.Epoch, req, page.Next)
	}
	return out, nil
}

// ask goes from the nearest voter to the leader until somebody is new enough. The last question is always a strong one,
// which the leader can answer whatever was demanded.
func (l *lister) ask(ctx context.Context, args *wire.ListArgs) (*wire.ListPage, error) {
	var targets []string
	if l.local != nil {
		targets = append(targets, l.self)
	}
	voters := l.dir.Voters()
	targets = append(targets, voters[:min(len(voters), 2)]...)
	if args.Strong {
		targets = nil
	}
	leader, _ := l.dir.Leader()
	if leader != "" {
		targets = append(targets, leader)
	}
	var errs []error
	for i, id := range targets {
		try := *args
		try.Strong = args.Strong || (id == leader && i == len(targets)-1)
		page, err := l.askOne(ctx, id, &try)
		if err == nil && page.Epoch.Compare(args.Epoch) > 0 {
			l.cache.Adopt(page.Epoch, 0)
			args.Epoch, args.Least = page.Epoch, 0
			try.Epoch, try.Least = page.Epoch, 0
			page, err = l.askOne(ctx, id, &try)
		}
		if err == nil {
			if err = l.suits(page, args, try.Strong); err == nil {
				return page, nil
			}
		}
		if e := asKVError(err); e != nil && (e.Code == kv.CodeNamespaceNotFound || e.Code == kv.CodeInvalidParameter) {
			return nil, err
		}
		noteNotLeader(l.dir, id, err)
		errs = append(errs, fmt.Errorf("%s: %w", id, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: time.Second,
		Message: "no voter could answer the listing; retry: " + errText(errors.Join(errs...)),
	}
}

// suits judges a page before it is used.
func (l *lister) suits(page *wire.ListPage, args *wire.ListArgs, strong bool) error {
	switch {
	case page.Epoch != args.Epoch:
		return errors.New("the voter is in another epoch")
	case page.AsOf < args.Least && strong:
		return kv.FieldErrorf(kv.CodeInvalidParameter, "Kv-Bookmark",
			"revision %d is in the future: the mesh is at %d; send a bookmark back as an answer gave it", args.Least, page.AsOf)
	case page.AsOf < args.Least:
		return errors.New("the voter is behind")
	case args.MaxAgeNs >= 0 && (page.AgeNs < 0 || page.AgeNs > args.MaxAgeNs):
		return kv.Errorf(kv.CodeStaleBeyondLimit, "the page is older than was asked for")
	}
	return nil
}

func errText(err error) string {
	if err == nil {
		return "none is known"
	}
	return err.Error()
}

func (l *lister) askOne(ctx context.Context, id string, args *wire.ListArgs) (*wire.ListPage, error) {
	if id == l.self && l.local != nil {
		return l.local.list(ctx, args)
	}
	reply, err := l.rpc.Call(ctx, id, peer.Call{Method: wire.MethodList, Args: args, Idempotent: true, MaxReply: maxListBody})
	if err != nil {
		return nil, err
	}
	page := &wire.ListPage{}
	return page, peer.Decode(reply.Body, page)
}

// serveList answers another node's listing.
func (n *Node) serveList(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.ListArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	if args.Limit < 1 || args.Limit > kv.MaxListLimit {
		return nil, kv.Errorf(kv.CodeInvalidParameter, "a page has 1 to %d keys", kv.MaxListLimit)
	}
	page, err := n.answerer.list(ctx, &args)
	if err != nil {
		return nil, err
	}
	body, err := peer.Encode(page)
	return &peer.Response{Body: body}, err
}

// A cursor is base64url of: version 1 | MAC 16 | epoch 16 | namespace 16 | SHA-256 of prefix and delimiter 16 | last key.
// The MAC keeps clients from making positions up, the rest ties the cursor to its query.
const (
	cursorVersion = 1
	cursorHead    = 1 + 16 + 16 + 16 + 16
)

func (l *lister) sealCursor(epoch kv.Epoch, req api.ListRequest, last string) string {
	b := make([]byte, 17, cursorHead+len(last))
	b[0] = cursorVersion
	b = append(b, epoch[:]...)
	b = append(b, req.Namespace.ID[:]...)
	b = append(b, queryDigest(req)...)
	b = append(b, last...)
	copy(b[1:17], l.cursorMAC(b[17:]))
	return base64.RawURLEncoding.EncodeToString(b)
}

func (l *lister) openCursor(req api.ListRequest) (string, error) {
	if req.Cursor == "" {
		return "", nil
	}
	bad := func(why string) error {
		return kv.FieldErrorf(kv.CodeInvalidCursor, "cursor", "the cursor %s; begin the listing again without one", why)
	}
	b, err := base64.RawURLEncoding.DecodeString(req.Cursor)
	if err != nil || len(b) < cursorHead {
		return "", bad("is not one of this mesh")
	}
	if b[0] != cursorVersion || !hmac.Equal(b[1:17], l.cursorMAC(b[17:])) {
		return "", bad("is not one of this mesh")
	}
	if !bytes.Equal(b[33:49], req.Namespace.ID[:]) || !bytes.Equal(b[49:cursorHead], queryDigest(req)) {
		return "", bad("belongs to another query: namespace, prefix and delimiter must be the same on every page")
	}
	return string(b[cursorHead:]), nil
}

func (l *lister) cursorMAC(b []byte) []byte {
	m := hmac.New(sha256.New, l.cursorKey)
	_, _ = m.Write(b)
	return m.Sum(nil)[:16]
}

func queryDigest(req api.ListRequest) []byte {
	b := binary.AppendUvarint(nil, uint64(len(req.Prefix)))
	b = append(b, req.Prefix...)
	b = append(b, req.Delimiter...)
	sum := sha256.Sum256(b)
	return sum[:16]
}
