package click

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metric is the value of a gauge or counter without labels.
func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// The names are what operators alarm on.
func TestMetricsSayWhatTheSpoolHolds(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Registerer = registry })
	waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	for name, want := range map[string]float64{
		"aff_clicks_recorded_total":       0,
		"aff_clicks_spool_bytes":          (1 + spareCount) * minSegment,
		"aff_clicks_spool_oldest_seconds": 0,
		"aff_clicks_unacknowledged":       0,
		"aff_clicks_spool_degraded":       0,
	} {
		if got := metric(t, registry, name); got != want {
			t.Errorf("at first: %s is %v, want %v", name, got, want)
		}
	}
	for _, age := range []time.Duration{time.Hour, time.Minute} {
		r.Record(&Event{Time: time.Now().Add(-age).UnixMicro()})
	}
	oldest := func(age time.Duration) {
		t.Helper()
		if got := metric(t, registry, "aff_clicks_spool_oldest_seconds"); got < age.Seconds() || got > age.Seconds()+50 {
			t.Errorf("the oldest is %v seconds old, want %v", got, age)
		}
	}
	oldest(time.Hour)
	r.Log().Acknowledge(1)
	oldest(time.Minute)
	if recorded, left := metric(t, registry, "aff_clicks_recorded_total"), metric(t, registry, "aff_clicks_unacknowledged"); recorded != 2 || left != 1 {
		t.Errorf("%v are recorded, %v are not acknowledged", recorded, left)
	}
	r.Log().Acknowledge(2)
	if got := metric(t, registry, "aff_clicks_spool_oldest_seconds"); got != 0 {
		t.Errorf("all is acknowledged, and the oldest is %v seconds old", got)
	}
}

func TestTheOldestClickMayBeOfAnEarlierBoot(t *testing.T) {
	dir := t.TempDir()
	first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	first.Record(&Event{Time: time.Now().Add(-time.Hour).UnixMicro()})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.Registerer = dir, 6, registry })
	r.Record(&Event{Time: time.Now().UnixMicro()})
	waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	if got := metric(t, registry, "aff_clicks_spool_oldest_seconds"); got < 3600 || got > 3650 {
		t.Errorf("the oldest is %v seconds old", got)
	}
	if got, own := metric(t, registry, "aff_clicks_spool_bytes"), float64(r.log.bytes()); got != own+minSegment {
		t.Errorf("the spool has %v bytes, %v of them of this boot", got, own)
	}
}

func TestTheAlarmIsOnWhileTheFolderFails(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Registerer = registry })
	away := inTheWay(t, r)
	for s := r.current.Load(); r.current.Load() == s; { // another spare one is wanted
		recordTimes(r, 1, 2)
	}
	waitFor(t, "the alarm is on", func() bool { return metric(t, registry, "aff_clicks_spool_degraded") == 1 })
	away()
	waitFor(t, "the alarm is off", func() bool { return metric(t, registry, "aff_clicks_spool_degraded") == 0 })
}
