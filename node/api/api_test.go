package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// TestAnswersEndInTime: a service that says nothing is given up after the timeout, not before.
func TestAnswersEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Timeout = 10 * time.Second })
		r.svc.onGet = func(ctx context.Context, _ GetRequest) (*Value, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		r.want(r.do("GET", "/v1/kv/default/k", ""), 504, kv.CodeDeadlineExceeded, "")
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("given up after %v", d)
		}
	})
}

func TestMetricsAndLogsHoldNoNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, func(o *Options) { o.Metrics = reg })
	r.svc.spaces[kv.NamespaceID{9}] = "canary-space"
	r.do("PUT", "/v1/kv/canary-space/canary-key", "canary-value", "Kv-Metadata", `"canary-meta"`)
	r.do("GET", "/v1/kv/canary-space/canary-key", "")
	r.do("GET", "/v1/kv/canary-space/canary-none", "")
	r.do("GET", "/canary-path", "")
	r.do("GET", "/v1/kv/canary-space?prefix=canary", "")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(families)
	for _, want := range []string{"kvmesh_reads_total", "kvmesh_read_staleness_seconds", "kvmesh_http_requests_total", "kvmesh_http_request_duration_seconds"} {
		if !strings.Contains(text, want) {
			t.Errorf("no metric %s", want)
		}
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if labels := fmt.Sprint(m.Label); f.GetName() == "kvmesh_reads_total" && m.Counter.GetValue() != 2 {
				t.Errorf("reads %s: %v", labels, m.Counter)
			}
		}
	}
	if strings.Contains(text+r.log.String(), "canary") {
		t.Errorf("a name in metrics or logs:\n%s", r.log)
	}
}

func TestPanicsAreAnswered(t *testing.T) {
	r := newRig(t)
	r.svc.onGet = func(context.Context, GetRequest) (*Value, error) { panic("boom") }
	r.want(r.do("GET", "/v1/kv/default/k", ""), 500, kv.CodeInternal, "")
	if !strings.Contains(r.log.String(), "boom") {
		t.Error("the panic is not logged")
	}
}

// stuck gives a few bytes, and then nothing until its context ends.
type stuck struct {
	ctx   context.Context
	given bool
}

func (s *stuck) Read(p []byte) (int, error) {
	if !s.given {
		s.given = true
		return copy(p, "some"), nil
	}
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}

func (s *stuck) Close() error { return nil }

// TestStuckUpstreamIsCut: an answer that has begun and cannot go on is cut, never ended as if it were whole.
func TestStuckUpstreamIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Timeout = 10 * time.Second })
		r.svc.onGet = func(context.Context, GetRequest) (*Value, error) {
			return &Value{
				Epoch: testEpoch, Revision: 1, Size: 1000, Tier: TierStore,
				Open: func(ctx context.Context, _, _ int64) (io.ReadCloser, error) { return &stuck{ctx: ctx}, nil },
			}, nil
		}
		start := time.Now()
		defer func() {
			if p := recover(); p != any(http.ErrAbortHandler) || time.Since(start) != 10*time.Second {
				t.Errorf("panic %v after %v", p, time.Since(start))
			}
			if !strings.Contains(r.log.String(), errNoProgress.Error()) {
				t.Errorf("the log does not say why: %s", r.log)
			}
		}()
		r.do("GET", "/v1/kv/default/k", "")
		t.Error("the answer ended")
	})
}

// overtaken creates every namespace just before it is asked to.
type overtaken struct{ *fakeService }

func (o overtaken) CreateNamespace(ctx context.Context, title string) (kv.Namespace, error) {
	if _, err := o.fakeService.CreateNamespace(ctx, title); err != nil {
		return kv.Namespace{}, err
	}
	return o.fakeService.CreateNamespace(ctx, title)
}

func TestCreationOvertakenByAnother(t *testing.T) {
	r := newRig(t)
	r.h = New(Options{Service: overtaken{r.svc}})
	w := r.do("PUT", "/v1/namespaces/n", "")
	if want := `{"id":"02000000000000000000000000000000","title":"n"}` + "\n"; w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// FuzzHeaders: what a client writes into headers and query never panics, and what is understood stays within bounds.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{tag1, `"deadbeef-0"`, "W/" + tag1 + `, "x"`, "*", "bytes=0-", "bytes=-5", "bytes=3-2", "a=%zz&b=+", "cache_ttl=5&&", `"`, "W/", ",,"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		size &= 1<<40 - 1
		part, status, err := parseRange(s, size)
		if err == nil && (part.start < 0 || part.length < 0 || part.start+part.length > size || status == 206 && part.length == 0) {
			t.Errorf("range %q of %d: %+v %d", s, size, part, status)
		}
		r := &http.Request{Header: http.Header{"If-Match": {s}}}
		if cond, err := writeCond(r); err == nil && (cond.Kind == CondNone || cond.Kind == CondETag && cond.Revision == 0) {
			t.Errorf("If-Match %q became no condition: %+v", s, cond)
		}
		q, err := parseQuery(s, []string{"cache_ttl"})
		if err == nil && len(q) > 1 {
			t.Errorf("query %q: %v", s, q)
		}
		if ttl, err := q.cacheTTL(); err == nil && (ttl < 0 || ttl > maxCacheTTL) {
			t.Errorf("query %q: %v", s, ttl)
		}
		refusal([]byte(s))
	})
}
