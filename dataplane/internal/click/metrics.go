package click

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics reads the recorder when it is asked; nothing is counted twice.
type metrics struct {
	r                                                          *Recorder
	recorded, dropped, bytes, oldest, unacknowledged, degraded *prometheus.Desc
}

func newMetrics(r *Recorder) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("aff_clicks_"+name, help, labels, nil)
	}
	return &metrics{
		r:              r,
		recorded:       desc("recorded_total", "Clicks recorded since the start."),
		dropped:        desc("dropped_total", "Clicks that could not be kept, by reason, since the start. Those of earlier boots count when this process finds them missing.", "reason"),
		bytes:          desc("spool_bytes", "Size of the spool, with what is kept after its acknowledgement."),
		oldest:         desc("spool_oldest_seconds", "Age of the oldest click that is not acknowledged."),
		unacknowledged: desc("unacknowledged", "Clicks that are recorded and not acknowledged."),
		degraded:       desc("spool_degraded", "1 while clicks are held in plain memory because the folder failed."),
	}
}

func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.recorded, m.dropped, m.bytes, m.oldest, m.unacknowledged, m.degraded} {
		ch <- d
	}
}

func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	account := m.r.Ledger()
	counter(m.recorded, account.Recorded)
	for reason, name := range reasonNames {
		counter(m.dropped, account.Dropped[reason]+m.r.missed[reason].Load(), name)
	}
	gauge(m.bytes, float64(m.r.Bytes()))
	gauge(m.unacknowledged, float64(m.r.Unacknowledged()))
	oldest := 0.0
	for _, l := range append(m.r.Earlier(), m.r.log) {
		if at, ok := l.oldest(); ok {
			oldest = max(oldest, time.Since(time.UnixMicro(at)).Seconds())
		}
	}
	gauge(m.oldest, oldest)
	degraded := 0.0
	if m.r.Degraded() != nil {
		degraded = 1
	}
	gauge(m.degraded, degraded)
}

// Unacknowledged counts the clicks, of this boot and of earlier ones, that are
// recorded and not acknowledged.
func (r *Recorder) Unacknowledged() uint64 {
	acknowledged := r.log.Acknowledged() // first: it follows the other
	n := r.Last() - acknowledged
	for _, l := range r.Earlier() {
		n += l.last - min(l.last, l.Acknowledged())
	}
	return n
}

// oldest is the time of the oldest click that is not acknowledged.
func (l *Log) oldest() (int64, bool) {
	c := l.Cursor(l.Acknowledged())
	defer c.Close()
	var click Click
	ok, err := c.Next(&click)
	for errors.Is(err, ErrDamaged) {
		ok, err = c.Next(&click)
	}
	return click.Time, ok && err == nil
}
