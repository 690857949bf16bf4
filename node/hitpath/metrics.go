package hitpath

import "github.com/prometheus/client_golang/prometheus"

// metrics are the path's own. Requests are counted by their surfaces.
type metrics struct {
	conns     prometheus.Gauge
	cut       prometheus.Counter
	abandoned prometheus.Counter
	handed    *prometheus.CounterVec // why
	// refused counts TLS handshakes that came to nothing.
	refused prometheus.Counter
}

// The reasons for which a connection is handed over.
const (
	whyRequest  = "request"  // what it asks for is no read of one value, or not as the path reads it
	whyLong     = "long"     // a head that does not fit
	whyEnd      = "end"      // the client ended within a head
	whyDraining = "draining" // the node is about to stop
	whyHTTP2    = "http2"    // HTTP/2 is spoken
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		conns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kvmesh_hitpath_connections", Help: "Public connections that are on the hit path now.",
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvmesh_hitpath_connections_cut_total",
			Help: "Connections closed because they were idle, or their client was slow, for too long.",
		}),
		abandoned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvmesh_hitpath_requests_abandoned_total", Help: "Requests ended because their client left while they waited.",
		}),
		handed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_hitpath_connections_handed_over_total", Help: "Connections given to net/http for good, by why.",
		}, []string{"why"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvmesh_hitpath_handshakes_failed_total",
			Help: "TLS handshakes of public connections that failed, or were not made in time.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.conns, m.cut, m.abandoned, m.handed, m.refused)
	}
	return m
}
