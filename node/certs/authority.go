package certs

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// leafYears is how long a node's certificate lives. A node issues a new one whenever it starts, and whoever holds the
// mesh key can issue one, so a short life would protect nobody.
const leafYears = 10

// Authority is the certificate authority of one mesh.
type Authority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
	pool *x509.CertPool
	name string // what clients put into SNI, see ServerName
}

// Authority derives the certificate authority of the mesh. The same mesh key gives, byte for byte, the same certificate
// on every node and in every release: serial number, validity and key id are fixed, and Ed25519 signatures are
// deterministic (RFC 8032).
func (k MeshKey) Authority() (*Authority, error) {
	key := ed25519.NewKeyFromSeed(k.derive(labelCA, ed25519.SeedSize))
	pub := key.Public().(ed25519.PublicKey)
	id := sha256.Sum256(pub)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "kvmesh mesh authority"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          id[:20], // fixed here, because the library's own choice has changed between releases
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		return nil, fmt.Errorf("mesh authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("mesh authority: %w", err)
	}
	a := &Authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	a.name = "m" + hex.EncodeToString(id[:8]) + ".kvmesh"
	return a, nil
}

// Certificate is the authority's own certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// ServerName is what a dialler of this mesh sends as SNI: a name made from the authority's public key. Nothing trusts it;
// it lets the side that is called tell a caller of another mesh from one that hung up for another reason, because the
// alert is the same.
func (a *Authority) ServerName() string { return a.name }

// Issue makes a certificate with a fresh key for one node. It is valid from 2020, because the clocks of two nodes may
// differ, and for ten years from now.
func (a *Authority) Issue(nodeID, role string) (tls.Certificate, error) {
	id := Identity{NodeID: nodeID, Role: role}
	if err := id.validate(); err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate: %w", err)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate: %w", err)
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails
	serial[0] &= 0x7f        // RFC 5280: positive
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: id.NodeID},
		URIs:         []*url.URL{id.uri()},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.sane(time.Now()).AddDate(leafYears, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// sane moves a time before the authority's first day to that day: a machine without a clock battery wakes up in 1970, and
// must be able to join the mesh all the same.
func (a *Authority) sane(t time.Time) time.Time {
	if t.Before(a.cert.NotBefore) {
		return a.cert.NotBefore
	}
	return t
}
