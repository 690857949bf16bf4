package certs

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixedKey is the key of the golden values: 01 02 … 20.
func fixedKey() MeshKey {
	var k MeshKey
	for i := range k {
		k[i] = byte(i + 1)
	}
	return k
}

func mustAuthority(t *testing.T, k MeshKey) *Authority {
	t.Helper()
	a, err := k.Authority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustIssue(t *testing.T, a *Authority, id, role string) tls.Certificate {
	t.Helper()
	c, err := a.Issue(id, role)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDerivedValuesNeverChange pins what every node of a mesh derives by itself: another value in a later release would
// split a mesh during an upgrade, or lose the keys that the KEK has wrapped.
func TestDerivedValuesNeverChange(t *testing.T) {
	k := fixedKey()
	sum := sha256.Sum256(mustAuthority(t, k).Certificate().Raw)
	got := map[string]string{
		"gossip": hex.EncodeToString(k.GossipKey()),
		"label":  k.GossipLabel(),
		"kek":    hex.EncodeToString(k.KEK()),
		"ca":     hex.EncodeToString(sum[:]),
		"sni":    mustAuthority(t, k).ServerName(),
	}
	want := map[string]string{
		"gossip": "d4240f5b2c7ad590375081e3f4698bd50b3df61e4ab6a1925f922c13a824d0e7",
		"label":  "88b84cd8005c030d221ea18a34596bd9",
		"kek":    "324d118ee7f40d303a10b9c47b459ce6671818c99913401ba019975063888dd7",
		"ca":     "59804294f079d4a92c609977c9e8520e182f4792aa1d325ae0e75c1b7b79e253",
		"sni":    "md2f0fe5df71a7f6a.kvmesh",
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s = %s, want %s", name, got[name], want[name])
		}
	}
}

func TestMeshKeyNeverPrintsItself(t *testing.T) {
	k := fixedKey()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
		fmt.Fprintf(&out, verb+"\n", k)
		fmt.Fprintf(&out, verb+"\n", struct{ Key MeshKey }{k})
		fmt.Fprintf(&out, verb+"\n", &k)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", k, "in", struct{ Key MeshKey }{k})
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", k, "in", struct{ Key MeshKey }{k})
	if err := json.NewEncoder(&out).Encode(map[string]any{"key": k}); err != nil {
		t.Fatal(err)
	}
	lower := strings.ToLower(out.String())
	for _, secret := range []string{k.Encode()[:8], "0x1, 0x2, 0x3", "1 2 3 4", "1,2,3,4", "\x01\x02\x03", `\x01\x02\x03`} {
		if strings.Contains(lower, secret) {
			t.Errorf("the output shows %q of the key:\n%s", secret, lower)
		}
	}
}

func TestMeshKeyFile(t *testing.T) {
	k := NewMeshKey()
	for _, tc := range []struct {
		name, content string
		mode          os.FileMode
		wantErr, warn string
	}{
		{"good", k.Encode() + "\n", 0o600, "", ""},
		{"no newline", k.Encode(), 0o400, "", ""},
		{"upper case, CRLF", strings.ToUpper(k.Encode()) + "\r\n", 0o600, "", ""},
		{"readable by others", k.Encode() + "\n", 0o644, "", "chmod 600"},
		{"readable by the group", k.Encode() + "\n", 0o640, "", "mode 0640"},
		{"empty", "", 0o600, "64 hex digits", ""},
		{"short", k.Encode()[:62], 0o600, "this has 62 characters", ""},
		{"two keys", k.Encode() + "\n" + k.Encode(), 0o600, "this has 129 characters", ""},
		{"not hex", strings.Repeat("zz", 32), 0o600, "other characters", ""},
		{"zeros", strings.Repeat("0", 64), 0o600, "all zeros", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mesh.key")
			if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
				t.Fatal(err)
			}
			got, warning, err := ReadMeshKeyFile(path)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) || !strings.Contains(err.Error(), path) {
					t.Fatalf("error %v, want one with %q and the path", err, tc.wantErr)
				}
				if len(tc.content) >= 62 && strings.Contains(err.Error(), tc.content[:16]) {
					t.Errorf("the error shows the file's content: %v", err)
				}
				return
			}
			if err != nil || got != k {
				t.Fatalf("key differs or error %v", err)
			}
			if (warning == "") != (tc.warn == "") || !strings.Contains(warning, tc.warn) {
				t.Errorf("warning %q, want %q", warning, tc.warn)
			}
		})
	}
	if _, _, err := ReadMeshKeyFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestIssueRefusesBadIdentities(t *testing.T) {
	a := mustAuthority(t, fixedKey())
	for _, id := range []Identity{
		{"", RoleEdge},
		{"a/b", RoleEdge},
		{"a b", RoleEdge},
		{strings.Repeat("x", maxNodeID+1), RoleEdge},
		{"n1", ""},
		{"n1", "root"},
	} {
		if _, err := a.Issue(id.NodeID, id.Role); err == nil {
			t.Errorf("Issue(%q, %q) succeeded", id.NodeID, id.Role)
		}
	}
}

// shake runs a handshake over loopback and returns the errors of both sides, and the identities they saw. (A net.Pipe
// holds no bytes: a side that sends an alert while the other one still writes its flight would block.)
func shake(t *testing.T, ca, sa *Authority, client, server *tls.Config) (cid, sid Identity, cerr, serr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cp, sp := tcpPair(t)
	cc, sc := tls.Client(cp, client), tls.Server(sp, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if serr = sa.Handshake(ctx, sc); serr == nil {
			sid, serr = IdentityOf(sc.ConnectionState())
		}
		// A caller learns what the other side thinks of its certificate only when it reads.
		if serr == nil {
			_, serr = sc.Write([]byte("x"))
		}
		_ = sp.Close()
	}()
	if cerr = ca.Handshake(ctx, cc); cerr == nil {
		cid, cerr = IdentityOf(cc.ConnectionState())
	}
	if cerr == nil {
		_, cerr = cc.Read(make([]byte, 1))
	}
	_ = cp.Close()
	<-done
	return cid, sid, cerr, serr
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestHandshakeMatrix(t *testing.T) {
	a, other := mustAuthority(t, fixedKey()), mustAuthority(t, NewMeshKey())
	server := a.ServerConfig(mustIssue(t, a, "server", RoleVoter), "p/1", "p/2")
	cert := mustIssue(t, a, "client", RoleEdge)

	t.Run("the same mesh", func(t *testing.T) {
		cid, sid, cerr, serr := shake(t, a, a, a.ClientConfig(cert, "server", "p/2"), server)
		if cerr != nil || serr != nil {
			t.Fatal(cerr, serr)
		}
		if want := (Identity{"server", RoleVoter}); cid != want {
			t.Errorf("the client saw %v, want %v", cid, want)
		}
		if want := (Identity{"client", RoleEdge}); sid != want {
			t.Errorf("the server saw %v, want %v", sid, want)
		}
	})
	t.Run("a caller of another mesh", func(t *testing.T) {
		c := other.ClientConfig(mustIssue(t, other, "client", RoleEdge), "server", "p/1")
		_, _, cerr, serr := shake(t, other, a, c, server)
		for side, err := range map[string]error{"client": cerr, "server": serr} {
			if !errors.Is(err, ErrWrongMeshKey) || !strings.Contains(err.Error(), "wrong mesh key") {
				t.Errorf("%s: %v, want wrong mesh key", side, err)
			}
		}
	})
	t.Run("a caller that trusts anybody", func(t *testing.T) {
		c := other.ClientConfig(mustIssue(t, other, "client", RoleEdge), "server", "p/1")
		c.VerifyConnection, c.ServerName = nil, a.ServerName()
		if _, _, cerr, serr := shake(t, other, a, c, server); cerr == nil || !errors.Is(serr, ErrWrongMeshKey) {
			t.Errorf("client %v, server %v; want both refused, the server for a wrong mesh key", cerr, serr)
		}
	})
	t.Run("a caller without a certificate", func(t *testing.T) {
		c := a.ClientConfig(cert, "server", "p/1")
		c.Certificates = nil
		if _, _, cerr, serr := shake(t, a, a, c, server); cerr == nil || serr == nil {
			t.Errorf("client %v, server %v; want both refused", cerr, serr)
		}
	})
	t.Run("another node at the address", func(t *testing.T) {
		_, _, cerr, serr := shake(t, a, a, a.ClientConfig(cert, "elsewhere", "p/1"), server)
		if !errors.Is(cerr, ErrOtherNode) || !strings.Contains(cerr.Error(), "elsewhere") ||
			!strings.Contains(cerr.Error(), "server (voter)") {
			t.Errorf("client: %v, want both node ids", cerr)
		}
		if serr == nil || errors.Is(serr, ErrWrongMeshKey) {
			t.Errorf("server: %v; the mesh key is right, and a false hint sends the operator the wrong way", serr)
		}
	})
	t.Run("any node will do", func(t *testing.T) {
		if _, _, cerr, serr := shake(t, a, a, a.ClientConfig(cert, "", "p/1"), server); cerr != nil || serr != nil {
			t.Error(cerr, serr)
		}
	})
	t.Run("an unknown protocol", func(t *testing.T) {
		if _, _, cerr, serr := shake(t, a, a, a.ClientConfig(cert, "server", "p/3"), server); cerr == nil || serr == nil {
			t.Errorf("client %v, server %v; want both refused", cerr, serr)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		c := a.ClientConfig(cert, "server", "p/1")
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if _, _, cerr, serr := shake(t, a, a, c, server); cerr == nil || serr == nil {
			t.Errorf("client %v, server %v; want both refused", cerr, serr)
		}
	})
}

// A node's certificate must not be able to sign another's: an edge could make itself a voter.
func TestALeafSignsNothing(t *testing.T) {
	a := mustAuthority(t, fixedKey())
	edge := mustIssue(t, a, "edge", RoleEdge)
	forger := &Authority{cert: edge.Leaf, key: edge.PrivateKey.(ed25519.PrivateKey), pool: a.pool, name: a.name}
	forged, err := forger.Issue("edge", RoleVoter)
	if err != nil {
		t.Fatal(err)
	}
	forged.Certificate = append(forged.Certificate, edge.Certificate...)
	server := a.ServerConfig(mustIssue(t, a, "server", RoleVoter), "p/1")
	if _, sid, _, serr := shake(t, a, a, a.ClientConfig(forged, "server", "p/1"), server); serr == nil {
		t.Errorf("the server accepted %v", sid)
	}
}

// Inside the bubble it is the year 2000, before the authority's first day, as on a machine without a clock battery.
func TestAClockThatIsFarBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustAuthority(t, fixedKey())
		cert := mustIssue(t, a, "server", RoleVoter)
		cs := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert.Leaf}}
		for _, tc := range []struct {
			now  time.Time
			want string
		}{
			{time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), ""},
			{time.Date(2029, 12, 31, 23, 59, 59, 0, time.UTC), ""}, // ten years from the authority's first day
			{time.Date(2030, 1, 1, 0, 0, 1, 0, time.UTC), "expired"},
		} {
			time.Sleep(time.Until(tc.now))
			id, err := a.verify(cs, x509.ExtKeyUsageServerAuth)
			switch {
			case tc.want == "" && (err != nil || id.NodeID != "server"):
				t.Errorf("at %v: %v, %v", tc.now, id, err)
			case tc.want != "" && (err == nil || errors.Is(err, ErrWrongMeshKey) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("at %v: %v, want %q", tc.now, err, tc.want)
			}
		}
	})
}
