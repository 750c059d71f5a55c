package dataplane

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/proto/visitor"
)

var (
	sourceFilesDesc = prometheus.NewDesc("aff_visitor_files",
		"Files of --geoip, --bots and --datacenters: those that are read, and of these the broken ones, of which an older state is in use.", []string{"state"}, nil)
	sourceLoadsDesc = prometheus.NewDesc("aff_visitor_file_loads_total",
		"Files that were read, by result.", []string{"result"}, nil)
	lookupErrorsDesc = prometheus.NewDesc("aff_visitor_lookup_errors_total",
		"Addresses whose record in a database could not be read.", nil, nil)
	botPatternsDesc = prometheus.NewDesc("aff_visitor_bot_patterns",
		"Patterns of bots in use.", nil, nil)
	geoBuildDesc = prometheus.NewDesc("aff_visitor_geoip_build_seconds",
		"When the oldest database in use was built, in seconds since 1970.", nil, nil)
)

var (
	listEntriesDesc = prometheus.NewDesc("aff_label_list_entries",
		"Entries of the lists that requests are labelled by. The version of a file is the hash of what it holds.", []string{"label", "list"}, nil)
	listBrokenDesc = prometheus.NewDesc("aff_label_list_broken",
		"1 if what the list's file holds now cannot be used, and what it held before is.", []string{"label", "list"}, nil)
	labelMemoryDesc = prometheus.NewDesc("aff_label_memory_bytes",
		"Bytes of all that labels remember.", nil, nil)
)

// sourcesCollector reports to Prometheus how the sources of facts fare.
type sourcesCollector struct {
	sources *visitor.Sources
	judge   *label.Judge
}

func (c sourcesCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sourceFilesDesc, sourceLoadsDesc, lookupErrorsDesc, botPatternsDesc, geoBuildDesc, listEntriesDesc, listBrokenDesc, labelMemoryDesc} {
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
	for i, l := range st.Lists {
		name := fmt.Sprintf("%d %s", i+1, l.Name) // two files may have the same name and hash
		gauge(listEntriesDesc, float64(l.Entries), l.Label.String(), name)
		broken := 0.0
		if l.Broken {
			broken = 1
		}
		gauge(listBrokenDesc, broken, l.Label.String(), name)
	}
	gauge(labelMemoryDesc, float64(c.judge.Memory()))
	if !st.Oldest.IsZero() {
		gauge(geoBuildDesc, float64(st.Oldest.Unix()))
	}
}
