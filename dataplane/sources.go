package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/proto/visitor"
)

var (
	sourceFilesDesc = prometheus.NewDesc("aff_visitor_files",
		"Files of --geoip and --bots: those that are read, and of these the broken ones, of which an older state is in use.", []string{"state"}, nil)
	sourceLoadsDesc = prometheus.NewDesc("aff_visitor_file_loads_total",
		"Files that were read, by result.", []string{"result"}, nil)
	lookupErrorsDesc = prometheus.NewDesc("aff_visitor_lookup_errors_total",
		"Addresses whose record in a database could not be read.", nil, nil)
	botPatternsDesc = prometheus.NewDesc("aff_visitor_bot_patterns",
		"Patterns of bots in use.", nil, nil)
	geoBuildDesc = prometheus.NewDesc("aff_visitor_geoip_build_seconds",
		"When the oldest database in use was built, in seconds since 1970.", nil, nil)
)

// sourcesCollector reports to Prometheus how the sources of facts fare.
type sourcesCollector struct{ sources *visitor.Sources }

func (c sourcesCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sourceFilesDesc, sourceLoadsDesc, lookupErrorsDesc, botPatternsDesc, geoBuildDesc} {
		ch <- d
	}
}

func (c sourcesCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.sources.Stats()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(sourceFilesDesc, float64(st.Files), "read")
	gauge(sourceFilesDesc, float64(st.Broken), "broken")
	count(sourceLoadsDesc, st.Loads, "ok")
	count(sourceLoadsDesc, st.LoadErrors, "error")
	count(lookupErrorsDesc, st.LookupErrors)
	gauge(botPatternsDesc, float64(st.BotPatterns))
	if !st.Oldest.IsZero() {
		gauge(geoBuildDesc, float64(st.Oldest.Unix()))
	}
}
