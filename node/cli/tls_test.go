package cli

import (
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTLSNode: commands reach a node whose certificate is of an authority of the user's own, and say what to do when they
// do not.
func TestTLSNode(t *testing.T) {
	f := newFake(t)
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that are to fail
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca, other := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "other.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, b := range map[string][]byte{ca: append([]byte("a comment\n"), text...), other: []byte("no certificate")} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newShell(server.URL)
	s.ok(t, "key", "put", "--cacert", ca, "k", "value")
	s.env["KVMESH_CACERT"] = ca
	if got := s.ok(t, "key", "get", "k"); got != "value" {
		t.Errorf("%q", got)
	}
	s.ok(t, "bench", "--duration", "10ms", "--warmup", "0s", "--keys", "3", "--connections", "1", "-o", "json")
	config := s.ok(t, "worker-config")
	line := strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", `\n`)
	if !strings.Contains(config, "trustedCertificates = [\""+line) || strings.Contains(config, "a comment") {
		t.Errorf("what is to be trusted is not in %s", config)
	}
	delete(s.env, "KVMESH_CACERT")
	for _, tc := range []struct {
		url, cacert, want string
		code              int
	}{
		{server.URL, "", "--cacert or KVMESH_CACERT", ExitFailure},
		{strings.Replace(server.URL, "https", "http", 1), "", "HTTPS server", ExitFailure},
		{f.URL, "", "value", 0},
		{strings.Replace(f.URL, "http", "https", 1), "", "write http://", ExitFailure},
		{strings.Replace(server.URL, "127.0.0.1", "localhost", 1), ca, "a name in --url that stands in the node's certificate", ExitFailure},
		{server.URL, other, "--cacert: " + other + " holds no certificate", ExitUsage},
		{server.URL, filepath.Join(dir, "none"), "--cacert", ExitUsage},
	} {
		r := s.run("key", "get", "--url", tc.url, "--cacert", tc.cacert, "k")
		if r.code != tc.code || !strings.Contains(r.out+r.err, tc.want) {
			t.Errorf("%s with %q: exit %d: %s%s; want %q", tc.url, tc.cacert, r.code, r.out, r.err, tc.want)
		}
	}
}
