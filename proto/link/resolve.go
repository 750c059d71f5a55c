package link

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
)

// ToRoot is the domain's root: no link at "/".
const ToRoot Outcome = 9

var outcomeNames = map[Outcome]string{
	ToDestination: "destination", ToNotFound: "not_found", IsDisabled: "disabled", IsNotYet: "not_yet",
	IsExpired: "expired", IsSuspended: "suspended", ToRoot: "root",
}

// String is the outcome for people: "expired".
func (o Outcome) String() string { return outcomeNames[o] }

// Match is what a table knows about a request: the link at its path, and the
// domain and affiliate that go with it.
type Match struct {
	Link      Compiled
	Value     []byte     // the link's stored bytes; nil when there is no link
	Domain    *Domain    // nil when neither the host nor "*" has one
	Affiliate *Affiliate // nil when the link has none
}

// Request is what a decision depends on.
type Request struct {
	Host, Path []byte // canonical
	Query      []byte // raw, without the question mark
	UnixMicro  int64  // the time, in µs since 1970
}

// Decision is the answer to a request. Its slices belong to the Match, except
// that the Location of a prefix link may be in a buffer of the Decision: it is
// valid until the Decision is resolved again. One that is used again and again
// does not allocate; its buffer is at most some MaxLocation bytes.
type Decision struct {
	Outcome      Outcome
	Status       int    // of HTTP
	Location     []byte // nil when the answer is no redirect
	CacheControl string

	// What the click says about it; empty where there is none.
	Domain, Path, Affiliate, Campaign, Variant []byte
	Rule                                       uint32

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
