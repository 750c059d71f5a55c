package process

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// metrics say how the guard fares. Its labels are the detectors, the verdicts and
// the steps: never what a client chose.
type metrics struct {
	leader, waiting            prometheus.Gauge
	checkpoint, checkpointTook prometheus.Gauge
	malformed                  prometheus.Counter
	errors                     *prometheus.CounterVec // by step
	decisions                  *prometheus.CounterVec // by verdict

	clicks, robots, pending atomic.Uint64
	stored                  atomic.Int64 // µs: of the last message that was read
	lastClicks, lastRobots  uint64       // of the engine

	mu        sync.Mutex
	stats     guard.Stats // of the engine, now and then
	refreshed time.Time
}

var (
	clicksDesc = prometheus.NewDesc("aff_guard_clicks_total",
		"Clicks that the detector has looked at, by whether they are of declared robots.", []string{"robot"}, nil)
	findingsDesc = prometheus.NewDesc("aff_guard_findings_total",
		"Findings by detector, as the checkpoints count them.", []string{"detector"}, nil)
	lagDesc = prometheus.NewDesc("aff_guard_lag_messages",
		"Messages of the stream of clicks that wait behind the last one that was read.", nil, nil)
	lagSecondsDesc = prometheus.NewDesc("aff_guard_lag_seconds",
		"How long ago the stream took the last message that was read, where others wait; else 0.", nil, nil)
	stateBytesDesc = prometheus.NewDesc("aff_guard_state_bytes",
		"Memory of what the detector knows.", nil, nil)
	evictedDesc = prometheus.NewDesc("aff_guard_evicted_total",
		"Sources that had to go for others.", nil, nil)
)

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &metrics{
		leader:         gauge("aff_guard_leader", "1 while this process leads."),
		waiting:        gauge("aff_guard_undecided", "Findings that wait for a decision."),
		checkpoint:     gauge("aff_guard_checkpoint_timestamp_seconds", "When the last checkpoint was written."),
		checkpointTook: gauge("aff_guard_checkpoint_duration_seconds", "How long the last checkpoint took, while the detector stood still."),
		malformed:      prometheus.NewCounter(prometheus.CounterOpts{Name: "aff_guard_malformed_total", Help: "Messages that are no batch of clicks."}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aff_guard_errors_total", Help: "What failed, by step: publish, checkpoint, block, and queue for findings that found no place in the queue.",
		}, []string{"step"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aff_guard_decisions_total", Help: "Decisions by verdict."}, []string{"verdict"}),
	}
}

// statsEvery is how often the engine's figures are taken.
const statsEvery = time.Second

// batch notes a batch that was read. It is called by the goroutine of the engine.
func (m *metrics) batch(b *clickstream.Batch, e *guard.Engine) {
	m.pending.Store(b.Pending)
	m.stored.Store(b.Stored.UnixMicro())
	if now := time.Now(); now.Sub(m.refreshed) >= statsEvery || b.Pending == 0 && now.Sub(m.refreshed) >= 50*time.Millisecond {
		m.refreshed = now
		stats := e.Stats()
		m.clicks.Add(stats.Clicks - min(stats.Clicks, m.lastClicks))
		m.robots.Add(stats.Robots - min(stats.Robots, m.lastRobots))
		m.lastClicks, m.lastRobots = stats.Clicks, stats.Robots
		m.mu.Lock()
		m.stats = stats
		m.mu.Unlock()
	}
}

func (m *metrics) parts() []prometheus.Collector {
	return []prometheus.Collector{m.leader, m.waiting, m.checkpoint, m.checkpointTook, m.malformed, m.errors, m.decisions}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, p := range m.parts() {
		p.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{clicksDesc, findingsDesc, lagDesc, lagSecondsDesc, stateBytesDesc, evictedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, p := range m.parts() {
		p.Collect(ch)
	}
	m.mu.Lock()
	stats := m.stats
	m.mu.Unlock()
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	robots := m.robots.Load()
	counter(clicksDesc, float64(m.clicks.Load()-robots), "no")
	counter(clicksDesc, float64(robots), "yes")
	for detector, n := range stats.Findings {
		counter(findingsDesc, float64(n), detector)
	}
	counter(evictedDesc, float64(stats.Evicted))
	gauge(stateBytesDesc, float64(stats.Bytes))
	pending := m.pending.Load()
	gauge(lagDesc, float64(pending))
	lag := 0.0
	if stored := m.stored.Load(); pending > 0 && stored > 0 {
		lag = time.Since(time.UnixMicro(stored)).Seconds()
	}
	gauge(lagSecondsDesc, lag)
}

func verdictName(v clickv1.Verdict) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), "VERDICT_"))
}
