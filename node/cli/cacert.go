package cli

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	ucli "github.com/urfave/cli/v2"
)

// maxCACertBytes bounds a file of certificates; the ones that a system trusts have about 200 KiB.
const maxCACertBytes = 4 << 20

func caCertFlag() ucli.Flag {
	return &ucli.StringFlag{
		Name: "cacert", Usage: "PEM `FILE` with certificates to trust beside the system's, for https URLs [$KVMESH_CACERT]",
	}
}

// roots are the certificates that are trusted: the system's and those of --cacert. Without the flag they are nil, which
// means the system's; texts are those of the file, each in PEM.
func (r *run) roots(c *ucli.Context) (pool *x509.CertPool, texts []string, err error) {
	file := r.fromEnv(c, "cacert", "CACERT")
	if file == "" {
		return nil, nil, nil
	}
	if texts, err = readCACerts(file); err != nil {
		return nil, nil, usagef("--cacert: %v", err)
	}
	if pool, err = x509.SystemCertPool(); err != nil { // a machine without any
		pool = x509.NewCertPool()
	}
	for _, text := range texts {
		pool.AppendCertsFromPEM([]byte(text)) // readCACerts has parsed it
	}
	return pool, texts, nil
}

// readCACerts reads the certificates of a PEM file.
func readCACerts(file string) (texts []string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCACertBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(b) > maxCACertBytes {
		return nil, fmt.Errorf("%s has more than %d bytes; is it the right file?", file, maxCACertBytes)
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificate %d of %s cannot be read: %w", len(texts)+1, file, err)
		}
		texts = append(texts, string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})))
	}
	if len(texts) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", file)
	}
	return texts, nil
}

// tlsRemedy is what the user of a command can do about a connection that failed for TLS; "" when it failed for something else.
func tlsRemedy(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return "If the node's certificate is of an authority of your own, name the file with that one's certificate with --cacert or KVMESH_CACERT."
	case errors.As(err, &name):
		return "Use a name in --url that stands in the node's certificate, or give the node one with this name."
	case errors.As(err, &invalid):
		return "The node needs another certificate; it takes it over from its files without a restart."
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "No TLS is spoken there: write http:// in --url or KVMESH_URL."
	}
	return ""
}
