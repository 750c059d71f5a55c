package link

import "net/netip"

// Outcome is why a request got its answer: the numbers of clickv1.Outcome.
type Outcome uint8

// The outcomes.
const (
	ToDestination Outcome = iota // the link's destination
	ToNotFound                   // no link: the domain's not_found, or 404
	IsDisabled                   // disabled: the fallback, or as if there were no link
	IsNotYet                     // before not_before: likewise
	IsExpired                    // past expires_at: the fallback, or 410
	IsSuspended                  // affiliate suspended: the link's or affiliate's fallback, or as if there were no link
	IsCapped                     // over its cap: the fallback, or as if there were no link
	ByRule                       // a rule says: the fallback, or as if there were no link
	IsBlocked                    // blocks or policies say: 403, a fallback, or the destination without its affiliate
	ToRoot                       // no link at "/": the domain's root
)

// ToRobots is the domain's robots.txt. It is no redirect, and no click.
const ToRobots Outcome = 255

var outcomeNames = map[Outcome]string{
	ToDestination: "destination", ToNotFound: "not_found", IsDisabled: "disabled", IsNotYet: "not_yet",
	IsExpired: "expired", IsSuspended: "suspended", IsCapped: "capped", ByRule: "rule", IsBlocked: "blocked", ToRoot: "root", ToRobots: "robots",
}

// String is the outcome for people: "expired".
func (o Outcome) String() string { return outcomeNames[o] }

// Match is what a table knows about a request: the link at its path, and the
// domain and affiliate that go with it.
type Match struct {
	Link      Compiled
	Value     []byte     // the link's stored bytes, or without its plan as AppendBare gives them; nil when there is no link
	Plan      *Plan      // of a link for which HasPlan says that it has one
	Domain    *Domain    // nil when neither the host nor "*" has one
	Affiliate *Affiliate // nil when the link has none
}

// Request is what a decision depends on.
type Request struct {
	Host, Path []byte     // canonical
	Query      []byte     // raw, without the question mark
	UnixMicro  int64      // the time, in µs since 1970
	Address    netip.Addr // the client's, not a proxy's
	UserAgent  []byte     // the header
	Random     uint64     // a number drawn for this request
	Treatment  Treatment  // how it is treated: see Verdict

	Visitor Visitor // nil: nothing is known
	Caps    Caps    // nil: there is room under every cap
	Trace   *Trace  // nil: nobody wants to know how it was decided
}

// Param is a parameter of a request that its click records: its name, and the
// bytes of its value as they were in the query.
type Param struct{ Name, Value []byte }

// MaxParams is how many parameters of a request are recorded: the first ones.
const MaxParams = 64

// Decision is the answer to a request. What it points at belongs to the Match,
// the Request or the Decision itself: it is valid until the Decision is resolved
// again or one of the others changes. One that is used again and again does not
// allocate; its buffers are at most some MaxLocation bytes each.
type Decision struct {
	Outcome      Outcome
	Status       int    // of HTTP
	Location     []byte // nil when the answer is no redirect
	Body         []byte // of the answer, when Status is 200
	CacheControl string
	RobotsTag    string // the X-Robots-Tag; empty for none

	// What the click says about it; empty where there is none.
	Domain, Path, Affiliate, Campaign, Variant []byte
	Rule                                       uint32 // 1 for the first; 0 when none decided
	RuleName                                   []byte
	Params                                     []Param

	// RuleErrors counts the rules that failed and were passed over.
	RuleErrors uint32

	facts   facts
	buf     []byte // of the Location
	scratch []byte // of the value of a macro
}

// Reset empties the decision and keeps its buffers: it lets go of the Match.
func (d *Decision) Reset() {
	d.facts.end()
	clear(d.Params[:cap(d.Params)])
	*d = Decision{Params: d.Params[:0], facts: d.facts, buf: d.buf, scratch: d.scratch}
}

// Resolve decides a request. It sets every field of d and reads only its
// arguments. It allocates only to grow the buffers of d, and for rules that are
// not of the simple kind: see the package's page on rules.
func Resolve(m *Match, req *Request, d *Decision) {
	d.facts.begun = false
	if m.Domain != nil && len(m.Domain.robotsTxt) > 0 && string(req.Path) == robotsPath {
		d.begin(m.Domain, ToRobots)
		d.Status, d.Body = 200, m.Domain.robotsTxt
		return
	}
	if req.Treatment == TreatRefuse {
		d.refuse(m, req)
		return
	}
	if m.Value == nil || !d.withLink(m, req) {
		errors := d.RuleErrors
		d.begin(m.Domain, ToNotFound)
		if m.Value != nil {
			d.RuleErrors = errors
		}
		d.withoutLink(m, req)
	}
	if req.Treatment != TreatLabel {
		d.CacheControl = noStore // others are not treated so
	}
	if len(req.Query) > 0 && d.Location != nil {
		q, _ := m.forwarding()
		d.recordParams(req.Query, q)
	}
}

// refuse answers with 403 whatever link there is.
func (d *Decision) refuse(m *Match, req *Request) {
	d.begin(nil, IsBlocked)
	d.Status = 403
	if c := &m.Link; m.Value != nil {
		d.Domain, d.Path = c.Domain(m.Value), c.Path(m.Value)
		d.Affiliate, d.Campaign = c.Affiliate(m.Value), c.Campaign(m.Value)
	}
	if len(req.Query) > 0 {
		q, _ := m.forwarding()
		d.recordParams(req.Query, q)
	}
}

const (
	robotsPath = "/robots.txt"
	noStore    = "no-store"
)

func (d *Decision) begin(domain *Domain, outcome Outcome) {
	d.Outcome, d.Status, d.CacheControl, d.RobotsTag = outcome, 302, noStore, ""
	d.Location, d.Body, d.Params = nil, nil, d.Params[:0]
	d.Domain, d.Path, d.Affiliate, d.Campaign, d.Variant = nil, nil, nil, nil, nil
	d.Rule, d.RuleName, d.RuleErrors = 0, nil, 0
	if domain != nil {
		d.RobotsTag = domain.robotsTag
		if domain.cacheControl != "" {
			d.CacheControl = domain.cacheControl
		}
	}
}

// withLink says false if it must be as if there were no link at all.
func (d *Decision) withLink(m *Match, req *Request) bool {
	c := &m.Link
	d.begin(m.Domain, c.outcome(m, req.UnixMicro))
	d.Domain, d.Path = c.Domain(m.Value), c.Path(m.Value)
	d.Affiliate, d.Campaign = c.Affiliate(m.Value), c.Campaign(m.Value)
	if d.Outcome == ToDestination && req.Treatment == TreatFallback {
		d.Outcome = IsBlocked
	}
	if d.Outcome == ToDestination {
		destination := c.Destination(m.Value)
		if c.flags&(flagPlan|flagCap) != 0 {
			destination = d.byPlan(m, req, destination)
		}
		if d.Outcome == ToDestination {
			d.Status = c.statusCode(m.Domain)
			if req.Treatment == TreatNoAffiliate && len(d.Affiliate) > 0 {
				d.Outcome = IsBlocked
			}
			return d.send(m, req, destination)
		}
	}
	switch {
	case d.Outcome == ByRule && d.Status == 404:
		d.Status = 302
		d.withoutLink(m, req)
	case c.fallback.len > 0:
		return d.sendAlone(m, req, c.fallback.in(m.Value))
	case (d.Outcome == IsSuspended || d.Outcome == IsBlocked) && m.Affiliate.HasFallback():
		return d.sendAlone(m, req, m.Affiliate.fallback)
	case d.Outcome == IsExpired:
		d.Status = 410
	default:
		d.withoutLink(m, req)
	}
	return true
}

// byPlan gives the destination that the rules, the splits and the cap of a link
// leave it, or changes the Outcome. What they decide is for one visitor: no
// cache may keep it.
func (d *Decision) byPlan(m *Match, req *Request, destination []byte) []byte {
	d.facts.begin(m, req)
	limit, capped := m.Link.Cap(m.Value)
	if capped || m.Plan != nil && m.Plan.asksVisitor() {
		d.CacheControl = noStore
	}
	if p := m.Plan; p != nil {
		r := d.match(p, req.Trace)
		switch {
		case r == nil:
			if len(p.splits) > 0 {
				destination = d.split(p, p.splits)
			}
		case r.outcome == ruleSends:
			destination = r.to.in(p.bytes)
		case r.outcome == ruleSplits:
			destination = d.split(p, r.variants)
		default:
			d.Outcome = ByRule
			if r.outcome == ruleNotFound {
				d.Status = 404
			}
			return nil
		}
	}
	if capped && !d.hasRoom(m, req, limit) {
		d.Outcome = IsCapped
		d.Rule, d.RuleName, d.Variant = 0, nil, nil
	}
	return destination
}

// match gives the first of the plan's rules that matches, nil if none does.
func (d *Decision) match(p *Plan, t *Trace) *rule {
	for i := range p.rules {
		r := &p.rules[i]
		answer := r.when.eval(&d.facts)
		if t != nil {
			t.rule(i, r, p, &d.facts, answer)
		}
		switch answer {
		case yes:
			d.Rule, d.RuleName = uint32(i+1), r.name.in(p.bytes)
			return r
		case failed:
			d.RuleErrors++
		}
	}
	return nil
}

// split gives the destination of the visitor's variant.
func (d *Decision) split(p *Plan, variants []variant) []byte {
	v := choose(variants, p, d.facts.stickyKey())
	d.Variant = v.name.in(p.bytes)
	if t := d.facts.req.Trace; t != nil {
		t.split(variants, p, v, &d.facts)
	}
	return v.destination.in(p.bytes)
}

// hasRoom asks whether the cap has room for the request.
func (d *Decision) hasRoom(m *Match, req *Request, limit Cap) bool {
	room := req.Caps == nil || req.Caps.Take(m, limit)
	if req.Trace != nil {
		req.Trace.Cap = &CapStep{Limit: limit, Asked: req.Caps != nil, Room: room}
	}
	return room
}

// withoutLink answers as if there were no link.
func (d *Decision) withoutLink(m *Match, req *Request) {
	domain := m.Domain
	switch {
	case domain != nil && len(domain.root) > 0 && string(req.Path) == "/":
		if d.sendAlone(m, req, domain.root) {
			if d.Outcome == ToNotFound {
				d.Outcome = ToRoot
			}
			return
		}
	case domain != nil && len(domain.notFound) > 0:
		if d.sendAlone(m, req, domain.notFound) {
			return
		}
	}
	d.Status = 404
}

// outcome says whether the link is served, and why not.
func (c *Compiled) outcome(m *Match, now int64) Outcome {
	if c.flags&(flagDisabled|flagScheduled) == 0 && (m.Affiliate == nil || !m.Affiliate.suspended) {
		return ToDestination
	}
	if c.flags&flagDisabled != 0 {
		return IsDisabled
	}
	if c.flags&flagScheduled != 0 {
		from, until := c.schedule(m.Value)
		if now < from {
			return IsNotYet
		}
		if now >= until {
			return IsExpired
		}
	}
	if m.Affiliate != nil && m.Affiliate.suspended {
		return IsSuspended
	}
	return ToDestination
}

func (c *Compiled) statusCode(domain *Domain) int {
	switch {
	case c.status != 0:
		return int(c.status)
	case domain != nil && domain.status != 0:
		return domain.status
	}
	return 302
}
