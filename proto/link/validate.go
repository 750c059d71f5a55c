package link

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Validate says everything that is wrong with a resource, as far as it can be
// said without other resources. All problems are joined, each an *Error with
// its field; Problems takes them apart.
func Validate(r *linkv1.Resource) error {
	_, err := Encode(r)
	return err
}

// Encode validates a resource, and gives the bytes that Marshal gives.
func Encode(r *linkv1.Resource) ([]byte, error) {
	_, value, err := EncodeNamed(r)
	return value, err
}

// EncodeNamed is Encode, and gives the resource's name too, as Name does: "" if
// that is what is wrong.
func EncodeNamed(r *linkv1.Resource) (name string, value []byte, err error) {
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
	case *linkv1.Resource_Policy:
		p.policy(k.Policy)
	}
	if r.GetLink() != nil && len(p) == 0 {
		name = Links.Prefix() + r.GetLink().GetDomain() + r.GetLink().GetPath() // both have been checked
	} else if name, err = Name(r); err != nil && len(p) == 0 {
		p = append(p, err)
	}
	if len(p) == 0 {
		value = p.stored(r)
	}
	for _, err := range p {
		if e, ok := err.(*Error); ok && e.Resource == "" {
			e.Resource = name
		}
	}
	if len(p) > 0 {
		return name, nil, errors.Join(p...)
	}
	return name, value, nil
}

type problems []error

// add appends err if it is one.
func (p *problems) add(err *Error) {
	if err != nil {
		*p = append(*p, err)
	}
}

// stored gives the bytes, checked as a node will: what was validated must
// compile.
func (p *problems) stored(r *linkv1.Resource) []byte {
	value, err := Marshal(r)
	if err == nil && r.GetLink() != nil {
		_, err = Compile(value)
	}
	if err != nil {
		*p = append(*p, err)
	}
	return value
}

func (p *problems) link(l *linkv1.Link) {
	p.add(checkHost("domain", l.GetDomain()))
	if _, ok := AppendCanonicalHost(nil, []byte(l.GetDomain())); !ok && resemblesIPv6(l.GetDomain()) {
		p.add(invalid("domain", "", "%q is no IPv6 address", l.GetDomain()))
	}
	p.add(checkPath(l.GetPath()))
	p.destination("destination", l.GetDestination(), l)
	if l.GetAffiliate() != "" {
		p.add(checkIdentifier("affiliate", l.GetAffiliate()))
	}
	p.text("campaign", l.GetCampaign())
	p.labels(l.GetLabels())
	p.status(l.GetStatusCode())
	p.rest(l)
	p.plan(l)
	p.sticky(l)
	p.cap(l)
	if l.GetFallback() != "" {
		p.destination("fallback", l.GetFallback(), l)
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
	p.robots(d.GetRobotsTxt())
	p.headerValue("robots_tag", d.GetRobotsTag())
}

// robots checks what is sent as /robots.txt.
func (p *problems) robots(s string) {
	switch {
	case len(s) > MaxRobots:
		p.add(invalid("robots_txt", "", "is %d bytes long, and at most %d are allowed", len(s), MaxRobots))
	case !utf8.ValidString(s):
		p.add(invalid("robots_txt", "", "is not valid UTF-8"))
	}
	for _, r := range s {
		if r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f {
			p.add(invalid("robots_txt", "", "has the control character %#02x in it", r))
			return
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
	p.parameters(a.GetParameters())
}

func (p *problems) parameters(list []*linkv1.Parameter) {
	if len(list) > MaxParameters {
		p.add(invalid("parameters", "", "are %d, and at most %d are allowed", len(list), MaxParameters))
	}
	for i, q := range list {
		field := fmt.Sprintf("parameters[%d]", i)
		p.name(field+".name", q.GetName(), MaxText)
		p.textOf(field+".value", q.GetValue(), MaxParameterValue)
	}
}

func (p *problems) status(code int32) {
	if code != 0 && !isRedirect(int(code)) {
		p.add(invalid("status_code", "use 301, 302, 303, 307 or 308", "%d is no redirect", code))
	}
}

func isRedirect(code int) bool {
	return code == 301 || code == 302 || code == 303 || code == 307 || code == 308
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
func (p *problems) text(field, s string) { p.textOf(field, s, MaxText) }

func (p *problems) textOf(field, s string, most int) {
	switch {
	case len(s) > most:
		p.add(invalid(field, "", "is %d bytes long, and at most %d are allowed", len(s), most))
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

// name checks a text that there must be.
func (p *problems) name(field, s string, most int) {
	if strings.TrimSpace(s) == "" {
		p.add(invalid(field, "", "is missing"))
		return
	}
	p.textOf(field, s, most)
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
