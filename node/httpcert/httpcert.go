// Package httpcert keeps the certificate that a node shows to its HTTP clients. It comes from two PEM files, which
// somebody renews (certbot, cert-manager, a script): they are looked at again and again, and what is new and sound is
// taken without a restart. What is not sound is told, and changes nothing. It knows nothing of the certificates between
// nodes, which are package certs'.
package httpcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// every is how often the files are read: renewals come weeks before the end, and two small files cost nothing.
	every = 10 * time.Second
	// maxFileBytes bounds a file. A chain has a few KiB.
	maxFileBytes = 1 << 20
	// warnWithin is how long before its end a certificate is warned of, once a day. Who renews does so earlier.
	warnWithin = 14 * 24 * time.Hour
	warnEvery  = 24 * time.Hour
)

// Options name the files. Both are required.
type Options struct {
	// CertFile holds the certificate and its chain, in this order; KeyFile its private key. Both are PEM, and may be links.
	CertFile, KeyFile string
	Logger            *slog.Logger          // nil = discard
	Metrics           prometheus.Registerer // nil = not exported
}

// Keeper is the certificate as it was last found sound. It is safe for concurrent use.
type Keeper struct {
	opts    Options
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]
	reloads *prometheus.CounterVec

	// What follows is for Open and Run alone.
	seen   [2][]byte // the files as they were when they were last judged
	unread string    // why they could not be read the last time
	warned time.Time // when the end was last warned of
}

// Open reads the files. Its errors name the flag, the file and the remedy. It panics when its metrics are registered
// already.
func Open(o Options) (*Keeper, error) {
	k := &Keeper{opts: o, log: o.Logger}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	files, err := k.read()
	if err != nil {
		return nil, err
	}
	cert, err := k.parse(files)
	if err != nil {
		return nil, err
	}
	k.seen = files
	k.current.Store(cert)
	k.warn(time.Now())
	k.export(o.Metrics)
	return k, nil
}

func (k *Keeper) export(reg prometheus.Registerer) {
	k.reloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvmesh_http_certificate_reloads_total",
		Help: "Changes of the files of the public certificate, by result: taken, or refused because they are not sound.",
	}, []string{"result"})
	if reg == nil {
		return
	}
	reg.MustRegister(k.reloads, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvmesh_http_certificate_not_after_seconds", Help: "When the public certificate ends, in unix seconds.",
	}, func() float64 { return float64(k.current.Load().Leaf.NotAfter.Unix()) }))
}

// Config is TLS 1.2 or newer with the certificate as it is at each handshake, for these protocols, the best first.
func (k *Keeper) Config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}

// Run takes what the files become, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			k.look()
			k.warn(now)
		case <-ctx.Done():
			return
		}
	}
}

// look takes the files over if they have changed and are sound. Their contents are compared, because not every way to
// replace a file changes its time, and links hide it.
func (k *Keeper) look() {
	files, err := k.read()
	if err != nil {
		if why := err.Error(); why != k.unread { // told once
			k.unread = why
			k.reloads.WithLabelValues("refused").Inc()
			k.log.Error("the certificate of the public port cannot be looked at; the one before stays in use", "error", err)
		}
		return
	}
	k.unread = ""
	if bytes.Equal(files[0], k.seen[0]) && bytes.Equal(files[1], k.seen[1]) {
		return
	}
	k.seen = files
	cert, err := k.parse(files)
	if err != nil {
		// Of two files one is always replaced first: what is refused now may be whole at the next look.
		k.reloads.WithLabelValues("refused").Inc()
		k.log.Error("the new certificate of the public port is refused; the one before stays in use", "error", err,
			"in_use_until", k.current.Load().Leaf.NotAfter)
		return
	}
	k.current.Store(cert)
	k.warned = time.Time{}
	k.reloads.WithLabelValues("taken").Inc()
	k.log.Info("the certificate of the public port was renewed", "file", k.opts.CertFile, "names", cert.Leaf.DNSNames,
		"until", cert.Leaf.NotAfter)
}

// warn tells of a certificate that clients refuse, or soon will.
func (k *Keeper) warn(now time.Time) {
	leaf := k.current.Load().Leaf
	if now.Sub(k.warned) < warnEvery || (now.Add(warnWithin).Before(leaf.NotAfter) && !now.Before(leaf.NotBefore)) {
		return
	}
	k.warned = now
	args := []any{"file", k.opts.CertFile, "from", leaf.NotBefore, "until", leaf.NotAfter}
	switch {
	case now.Before(leaf.NotBefore):
		k.log.Warn("the certificate of the public port is not valid yet: clients refuse it; check this machine's clock", args...)
	case now.After(leaf.NotAfter):
		k.log.Warn("the certificate of the public port has expired: clients refuse it; replace the files, no restart is needed", args...)
	default:
		k.log.Warn("the certificate of the public port expires soon; replace the files, no restart is needed", args...)
	}
}

// read reads both files.
func (k *Keeper) read() (files [2][]byte, err error) {
	if files[0], err = readFile(k.opts.CertFile); err != nil {
		return files, fmt.Errorf("--http-cert %s: %w; name the PEM file with the certificate and its chain", k.opts.CertFile, err)
	}
	if files[1], err = readFile(k.opts.KeyFile); err != nil {
		return files, fmt.Errorf("--http-key %s: %w; name the PEM file with the private key, readable for this user", k.opts.KeyFile, err)
	}
	return files, nil
}

// readFile reads a small regular file: another kind could keep who opens it waiting.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		return nil, reason(err)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, reason(err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, reason(err)
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("it has more than %d bytes, which no certificate or key has", maxFileBytes)
	}
	return b, nil
}

// reason is err without the path, which is told anyway.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// parse makes a certificate of the files.
func (k *Keeper) parse(files [2][]byte) (*tls.Certificate, error) {
	certs, keys := blocks(files[0]), blocks(files[1])
	wrong := func(flag, file, what string) error { return fmt.Errorf("--http-%s %s: %s", flag, file, what) }
	switch {
	case !certs.cert && certs.key && keys.cert && !keys.key:
		return nil, wrong("cert", k.opts.CertFile, "it holds the private key, and the file of --http-key the certificate: exchange the two")
	case !certs.cert:
		return nil, wrong("cert", k.opts.CertFile, "it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); "+
			"name the file with the certificate and its chain, fullchain.pem of certbot or tls.crt of cert-manager")
	case keys.encrypted:
		return nil, wrong("key", k.opts.KeyFile, `the private key needs a passphrase, for which nobody can be asked; `+
			`take it off with "openssl pkey -in FILE -out NEW", and keep the new file readable for this user only`)
	case !keys.key:
		return nil, wrong("key", k.opts.KeyFile, "it holds no private key in PEM form (-----BEGIN PRIVATE KEY-----); "+
			"name the file with the key, privkey.pem of certbot or tls.key of cert-manager")
	}
	cert, err := tls.X509KeyPair(files[0], files[1])
	if err != nil {
		return nil, fmt.Errorf("--http-cert %s and --http-key %s: %w; name a certificate and its own key, the certificate before its chain",
			k.opts.CertFile, k.opts.KeyFile, err)
	}
	if cert.Leaf == nil { // by a setting of the environment
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, wrong("cert", k.opts.CertFile, err.Error())
		}
	}
	return &cert, nil
}

// kinds is what a PEM file has.
type kinds struct{ cert, key, encrypted bool }

func blocks(b []byte) (k kinds) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return k
		}
		switch {
		case block.Type == "CERTIFICATE":
			k.cert = true
		case block.Type == "ENCRYPTED PRIVATE KEY", block.Headers["DEK-Info"] != "":
			k.encrypted = true
		case bytes.HasSuffix([]byte(block.Type), []byte("PRIVATE KEY")):
			k.key = true
		}
	}
}
