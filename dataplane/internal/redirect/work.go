package redirect

import (
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/link"
)

// work is what answering needs. A connection borrows one when it has input and
// gives it back when it waits, so that idle connections hold none and busy
// ones share what is warm in the caches.
type work struct {
	in   []byte // as long as a head may be
	out  []byte
	host []byte // scratch: the canonical forms
	path []byte

	mono  int64 // ns of the clock
	wall  int64 // µs since 1970
	date  string
	table *table.Table

	head     head
	match    link.Match
	request  link.Request
	decision link.Decision
	event    click.Event
	counts   *counts
}

// The sizes of write buffers, in bytes.
const (
	firstOut = 4 << 10
	maxOut   = 64 << 10 // from here on, answers do not wait for each other
)

func (s *Server) newWork() any {
	return &work{
		in:     make([]byte, s.cfg.MaxHead),
		out:    make([]byte, 0, firstOut),
		host:   make([]byte, 0, link.MaxHost+1),
		path:   make([]byte, 0, 512),
		counts: s.nextCounts(),
	}
}

// begin reads the clock and takes the current table, for all the heads of one
// arrival.
func (w *work) begin(s *Server) {
	mono, second := s.clock.read()
	w.mono, w.wall, w.date = mono, second.unixMicro(mono), second.date
	w.table = s.cfg.Live.Load()
}

// forget lets go of the table and its bytes.
func (w *work) forget() {
	w.table, w.match, w.decision, w.event = nil, link.Match{}, link.Decision{}, click.Event{}
}

// decide answers the head w.head into w.out. A redirect is recorded first.
func (c *conn) decide(w *work) refusal {
	h := &w.head
	var ok bool
	if w.host, ok = link.AppendCanonicalHost(w.host[:0], h.host); !ok {
		return badHost
	}
	if w.path, ok = link.AppendCanonicalPath(w.path[:0], h.path); !ok {
		return badTarget
	}
	if w.table == nil {
		w.counts.add(countUnavailable)
		w.out = unavailablePage.append(w.out, h, w.date)
		return accepted
	}
	w.request = link.Request{Host: w.host, Path: w.path, Query: h.query, UnixMicro: w.wall}
	w.table.Lookup(w.host, w.path, &w.match)
	d := &w.decision
	link.Resolve(&w.match, &w.request, d)
	switch {
	case d.Location != nil:
		w.record(c)
		w.out = appendRedirect(w.out, h, d, w.date)
	case d.Status == 410:
		w.counts.add(countGone)
		w.out = gonePage.append(w.out, h, w.date)
	default:
		w.counts.add(countNotFound)
		w.out = notFoundPage.append(w.out, h, w.date)
	}
	return accepted
}

// record makes the click of the decided redirect.
func (w *work) record(c *conn) {
	h, d, e := &w.head, &w.decision, &w.event
	v := w.table.Version()
	*e = click.Event{
		Time:     w.wall,
		Epoch:    v.Epoch,
		Revision: v.Revision,

		LinkDomain: d.Domain,
		LinkPath:   d.Path,
		Affiliate:  d.Affiliate,
		Campaign:   d.Campaign,
		Variant:    d.Variant,
		Rule:       d.Rule,

		Destination: d.Location,
		Status:      uint16(d.Status),
		Head:        h.isHead,
		Outcome:     uint8(d.Outcome),

		Address:   c.addr,
		UserAgent: h.headers[userAgent],
		Referrer:  h.headers[referrer],
		Languages: h.headers[acceptLanguage],
		Host:      h.host,
		Path:      h.path,
	}
	c.srv.cfg.Clicks.Record(e)
	w.counts.add(int(d.Outcome))
}

// refuse answers a head that is not served.
func (w *work) refuse(why refusal) {
	w.counts.add(countRefused + int(why))
	w.head.closing = true
	w.out = refusals[why].page.append(w.out, &w.head, w.date)
}
