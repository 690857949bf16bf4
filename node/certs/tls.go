package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrWrongMeshKey is wrapped by handshake errors that mean: the two sides do not belong to the same mesh.
var ErrWrongMeshKey = errors.New("wrong mesh key")

// ErrOtherNode is wrapped by handshake errors that mean: the address belongs to another node of the mesh by now.
var ErrOtherNode = errors.New("another node answers at this address")

// ServerConfig is the TLS configuration of the side that is called. Any member of the mesh gets through the handshake;
// who may speak which protocol is decided by the identity afterwards.
//
// There are no session tickets: connections are few and long, a full handshake costs two Ed25519 signatures, and this way
// each one proves the possession of the key again.
func (a *Authority) ServerConfig(cert tls.Certificate, alpns ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		NextProtos:             alpns,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection does the verification
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := a.verify(cs, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// ClientConfig is the TLS configuration of the calling side. An expectNodeID that is not empty must be the node id in the
// certificate of the side that is called; the error of another one wraps ErrOtherNode.
func (a *Authority) ClientConfig(cert tls.Certificate, expectNodeID, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{alpn},
		ServerName:   a.name,
		// The library's own verification wants a host name in the certificate; a node is named by its id, whatever its
		// address. VerifyConnection verifies the chain and the id, for every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := a.verify(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if expectNodeID != "" && id.NodeID != expectNodeID {
				return fmt.Errorf("%w: want node %s, found %s", ErrOtherNode, expectNodeID, id)
			}
			return nil
		},
	}
}

// verify checks that the other side's certificate is signed by this authority, and nothing else, for this usage, and
// returns the identity in it. That the other side has the key is checked by the handshake.
func (a *Authority) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("the other side presented no certificate")
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         a.pool,
		Intermediates: x509.NewCertPool(), // none: the authority signs the nodes' certificates itself
		CurrentTime:   a.sane(time.Now()),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return Identity{}, fmt.Errorf("%w: the certificate of the other side is of another mesh", ErrWrongMeshKey)
	case err != nil:
		return Identity{}, fmt.Errorf("certificate of the other side: %w", err)
	}
	return identityIn(leaf)
}

// Handshake runs the handshake of c within ctx and says in its error what an operator can do something about: it wraps
// ErrWrongMeshKey or ErrOtherNode where that is the reason, on both sides.
func (a *Authority) Handshake(ctx context.Context, c *tls.Conn) error {
	err := c.HandshakeContext(ctx)
	if err == nil || errors.Is(err, ErrWrongMeshKey) || errors.Is(err, ErrOtherNode) {
		return err
	}
	// The caller verifies first, so the side that is called only sees an alert. Its SNI tells which mesh it is of. An
	// alert that reaches the caller instead can only be about its certificate, which the other side has judged.
	var op *net.OpError
	if name := c.ConnectionState().ServerName; errors.As(err, &op) && op.Op == "remote error" && name != "" && name != a.name {
		return fmt.Errorf("%w: the caller is of another mesh (%w)", ErrWrongMeshKey, err)
	}
	return err
}
