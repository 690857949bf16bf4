package cfrest

import (
	"net/http"
	"strings"

	"kvmesh/raftstore/kv"
)

const verifyPath = "/user/tokens/verify"

// authorise asks whether the request may use the surface. The API's older credentials, a key with or without an e-mail
// address, hold the same token.
func (s *surface) authorise(r *http.Request, path string) error {
	if s.auth == nil {
		return nil
	}
	presented := r.Header.Values("Authorization")
	if len(presented) == 0 {
		for _, name := range []string{"X-Auth-Key", "X-Auth-User-Service-Key"} {
			if keys := r.Header.Values(name); len(keys) == 1 {
				presented = []string{"Bearer " + keys[0]}
				break
			}
		}
	}
	switch {
	case len(presented) == 0:
		return unauthorized(http.StatusUnauthorized, codeAuthMissing, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
	case len(presented) > 1 || !strings.HasPrefix(strings.ToLower(presented[0]), "bearer "):
		return unauthorized(http.StatusBadRequest, codeBadHeaders, "Invalid request headers")
	}
	check := &http.Request{Header: http.Header{"Authorization": presented}}
	if err := s.auth.Check(check.WithContext(r.Context())); err != nil {
		if strings.HasSuffix(path, "/tokens/verify") {
			return unauthorized(http.StatusUnauthorized, codeBadToken, "Invalid API Token")
		}
		return unauthorized(http.StatusUnauthorized, codeAuth, "Authentication error")
	}
	return nil
}

func unauthorized(status, code int, text string) error {
	return &apiError{status: status, code: code, text: text, cause: kv.Errorf(kv.CodeUnauthorized, "%s", text)}
}
