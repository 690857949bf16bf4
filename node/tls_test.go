package node_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvmesh/node"
	"kvmesh/node/certs"
)

// certificate writes a certificate for loopback and its key into dir.
func certificate(t *testing.T, dir string) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, pool = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(text)
	for name, b := range map[string][]byte{certFile: text, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile, pool
}

// part is one entry of Server-Timing.
var part = regexp.MustCompile(`^([a-z]+);dur=(\d+\.\d{3})(?:;desc=([a-z-]+))?$`)

// parts reads a Server-Timing header: name and description, and that the parts fit into the total.
func parts(t *testing.T, header string) []string {
	t.Helper()
	var names []string
	var sum, total float64
	for entry := range strings.SplitSeq(header, ", ") {
		m := part.FindStringSubmatch(entry)
		if m == nil {
			t.Fatalf("Server-Timing: %q", header)
		}
		took, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		if m[1] == "total" {
			total = took
		} else {
			sum += took
		}
		names = append(names, strings.TrimSuffix(m[1]+" "+m[3], " "))
	}
	if sum > total+0.002*float64(len(names)) { // what rounding may add
		t.Errorf("the parts are more than the whole: %q", header)
	}
	return names
}

// TestTLSAndTiming: a node with a certificate serves every surface over TLS, by HTTP/1.1 and HTTP/2, and tells those who
// ask where the time of a request went, and nobody else.
func TestTLSAndTiming(t *testing.T) {
	cert, key, pool := certificate(t, t.TempDir())
	n := single(t, node.Options{
		Role: certs.RoleVoter, Name: "v", DataDir: t.TempDir(), MeshKey: certs.NewMeshKey(), BootstrapExpect: 1,
		HTTPCert: cert, HTTPKey: key,
	}, nil)
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	base := n.HTTPURL()
	if !strings.HasPrefix(base, "https://") {
		t.Fatal(base)
	}
	for _, proto := range []int{1, 2} {
		p := new(http.Protocols)
		p.SetHTTP1(proto == 1)
		p.SetHTTP2(proto == 2)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: p}
		t.Cleanup(transport.CloseIdleConnections)
		ask := func(method, path, body string, headers map[string]string) http.Header {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			for name, v := range headers {
				req.Header.Set(name, v)
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(method, path, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close() // it has been read
			if resp.ProtoMajor != proto {
				t.Errorf("%s %s: %s", method, path, resp.Proto)
			}
			return resp.Header
		}
		native := "/v1/kv/default/k" + strconv.Itoa(proto)
		bound := map[string]string{"Kv-Namespace": "default"}
		for _, tc := range []struct {
			method, path, body string
			headers            map[string]string
			want               []string
		}{
			{"PUT", native, "value", nil, []string{"body", "commit", "total"}},
			{"PUT", native + "L", strings.Repeat("v", 2<<20), nil, []string{"body", "commit", "total"}},
			{"GET", native, "", nil, []string{"cache hit", "total"}},
			{"HEAD", native, "", nil, []string{"cache hit", "total"}},
			{"GET", native + "L", "", nil, []string{"cache hit", "open", "total"}},
			{"GET", native + "?consistency=strong", "", nil, []string{"cache passed", "fill store", "total"}},
			{"GET", native + "none", "", nil, []string{"cache miss", "fill central", "total"}},
			{"GET", native, "", map[string]string{"If-None-Match": "*"}, []string{"cache hit", "total"}},
			{"GET", "/v1/kv/default", "", nil, []string{"total"}},
			{"GET", "/k" + strconv.Itoa(proto) + "?urlencoded=true", "", bound, []string{"cache hit", "total"}},
			{"PUT", "/b", "value", bound, []string{"body", "commit", "total"}},
			{"DELETE", native, "", nil, []string{"commit", "total"}},
		} {
			headers := map[string]string{"Kv-Timing": "1"}
			maps.Copy(headers, tc.headers)
			got := ask(tc.method, tc.path, tc.body, headers)
			if names := parts(t, got.Get("Server-Timing")); !slices.Equal(names, tc.want) || got.Get("Cache-Control") != "no-store" {
				t.Errorf("HTTP/%d %s %s: %q, want %q; %v", proto, tc.method, tc.path, names, tc.want, got)
			}
			got = ask(tc.method, tc.path, tc.body, tc.headers)
			if asked := fmt.Sprint(got["Server-Timing"]); asked != "[]" {
				t.Errorf("HTTP/%d %s %s: not asked for: %s", proto, tc.method, tc.path, asked)
			}
		}
	}
}

// TestBadCertificate: a node does not start with a certificate that it cannot show.
func TestBadCertificate(t *testing.T) {
	cert, _, _ := certificate(t, t.TempDir())
	_, other, _ := certificate(t, t.TempDir())
	n, err := node.New(node.Options{
		Role: certs.RoleVoter, Name: "v", Region: "here", DataDir: t.TempDir(), MeshKey: certs.NewMeshKey(), BootstrapExpect: 1,
		HTTP: "127.0.0.1:0", Peer: "127.0.0.1:0", Gossip: "127.0.0.1:0", Admin: "127.0.0.1:0", HTTPCert: cert, HTTPKey: other,
	})
	if err == nil || n != nil || !strings.Contains(err.Error(), "--http-cert "+cert) || !strings.Contains(err.Error(), other) {
		t.Errorf("%v, %v", n, err)
	}
}
