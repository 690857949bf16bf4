package gossip

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one pool. A process with several pools hands each a registerer with a label of its own.
type metrics struct {
	reg        prometheus.Registerer
	collectors []prometheus.Collector

	members *prometheus.GaugeVec   // by state
	rtt     *prometheus.GaugeVec   // by region, seconds
	hints   *prometheus.CounterVec // by event
	dropped *prometheus.CounterVec // by what
	refused *prometheus.CounterVec // by reason
	joins   *prometheus.CounterVec // by result
	queue   prometheus.Gauge       // bytes waiting to be spread
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{reg: reg}
	gauge := func(name, help, label string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kvmesh", Subsystem: "gossip", Name: name, Help: help},
			[]string{label})
		m.collectors = append(m.collectors, v)
		return v
	}
	counter := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kvmesh", Subsystem: "gossip", Name: name, Help: help},
			[]string{label})
		m.collectors = append(m.collectors, v)
		return v
	}
	m.members = gauge("members", "Known members, this node included.", "state")
	m.rtt = gauge("region_rtt_seconds", "Round trip to the nearest measured node of a region.", "region")
	m.hints = counter("hints_total", "Hints by what happened: sent, direct (packets), first, duplicate, malformed.", "event")
	m.dropped = counter("dropped_total", "Things dropped because a bounded queue or limit was full.", "what")
	m.refused = counter("refused_total", "Nodes refused: cluster (another mesh), meta (unreadable), conflict (same id).", "reason")
	m.joins = counter("joins_total", "Attempts to reach a seed or a lost member.", "result")
	m.queue = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "kvmesh", Subsystem: "gossip", Name: "queue_bytes", Help: "Hints waiting to be passed on.",
	})
	m.collectors = append(m.collectors, m.queue)
	if reg == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := reg.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			return nil, errors.Join(fmt.Errorf("gossip: metrics: %w", err), m.close())
		}
	}
	return m, nil
}

// close unregisters, so that the next node of this process can register again.
func (m *metrics) close() error {
	if m.reg == nil {
		return nil
	}
	var err error
	for _, c := range m.collectors {
		if !m.reg.Unregister(c) {
			err = errors.New("gossip: metrics were unregistered by somebody else")
		}
	}
	return err
}
