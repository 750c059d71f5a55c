package feed

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// metrics are the feed's counters.
type metrics struct {
	connected           atomic.Bool
	refusesOlder        atomic.Bool
	disconnects         atomic.Uint64
	confirmed           atomic.Int64 // when the state was last known to be the newest, Unix ns; 0: never
	frames              [kinds][2]atomic.Uint64
	saves, saveFailures atomic.Uint64
}

// The results of a frame.
const (
	resultOK = iota
	resultRejected
)

// frame counts a message: a snapshot once, when it ends.
func (m *metrics) frame(o outcome) {
	switch {
	case o.rejection != nil || o.err != nil:
		m.frames[o.kind][resultRejected].Add(1)
	case o.kind != kindSnapshot || o.applied != nil:
		m.frames[o.kind][resultOK].Add(1)
	}
}

// confirm notes that the live state is the newest.
func (m *metrics) confirm() { m.confirmed.Store(time.Now().UnixNano()) }

// age is how long ago the live state was known to be the newest, in seconds; -1
// if it never was.
func (m *metrics) age() float64 {
	at := m.confirmed.Load()
	if at == 0 {
		return -1
	}
	return max(time.Since(time.Unix(0, at)).Seconds(), 0)
}

func newMetrics(live *table.Live, reg prometheus.Registerer) *metrics {
	m := &metrics{}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aff_feed_" + name, Help: help}, f))
	}
	count := func(name, help string, labels prometheus.Labels, c *atomic.Uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aff_feed_" + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(c.Load()) }))
	}
	gauge("version_revision", "Revision that is served; 0 before there is a state.", func() float64 {
		return float64(heldVersion(live).Revision)
	})
	gauge("entries", "Resources of every kind that are held.", func() float64 {
		if t := live.Load(); t != nil {
			return float64(t.Len())
		}
		return 0
	})
	gauge("state_age_seconds", "Time since the state was last known to be the newest; -1 if it never was.", m.age)
	gauge("connected", "1 while a control plane is followed.", func() float64 { return number(m.connected.Load()) })
	gauge("refuses_older", "1 while a control plane offers an older version or another epoch.", func() float64 { return number(m.refusesOlder.Load()) })
	for k := range kinds {
		count("frames_total", "Frames received, by kind and result.", prometheus.Labels{"kind": k.String(), "result": "ok"}, &m.frames[k][resultOK])
		count("frames_total", "Frames received, by kind and result.", prometheus.Labels{"kind": k.String(), "result": "rejected"}, &m.frames[k][resultRejected])
	}
	count("disconnects_total", "Streams that ended or did not come about.", nil, &m.disconnects)
	count("saves_total", "Times that the last-known-good file was written.", nil, &m.saves)
	count("save_failures_total", "Times that the last-known-good file could not be written.", nil, &m.saveFailures)
	return m
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
