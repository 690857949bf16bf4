package ops

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// token is the right answer to an Authorizer.
const token = "Bearer right"

type auth struct{}

func (auth) Check(r *http.Request) error {
	if r.Header.Get("Authorization") == token {
		return nil
	}
	return kv.Errorf(kv.CodeUnauthorized, "no")
}

func get(h http.Handler, method, path, authorization string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestEveryRouteButTheOpenOnesNeedsTheToken is generated from the routes, and adds paths that are none.
func TestEveryRouteButTheOpenOnesNeedsTheToken(t *testing.T) {
	h := New(Options{Auth: auth{}})
	paths := []string{"/", "/debug", "/debug/pprof/heap", "/nowhere", "/metrics/", "/livez/", "/livezz", "//livez"}
	for path := range h.routes {
		paths = append(paths, path)
	}
	for _, path := range paths {
		open := path == "/livez" || path == "/readyz"
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			for _, wrong := range []string{"", "Bearer wrong"} {
				w := get(h, method, path, wrong)
				if refused := w.Code == http.StatusUnauthorized; refused == open {
					t.Errorf("%s %s with %q: %d", method, path, wrong, w.Code)
				}
				if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
					t.Errorf("%s %s: headers %v", method, path, w.Header())
				}
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	reg := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_test_total"})
	reg.MustRegister(counter)
	counter.Add(7)
	h := New(Options{Auth: auth{}, Metrics: reg})
	for _, tc := range []struct {
		method, path string
		status       int
		contains     string
	}{
		{"GET", "/livez", 200, "ok"},
		{"GET", "/readyz", 200, `{"ready":true}`},
		{"HEAD", "/readyz", 200, ""},
		{"GET", "/metrics", 200, "kvmesh_test_total 7"},
		{"GET", "/debug/pprof/", 200, "goroutine"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{"GET", "/debug/pprof/cmdline", 200, ""},
		{"GET", "/debug/pprof/symbol", 200, "num_symbols"},
		{"POST", "/debug/pprof/symbol", 200, "num_symbols"},
		{"GET", "/debug/pprof/nothing", 404, ""},
		{"GET", "/nothing", 404, `"not_found"`},
		{"POST", "/livez", 405, `"method_not_allowed"`},
		{"POST", "/metrics", 405, `"method_not_allowed"`},
	} {
		w := get(h, tc.method, tc.path, token)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.contains) {
			t.Errorf("%s %s: %d %.200s", tc.method, tc.path, w.Code, w.Body)
		}
		if allow := w.Header().Get("Allow"); (allow != "") != (tc.status == 405) {
			t.Errorf("%s %s: Allow %q", tc.method, tc.path, allow)
		}
	}
}

func TestReadiness(t *testing.T) {
	fails := map[string]error{"store": errors.New("catching up"), "gossip": errors.New("alone")}
	check := func(name string) Check {
		return Check{name, func(context.Context) error { return fails[name] }}
	}
	h := New(Options{Checks: []Check{
		check("store"), check("gossip"), check("disk"),
		{"broken", func(context.Context) error {
			if fails["store"] != nil {
				panic("boom")
			}
			return nil
		}},
	}})
	// One after another, on one handler.
	for _, step := range []struct {
		change func()
		status int
		body   string
	}{
		{func() {}, 503, `{"ready":false,"failing":{"broken":"the check failed: boom","gossip":"alone","store":"catching up"}}`},
		{func() { delete(fails, "store") }, 503, `{"ready":false,"failing":{"gossip":"alone"}}`},
		{func() { delete(fails, "gossip") }, 200, `{"ready":true}`},
		{func() { h.SetDraining(true) }, 503, `{"ready":false,"failing":{"draining":"the node is stopping"}}`},
		{func() { h.SetDraining(false) }, 200, `{"ready":true}`},
	} {
		step.change()
		w := get(h, "GET", "/readyz", "")
		if w.Code != step.status || strings.TrimSpace(w.Body.String()) != step.body {
			t.Errorf("%d %s, want %d %s", w.Code, w.Body, step.status, step.body)
		}
		if get(h, "GET", "/livez", "").Code != 200 {
			t.Error("not ready, so not alive")
		}
	}
}

// TestSlowChecksFail: checks run side by side, and one that hangs fails at the time limit, together with its reason.
func TestSlowChecksFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		slow := func(context.Context) error {
			time.Sleep(DefaultCheckTimeout - time.Millisecond)
			return nil
		}
		h := New(Options{Checks: []Check{{"a", hang}, {"b", hang}, {"c", slow}}})
		start := time.Now()
		w := get(h, "GET", "/readyz", "")
		const want = `{"ready":false,"failing":{"a":"context deadline exceeded","b":"context deadline exceeded"}}`
		if d := time.Since(start); d != DefaultCheckTimeout || strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("after %v: %s", d, w.Body)
		}
	})
}
