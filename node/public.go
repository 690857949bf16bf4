package node

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"log/slog"
	"net"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/hitpath"
	"kvmesh/raftstore/kv"
)

// httpServer is a server of the public listener: the hit path before net/http, or net/http alone on a node that serves
// nothing yet.
type httpServer interface {
	Serve(l net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}

// openPublic makes the server of the public listener.
func (n *Node) openPublic(log *slog.Logger) httpServer {
	surfaces, counts := n.surfaces()
	handler := n.untilDrained(surfaces)
	o := hitpath.Options{
		Source: memory{n.service}, Handler: handler, Next: api.NewServer(handler, api.ServerOptions{Logger: log}),
		HTTP2:  api.NewServer(handler, api.ServerOptions{Logger: log, HTTP2: true}),
		Counts: counts, Logger: log, Metrics: n.reg,
	}
	if n.httpCert != nil {
		o.TLS = n.httpCert.Config("h2", "http/1.1")
	}
	if n.opts.Token != nil {
		o.Accepts = n.opts.Token.Accepts
	}
	return hitpath.New(o)
}

// listenAlone is the public listener for net/http alone, with TLS if the node has a certificate; without HTTP/2.
func (n *Node) listenAlone() net.Listener {
	l := n.httpLn
	if n.httpCert != nil {
		l = tls.NewListener(l, n.httpCert.Config("http/1.1"))
	}
	return api.LimitListener(l, publicConns())
}

// keepCertificate takes renewed certificates of the public listener, if it has one.
func (n *Node) keepCertificate() {
	if n.httpCert != nil {
		n.task(n.httpCert.Run)
	}
}

// memory is what the hit path sees of a node.
type memory struct{ s *service }

// Namespace resolves a namespace that this node knows.
func (m memory) Namespace(ref []byte, byID bool) (kv.NamespaceID, bool) {
	x := m.s.control.cur.Load()
	var id kv.NamespaceID
	if len(ref) == hex.EncodedLen(len(id)) {
		if _, err := hex.Decode(id[:], ref); err == nil {
			if x.byID[id] != nil {
				return id, true
			}
		}
	}
	if byID {
		return id, false
	}
	e := x.byTitle[string(ref)]
	if e == nil {
		return id, false
	}
	return e.ns.ID, true
}

// Held answers a default read of a value that is whole in memory and certainly has not expired.
func (m memory) Held(v *api.Value, ns kv.NamespaceID, key []byte, limit time.Duration) bool {
	held := m.s.cache.Look(ns, key)
	e := held.Entry()
	if e == nil || e.Absent() || e.Streamed() || (e.Expiry != 0 && !m.s.clock.before(e.Expiry)) {
		return false
	}
	ans, ok := m.s.cache.Fresh(held, limit)
	if !ok {
		return false
	}
	*v = api.Value{
		Epoch: e.Epoch(), Revision: e.Revision, AsOf: ans.AsOf, Metadata: e.Metadata(), Expiry: e.Expiry, Size: e.Size(),
		Tier: api.Tier(ans.Tier), Staleness: ans.Age, Bytes: e.Value(),
	}
	return true
}
