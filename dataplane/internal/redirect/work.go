package redirect

import (
	"math/rand/v2"
	"net/netip"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// work is what answering needs. A connection borrows one when it has input and
// gives it back when it waits, so that idle connections hold none and busy
// ones share what is warm in the caches.
type work struct {
	in    []byte // as long as a head may be
	out   []byte
	rests [][]byte // buffers of heads that were not complete, for the next
	host  []byte   // scratch: the canonical forms
	path  []byte

	mono  int64 // ns of the clock
	wall  int64 // µs since 1970
	date  string
	table *table.Table

	head     head
	match    link.Match
	request  link.Request
	visitor  visitor.Visitor
	caps     capTaker
	judged   label.Request
	verdict  link.Verdict
	labels   []link.Param // of the click, in labelRoom
	decision link.Decision
	params   []link.Param // of the click
	page     *page        // the answer; nil when it is the redirect that was decided
	event    click.Event
	counts   *counts

	labelRoom [link.NumLabels]link.Param
}

const (
	// The sizes of write buffers, in bytes.
	firstOut = 4 << 10
	maxOut   = 64 << 10 // from here on, answers do not wait for each other

	mostRests = 16      // buffers
	longRest  = 2 << 10 // bytes of one: a longer one is not kept
)

func (s *Server) newWork() any {
	w := &work{
		in:     make([]byte, s.cfg.MaxHead),
		out:    make([]byte, 0, firstOut),
		rests:  make([][]byte, 0, mostRests),
		host:   make([]byte, 0, link.MaxHost+1),
		path:   make([]byte, 0, 512),
		counts: s.nextCounts(),
	}
	w.head.geo = s.geo
	return w
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
	w.table, w.match, w.event = nil, link.Match{}, click.Event{}
	w.decision.Reset()
	w.head = head{geo: w.head.geo}
	w.request, w.caps = link.Request{}, capTaker{}
	w.visitor.Reset(nil, netip.Addr{}, nil)
	w.judged = label.Request{}
	w.verdict.Reset()
	clear(w.labels)
	clear(w.params)
}

// takeRest gives a buffer for the start of a head, nil when there is none. That of a
// head which a full buffer of input cuts off is needed for a moment only: all that a
// client sends ahead is answered with one or two.
func (w *work) takeRest() (rest []byte) {
	if last := len(w.rests) - 1; last >= 0 {
		rest, w.rests = w.rests[last], w.rests[:last]
	}
	return rest
}

// giveRest takes a buffer over, if there is room.
func (w *work) giveRest(rest []byte) {
	if n := cap(rest); 0 < n && n <= longRest && len(w.rests) < mostRests {
		w.rests = append(w.rests, rest[:0])
	}
}

// answer answers the head w.head of a connection into w.out.
func (w *work) answer(c *conn) refusal {
	if w.head.https && !c.secure {
		return badTarget
	}
	why := w.decide(c)
	if why == accepted {
		w.write()
	}
	return why
}

// write appends the answer to w.out.
func (w *work) write() {
	switch {
	case w.page != nil:
		w.out = w.page.append(w.out, &w.head, w.date)
	case w.decision.Location == nil:
		w.out = appendBody(w.out, &w.head, &w.decision, w.date)
	default:
		w.out = appendRedirect(w.out, &w.head, &w.decision, w.date)
	}
}

// decide finds the answer to the head w.head: w.page, or when that is nil
// w.decision. It has recorded what is a redirect or refused by a block. It is the one meaning of a
// request, whatever it came by; c only says by whom.
func (w *work) decide(c *conn) refusal {
	h := &w.head
	var ok bool
	if w.host, ok = link.AppendCanonicalHost(w.host[:0], h.host); !ok {
		return badHost
	}
	if w.path, ok = link.AppendCanonicalPath(w.path[:0], h.path); !ok {
		return badTarget
	}
	if w.table == nil {
		w.show(countUnavailable, &unavailablePage)
		return accepted
	}
	w.ask(c)
	w.table.Lookup(w.host, w.path, &w.match)
	w.judge(c)
	d := &w.decision
	link.Resolve(&w.match, &w.request, d)
	if d.RuleErrors > 0 {
		w.counts.n[countRuleErrors].Add(uint64(d.RuleErrors))
	}
	switch {
	case d.Location != nil:
		w.page = nil
		w.record(c)
		w.counts.add(int(d.Outcome))
	case d.Status == 403:
		w.show(countForbidden, &forbiddenPage)
		w.record(c)
	case d.Body != nil:
		w.page = nil
		w.counts.add(countRobots)
	case d.Status == 410:
		w.show(countGone, &gonePage)
	default:
		w.show(countNotFound, &notFoundPage)
	}
	return accepted
}

// ask sets up the question to be resolved: what is asked, and who asks.
func (w *work) ask(c *conn) {
	h, s := &w.head, c.srv
	addr := c.addr
	if c.believed {
		addr = s.trust.client(addr, h)
	} else if h.geo != nil {
		h.forgetGeo()
	}
	w.visitor.Reset(s.cfg.Sources, addr, &h.headers)
	r := &w.request
	r.Host, r.Path, r.Query, r.UnixMicro = w.host, w.path, h.query, w.wall
	r.Address, r.UserAgent, r.Random = addr, h.headers[userAgent], rand.Uint64()
	r.Visitor = &w.visitor
	if s.cfg.Caps != nil {
		w.caps = capTaker{caps: s.cfg.Caps, labels: &w.verdict.Labels, unixMicro: w.wall}
		w.request.Caps = &w.caps
	}
}

// clickIDName is under what the id that a click was given is recorded.
var clickIDName = []byte("click_id")

// capTaker takes one request's share of a cap: a link.Caps.
type capTaker struct {
	caps      Caps
	labels    *link.Labels
	unixMicro int64
}

// Take says whether there is room. Only what may be a person's click takes some.
func (t *capTaker) Take(m *link.Match, limit link.Cap) bool {
	counts := t.labels.Set()&machines == 0
	return t.caps.Take(m.Link.Domain(m.Value), m.Link.Path(m.Value), limit, t.unixMicro, counts)
}

// show makes a page the answer.
func (w *work) show(count int, p *page) {
	w.counts.add(count)
	w.page = p
}

// record makes the click of the decided redirect, or refusal.
func (w *work) record(c *conn) {
	h, d, e := &w.head, &w.decision, &w.event
	v := w.table.Version()
	// Field by field: a whole Event would be made beside it and copied.
	e.Time, e.Epoch, e.Revision = w.wall, v.Epoch, v.Revision
	e.LinkDomain, e.LinkPath = d.Domain, d.Path
	e.Affiliate, e.Campaign, e.Variant, e.Rule = d.Affiliate, d.Campaign, d.Variant, d.Rule
	e.Destination, e.Status, e.Outcome, e.Head = d.Location, uint16(d.Status), uint8(d.Outcome), h.isHead
	e.Address = w.request.Address
	e.UserAgent, e.Referrer, e.Languages = h.headers[userAgent], h.headers[referrer], h.headers[acceptLanguage]
	e.Host, e.Path = h.host, h.path
	e.Parameters, e.GPC = d.Params, string(h.headers[secGPC]) == "1"
	if id := w.visitor.ClickID(); id != nil {
		w.params = append(append(w.params[:0], link.Param{Name: clickIDName, Value: id}), d.Params...)
		e.Parameters = w.params
	}
	if c.srv.knowsPlaces {
		place := w.visitor.Place()
		e.Country = [2]byte{}
		copy(e.Country[:], place.Country)
		e.ASN = place.ASN
	}
	e.Labels = w.labels
	c.srv.cfg.Clicks.Record(e)
}

// refuse makes the page of a refusal the answer.
func (w *work) refuse(why refusal) {
	w.head.closing = true
	w.show(countRefused+int(why), &refusals[why].page)
}
