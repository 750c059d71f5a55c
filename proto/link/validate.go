package link

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Validate says everything that is wrong with a resource, as far as it can be
// said without other resources. All problems are joined, each an *Error with
// its field; Problems takes them apart. What a field may say in a later
// release only is of kind Unimplemented.
func Validate(r *linkv1.Resource) error {
	var p problems
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		p.link(k.Link)
	case *linkv1.Resource_Domain:
		p.domain(k.Domain)
	case *linkv1.Resource_Affiliate:
		p.affiliate(k.Affiliate)
	case *linkv1.Resource_Block:
		p.block(k.Block)
	}
	name, err := Name(r)
	if err != nil && len(p) == 0 {
		p = append(p, err)
	}
	if len(p) == 0 {
		p.stored(r)
	}
	for _, err := range p {
		if e, ok := err.(*Error); ok && e.Resource == "" {
			e.Resource = name
		}
	}
	return errors.Join(p...)
}

type problems []error

// add appends err if it is one.
func (p *problems) add(err *Error) {
	if err != nil {
		*p = append(*p, err)
	}
}

// stored checks the bytes as a node will: what was validated must compile.
func (p *problems) stored(r *linkv1.Resource) {
	value, err := Marshal(r)
	if err == nil && r.GetLink() != nil {
		_, err = Compile(value)
	}
	if err != nil {
		*p = append(*p, err)
	}
}

func (p *problems) link(l *linkv1.Link) {
	p.add(checkHost("domain", l.GetDomain()))
	p.add(checkPath(l.GetPath()))
	p.add(checkDestination("destination", []byte(l.GetDestination())))
	if l.GetAffiliate() != "" {
		p.add(checkIdentifier("affiliate", l.GetAffiliate()))
	}
	p.text("campaign", l.GetCampaign())
	p.labels(l.GetLabels())
	p.status(l.GetStatusCode())
	p.query(l.GetQuery())
	p.rest(l)
	p.rules(l)
	if l.GetFallback() != "" {
		p.add(checkDestination("fallback", []byte(l.GetFallback())))
	}
	p.schedule(l.GetNotBefore(), l.GetExpiresAt())
}

func (p *problems) rest(l *linkv1.Link) {
	switch rest := l.GetRest(); {
	case rest == linkv1.RestPolicy_REST_POLICY_UNSPECIFIED:
	case linkv1.RestPolicy_name[int32(rest)] == "":
		p.add(invalid("rest", hintRest, "%d is no policy", rest))
	case !IsPrefix(l.GetPath()):
		p.add(restWithoutPrefix(l.GetPath()))
	}
}

// rules covers the fields that are stored for later releases: checked for
// shape, and refused.
func (p *problems) rules(l *linkv1.Link) {
	for i, rule := range l.GetRules() {
		field := fmt.Sprintf("rules[%d]", i)
		switch {
		case rule.GetWhen() == "":
			p.add(invalid(field+".when", "", "is missing"))
		case rule.GetOutcome() == nil:
			p.add(invalid(field, "set destination, splits, fallback or not_found", "has no outcome"))
		}
	}
	var names []string
	for i, split := range l.GetSplits() {
		field := fmt.Sprintf("splits[%d]", i)
		switch {
		case split.GetName() == "":
			p.add(invalid(field+".name", "", "is missing"))
		case slices.Contains(names, split.GetName()):
			p.add(invalid(field+".name", "", "%q is there twice", split.GetName()))
		case split.GetWeight() == 0:
			p.add(invalid(field+".weight", "", "must be at least 1"))
		}
		names = append(names, split.GetName())
	}
	for _, f := range []struct {
		set         bool
		field, what string
	}{
		{len(l.GetRules()) > 0, "rules", "rules are"},
		{len(l.GetSplits()) > 0, "splits", "splits are"},
		{l.GetCap() != nil, "cap", "caps are"},
		{l.GetSticky() != 0, "sticky", "splits are"},
		{l.GetStickyParameter() != "", "sticky_parameter", "splits are"},
	} {
		if f.set {
			p.add(unimplemented(f.field, f.what))
		}
	}
}

func (p *problems) schedule(from, until *timestamppb.Timestamp) {
	for _, f := range []struct {
		field string
		t     *timestamppb.Timestamp
	}{{"not_before", from}, {"expires_at", until}} {
		if f.t != nil && f.t.CheckValid() != nil {
			p.add(invalid(f.field, "", "is no time between the years 1 and 9999"))
			return
		}
	}
	if from != nil && until != nil && !from.AsTime().Before(until.AsTime()) {
		p.add(invalid("expires_at", "", "is not after not_before"))
	}
}

func (p *problems) domain(d *linkv1.Domain) {
	p.add(checkHost("host", d.GetHost()))
	if d.GetNotFound() != "" {
		p.add(checkDestination("not_found", []byte(d.GetNotFound())))
	}
	if d.GetRoot() != "" {
		p.add(checkDestination("root", []byte(d.GetRoot())))
	}
	p.status(d.GetStatusCode())
	p.query(d.GetQuery())
	p.labels(d.GetLabels())
	p.headerValue("cache_control", d.GetCacheControl())
	if c := d.GetCasePolicy(); linkv1.CasePolicy_name[int32(c)] == "" {
		p.add(invalid("case_policy", hintPolicy, "%d is no policy", c))
	}
	if s := d.GetTrailingSlash(); linkv1.TrailingSlashPolicy_name[int32(s)] == "" {
		p.add(invalid("trailing_slash", hintPolicy, "%d is no policy", s))
	}
	for _, f := range []struct {
		set         bool
		field, what string
	}{
		{d.GetRobotsTxt() != "", "robots_txt", "robots.txt is"},
		{d.GetRobotsTag() != "", "robots_tag", "X-Robots-Tag is"},
	} {
		if f.set {
			p.add(unimplemented(f.field, f.what))
		}
	}
}

const hintPolicy = "EXACT or IGNORE"

func (p *problems) affiliate(a *linkv1.Affiliate) {
	p.add(checkIdentifier("id", a.GetId()))
	p.text("display_name", a.GetDisplayName())
	p.labels(a.GetLabels())
	if a.GetFallback() != "" {
		p.add(checkDestination("fallback", []byte(a.GetFallback())))
	}
	if s := a.GetState(); linkv1.AffiliateState_name[int32(s)] == "" {
		p.add(invalid("state", "ACTIVE or SUSPENDED", "%d is no state", s))
	}
	if len(a.GetParameters()) > 0 {
		p.add(unimplemented("parameters", "affiliate parameters are"))
	}
}

func (p *problems) block(b *linkv1.Block) {
	p.add(checkIdentifier("id", b.GetId()))
	p.add(unimplemented("block", "blocks are"))
}

func (p *problems) status(code int32) {
	if code != 0 && !isRedirect(int(code)) {
		p.add(invalid("status_code", "use 301, 302, 303, 307 or 308", "%d is no redirect", code))
	}
}

func isRedirect(code int) bool {
	return code == 301 || code == 302 || code == 303 || code == 307 || code == 308
}

func (p *problems) query(q *linkv1.QueryPolicy) {
	if q == nil {
		return
	}
	if q.GetMode() > linkv1.QueryMode_QUERY_MODE_DROP || len(q.GetAllow())+len(q.GetDeny())+len(q.GetCapture()) > 0 {
		p.add(unimplemented("query", "forwarding request parameters is"))
	}
}

func (p *problems) labels(labels map[string]string) {
	if len(labels) > MaxLabels {
		p.add(invalid("labels", "", "are %d, and at most %d are allowed", len(labels), MaxLabels))
	}
	keys := make([]string, 0, len(labels))
	for key := range labels {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if key == "" || len(key) > MaxLabelKey || !isLabelKey(key) {
			p.add(invalid("labels", "keys have 1 to 63 bytes of a-z 0-9 _ . - /", "%q is no label key", key))
		}
		p.text("labels."+key, labels[key])
	}
}

func isLabelKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		if !isAlphanumeric(c) && c != '_' && c != '.' && c != '-' && c != '/' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// text checks free-form text: valid UTF-8, no control characters, not long.
func (p *problems) text(field, s string) {
	switch {
	case len(s) > MaxText:
		p.add(invalid(field, "", "is %d bytes long, and at most %d are allowed", len(s), MaxText))
	case !utf8.ValidString(s):
		p.add(invalid(field, "", "is not valid UTF-8"))
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			p.add(invalid(field, "", "has the control character %#02x in it", r))
			return
		}
	}
}

// headerValue checks what is sent as the value of a header.
func (p *problems) headerValue(field, s string) {
	p.text(field, s)
	for i := range len(s) {
		if s[i] > '~' {
			p.add(invalid(field, "", "has a byte outside ASCII in it"))
			return
		}
	}
}
