package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// deny refuses everything.
type deny struct{}

func (deny) Check(*http.Request) error { return kv.Errorf(kv.CodeUnauthorized, "no") }

// example is a path that the pattern matches.
func (res resource) example() string {
	return strings.NewReplacer("{namespace}", "default", "{namespace...}", "default", "{key...}", "k").Replace(res.pattern)
}

// TestEveryRouteAsksForAuthorisation is generated from the route table, and adds what is in no table.
func TestEveryRouteAsksForAuthorisation(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Auth = deny{} })
	paths := []string{"/", "/v1", "/v2/x", "/v1/kv/default/", "*"}
	for _, res := range routes() {
		paths = append(paths, res.example())
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "POST", "OPTIONS", "PATCH", "BREW"} {
			w := r.do(method, path, "body")
			if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s %s: %d %v", method, path, w.Code, w.Header())
			}
		}
	}
	if r.svc.calls != 0 {
		t.Errorf("%d calls reached the service", r.svc.calls)
	}
}

// TestEveryRouteAnswers goes through all routes and methods: what the table has runs, what it has not is 405 with Allow.
func TestEveryRouteAnswers(t *testing.T) {
	want := map[string]string{
		"/v1/kv/default/k":            "GET 200 HEAD 200 PUT 200 DELETE 200 POST 405",
		"/v1/kv/default":              "GET 200 HEAD 200 PUT 405 DELETE 405 POST 400",
		"/v1/namespaces/default":      "GET 200 HEAD 200 PUT 200 DELETE 200 POST 405",
		"/v1/namespaces":              "GET 200 HEAD 200 PUT 405 DELETE 405 POST 405",
		"/v1/cluster":                 "GET 200 HEAD 200 PUT 405 DELETE 405 POST 405",
		"/v1/txn":                     "GET 405 HEAD 405 PUT 405 DELETE 405 POST 400",
		"/v1/watch/default":           "GET 501 HEAD 501 PUT 405 DELETE 405 POST 405",
		"/v1/kv":                      "GET 404 HEAD 404 PUT 404 DELETE 404 POST 404",
		"/v1/namespaces2":             "GET 404 HEAD 404 PUT 404 DELETE 404 POST 404",
		"/":                           "GET 404 HEAD 404 PUT 404 DELETE 404 POST 404",
		"/v1/cluster/members":         "GET 200 HEAD 200 PUT 405 DELETE 405 POST 405",
		"/v1/cluster/join":            "GET 405 HEAD 405 PUT 405 DELETE 405 POST 400",
		"/v1/cluster/remove":          "GET 405 HEAD 405 PUT 405 DELETE 405 POST 400",
		"/v1/cluster/transfer-leader": "GET 405 HEAD 405 PUT 405 DELETE 405 POST 200",
		"/v1/backup":                  "GET 501 HEAD 501 PUT 405 DELETE 405 POST 501",
		"/v1/backup/address":          "GET 501 HEAD 501 PUT 405 DELETE 405 POST 405",
	}
	for _, res := range routes() {
		if want[res.example()] == "" {
			t.Errorf("the table has %s, this test has not", res.pattern)
		}
	}
	for path, expected := range want {
		var got []string
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "POST"} {
			r := newRig(t)
			r.do("PUT", "/v1/kv/default/k", "v")
			w := r.do(method, path, "")
			got = append(got, method, fmt.Sprint(w.Code))
			if allow := w.Header().Get("Allow"); (w.Code == 405) != (allow != "") {
				t.Errorf("%s %s: Allow %q", method, path, allow)
			}
			if method == "HEAD" && w.Body.Len() > 0 {
				t.Errorf("HEAD %s has a body", path)
			}
		}
		if s := strings.Join(got, " "); s != expected {
			t.Errorf("%s:\n got %s\nwant %s", path, s, expected)
		}
	}
	if allow := newRig(t).do("PUT", "/v1/cluster", "").Header().Get("Allow"); allow != "GET, HEAD" {
		t.Errorf("Allow: %q", allow)
	}
}

// TestKeysAreDecodedOnce sends request lines as they are, and looks at what became of the names.
func TestKeysAreDecodedOnce(t *testing.T) {
	r := newRig(t)
	r.svc.spaces[kv.NamespaceID{2}] = "a/b"
	addr := r.serve()
	long := strings.Repeat("ü", 256)
	for target, want := range map[string]string{
		"/v1/kv/default/a/b":                              "default a/b",
		"/v1/kv/default/a%2Fb":                            "default a/b",
		"/v1/kv/default/a%2fb":                            "default a/b",
		"/v1/kv/default/a//b":                             "default a//b",
		"/v1/kv/default//a":                               "default /a",
		"/v1/kv/default/a/":                               "default a/",
		"/v1/kv/default//":                                "default /",
		"/v1/kv/default/a/../b":                           "default a/../b",
		"/v1/kv/default/../x":                             "default ../x",
		"/v1/kv/default/..%2Fx":                           "default ../x",
		"/v1/kv/default/./x":                              "default ./x",
		"/v1/kv/default/a%252Fb":                          "default a%2Fb",
		"/v1/kv/default/%2500":                            "default %00",
		"/v1/kv/default/%00":                              "default \x00",
		"/v1/kv/default/%20x":                             "default  x",
		"/v1/kv/default/a+b":                              "default a+b",
		"/v1/kv/default/a%2Bb":                            "default a+b",
		"/v1/kv/default/v1/kv":                            "default v1/kv",
		"/v1/kv/default/v1/kv/default/x":                  "default v1/kv/default/x",
		"/v1/kv/default/%C3%BC":                           "default ü",
		"/v1/kv/default/ü":                                "default ü",
		"/v1/kv/default/%F0%9F%98%80":                     "default 😀",
		"/v1/kv/default/a%3Fb":                            "default a?b",
		"/v1/kv/default/a#b":                              "default a#b",
		"/v1/kv/default/a\"<>|b":                          "default a\"<>|b",
		"/v1/kv/default/a;b=c":                            "default a;b=c",
		"/v1/kv/default/http://x":                         "default http://x",
		"/v1/kv/default/" + long:                          "default " + long,
		"/v1/kv/default/" + url.PathEscape(long):          "default " + long,
		"/v1/kv/a%2Fb/k":                                  "a/b k",
		"/v1/kv/a%2Fb/ü%2F\"":                             "a/b ü/\"", // a raw ü makes URL.EscapedPath decode the %2F
		"http://x/v1/kv/default/a/../b":                   "default a/../b",
		"/v1/kv/01000000000000000000000000000000/by%20id": "default by id",
	} {
		r.svc.gets = nil
		resp, _ := dial(t, addr).ask("GET", target)
		if resp.StatusCode != http.StatusNotFound || len(r.svc.gets) != 1 {
			t.Errorf("%s: status %d, %d reads", target, resp.StatusCode, len(r.svc.gets))
			continue
		}
		if got := r.svc.gets[0].Namespace.Title + " " + r.svc.gets[0].Key; got != want {
			t.Errorf("%s: got %q, want %q", target, got, want)
		}
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	r := newRig(t)
	addr := r.serve()
	for target, want := range map[string]struct {
		code  kv.Code
		field string
	}{
		"/v1/kv/default/":                            {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/.":                           {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/..":                          {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/%2E%2e":                      {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/%FF":                         {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/\xff":                        {kv.CodeInvalidKey, "key"},
		"/v1/kv/default/" + strings.Repeat("x", 513): {kv.CodeKeyTooLong, "key"},
		"/v1/kv//k":                                  {kv.CodeInvalidTitle, "namespace"},
		"/v1/kv/../k":                                {kv.CodeInvalidTitle, "namespace"},
		"/v1/kv/%00/k":                               {kv.CodeInvalidTitle, "namespace"},
		"/v1/kv/":                                    {kv.CodeInvalidTitle, "namespace"},
		"/v1/namespaces/":                            {kv.CodeInvalidTitle, "namespace"},
		"/v1/kv/nowhere/k":                           {kv.CodeNamespaceNotFound, "namespace"},
		"/v1/kv/" + strings.Repeat("0", 32) + "/k":   {kv.CodeNamespaceNotFound, "namespace"},
		// What net/http refuses by itself looks like every other error.
		"/v1/kv/default/a%zz": {kv.CodeInvalidParameter, ""},
		"/v1/kv/default/a%":   {kv.CodeInvalidParameter, ""},
		"/v1/kv/default/%2":   {kv.CodeInvalidParameter, ""},
		"/v1/kv/default/a b":  {kv.CodeInvalidParameter, ""},
	} {
		resp, body := dial(t, addr).ask("GET", target)
		e := readError(t, []byte(body))
		wantStatus := statusOf(want.code)
		if resp.StatusCode != wantStatus || e.Code != want.code || e.Field != want.field {
			t.Errorf("%.60s: %d %+v, want %d %s %s", target, resp.StatusCode, e, wantStatus, want.code, want.field)
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%.60s: headers %v", target, resp.Header)
		}
	}
}

// TestNoAnswerRedirects: a redirect would make clients write under another name.
func TestNoAnswerRedirects(t *testing.T) {
	r := newRig(t)
	addr := r.serve()
	for _, target := range []string{"//", "/v1/kv//", "//v1/kv/default/k", "/v1//kv/default/k", "/v1/kv/default/../../..", "/v1/cluster/", "/./v1/cluster"} {
		for _, method := range []string{"GET", "PUT"} {
			resp, _ := dial(t, addr).ask(method, target)
			if resp.StatusCode/100 == 3 || resp.Header.Get("Location") != "" {
				t.Errorf("%s %s: %d %v", method, target, resp.StatusCode, resp.Header)
			}
		}
	}
}
