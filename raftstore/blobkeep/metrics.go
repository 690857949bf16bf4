package blobkeep

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Keeper.
type metrics struct {
	fetched, failures, bytes, resumed, damaged prometheus.Counter
	swept                                      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, k *Keeper) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_blobs_" + name, Help: help})
	}
	m := &metrics{
		fetched:  counter("fetched_total", "Large values that this disk lacked and that were fetched from another voter."),
		failures: counter("fetch_failures_total", "Attempts to fetch a large value that ended without it."),
		bytes:    counter("fetched_bytes_total", "Bytes of large values that came from other voters."),
		resumed:  counter("resumed_bytes_total", "Bytes of fetched values that an interrupted attempt had brought before."),
		damaged:  counter("damaged_total", "Large values that were found damaged on this disk, and moved aside."),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_blobs_swept_total", Help: "Large values deleted because they were replaced, or never named.",
		}, []string{"reason"}),
	}
	if reg == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{
		m.fetched, m.failures, m.bytes, m.resumed, m.damaged, m.swept,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kvmesh_blobs_missing", Help: "Large values that the state names and this disk lacks.",
		}, func() float64 { return float64(k.MissingBlobs()) }),
	} {
		err = errors.Join(err, reg.Register(c))
	}
	return m, err
}
