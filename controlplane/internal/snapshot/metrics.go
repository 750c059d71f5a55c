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

	downs, downsSkipped     atomic.Uint64
	audits, auditMismatches atomic.Uint64
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
	gauge("state_bytes", "Bytes of keys and values in the state.", func() float64 { return float64(l.View().head().bytes) })
	gauge("log_bytes", "Memory that the delta log takes.", func() float64 { return float64(l.View().logBytes()) })
	gauge("log_records", "Revisions in the delta log.", func() float64 { return float64(len(l.View().records)) })
	gauge("following", "1 while the store is watched, 0 while it cannot be.", func() float64 {
		if m.following.Load() {
			return 1
		}
		return 0
	})
	counter("failures_total", "Times that following the store failed.", func() float64 { return float64(m.failures.Load()) })
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aff_control_held_revision", Help: "The first revision that the guards hold back; 0: none.",
	}, func() float64 {
		if h := l.View().Hold(); h != nil {
			return float64(h.Revision)
		}
		return 0
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aff_control_alarms", Help: "What an operator has to look at: see affctl fleet status.",
	}, func() float64 { return float64(len(l.Alarms())) }))
	counter("takedowns_total", "Revisions that took links down and overtook what waited.", func() float64 { return float64(m.downs.Load()) })
	counter("takedowns_skipped_total", "Revisions that took down more than may overtake.", func() float64 { return float64(m.downsSkipped.Load()) })
	counter("audits_total", "Times that the state was found to be what etcd holds.", func() float64 { return float64(m.audits.Load()) })
	counter("audit_mismatches_total", "Times that it was not, and was read anew.", func() float64 { return float64(m.auditMismatches.Load()) })
	counter("builds_total", "Snapshots built.", func() float64 { return float64(m.builds.Load()) })
	counter("build_seconds_total", "Time spent building snapshots.", func() float64 {
		return time.Duration(m.buildNanos.Load()).Seconds()
	})
	return m
}
