package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// The roles that a certificate can state.
const (
	RoleVoter   = "voter"
	RoleLearner = "learner"
	RoleEdge    = "edge"
)

// uriScheme of the subject alternative name that holds the identity: kvmesh://<node id>/<role>.
const uriScheme = "kvmesh"

// maxNodeID bounds a node id; a UUID has 36 characters.
const maxNodeID = 64

// Identity is what a certificate says about a node.
type Identity struct {
	NodeID string
	Role   string
}

// String is "<node id> (<role>)".
func (i Identity) String() string { return i.NodeID + " (" + i.Role + ")" }

// validate accepts node ids of letters, digits, '-' and '_', and the three roles.
func (i Identity) validate() error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	if i.NodeID == "" || len(i.NodeID) > maxNodeID || strings.ContainsFunc(i.NodeID, bad) {
		return fmt.Errorf("node id %q: want 1 to %d letters, digits, '-' and '_'", i.NodeID, maxNodeID)
	}
	switch i.Role {
	case RoleVoter, RoleLearner, RoleEdge:
		return nil
	}
	return fmt.Errorf("role %q: want %s, %s or %s", i.Role, RoleVoter, RoleLearner, RoleEdge)
}

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: uriScheme, Host: i.NodeID, Path: "/" + i.Role}
}

// IdentityOf returns the identity of the other side. It fails when the handshake is not complete or the certificate does
// not state exactly one identity; with the settings of ServerConfig and ClientConfig a finished handshake always has one.
func IdentityOf(cs tls.ConnectionState) (Identity, error) {
	if !cs.HandshakeComplete {
		return Identity{}, errors.New("the TLS handshake is not complete")
	}
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("the other side presented no certificate")
	}
	return identityIn(cs.PeerCertificates[0])
}

func identityIn(cert *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range cert.URIs {
		if u.Scheme != uriScheme {
			continue // an operator's CA may add names of its own
		}
		id := Identity{NodeID: u.Host, Role: strings.TrimPrefix(u.Path, "/")}
		if err := id.validate(); err != nil {
			return Identity{}, fmt.Errorf("certificate name %q: %w", u, err)
		}
		found = append(found, id)
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("the certificate states %d identities; want one URI name kvmesh://<node id>/<role>",
			len(found))
	}
	return found[0], nil
}
