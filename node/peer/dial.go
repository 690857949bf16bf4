package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// DefaultDialTimeout bounds connecting and the handshake together. It spans two round trips around the world and one lost
// packet.
const DefaultDialTimeout = 5 * time.Second

// Shaper delays what this node sends and receives, for `kvmesh dev --wan` and tests.
type Shaper interface {
	// Delay is the one-way delay to an address, 0 for none. It does not block.
	Delay(addr string) time.Duration
	// WrapConn returns a connection that behaves like c, which was dialled to addr, from further away. It owns c.
	WrapConn(c net.Conn, addr string) net.Conn
}

// Dialer opens connections to the peer ports of other nodes. Its fields must not change once it is used.
type Dialer struct {
	Authority *certs.Authority
	Cert      tls.Certificate
	// Resolve returns where a node's peer port is at present, from what the mesh knows. It does not block.
	Resolve func(nodeID string) (addr string, ok bool)
	// Shaper is optional.
	Shaper Shaper
	// Timeout bounds connecting and the handshake together. 0: DefaultDialTimeout.
	Timeout time.Duration
	// DialContext replaces the network. nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Dial connects to the peer port of a node and makes sure that it is this node. Whether the node lets the caller speak
// alpn shows in the first Read. An unknown node is a *kv.Error with CodeUnavailable; other errors wrap
// certs.ErrWrongMeshKey, certs.ErrOtherNode, the context's error, or what the network said.
func (d *Dialer) Dial(ctx context.Context, nodeID, alpn string) (*Conn, error) {
	addr, ok := d.Resolve(nodeID)
	if !ok {
		return nil, kv.Errorf(kv.CodeUnavailable, "the address of node %s is not known", nodeID)
	}
	return d.DialAddr(ctx, addr, nodeID, alpn)
}

// DialAddr is Dial for a known address. With an empty nodeID any node of the mesh will do; Conn.Peer tells which it is.
func (d *Dialer) DialAddr(ctx context.Context, addr, nodeID, alpn string) (*Conn, error) {
	timeout := d.Timeout
	if timeout <= 0 {
		timeout = DefaultDialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := d.dial(ctx, addr, nodeID, alpn)
	if err != nil {
		return nil, fmt.Errorf("dial node %s at %s: %w", nodeID, addr, err)
	}
	return c, nil
}

func (d *Dialer) dial(ctx context.Context, addr, nodeID, alpn string) (*Conn, error) {
	dial := d.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	raw, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tcp, err := tuneTCP(raw)
	if err != nil {
		_ = raw.Close() // nothing was said on it
		return nil, err
	}
	if d.Shaper != nil {
		if shaped := d.Shaper.WrapConn(raw, addr); shaped != raw {
			raw, tcp = shaped, nil // the wrapper reads from the socket: it must not be touched below it
		}
	}
	tc := tls.Client(raw, d.Authority.ClientConfig(d.Cert, nodeID, alpn))
	if err := d.Authority.Handshake(ctx, tc); err != nil {
		_ = raw.Close()
		return nil, err
	}
	cs := tc.ConnectionState()
	id, err := certs.IdentityOf(cs)
	if err == nil && cs.NegotiatedProtocol != alpn {
		err = fmt.Errorf("node %s does not speak %s", id, alpn)
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &Conn{
		Conn: tc, raw: raw, tcp: tcp, peer: id, alpn: alpn,
		drain: context.Background(), awaitHello: true,
	}, nil
}
