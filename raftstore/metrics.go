package raftstore

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// metrics of one Store. A nil Registerer gives metrics that nobody reads.
type metrics struct {
	reg        prometheus.Registerer
	collectors []prometheus.Collector

	proposals    *prometheus.CounterVec
	proposalTime prometheus.Histogram
	ops          prometheus.Counter
	entryOps     prometheus.Histogram
	confirms     *prometheus.CounterVec
	confirmTime  prometheus.Histogram
	snapshots    prometheus.Counter
	notices      *prometheus.CounterVec
}

const metricsPrefix = "kvmesh_raft_"

func newMetrics(reg prometheus.Registerer, s *Store) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help})
	}
	byCode := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, []string{"code"})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricsPrefix + name, Help: help, Buckets: buckets})
	}
	gauge := func(name, help string, fn func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricsPrefix + name, Help: help}, fn)
	}
	seconds := prometheus.ExponentialBuckets(0.0005, 2, 14) // 0.5 ms to 4 s
	m := &metrics{
		reg:          reg,
		proposals:    byCode("proposals_total", "Writes proposed on this node, by the code of their outcome (ok when they were carried out)."),
		proposalTime: histogram("proposal_seconds", "Time from the proposal to its answer, when it was carried out.", seconds),
		ops:          counter("operations_total", "Operations in the writes that were carried out."),
		entryOps:     histogram("entry_operations", "Operations that were packed into one log entry.", prometheus.ExponentialBuckets(1, 2, 11)),
		confirms:     byCode("confirmations_total", "Leadership confirmations, by the code of their outcome."),
		confirmTime:  histogram("confirmation_seconds", "Time to confirm leadership, when it was confirmed.", seconds),
		notices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "notices_total", Help: "Commits that members were told of at once, by what became of the message: ok, rejected, failed.",
		}, []string{"result"}),
		snapshots: counter("snapshots_total", "Snapshots taken of this node's own state."),
	}
	m.collectors = []prometheus.Collector{
		m.proposals, m.proposalTime, m.ops, m.entryOps, m.confirms, m.confirmTime, m.snapshots, m.notices,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: metricsPrefix + "checkpoints_total", Help: "Checkpoints cut for members that the log no longer reaches back to.",
		}, func() float64 { return float64(s.snaps.checkpoints()) }),
		gauge("leader", "1 while this node leads.", func() float64 {
			if _, self := s.Leader(); self {
				return 1
			}
			return 0
		}),
		gauge("term", "The Raft term.", func() float64 { return float64(s.raft.CurrentTerm()) }),
		gauge("commit_index", "The last log entry that this node knows to be committed.", func() float64 { return float64(s.raft.CommitIndex()) }),
		gauge("applied_index", "The last log entry that the state holds.", func() float64 { return float64(s.state.Applied().Index) }),
		gauge("log_bytes", "Estimated bytes of the log.", func() float64 { return float64(s.log.meter.bytes()) }),
		gauge("in_flight_bytes", "Bytes of writes that wait for the log or are on their way through it.", func() float64 { return float64(s.combiner.inFlight()) }),
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := reg.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			return nil, errors.Join(err, m.unregister())
		}
	}
	return m, nil
}

// unregister makes room for the next Store on the same Registerer.
func (m *metrics) unregister() error {
	if m.reg == nil {
		return nil
	}
	for _, c := range m.collectors {
		m.reg.Unregister(c)
	}
	return nil
}

func codeLabel(err error) string {
	if err == nil {
		return "ok"
	}
	return string(kv.CodeOf(err))
}

func (m *metrics) proposed(ops int, took time.Duration, err error) {
	m.proposals.WithLabelValues(codeLabel(err)).Inc()
	if err == nil {
		m.ops.Add(float64(ops))
		m.proposalTime.Observe(took.Seconds())
	}
}

func (m *metrics) confirmed(took time.Duration, err error) {
	m.confirms.WithLabelValues(codeLabel(err)).Inc()
	if err == nil {
		m.confirmTime.Observe(took.Seconds())
	}
}

func (m *metrics) entry(ops int) { m.entryOps.Observe(float64(ops)) }
func (m *metrics) snapshot()     { m.snapshots.Inc() }
