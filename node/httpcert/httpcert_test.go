package httpcert

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pair makes a certificate for a name, and its key, in PEM.
func pair(t *testing.T, name string, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}

// later is when the tests' certificates end. Virtual time begins in 2000.
var later = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// log is what a keeper says.
type log struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.buf.Reset()
	return l.buf.String()
}

// running runs a keeper of two files in virtual time.
func running(t *testing.T, test func(k *Keeper, certFile, keyFile string, said *log)) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, key := pair(t, "first", later)
	write(t, certFile, cert)
	write(t, keyFile, key)
	synctest.Test(t, func(t *testing.T) {
		said := &log{}
		k, err := Open(Options{
			CertFile: certFile, KeyFile: keyFile, Logger: slog.New(slog.NewTextHandler(said, nil)), Metrics: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { k.Run(ctx) })
		test(k, certFile, keyFile, said)
		cancel()
		all.Wait()
	})
}

// shown is the name in the certificate that a client is shown.
func shown(t *testing.T, k *Keeper) string {
	t.Helper()
	cert, err := k.Config("h2").GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.DNSNames[0]
}

// look waits until the files have been looked at.
func look() {
	time.Sleep(every)
	synctest.Wait()
}

// TestRenewed: new files are taken, written in place or by a link that is set to another directory; half of a renewal, or
// a broken one, changes nothing, and is told once.
func TestRenewed(t *testing.T) {
	running(t, func(k *Keeper, certFile, keyFile string, said *log) {
		look()
		if got := said.take(); got != "" || shown(t, k) != "first" {
			t.Errorf("nothing has changed: %s", got)
		}
		cert, key := pair(t, "second", later)
		write(t, certFile, cert)
		look()
		if got := said.take(); shown(t, k) != "first" || !strings.Contains(got, "refused") || !strings.Contains(got, "private key does not match") {
			t.Errorf("half a renewal: %q, %s", shown(t, k), got)
		}
		write(t, keyFile, key)
		look()
		if got := said.take(); shown(t, k) != "second" || !strings.Contains(got, "renewed") {
			t.Errorf("a renewal: %q, %s", shown(t, k), got)
		}
		// The time and the size of the file stay the same.
		info, err := os.Stat(certFile)
		if err != nil {
			t.Fatal(err)
		}
		broken := bytes.Replace(cert, []byte("M"), []byte("N"), 1)
		write(t, certFile, broken)
		if err := os.Chtimes(certFile, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		look()
		if got := said.take(); shown(t, k) != "second" || strings.Count(got, "refused") != 1 {
			t.Errorf("a broken file: %q, %s", shown(t, k), got)
		}
		look()
		if err := os.Remove(certFile); err != nil {
			t.Fatal(err)
		}
		look()
		look()
		if got := said.take(); shown(t, k) != "second" || strings.Count(got, "cannot be looked at") != 1 {
			t.Errorf("no file: %q, %s", shown(t, k), got)
		}
		// As cert-manager does it: both names are links through a link, which is replaced.
		dir := filepath.Dir(certFile)
		cert, key = pair(t, "third", later)
		if err := os.Mkdir(filepath.Join(dir, "v3"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "v3", "cert.pem"), cert)
		write(t, filepath.Join(dir, "v3", "key.pem"), key)
		for _, err := range []error{
			os.Symlink("v3", filepath.Join(dir, "data")), os.Symlink("data/cert.pem", certFile), os.Remove(keyFile),
			os.Symlink("data/key.pem", keyFile),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		look()
		if got := said.take(); shown(t, k) != "third" {
			t.Errorf("links: %q, %s", shown(t, k), got)
		}
	})
}

// TestExpiry: the end is warned of 14 days ahead, once a day, and is no reason to stop.
func TestExpiry(t *testing.T) {
	dir, until := t.TempDir(), time.Date(2050, 6, 1, 0, 0, 0, 0, time.UTC)
	cert, key := pair(t, "short", until)
	write(t, filepath.Join(dir, "cert"), cert)
	write(t, filepath.Join(dir, "key"), key)
	said := &log{}
	k, err := Open(Options{
		CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), Logger: slog.New(slog.NewTextHandler(said, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	k.warned = time.Time{} // of whenever this test runs
	for _, tc := range []struct {
		before time.Duration
		want   string
	}{
		{warnWithin + time.Second, ""},
		{warnWithin, "expires soon"},
		{warnWithin - warnEvery + time.Second, ""},
		{warnWithin - warnEvery, "expires soon"},
		{time.Hour, "expires soon"},
		{-time.Second, ""},
		{-warnEvery, "has expired"},
		{60 * 365 * 24 * time.Hour, ""}, // a clock that goes back
	} {
		said.take()
		k.warn(until.Add(-tc.before))
		if got := said.take(); !strings.Contains(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%v before the end: %q, want %q", tc.before, got, tc.want)
		}
	}
	if shown(t, k) != "short" {
		t.Error("it is not shown any more")
	}
}

// TestBadFiles: every mistake is told with the flag, the file and what to do.
func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t, "a", later)
	_, other := pair(t, "b", later)
	file := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		write(t, name, b)
		return name
	}
	good, goodKey := file("cert", cert), file("key", key)
	for _, tc := range []struct{ name, cert, key, flag, file, remedy string }{
		{"no certificate file", filepath.Join(dir, "none"), goodKey, "--http-cert", "none", "name the PEM file"},
		{"no key file", good, filepath.Join(dir, "none"), "--http-key", "none", "name the PEM file"},
		{"a directory", dir, goodKey, "--http-cert", dir, "regular file"},
		{"empty", file("empty", nil), goodKey, "--http-cert", "empty", "fullchain.pem"},
		{"DER", file("der", []byte{0x30, 0x82}), goodKey, "--http-cert", "der", "PEM"},
		{"exchanged", goodKey, good, "--http-cert", "key", "exchange the two"},
		{"no key in it", good, good, "--http-key", "cert", "privkey.pem"},
		{"another's key", good, file("other", other), "--http-key", "other", "its own key"},
		{"encrypted", good, file("locked", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})), "--http-key", "locked", "openssl pkey"},
		{"huge", file("huge", make([]byte, maxFileBytes+1)), goodKey, "--http-cert", "huge", "more than"},
		{"damaged", file("damaged", bytes.Replace(cert, []byte("M"), []byte("N"), 1)), goodKey, "--http-cert", "damaged", "certificate"},
	} {
		_, err := Open(Options{CertFile: tc.cert, KeyFile: tc.key})
		if err == nil {
			t.Errorf("%s: taken", tc.name)
			continue
		}
		for _, part := range []string{tc.flag, tc.file, tc.remedy} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v: it does not say %q", tc.name, err, part)
			}
		}
		if strings.Contains(err.Error(), "BEGIN PRIVATE KEY-----\n") {
			t.Errorf("%s: it tells the key", tc.name)
		}
	}
}
