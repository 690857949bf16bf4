package api

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are this surface's. Their labels come from closed sets; no name that a client chose is among them.
type metrics struct {
	requests  *prometheus.CounterVec   // route, class
	durations *prometheus.HistogramVec // route
	reads     *prometheus.CounterVec   // tier
	staleness prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, name string) *metrics {
	surface := prometheus.Labels{"surface": name}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_http_requests_total", ConstLabels: surface,
			Help: "Requests by route and class of status; class gone = the client left before it was answered.",
		}, []string{"route", "class"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kvmesh_http_request_duration_seconds", ConstLabels: surface,
			Help:    "Time from the request's header to the end of its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route"}),
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_reads_total", ConstLabels: surface,
			Help: "Reads of one key, absent ones included, by the tier that answered.",
		}, []string{"tier"}),
		staleness: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kvmesh_read_staleness_seconds", ConstLabels: surface,
			Help:    "Proven bound on how long ago what a read was given was current.",
			Buckets: []float64{.001, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10, 30, 60, 300, 3600, 86400},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.durations, m.reads, m.staleness)
	}
	return m
}

// observe counts an answered call.
func (m *metrics) observe(c *Exchange, d time.Duration) {
	class := [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}
	label := "gone"
	switch status := c.w.status; {
	case c.gone:
	case status == 0:
		label = "5xx" // cut before it began
	case status >= http.StatusContinue && status < 600:
		label = class[status/100-1]
	}
	m.requests.WithLabelValues(c.route, label).Inc()
	m.durations.WithLabelValues(c.route).Observe(d.Seconds())
}

// read counts one read of a key.
func (m *metrics) read(v *Value) {
	tier := v.Tier
	switch tier {
	case TierHit, TierStale, TierRegion, TierPeerRegion, TierCentral, TierStore:
	default:
		tier = "other"
	}
	m.reads.WithLabelValues(string(tier)).Inc()
	if v.Staleness >= 0 {
		m.staleness.Observe(v.Staleness.Seconds())
	}
}
