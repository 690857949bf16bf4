// Package auth decides whether a request may use a node's HTTP surfaces. Its one credential is the bearer token that
// the operator keeps in a file; every surface asks the same Token, and asks it before it looks at anything else.
package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"kvmesh/raftstore/kv"
)

const (
	// MinTokenBytes is the shortest token that is accepted: anything shorter can be guessed online.
	MinTokenBytes = 16
	// MaxTokenBytes is the longest: a token must fit into a header, and a larger file is surely another file.
	MaxTokenBytes = 4096
)

// Token is a bearer token, of which only the SHA-256 is kept. A nil *Token allows everything. It is safe for concurrent
// use, and prints as "[redacted]".
type Token struct {
	sum [sha256.Size]byte
}

// LoadToken reads the token from the file at path. White space around it does not count. It must have MinTokenBytes to
// MaxTokenBytes of printable ASCII without spaces, which is what an Authorization header can carry.
func LoadToken(path string) (*Token, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("api token: %w", err)
	}
	const most = MaxTokenBytes + 1024 // room for white space around the token
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("api token: %w", err)
	}
	if len(text) > most {
		return nil, fmt.Errorf("api token file %s: it has more than %d bytes; is this the right file?", path, MaxTokenBytes)
	}
	t, err := newToken(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("api token file %s: %w", path, err)
	}
	return t, nil
}

// newToken checks and digests a token. Its errors never contain it.
func newToken(token string) (*Token, error) {
	switch {
	case token == "":
		return nil, fmt.Errorf("it is empty; write a token of %d bytes or more, for example `openssl rand -hex 32`", MinTokenBytes)
	case len(token) < MinTokenBytes:
		return nil, fmt.Errorf("the token has %d bytes; it needs at least %d, for example `openssl rand -hex 32`",
			len(token), MinTokenBytes)
	case len(token) > MaxTokenBytes:
		return nil, fmt.Errorf("the token has more than %d bytes; is this the right file?", MaxTokenBytes)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("the token has a space, a line break or a byte that is not printable ASCII within it; " +
			"write one token, alone")
	}
	return &Token{sum: sha256.Sum256([]byte(token))}, nil
}

// Check returns nil when the request carries the token, as one `Authorization: Bearer <token>` header, and otherwise
// the same kv.CodeUnauthorized for every reason. It compares digests, in constant time, and does so for a missing or
// malformed header too, so that neither the answer nor its duration tells them apart.
func (t *Token) Check(r *http.Request) error {
	if t == nil {
		return nil
	}
	presented := bearer(r.Header.Values("Authorization"))
	sum := sha256.Sum256([]byte(presented))
	// No token is empty (newToken), so the digest of "" never matches.
	if subtle.ConstantTimeCompare(sum[:], t.sum[:]) != 1 {
		return kv.FieldErrorf(kv.CodeUnauthorized, "Authorization",
			"this node needs the header \"Authorization: Bearer <token>\" with the token of its token file")
	}
	return nil
}

// Accepts reports whether value, as the one Authorization header of a request, carries the token, as Check would. It does
// not allocate.
func (t *Token) Accepts(value []byte) bool {
	if t == nil {
		return true
	}
	scheme, token, _ := bytes.Cut(value, []byte(" "))
	if !bytes.EqualFold(scheme, []byte("Bearer")) {
		token = nil
	}
	sum := sha256.Sum256(bytes.TrimLeft(token, " "))
	return subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1
}

// bearer returns the token that the header carries, "" when there is none or the header is malformed or repeated.
func bearer(headers []string) string {
	if len(headers) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// LogValue keeps the digest out of logs.
func (t *Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// String keeps the digest out of printed structures.
func (t *Token) String() string {
	if t == nil {
		return "none"
	}
	return "[redacted]"
}

// GoString keeps the digest out of %#v.
func (t *Token) GoString() string { return t.String() }
