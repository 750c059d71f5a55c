package redirect

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/proto/link"
)

// What requests are counted as. The first places are the outcomes of redirects.
const (
	numOutcomes      = 16
	countNotFound    = numOutcomes
	countGone        = countNotFound + 1
	countUnavailable = countGone + 1
	countRobots      = countUnavailable + 1
	countRuleErrors  = countRobots + 1 // not requests: rules
	countForbidden   = countRuleErrors + 1
	countRefused     = countForbidden + 1                // and a refusal
	countLabels      = countRefused + int(numRefusals)   // and a label; not requests: labels
	countTreated     = countLabels + int(link.NumLabels) // and a treatment: requests that have a label
	numCounts        = countTreated + int(link.NumTreatments)
)

// counts is one of several blocks of counters, so that cores do not share
// cache lines.
type counts struct {
	n [numCounts]atomic.Uint64
	_ [64]byte
}

func (c *counts) add(i int) { c.n[i].Add(1) }

// connCounts counts what happens once per connection or less, or not for requests at all.
type connCounts struct {
	accepted, overLimit, overAddrLimit        atomic.Uint64
	headTimeouts, idleTimeouts, writeTimeouts atomic.Uint64
	acceptErrors, panics, cut                 atomic.Uint64
	proxyErrors, handshakeErrors              atomic.Uint64
	roomWaits                                 atomic.Uint64
	errandsRun, errandsRefused                atomic.Uint64
}

// errand counts work that an event loop has run beside redirects, or refused, and gives
// which.
func (c *connCounts) errand(ran bool) bool {
	if ran {
		c.errandsRun.Add(1)
	} else {
		c.errandsRefused.Add(1)
	}
	return ran
}

// Stats is what a Server has done since New.
type Stats struct {
	Redirects   uint64            // answered with a Location; each is a click
	Outcomes    map[string]uint64 // redirects by link.Outcome
	NotFound    uint64            // answered with 404
	Gone        uint64            // answered with 410
	Forbidden   uint64            // answered with 403, as blocks or policies say; each is a click
	Unavailable uint64            // answered with 503, for want of a table
	Robots      uint64            // answered with a domain's robots.txt
	Refused     uint64            // heads answered with an error, and the connection closed
	Refusals    map[string]uint64 // Refused by reason

	RuleErrors uint64 // rules that failed and were passed over

	Labels  map[string]uint64 // labels that were given, by name
	Treated map[string]uint64 // requests with a label, by link.Treatment

	Open          int    // connections now
	Accepted      uint64 // connections that were served
	OverLimit     uint64 // connections closed at once: MaxConns
	OverAddrLimit uint64 // connections closed at once: MaxConnsPerAddr
	HeadTimeouts  uint64 // connections closed: the head was not complete in time
	IdleTimeouts  uint64 // connections closed: no request in time
	WriteTimeouts uint64 // connections closed: the client did not read its answers
	AcceptErrors  uint64 // failed accepts that were tried again, for want of descriptors above all
	Panics        uint64 // connections closed by a defect in this program
	Cut           uint64 // connections closed because the time to drain was over
	RoomWaits     uint64 // times that an event loop waited for the spool to have room

	ErrandsRun     uint64 // work that an event loop ran beside redirects: see Beside
	ErrandsRefused uint64 // the same that none ran: it was busy, had another, or had ended, or there was not just one

	ProxyErrors     uint64 // connections closed: no PROXY protocol header from a trusted proxy
	HandshakeErrors uint64 // connections closed: no TLS was agreed on

	Certificates       int       // that are served
	BrokenCertificates int       // pairs of files that could not be loaded when they changed last
	CertificateErrors  uint64    // how often that happened
	CertificatesUntil  time.Time // when the first of them ends; zero without TLS
}

// Requests is the number of all answers.
func (s *Stats) Requests() uint64 {
	return s.Redirects + s.NotFound + s.Gone + s.Unavailable + s.Robots + s.Refused + s.Forbidden
}

// Stats sums up the counters. It may miss what happens meanwhile.
func (s *Server) Stats() Stats {
	var n [numCounts]uint64
	for i := range s.counts {
		for j := range n {
			n[j] += s.counts[i].n[j].Load()
		}
	}
	c := &s.conns
	st := Stats{
		NotFound: n[countNotFound], Gone: n[countGone], Unavailable: n[countUnavailable], Robots: n[countRobots], RuleErrors: n[countRuleErrors],
		Forbidden: n[countForbidden],
		Outcomes:  map[string]uint64{}, Refusals: map[string]uint64{}, Labels: map[string]uint64{}, Treated: map[string]uint64{},
		Open:     s.limits.open(),
		Accepted: c.accepted.Load(), OverLimit: c.overLimit.Load(), OverAddrLimit: c.overAddrLimit.Load(),
		HeadTimeouts: c.headTimeouts.Load(), IdleTimeouts: c.idleTimeouts.Load(), WriteTimeouts: c.writeTimeouts.Load(),
		AcceptErrors: c.acceptErrors.Load(), Panics: c.panics.Load(), Cut: c.cut.Load(),
		ProxyErrors: c.proxyErrors.Load(), HandshakeErrors: c.handshakeErrors.Load(),
		RoomWaits: c.roomWaits.Load(), ErrandsRun: c.errandsRun.Load(), ErrandsRefused: c.errandsRefused.Load(),
	}
	if certs := s.certs.Load(); certs != nil {
		set := certs.current.Load()
		st.Certificates, st.BrokenCertificates = len(set.all), set.broken
		st.CertificateErrors, st.CertificatesUntil = certs.errors.Load(), set.first
	}
	for o, k := range n[:numOutcomes] {
		st.Redirects += k
		if name := link.Outcome(o).String(); name != "" {
			st.Outcomes[name] = k
		}
	}
	for l := range link.NumLabels {
		st.Labels[l.String()] = n[countLabels+int(l)]
	}
	for t := range link.NumTreatments {
		st.Treated[t.String()] = n[countTreated+int(t)]
	}
	for why := badRequestLine; why < numRefusals; why++ {
		k := n[countRefused+int(why)]
		st.Refused += k
		st.Refusals[refusals[why].reason] = k
	}
	return st
}

var (
	requestsDesc = prometheus.NewDesc("aff_redirect_requests_total",
		"Requests answered, by outcome: those of redirects, not_found_page, gone_page, robots_txt, forbidden_page, unavailable.", []string{"outcome"}, nil)
	refusedDesc = prometheus.NewDesc("aff_redirect_refused_total",
		"Request heads answered with an error and a closed connection, by reason.", []string{"reason"}, nil)
	ruleErrorsDesc = prometheus.NewDesc("aff_redirect_rule_errors_total",
		"Rules that failed for a request and were passed over.", nil, nil)
	labelsDesc = prometheus.NewDesc("aff_labels_total",
		"Labels that requests were given.", []string{"label"}, nil)
	treatedDesc = prometheus.NewDesc("aff_treated_total",
		"Requests that have a label, by what was done about them: label, no_affiliate, fallback, refuse.", []string{"action"}, nil)
	openDesc = prometheus.NewDesc("aff_redirect_connections",
		"Connections now.", nil, nil)
	acceptedDesc = prometheus.NewDesc("aff_redirect_connections_accepted_total",
		"Connections that were served.", nil, nil)
	endedDesc = prometheus.NewDesc("aff_redirect_connections_dropped_total",
		"Connections that the server closed on its own, by reason.", []string{"reason"}, nil)
	acceptErrorsDesc = prometheus.NewDesc("aff_redirect_accept_errors_total",
		"Failed accepts that were tried again.", nil, nil)
	roomWaitsDesc = prometheus.NewDesc("aff_redirect_room_waits_total",
		"Waits of 0.5 ms for the spool to have room for clicks, by all event loops.", nil, nil)
	errandsDesc = prometheus.NewDesc("aff_redirect_errands_total",
		"Work that the only event loop was to run beside redirects, by outcome: run, refused.", []string{"outcome"}, nil)
	certsDesc = prometheus.NewDesc("aff_redirect_certificates",
		"Certificates of the TLS listener: those that are served, and pairs of files that cannot be loaded.", []string{"state"}, nil)
	certErrorsDesc = prometheus.NewDesc("aff_redirect_certificate_errors_total",
		"Pairs of files that could not be loaded when they changed.", nil, nil)
	certsUntilDesc = prometheus.NewDesc("aff_redirect_certificate_expiry_seconds",
		"When the first certificate ends, in seconds since 1970.", nil, nil)
)

// collector reports a Server's Stats to Prometheus.
type collector struct{ s *Server }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, refusedDesc, ruleErrorsDesc, labelsDesc, treatedDesc, openDesc, acceptedDesc, endedDesc, acceptErrorsDesc, roomWaitsDesc, errandsDesc, certsDesc, certErrorsDesc, certsUntilDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Stats()
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for outcome, v := range st.Outcomes {
		count(requestsDesc, v, outcome)
	}
	count(requestsDesc, st.NotFound, "not_found_page")
	count(requestsDesc, st.Gone, "gone_page")
	count(requestsDesc, st.Unavailable, "unavailable")
	count(requestsDesc, st.Robots, "robots_txt")
	count(requestsDesc, st.Forbidden, "forbidden_page")
	for l, v := range st.Labels {
		count(labelsDesc, v, l)
	}
	for action, v := range st.Treated {
		count(treatedDesc, v, action)
	}
	count(ruleErrorsDesc, st.RuleErrors)
	for reason, v := range st.Refusals {
		count(refusedDesc, v, reason)
	}
	ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(st.Open))
	count(acceptedDesc, st.Accepted)
	count(endedDesc, st.OverLimit, "limit")
	count(endedDesc, st.OverAddrLimit, "address_limit")
	count(endedDesc, st.HeadTimeouts, "head_timeout")
	count(endedDesc, st.IdleTimeouts, "idle_timeout")
	count(endedDesc, st.WriteTimeouts, "write_timeout")
	count(endedDesc, st.Panics, "panic")
	count(endedDesc, st.Cut, "drain")
	count(endedDesc, st.ProxyErrors, "proxy_header")
	count(endedDesc, st.HandshakeErrors, "tls_handshake")
	count(acceptErrorsDesc, st.AcceptErrors)
	count(roomWaitsDesc, st.RoomWaits)
	count(errandsDesc, st.ErrandsRun, "run")
	count(errandsDesc, st.ErrandsRefused, "refused")
	if !st.CertificatesUntil.IsZero() {
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		gauge(certsDesc, float64(st.Certificates), "served")
		gauge(certsDesc, float64(st.BrokenCertificates), "broken")
		count(certErrorsDesc, st.CertificateErrors)
		gauge(certsUntilDesc, float64(st.CertificatesUntil.Unix()))
	}
}
