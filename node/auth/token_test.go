package auth

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

const secret = "correct-horse-battery-staple"

func tokenFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, content string) *Token {
	t.Helper()
	tok, err := LoadToken(tokenFile(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestLoadTokenRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ content, want string }{
		"empty":       {"", "empty"},
		"blank":       {" \n\t\n", "empty"},
		"15 bytes":    {strings.Repeat("x", 15) + "\n", "15 bytes"},
		"two lines":   {secret + "\n" + secret, "space"},
		"inner space": {"correct horse battery", "space"},
		"not ASCII":   {"correct-hörse-battery", "printable ASCII"},
		"NUL":         {"correct-horse\x00battery", "printable ASCII"},
		"huge":        {strings.Repeat("x", MaxTokenBytes+1), "more than 4096"},
		"very huge":   {strings.Repeat("x", 1<<20), "more than 4096"},
	} {
		path := tokenFile(t, tc.content)
		tok, err := LoadToken(path)
		if err == nil || tok != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %q names neither %q nor the file", name, err, tc.want)
		}
		if c := strings.TrimSpace(tc.content); c != "" && strings.Contains(err.Error(), c) {
			t.Errorf("%s: the error shows the token: %q", name, err)
		}
	}
	if _, err := LoadToken(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestCheck(t *testing.T) {
	tok := load(t, "\n  "+secret+"\r\n")
	for name, tc := range map[string]struct {
		headers []string
		ok      bool
	}{
		"right":             {[]string{"Bearer " + secret}, true},
		"scheme in capital": {[]string{"BEARER  " + secret}, true},
		"none":              {nil, false},
		"empty":             {[]string{""}, false},
		"scheme alone":      {[]string{"Bearer"}, false},
		"empty token":       {[]string{"Bearer "}, false},
		"wrong":             {[]string{"Bearer " + secret + "x"}, false},
		"prefix":            {[]string{"Bearer " + secret[:len(secret)-1]}, false},
		"other case":        {[]string{"Bearer " + strings.ToUpper(secret)}, false},
		"other scheme":      {[]string{"Basic " + secret}, false},
		"no scheme":         {[]string{secret}, false},
		"twice":             {[]string{"Bearer " + secret, "Bearer " + secret}, false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = tc.headers
		err := tok.Check(r)
		if tc.ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		// One answer for all reasons: it must not tell a missing token from a wrong one.
		if err != nil && err.Error() != tok.Check(httptest.NewRequest("GET", "/", nil)).Error() {
			t.Errorf("%s: a message of its own: %v", name, err)
		}
		if err != nil && kv.CodeOf(err) != kv.CodeUnauthorized {
			t.Errorf("%s: code %s", name, kv.CodeOf(err))
		}
	}
	var none *Token
	if err := none.Check(httptest.NewRequest("GET", "/", nil)); err != nil {
		t.Errorf("nil token: %v", err)
	}
}

func TestTokenIsNotPrinted(t *testing.T) {
	tok := load(t, secret)
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", tok)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", tok)
	fmt.Fprintf(&out, "%v %+v %#v %s %v", tok, tok, tok, tok, struct{ T *Token }{tok}.T)
	if got := strings.Count(out.String(), "[redacted]"); got != 7 {
		t.Errorf("redacted %d of 7 times: %s", got, out.String())
	}
	for _, leak := range []string{secret, fmt.Sprintf("%x", tok.sum[:]), fmt.Sprint(tok.sum[:])} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("printed %q", leak)
		}
	}
}

// TestAccepts: a header's value is accepted exactly when Check accepts the request that has it.
func TestAccepts(t *testing.T) {
	const text = "0123456789abcdef"
	token, err := newToken(text)
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, value := range []string{
		"Bearer " + text, "bearer " + text, "BEARER   " + text, "Bearer" + text, "Bearer", "Bearer ", "", text, " Bearer " + text,
		"Bearer " + text + " ", "Bearer\t" + text, "Basic " + text, "Bearer " + text[1:], "Bearer " + text + "0", "Béarer " + text,
	} {
		want := token.Check(&http.Request{Header: http.Header{"Authorization": {value}}}) == nil
		if got := token.Accepts([]byte(value)); got != want {
			t.Errorf("%q is accepted: %v, Check: %v", value, got, want)
		}
		if want {
			good++
		}
	}
	if good != 3 {
		t.Errorf("%d of the values are good, want 3", good)
	}
	if !(*Token)(nil).Accepts([]byte("any")) {
		t.Error("no token lets everything in")
	}
}
