package peer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// serverMetrics are those of one Server. A nil registerer leaves them unregistered.
type serverMetrics struct {
	conns      *prometheus.GaugeVec   // alpn
	handshakes *prometheus.CounterVec // result
	refused    *prometheus.CounterVec // reason
}

func newServerMetrics(reg prometheus.Registerer) *serverMetrics {
	f := promauto.With(reg)
	return &serverMetrics{
		conns: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kvmesh_peer_connections", Help: "Open connections from other nodes, by protocol.",
		}, []string{"alpn"}),
		handshakes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_peer_handshakes_total", Help: "TLS handshakes on the peer port: ok, wrong_mesh_key, failed.",
		}, []string{"result"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_peer_refused_total", Help: "Connections refused on the peer port: max_conns, role.",
		}, []string{"reason"}),
	}
}

// muxMetrics are those of one Mux.
type muxMetrics struct {
	requests *prometheus.CounterVec   // method, code
	seconds  *prometheus.HistogramVec // method
	inFlight prometheus.Gauge
}

func newMuxMetrics(reg prometheus.Registerer) *muxMetrics {
	f := promauto.With(reg)
	return &muxMetrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_rpc_requests_total", Help: "Requests from other nodes, by method and code (ok, or an error code).",
		}, []string{"method", "code"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kvmesh_rpc_seconds", Help: "Time in the handlers of requests from other nodes.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.5 s
		}, []string{"method"}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "kvmesh_rpc_in_flight", Help: "Requests from other nodes that are being served.",
		}),
	}
}

// clientMetrics are those of one Client.
type clientMetrics struct {
	calls   *prometheus.CounterVec // result
	dials   prometheus.Counter
	retries prometheus.Counter
	idle    prometheus.Gauge
}

func newClientMetrics(reg prometheus.Registerer) *clientMetrics {
	f := promauto.With(reg)
	return &clientMetrics{
		calls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_rpc_client_calls_total", Help: "Requests to other nodes: ok, error (the node's answer), transport.",
		}, []string{"result"}),
		dials: f.NewCounter(prometheus.CounterOpts{
			Name: "kvmesh_rpc_client_dials_total", Help: "Connections opened to send requests to other nodes.",
		}),
		retries: f.NewCounter(prometheus.CounterOpts{
			Name: "kvmesh_rpc_client_retries_total", Help: "Requests sent again because an idle connection turned out dead.",
		}),
		idle: f.NewGauge(prometheus.GaugeOpts{
			Name: "kvmesh_rpc_client_idle_connections", Help: "Connections kept for the next request to another node.",
		}),
	}
}
