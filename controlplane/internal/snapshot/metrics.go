package snapshot

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the log's own counters.
type metrics struct {
	following  atomic.Bool
	heard      atomic.Int64 // when the source last gave something, Unix ns
	failures   atomic.Uint64
	builds     atomic.Uint64
	buildNanos atomic.Int64
}

func (m *metrics) built(d time.Duration) {
	m.builds.Add(1)
	m.buildNanos.Add(int64(d))
}

func newMetrics(l *Log, reg prometheus.Registerer) *metrics {
	m := &metrics{}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aff_snapshot_" + name, Help: help}, f))
	}
	counter := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aff_snapshot_" + name, Help: help}, f))
	}
	gauge("revision", "Newest revision that changed a resource.", func() float64 { return float64(l.Head().Revision) })
	gauge("seen_revision", "Revision up to which everything is known.", func() float64 { return float64(l.View().seen) })
	gauge("entries", "Resources in the state.", func() float64 { return float64(l.View().head().entries) })
	gauge("state_bytes", "Bytes of keys and values in the state.", func() float64 { return float64(l.View().bytes) })
	gauge("log_bytes", "Memory that the delta log takes.", func() float64 { return float64(l.View().logBytes()) })
	gauge("log_records", "Revisions in the delta log.", func() float64 { return float64(len(l.View().records)) })
	gauge("following", "1 while the store is watched, 0 while it cannot be.", func() float64 {
		if m.following.Load() {
			return 1
		}
		return 0
	})
	counter("failures_total", "Times that following the store failed.", func() float64 { return float64(m.failures.Load()) })
	counter("builds_total", "Snapshots built.", func() float64 { return float64(m.builds.Load()) })
	counter("build_seconds_total", "Time spent building snapshots.", func() float64 {
		return time.Duration(m.buildNanos.Load()).Seconds()
	})
	return m
}
