package link

import (
	"bytes"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// param is one parameter of a query: "name=value", or "name".
type param struct {
	text []byte
	eq   int // where the name ends
}

func (p param) name() []byte { return p.text[:p.eq] }

func (p param) value() []byte { return p.text[min(p.eq+1, len(p.text)):] }

// nextParam gives the first parameter of a query, passing over empty ones, and
// what follows. The text is nil when there is none.
func nextParam(query []byte) (p param, rest []byte) {
	for len(query) > 0 {
		end := bytes.IndexByte(query, '&')
		rest = query[len(query):]
		if end >= 0 {
			query, rest = query[:end], query[end+1:]
		}
		if len(query) > 0 {
			p = param{query, bytes.IndexByte(query, '=')}
			if p.eq < 0 {
				p.eq = len(query)
			}
			return p, rest
		}
		query = rest
	}
	return param{}, nil
}

// hasName says whether a query has a parameter of a name; both are escaped.
func hasName(query, name []byte) bool {
	for p, rest := nextParam(query); p.text != nil; p, rest = nextParam(rest) {
		if sameName(p.name(), name) {
			return true
		}
	}
	return false
}

// queryPolicy says what happens to the parameters of a request. Its names are
// plain. nil: they are dropped.
type queryPolicy struct {
	mode                 linkv1.QueryMode // UNSPECIFIED: that of the domain
	allow, deny, capture [][]byte
}

// policyOfQuery is the runtime form of a policy, nil for none.
func policyOfQuery(q *linkv1.QueryPolicy) *queryPolicy {
	if q == nil {
		return nil
	}
	return &queryPolicy{
		mode:  q.GetMode(),
		allow: bytesOfAll(q.GetAllow()), deny: bytesOfAll(q.GetDeny()), capture: bytesOfAll(q.GetCapture()),
	}
}

func bytesOfAll(list []string) (all [][]byte) {
	for _, s := range list {
		all = append(all, []byte(s))
	}
	return all
}

// forwarding gives the policy of a match, and its mode: DROP, KEEP, OVERRIDE or
// APPEND.
func (m *Match) forwarding() (*queryPolicy, linkv1.QueryMode) {
	var ofDomain *queryPolicy
	if m.Domain != nil {
		ofDomain = m.Domain.query
	}
	q := ofDomain
	if m.Plan != nil && m.Plan.query != nil {
		q = m.Plan.query
	}
	if q == nil {
		return nil, linkv1.QueryMode_QUERY_MODE_DROP
	}
	mode := q.mode
	if mode == linkv1.QueryMode_QUERY_MODE_UNSPECIFIED && ofDomain != nil {
		mode = ofDomain.mode
	}
	if mode == linkv1.QueryMode_QUERY_MODE_UNSPECIFIED {
		mode = linkv1.QueryMode_QUERY_MODE_DROP
	}
	return q, mode
}

// withholds says why a parameter of a request is not forwarded; empty: it is.
func (q *queryPolicy) withholds(name []byte) string {
	switch {
	case len(q.allow) > 0 && !contains(q.allow, name):
		return "it is not in allow"
	case contains(q.deny, name):
		return "it is in deny"
	case contains(q.capture, name):
		return "it is in capture"
	}
	return ""
}

// contains says whether an escaped name is among plain ones.
func contains(names [][]byte, name []byte) bool {
	for _, n := range names {
		if isNamed(name, n) {
			return true
		}
	}
	return false
}

// recordParams notes the parameters that the click records.
func (d *Decision) recordParams(query []byte, q *queryPolicy) {
	for p, rest := nextParam(query); p.text != nil && len(d.Params) < MaxParams; p, rest = nextParam(rest) {
		name := recordedName(p.name())
		if name == nil && q != nil && len(q.capture) > 0 {
			for _, n := range q.capture {
				if isNamed(p.name(), n) {
					name = n
					break
				}
			}
		}
		if name != nil {
			d.Params = append(d.Params, Param{name, p.value()})
		}
	}
}

// The parameters that are recorded always: what names a click for the affiliate
// and for advertising networks.
var recordedNames = bytesOfAll([]string{
	"sub1", "sub2", "sub3", "sub4", "sub5", "sub6", "sub7", "sub8", "sub9", "sub10",
	"external_id", "gclid", "fbclid", "ttclid", "msclkid", "wbraid", "gbraid",
})

// subIDs is how many of them, the first, are macros as well.
const subIDs = 11

// recordedName gives the plain form of an escaped name if it is one of
// recordedNames, and else nil.
func recordedName(name []byte) []byte {
	if hasEscape(name) {
		for _, n := range recordedNames {
			if isNamed(name, n) {
				return n
			}
		}
		return nil
	}
	switch string(name) {
	case "sub1", "sub2", "sub3", "sub4", "sub5", "sub6", "sub7", "sub8", "sub9", "sub10",
		"external_id", "gclid", "fbclid", "ttclid", "msclkid", "wbraid", "gbraid":
		return name
	}
	return nil
}

// affiliateParam is a default parameter of an affiliate, as it stands in a URL.
type affiliateParam param

func affiliateParams(list []*linkv1.Parameter) (all []affiliateParam) {
	for _, p := range list {
		text := appendEscapedText(nil, []byte(p.GetName()), plainText)
		eq := len(text)
		text = appendEscapedText(append(text, '='), []byte(p.GetValue()), plainText)
		all = append(all, affiliateParam{text, eq})
	}
	return all
}
