package feed

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// metrics are the feed's counters.
type metrics struct {
	connected           atomic.Bool
	refusesOlder        atomic.Bool
	guarded             atomic.Bool
	quarantined         atomic.Bool
	takenDown           atomic.Int64 // keys in the overlay
	head                atomic.Int64 // newest revision that was heard of, of the epoch that is held
	lagSince            atomic.Int64 // when a newer one was first heard of, Unix ns; 0: the newest is served
	rejected            [rejectCodes]atomic.Uint64
	disconnects         atomic.Uint64
	confirmed           atomic.Int64 // when the state was last known to be the newest, Unix ns; 0: never
	frames              [kinds][2]atomic.Uint64
	saves, saveFailures atomic.Uint64
}

// rejectCodes is how many of RejectCode there are.
const rejectCodes = int(feedv1.RejectCode_REJECT_CODE_GUARDED) + 1

// The results of a frame.
const (
	resultOK = iota
	resultRejected
)

// frame counts a message: a snapshot once, when it ends.
func (m *metrics) frame(o outcome) {
	switch {
	case o.rejection != nil || o.err != nil || o.guarded != nil:
		m.frames[o.kind][resultRejected].Add(1)
		if o.rejection != nil {
			m.rejected[o.rejection.code].Add(1)
		}
	case o.kind != kindSnapshot || o.applied != nil:
		m.frames[o.kind][resultOK].Add(1)
	}
}

// confirm notes that the live state is the newest.
func (m *metrics) confirm() { m.confirmed.Store(time.Now().UnixNano()) }

// confirmedAt is when that was; the zero time if it never was.
func (m *metrics) confirmedAt() time.Time {
	if at := m.confirmed.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// age is how long ago the live state was known to be the newest, in seconds; -1
// if it never was.
func (m *metrics) age() float64 {
	at := m.confirmed.Load()
	if at == 0 {
		return -1
	}
	return max(time.Since(time.Unix(0, at)).Seconds(), 0)
}

// heard notes how far the control plane is.
func (m *metrics) heard(head int64, held table.Version) {
	m.head.Store(head)
	m.catchUp(held)
}

// catchUp notes what is served.
func (m *metrics) catchUp(held table.Version) {
	if m.head.Load() <= held.Revision {
		m.lagSince.Store(0)
	} else if m.lagSince.Load() == 0 {
		m.lagSince.Store(time.Now().UnixNano())
	}
}

func (m *metrics) lag(live *table.Live) float64 {
	return float64(max(m.head.Load()-heldVersion(live).Revision, 0))
}

func (m *metrics) lagSeconds() float64 {
	since := m.lagSince.Load()
	if since == 0 {
		return 0
	}
	return max(time.Since(time.Unix(0, since)).Seconds(), 0)
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
		if t := verified(live); t != nil {
			return float64(t.Len())
		}
		return 0
	})
	gauge("state_age_seconds", "Time since the state was last known to be the newest; -1 if it never was.", m.age)
	gauge("state_bytes", "Bytes of the keys and values of all resources.", func() float64 {
		if t := verified(live); t != nil {
			return float64(t.Size())
		}
		return 0
	})
	gauge("unserved_entries", "Resources that are held and not served, because they do not compile, are of a newer release, or are links larger than --max-entry-bytes.", func() float64 {
		if t := verified(live); t != nil {
			return float64(t.Unserved())
		}
		return 0
	})
	gauge("taken_down_entries", "Links and affiliates that are refused ahead of the version that takes them down.", func() float64 {
		return float64(m.takenDown.Load())
	})
	gauge("lag_revisions", "Revisions that the control plane was heard to be ahead.", func() float64 { return m.lag(live) })
	gauge("lag_seconds", "Time since a revision was heard of that is not served yet.", m.lagSeconds)
	gauge("quarantined", "1 while no control plane is followed because the process has ended again and again.", func() float64 { return number(m.quarantined.Load()) })
	gauge("guarded", "1 while the guard holds a version back.", func() float64 { return number(m.guarded.Load()) })
	for code := range m.rejected {
		name := strings.ToLower(strings.TrimPrefix(feedv1.RejectCode(code).String(), "REJECT_CODE_"))
		count("rejected_total", "Frames that were rejected, by reason.", prometheus.Labels{"code": name}, &m.rejected[code])
	}
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
