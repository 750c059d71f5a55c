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
	_                            // clickv1.Outcome_OUTCOME_BLOCKED
	ToRoot                       // no link at "/": the domain's root
)

// ToRobots is the domain's robots.txt. It is no redirect, and no click.
const ToRobots Outcome = 255

var outcomeNames = map[Outcome]string{
	ToDestination: "destination", ToNotFound: "not_found", IsDisabled: "disabled", IsNotYet: "not_yet",
	IsExpired: "expired", IsSuspended: "suspended", IsCapped: "capped", ByRule: "rule", ToRoot: "root", ToRobots: "robots",
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

	buf []byte
}

// Reset empties the decision and keeps its buffer: it lets go of the Match.
func (d *Decision) Reset() { *d = Decision{buf: d.buf} }

// Resolve decides a request. It sets every field of d and reads only its
// arguments. It allocates only to grow the buffer of d, for a prefix link.
func Resolve(m *Match, req *Request, d *Decision) {
	if m.Value == nil || !d.withLink(m, req) {
		d.begin(m.Domain, ToNotFound)
		d.withoutLink(m.Domain, req)
	}
}

func (d *Decision) begin(domain *Domain, outcome Outcome) {
	buf := d.buf
	*d = Decision{Outcome: outcome, Status: 302, CacheControl: "no-store"}
	d.buf = buf
	if domain != nil && domain.cacheControl != "" {
		d.CacheControl = domain.cacheControl
	}
}

// withLink says false if it must be as if there were no link at all.
func (d *Decision) withLink(m *Match, req *Request) bool {
	c := &m.Link
	d.begin(m.Domain, c.outcome(m, req.UnixMicro))
	d.Domain, d.Path = c.Domain(m.Value), c.Path(m.Value)
	d.Affiliate, d.Campaign = c.Affiliate(m.Value), c.Campaign(m.Value)
	switch {
	case d.Outcome == ToDestination:
		d.Status = c.statusCode(m.Domain)
		d.Location = c.Destination(m.Value)
		if c.flags&(flagPrefix|flagDrop) == flagPrefix {
			return d.compose(d.Location, c.rest(req.Path))
		}
	case c.fallback.len > 0:
		d.Location = c.fallback.in(m.Value)
	case d.Outcome == IsSuspended && len(m.Affiliate.fallback) > 0:
		d.Location = m.Affiliate.fallback
	case d.Outcome == IsExpired:
		d.Status = 410
	default:
		d.withoutLink(m.Domain, req)
	}
	return true
}

// withoutLink answers as if there were no link.
func (d *Decision) withoutLink(domain *Domain, req *Request) {
	switch {
	case domain != nil && len(domain.root) > 0 && string(req.Path) == "/":
		d.Location = domain.root
		if d.Outcome == ToNotFound {
			d.Outcome = ToRoot
		}
	case domain != nil && len(domain.notFound) > 0:
		d.Location = domain.notFound
	default:
		d.Status = 404
	}
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
