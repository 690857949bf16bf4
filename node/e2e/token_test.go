package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"kvmesh/node/nodetest"
)

// TestToken: with a token file every route of both listeners asks for it, but for the two that say whether a node lives.
func TestToken(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	const secret = "0123456789abcdef0123456789abcdef"
	file := filepath.Join(p.Dir, "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	voters, edges := layout(t, p, 1, 1)
	for _, n := range p.All {
		n.Args = append(n.Args, "--api-token-file", file)
	}
	startAll(t, p.All)
	authorised := nodetest.NewClient("authorised", voters[0].Base)
	authorised.Token = secret
	authorised.Must(t, 200, http.MethodPut, "/v1/kv/default/k", []byte("v"))

	for _, n := range []*nodetest.Proc{voters[0], edges[0]} {
		for _, tc := range []struct {
			base, method, target string
			body                 []byte
			status               int // with the token
		}{
			{n.Base, "GET", "/v1/kv/default/k", nil, 200},
			{n.Base, "HEAD", "/v1/kv/default/k", nil, 200},
			{n.Base, "PUT", "/v1/kv/default/k2", []byte("v"), 200},
			{n.Base, "DELETE", "/v1/kv/default/k2", nil, 200},
			{n.Base, "GET", "/v1/kv/default", nil, 200},
			{n.Base, "GET", "/v1/namespaces", nil, 200},
			{n.Base, "PUT", "/v1/namespaces/of-" + n.Name, nil, 201},
			{n.Base, "GET", "/v1/namespaces/of-" + n.Name, nil, 200},
			{n.Base, "DELETE", "/v1/namespaces/of-" + n.Name, nil, 200},
			{n.Base, "GET", "/v1/cluster", nil, 200},
			{n.Base, "GET", "/v1/nothing", nil, 404},
			{n.Base, "GET", "/", nil, 404},
			{"http://" + n.Admin, "GET", "/metrics", nil, 200},
			{"http://" + n.Admin, "GET", "/debug/pprof/", nil, 200},
			{"http://" + n.Admin, "GET", "/debug/pprof/goroutine", nil, 200},
			{"http://" + n.Admin, "GET", "/debug/pprof/cmdline", nil, 200},
			{"http://" + n.Admin, "GET", "/nothing", nil, 404},
		} {
			c := nodetest.NewClient(n.Name, tc.base)
			for _, headers := range [][]string{
				nil,
				{"Authorization", "Bearer " + secret[1:]},
				{"Authorization", "Bearer "},
				{"Authorization", "Basic " + secret},
				{"Authorization", secret},
				{"Authorization", "Bearer " + secret, "Authorization", "Bearer wrong"},
			} {
				a := c.Must(t, 401, tc.method, tc.target, tc.body, headers...)
				if a.Header.Get("WWW-Authenticate") != "Bearer" || tc.method != "HEAD" && a.Err().Code != "unauthorized" {
					t.Errorf("%s %s %s with %q: %v", n.Name, tc.method, tc.target, headers, a)
				}
			}
			c.Token = secret
			c.Must(t, tc.status, tc.method, tc.target, tc.body)
			c.CloseIdle()
		}
		for _, open := range []string{"/livez", "/readyz"} {
			nodetest.NewClient(n.Name, "http://"+n.Admin).Must(t, 200, http.MethodGet, open, nil)
		}
	}
	if a := authorised.Must(t, 200, http.MethodGet, "/v1/kv/default/k", nil); string(a.Body) != "v" {
		t.Errorf("after the refused requests: %v", a)
	}
	authorised.CloseIdle()
}
