package link

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// span is where in a value some bytes are.
type span struct{ off, len uint16 }

func (s span) in(value []byte) []byte { return value[s.off : uint32(s.off)+uint32(s.len)] }

// Compiled is the runtime form of a link: an index into its stored bytes, which
// every method takes again. It has no pointers and a fixed encoding of
// CompiledSize bytes, so that ten million of them are nothing to a garbage
// collector.
type Compiled struct {
	domain, path, destination, affiliate, campaign, fallback span
	status                                                   uint16 // 0: the domain's
	flags                                                    uint16

	// Only Compile sets these; they are not encoded.
	plan span   // of a whole value
	mark uint16 // where the next field begins
}

const (
	flagDisabled  = 1 << iota
	flagScheduled // not_before or expires_at is set: they are read from the value
	flagPrefix    // the path ends in "/*"
	flagAppend    // rest says append
	flagDrop      // rest says drop
	flagPlan      // there is a query policy, or there are rules or splits
	flagBare      // the value is without them: see AppendBare
	flagCap       // there is a cap: it is read from the value
	flagSticky    // what splits are sticky by is set: it is read from the value
)

// CompiledSize is the length of an encoded Compiled, in bytes.
const CompiledSize = 28

// Append appends the encoding of c.
func (c *Compiled) Append(dst []byte) []byte {
	for _, s := range [...]span{c.domain, c.path, c.destination, c.affiliate, c.campaign, c.fallback, {c.status, c.flags}} {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(s.off)|uint32(s.len)<<16)
	}
	return dst
}

// LoadCompiled reads what Append has written: exactly CompiledSize bytes.
func LoadCompiled(b []byte) (c Compiled) {
	_ = b[CompiledSize-1]
	c.domain, c.path = loadSpan(b), loadSpan(b[4:])
	c.destination, c.affiliate = loadSpan(b[8:]), loadSpan(b[12:])
	c.campaign, c.fallback = loadSpan(b[16:]), loadSpan(b[20:])
	last := loadSpan(b[24:])
	c.status, c.flags = last.off, last.len
	return c
}

func loadSpan(b []byte) span {
	v := binary.LittleEndian.Uint32(b)
	return span{uint16(v), uint16(v >> 16)}
}

// Domain is the link's domain.
func (c *Compiled) Domain(value []byte) []byte { return c.domain.in(value) }

// Path is the link's path.
func (c *Compiled) Path(value []byte) []byte { return c.path.in(value) }

// IsPrefix says whether the link is a prefix link.
func (c *Compiled) IsPrefix() bool { return c.flags&flagPrefix != 0 }

// Affiliate is the id of the link's affiliate, empty for none.
func (c *Compiled) Affiliate(value []byte) []byte { return c.affiliate.in(value) }

// Campaign is the link's campaign, empty for none.
func (c *Compiled) Campaign(value []byte) []byte { return c.campaign.in(value) }

// Destination is where the link goes.
func (c *Compiled) Destination(value []byte) []byte { return c.destination.in(value) }

// The numbers of the fields that the scanner knows.
const (
	resourceLink   = 1
	resourcePolicy = 5 // the last one

	linkDomain      = 1
	linkPath        = 2
	linkDestination = 3
	linkAffiliate   = 4
	linkCampaign    = 5
	linkLabels      = 6
	linkStatus      = 7
	linkQuery       = 8
	linkRules       = 9
	linkSplits      = 10
	linkFallback    = 11
	linkNotBefore   = 12
	linkExpiresAt   = 13
	linkCap         = 14
	linkDisabled    = 15
	linkRest        = 16

	linkSticky          = 17
	linkStickyParameter = 18
)

// Compile finds the parts of a link in its stored bytes and checks all that a
// redirect relies on: key, destination and fallback, status; not the plan, which
// NewPlan checks. A field that it does not know is passed over, as protobuf
// does. It allocates nothing unless it fails.
func Compile(value []byte) (Compiled, error) {
	var c Compiled
	err := c.scan(value)
	if err == nil {
		err = c.check(value)
	}
	if err != nil {
		return Compiled{}, err
	}
	return c, nil
}

// scan walks the fields of the link inside of the resource.
func (c *Compiled) scan(value []byte) *Error {
	if len(value) > MaxValue {
		return invalid("", "", "takes %d bytes, and at most %d are allowed", len(value), MaxValue)
	}
	var found bool
	err := fields(value, 0, func(num protowire.Number, typ protowire.Type, at span, _ uint64) *Error {
		switch {
		case num > resourcePolicy:
			return nil // of a later release
		case num != resourceLink || typ != protowire.BytesType:
			return invalid("", "", "is not a link")
		case found:
			return invalid("", "", "has its link twice")
		}
		found = true
		c.mark = at.off
		return fields(at.in(value), at.off, c.field)
	})
	if err == nil && !found {
		return invalid("", "", "is not a link")
	}
	return err
}

func (c *Compiled) field(num protowire.Number, typ protowire.Type, at span, n uint64) *Error {
	start := c.mark
	c.mark = at.off + at.len
	want := protowire.BytesType
	switch num {
	case linkDomain:
		c.domain = at
	case linkPath:
		c.path = at
	case linkDestination:
		c.destination = at
	case linkAffiliate:
		c.affiliate = at
	case linkCampaign:
		c.campaign = at
	case linkFallback:
		c.fallback = at
	case linkQuery, linkRules, linkSplits:
		if !c.extendPlan(span{start, c.mark - start}) {
			return invalid("", "", "has its query policy, rules and splits in several places")
		}
	case linkNotBefore, linkExpiresAt:
		c.flags |= flagScheduled
	case linkStatus:
		want = protowire.VarintType
		if n > 999 {
			return invalid("status_code", "", "%d is no redirect", n)
		}
		c.status = uint16(n)
	case linkDisabled:
		want = protowire.VarintType
		c.flags &^= flagDisabled
		if n != 0 {
			c.flags |= flagDisabled
		}
	case linkRest:
		want = protowire.VarintType
		c.flags &^= flagAppend | flagDrop
		switch linkv1.RestPolicy(min(n, 1<<30)) {
		case linkv1.RestPolicy_REST_POLICY_UNSPECIFIED:
		case linkv1.RestPolicy_REST_POLICY_APPEND:
			c.flags |= flagAppend
		case linkv1.RestPolicy_REST_POLICY_DROP:
			c.flags |= flagDrop
		default:
			return invalid("rest", hintRest, "%d is no policy", n)
		}
	case linkCap:
		c.flags |= flagCap
	case linkSticky:
		want = protowire.VarintType
		c.flags |= flagSticky
	case linkStickyParameter:
		c.flags |= flagSticky
	default:
		return nil
	}
	if typ != want {
		return invalid("", "", "field %d has wire type %d", num, typ)
	}
	return nil
}

// extendPlan makes a field, with its tag, a part of the plan: they stand side by
// side.
func (c *Compiled) extendPlan(at span) bool {
	if c.plan.len == 0 {
		c.plan = span{at.off, 0}
		c.flags |= flagPlan
	}
	if c.plan.off+c.plan.len != at.off {
		return false
	}
	c.plan.len += at.len
	return true
}

// fields calls f for every field of a message that starts at base in its
// value: with the span of what it holds, and the number for varints.
func fields(message []byte, base uint16, f func(protowire.Number, protowire.Type, span, uint64) *Error) *Error {
	for pos := 0; pos < len(message); {
		num, typ, n := protowire.ConsumeTag(message[pos:])
		if n < 0 {
			return invalid("", "", "is damaged at byte %d", int(base)+pos)
		}
		pos += n
		var at span
		var number uint64
		switch typ {
		case protowire.BytesType:
			var b []byte
			b, n = protowire.ConsumeBytes(message[pos:])
			at = span{base + uint16(pos+n-len(b)), uint16(len(b))}
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message[pos:])
			at = span{base + uint16(pos), uint16(n)}
		default:
			n = protowire.ConsumeFieldValue(num, typ, message[pos:])
			at = span{base + uint16(pos), uint16(n)}
		}
		if n < 0 {
			return invalid("", "", "is damaged at byte %d", int(base)+pos)
		}
		pos += n
		if err := f(num, typ, at, number); err != nil {
			return err
		}
	}
	return nil
}

// check is what a redirect relies on.
func (c *Compiled) check(value []byte) *Error {
	if err := checkCanonicalKey(c.Domain(value), c.Path(value)); err != nil {
		return err
	}
	if err := checkDestination("destination", c.Destination(value)); err != nil {
		return err
	}
	if c.fallback.len > 0 {
		if err := checkDestination("fallback", c.fallback.in(value)); err != nil {
			return err
		}
	}
	if c.status != 0 && !isRedirect(int(c.status)) {
		return invalid("status_code", "", "%d is no redirect", c.status)
	}
	if IsPrefix(c.Path(value)) {
		c.flags |= flagPrefix
	} else if c.flags&(flagAppend|flagDrop) != 0 {
		return restWithoutPrefix(c.Path(value))
	}
	if limit, ok := c.Cap(value); ok && (limit.Clicks == 0 || limit.Period > PerDay) {
		return invalid("cap", "", "%d clicks in period %d is no cap", limit.Clicks, limit.Period)
	}
	const most = MaxValue - bareTail + 2 // what it is bare, has no plan, which takes two bytes at least
	if c.HasPlan() && len(value) > most {
		return invalid("", "", "takes %d bytes, and at most %d are allowed", len(value), most)
	}
	if !utf8.Valid(c.Campaign(value)) || !utf8.Valid(c.Affiliate(value)) {
		return invalid("campaign", "", "is not valid UTF-8")
	}
	return nil
}

// checkCanonicalKey checks a key, without allocating when it is plain.
func checkCanonicalKey(domain, path []byte) *Error {
	var buf [MaxHost + 1]byte
	host, ok := AppendCanonicalHost(buf[:0], domain)
	if string(domain) != AnyHost && (!ok || len(host) == 0 || string(host) != string(domain)) {
		return checkHost("domain", string(domain))
	}
	if !isPlainPath(path) {
		if err := checkPath(string(path)); err != nil {
			return err
		}
	}
	return checkPrefix(path)
}

const hintRest = "APPEND or DROP"

func restWithoutPrefix[path string | []byte](p path) *Error {
	return invalid("rest", "leave it out, or end the path in /*", "is for prefix links, and the path %q is none", p)
}

// isPlainPath says whether a path is canonical at first sight.
func isPlainPath(path []byte) bool {
	if len(path) == 0 || len(path) > MaxPath || path[0] != '/' {
		return false
	}
	for i, c := range path {
		if !plain[c] || c == '.' && path[i-1] == '/' {
			return false
		}
	}
	return true
}

// schedule reads the times between which the link is served, in µs since 1970.
func (c *Compiled) schedule(value []byte) (from, until int64) {
	from, until = math.MinInt64, math.MaxInt64
	c.fields(value, func(num protowire.Number, _ protowire.Type, at span, _ uint64) *Error {
		switch num {
		case linkNotBefore:
			from = micros(at.in(value))
		case linkExpiresAt:
			until = micros(at.in(value))
		}
		return nil
	})
	return from, until
}

// Cap is the link's limit on clicks, and whether it has one.
func (c *Compiled) Cap(value []byte) (limit Cap, ok bool) {
	if c.flags&flagCap == 0 {
		return limit, false
	}
	limit.Period = PerLife
	c.fields(value, func(num protowire.Number, _ protowire.Type, at span, _ uint64) *Error {
		if num != linkCap {
			return nil
		}
		return fields(at.in(value), at.off, func(num protowire.Number, _ protowire.Type, _ span, n uint64) *Error {
			switch {
			case num == 1:
				limit.Clicks = n
			case num == 2 && n != 0:
				limit.Period = CapPeriod(min(n, math.MaxUint8))
			}
			return nil
		})
	})
	return limit, true
}

// micros decodes a Timestamp, rounded up to µs.
func micros(timestamp []byte) int64 {
	var seconds, nanos int64
	_ = fields(timestamp, 0, func(num protowire.Number, _ protowire.Type, _ span, n uint64) *Error {
		switch num {
		case 1:
			seconds = int64(n)
		case 2:
			nanos = int64(n)
		}
		return nil
	})
	return seconds*1e6 + (nanos+999)/1000
}

// Domain is the runtime form of a domain.
type Domain struct {
	Host         string
	notFound     []byte
	root         []byte
	status       int
	cacheControl string
	policy       Policy
	query        *queryPolicy
	robotsTag    string
	robotsTxt    []byte
}

// Policy says which paths are the same on the domain's host. A nil domain: those
// with the same bytes.
func (d *Domain) Policy() Policy {
	if d == nil {
		return 0
	}
	return d.policy
}

func policyOf(d *linkv1.Domain) (p Policy) {
	if d.GetCasePolicy() == linkv1.CasePolicy_CASE_POLICY_IGNORE {
		p |= IgnoreCase
	}
	if d.GetTrailingSlash() == linkv1.TrailingSlashPolicy_TRAILING_SLASH_POLICY_IGNORE {
		p |= IgnoreSlash
	}
	return p
}

// CompileDomain makes the runtime form of a stored domain.
func CompileDomain(value []byte) (*Domain, error) {
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, invalid("", "", "is damaged: %v", err)
	}
	if r.GetDomain() == nil {
		return nil, invalid("", "", "is not a domain")
	}
	if err := Validate(r); err != nil {
		return nil, err
	}
	d := r.GetDomain()
	return &Domain{
		Host:         d.GetHost(),
		notFound:     []byte(d.GetNotFound()),
		root:         []byte(d.GetRoot()),
		status:       int(d.GetStatusCode()),
		cacheControl: d.GetCacheControl(),
		policy:       policyOf(d),
		query:        policyOfQuery(d.GetQuery()),
		robotsTag:    d.GetRobotsTag(),
		robotsTxt:    []byte(d.GetRobotsTxt()),
	}, nil
}

// Affiliate is the runtime form of an affiliate.
type Affiliate struct {
	ID        string
	suspended bool
	fallback  []byte
	params    []affiliateParam
}

// CompileAffiliate makes the runtime form of a stored affiliate.
func CompileAffiliate(value []byte) (*Affiliate, error) {
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, invalid("", "", "is damaged: %v", err)
	}
	if r.GetAffiliate() == nil {
		return nil, invalid("", "", "is not an affiliate")
	}
	if err := Validate(r); err != nil {
		return nil, err
	}
	a := r.GetAffiliate()
	return &Affiliate{
		ID:        a.GetId(),
		suspended: a.GetState() == linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED,
		fallback:  []byte(a.GetFallback()),
		params:    affiliateParams(a.GetParameters()),
	}, nil
}
