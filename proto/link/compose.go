package link

import (
	"bytes"
	"slices"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// MaxLocation is the longest Location that is composed, in bytes.
const MaxLocation = 16 << 10

// send makes the Location of one of the link's destinations: its macros filled
// in, with the rest of the path of a prefix link, the parameters of the
// affiliate and those of the request. It says false, and leaves no Location, if
// that is too long or would lead up from the destination.
func (d *Decision) send(m *Match, req *Request, destination []byte) bool {
	var rest []byte
	if m.Link.flags&(flagPrefix|flagDrop) == flagPrefix {
		rest = bytes.TrimLeft(m.Link.rest(req.Path), "/")
	}
	query, mode := m.forwarding()
	forwards := mode != linkv1.QueryMode_QUERY_MODE_DROP && len(req.Query) > 0
	adds := req.Treatment == TreatLabel && m.Affiliate != nil && len(m.Affiliate.params) > 0
	if len(rest) == 0 && !forwards && !adds && req.Trace == nil {
		return d.sendAlone(m, req, destination)
	}
	d.facts.begin(m, req)
	path, own, fragment := splitURL(destination)
	if isTemplate(destination) {
		d.CacheControl = noStore
		if len(rest) > 0 && hasRest(destination) {
			rest = nil
		}
	}
	d.grow(len(destination) + 3*len(rest) + len(req.Query))
	b, ok := d.composePath(d.buf[:0], path, rest)
	if !ok {
		return false
	}
	if !forwards {
		query, mode = nil, linkv1.QueryMode_QUERY_MODE_DROP
	}
	b = d.composeQuery(b, m, req, own, query, mode)
	return d.sent(d.expand(b, fragment, inFragment))
}

// sendAlone makes the Location of a destination to which nothing is added.
func (d *Decision) sendAlone(m *Match, req *Request, destination []byte) bool {
	if !isTemplate(destination) {
		d.Location = destination
		return true
	}
	d.facts.begin(m, req)
	d.CacheControl = noStore
	path, query, fragment := splitURL(destination)
	d.grow(2 * len(destination))
	b, ok := d.composePath(d.buf[:0], path, nil)
	if !ok {
		return false
	}
	b = d.expand(b, query, inQuery)
	return d.sent(d.expand(b, fragment, inFragment))
}

// grow makes room for a Location of some size.
func (d *Decision) grow(size int) { d.buf = slices.Grow(d.buf[:0], min(size, MaxLocation)) }

// sent makes b the Location unless it is too long.
func (d *Decision) sent(b []byte) bool {
	if cap(b) <= 2*MaxLocation {
		d.buf = b
	}
	if len(b) > MaxLocation {
		return false
	}
	d.Location = b
	return true
}

// splitURL divides a destination before its query and before its fragment. No
// macro has a question mark or a number sign in it.
func splitURL(destination []byte) (path, query, fragment []byte) {
	end := len(destination)
	if i := bytes.IndexByte(destination, '#'); i >= 0 {
		end = i
	}
	if i := bytes.IndexByte(destination[:end], '?'); i >= 0 {
		return destination[:i], destination[i:end], destination[end:]
	}
	return destination[:end], nil, destination[end:]
}

// composePath appends what stands before the query: the rest of the request's
// path behind the destination's, with one slash between them.
func (d *Decision) composePath(b, path, rest []byte) ([]byte, bool) {
	if !isTemplate(path) {
		b = append(b, path...)
	} else if b = d.expand(b, path, inPath); leadsAnywhere(b[hostEnd(b):]) || len(b) > MaxLocation {
		return b, false
	}
	if len(rest) == 0 {
		return b, true
	}
	if len(b)+1+escapedLen(rest) > MaxLocation || leadsUp(rest) {
		return b, false
	}
	if b[len(b)-1] != '/' {
		b = append(b, '/')
	}
	return appendEscaped(b, rest), true
}

// hostEnd is where the path of a URL begins.
func hostEnd(url []byte) int {
	begin := bytes.IndexByte(url, ':') + len("://")
	if i := bytes.IndexByte(url[begin:], '/'); i >= 0 {
		return begin + i
	}
	return len(url)
}

// leadsAnywhere says whether a path has a dot segment, however it is written:
// browsers take %2e for a dot, and some servers %2F and %5C for a slash.
func leadsAnywhere(path []byte) bool {
	dots, others := 0, 0
	for i := 0; i <= len(path); {
		c, n := byte('/'), 1
		if i < len(path) {
			c, n = decodeLoose(path[i:], pathText)
		}
		i += n
		switch c {
		case '/', '\\':
			if others == 0 && dots > 0 && dots <= 2 {
				return true
			}
			dots, others = 0, 0
		case '.':
			dots++
		default:
			others++
		}
	}
	return false
}

// composeQuery appends the query: the destination's own, with its question
// mark, then the affiliate's and the request's.
func (d *Decision) composeQuery(b []byte, m *Match, req *Request, own []byte, q *queryPolicy, mode linkv1.QueryMode) []byte {
	start := len(b)
	var theirs []byte // what wins over the destination's own
	if mode == linkv1.QueryMode_QUERY_MODE_OVERRIDE {
		theirs = req.Query
	}
	if theirs != nil && len(own) > 0 {
		b = d.composeOwn(b, m, req, own, q, theirs)
	} else if b = d.expand(b, own, inQuery); req.Trace != nil && len(own) > 0 {
		for p, rest := nextParam(b[start+1:]); p.text != nil; p, rest = nextParam(rest) {
			req.Trace.query(p.text, OfDestination, "")
		}
	}
	if m.Affiliate != nil {
		for _, p := range m.Affiliate.params {
			b = composeParam(b, start, req.Trace, param(p), OfAffiliate, whyNotAffiliate(param(p), req, own, q, theirs))
		}
	}
	if q == nil && req.Trace == nil {
		return b
	}
	for p, rest := nextParam(req.Query); p.text != nil; p, rest = nextParam(rest) {
		if len(b) > MaxLocation {
			break
		}
		b = composeParam(b, start, req.Trace, p, OfRequest, whyNotRequest(p, m, req, own, q, mode))
	}
	return b
}

// composeOwn appends the destination's own parameters, of which there are some, but for those that the
// request has.
func (d *Decision) composeOwn(b []byte, m *Match, req *Request, own []byte, q *queryPolicy, theirs []byte) []byte {
	b = append(b, own[0])
	start := len(b)
	for p, rest := nextParam(own[1:]); p.text != nil; p, rest = nextParam(rest) {
		if overrides(theirs, p.name(), q) && (req.Treatment == TreatLabel || !m.Affiliate.has(p.name())) {
			if req.Trace != nil {
				req.Trace.query(p.text, OfDestination, wonByRequest)
			}
			continue
		}
		if len(b) > start {
			b = append(b, '&')
		}
		n := len(b)
		b = d.expand(b, p.text, inQuery)
		if req.Trace != nil {
			req.Trace.query(b[n:], OfDestination, "")
		}
	}
	if len(b) == start && len(own) > 1 {
		b = b[:start-1]
	}
	return b
}

// overrides says whether a request forwards a parameter of a name.
func overrides(theirs, name []byte, q *queryPolicy) bool {
	return len(theirs) > 0 && hasName(theirs, name) && q.withholds(name) == ""
}

const (
	wonByRequest     = "the request has it"
	wonByDestination = "the destination has it"
	noAffiliate      = "the request is treated as no_affiliate"
)

func whyNotAffiliate(p param, req *Request, own []byte, q *queryPolicy, theirs []byte) string {
	switch {
	case req.Treatment != TreatLabel:
		return noAffiliate
	case len(own) > 1 && hasName(own[1:], p.name()):
		return wonByDestination
	case overrides(theirs, p.name(), q):
		return wonByRequest
	}
	return ""
}

func whyNotRequest(p param, m *Match, req *Request, own []byte, q *queryPolicy, mode linkv1.QueryMode) string {
	if mode == linkv1.QueryMode_QUERY_MODE_DROP {
		return "the query policy is drop"
	}
	if req.Treatment != TreatLabel && m.Affiliate.has(p.name()) {
		return noAffiliate // what the affiliate earns by, sent by whom it may not earn from
	}
	if why := q.withholds(p.name()); why != "" || mode != linkv1.QueryMode_QUERY_MODE_KEEP {
		return why
	}
	if len(own) > 1 && hasName(own[1:], p.name()) {
		return wonByDestination
	}
	if m.Affiliate.has(p.name()) {
		return "the affiliate has it"
	}
	return ""
}

// has says whether the affiliate has a parameter of an escaped name. A nil one
// has none.
func (a *Affiliate) has(name []byte) bool {
	if a != nil {
		for _, p := range a.params {
			if sameName(param(p).name(), name) {
				return true
			}
		}
	}
	return false
}

// composeParam appends a parameter if there is no reason not to; start is where
// the query begins.
func composeParam(b []byte, start int, t *Trace, p param, of Origin, whyNot string) []byte {
	if t != nil {
		t.query(p.text, of, whyNot)
	}
	if whyNot != "" {
		return b
	}
	switch {
	case len(b) == start:
		b = append(b, '?')
	case b[len(b)-1] != '?' && b[len(b)-1] != '&':
		b = append(b, '&')
	}
	return appendForwarded(b, p.text)
}
