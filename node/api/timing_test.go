package api

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"
)

// TestTimingHeader is the syntax of Server-Timing.
func TestTimingHeader(t *testing.T) {
	asked := &Timing{began: time.Now()}
	asked.Add(TimingCache, "miss", 4*time.Microsecond)
	asked.Add(TimingFill, "central", 81_310_400*time.Nanosecond)
	asked.Since(TimingOpen, "", asked.Now())
	want := regexp.MustCompile(`^cache;dur=0\.004;desc=miss, fill;dur=81\.310;desc=central, open;dur=\d+\.\d{3}, total;dur=\d+\.\d{3}$`)
	if got := asked.header(); !want.MatchString(got) {
		t.Errorf("%q", got)
	}
	var nobody *Timing
	nobody.Add(TimingCache, "hit", time.Second)
	nobody.Since(TimingOpen, "", nobody.Now())
}

// TestTimingAsked: only the one value asks, others are refused, and those who do not ask hear nothing.
func TestTimingAsked(t *testing.T) {
	s := New(Options{Service: newFake()})
	for _, tc := range []struct {
		header []string
		status int
		told   bool
	}{
		{nil, 404, false}, {[]string{"1"}, 404, true}, {[]string{"0"}, 400, false}, {[]string{""}, 400, false}, {[]string{"1", "1"}, 400, false},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v1/kv/default/none", nil)
		if tc.header != nil {
			r.Header[headerTiming] = tc.header
		}
		s.ServeHTTP(w, r)
		if told := w.Header().Get(headerServerTiming) != ""; w.Code != tc.status || told != tc.told {
			t.Errorf("%q: %d, told %v; %s", tc.header, w.Code, told, w.Body)
		}
		if tc.status == 400 && readError(t, w.Body.Bytes()).Field != headerTiming {
			t.Errorf("%q: %s", tc.header, w.Body)
		}
	}
}
