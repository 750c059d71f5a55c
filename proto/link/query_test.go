package link_test

import (
	"fmt"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const (
	drop     = linkv1.QueryMode_QUERY_MODE_DROP
	keep     = linkv1.QueryMode_QUERY_MODE_KEEP
	override = linkv1.QueryMode_QUERY_MODE_OVERRIDE
	appends  = linkv1.QueryMode_QUERY_MODE_APPEND
)

func TestParametersOfRequestsAreForwardedByPolicy(t *testing.T) {
	aff := []*linkv1.Parameter{{Name: "ref", Value: "aff 01"}, {Name: "net", Value: "n"}}
	for _, c := range []struct {
		name        string
		destination string
		policy      *linkv1.QueryPolicy
		parameters  []*linkv1.Parameter
		query       string
		want        string
	}{
		{"nothing said", "https://a.com/?x=1", nil, nil, "y=2", "https://a.com/?x=1"},
		{"drop", "https://a.com/?x=1", &linkv1.QueryPolicy{Mode: drop}, nil, "y=2", "https://a.com/?x=1"},
		{"keep", "https://a.com/?x=1", &linkv1.QueryPolicy{Mode: keep}, nil, "x=2&y=3", "https://a.com/?x=1&y=3"},
		{"override", "https://a.com/?x=1&z=0", &linkv1.QueryPolicy{Mode: override}, nil, "x=2&y=3", "https://a.com/?z=0&x=2&y=3"},
		{"override of all", "https://a.com/?x=1#f", &linkv1.QueryPolicy{Mode: override}, nil, "x=2", "https://a.com/?x=2#f"},
		{"append", "https://a.com/?x=1", &linkv1.QueryPolicy{Mode: appends}, nil, "x=2&y=3", "https://a.com/?x=1&x=2&y=3"},
		{"no query of its own", "https://a.com", &linkv1.QueryPolicy{Mode: keep}, nil, "y=2", "https://a.com?y=2"},
		{"before the fragment", "https://a.com/#f", &linkv1.QueryPolicy{Mode: keep}, nil, "y=2", "https://a.com/?y=2#f"},
		{"behind a question mark", "https://a.com/?", &linkv1.QueryPolicy{Mode: keep}, nil, "y=2", "https://a.com/?y=2"},
		{"behind an ampersand", "https://a.com/?x=1&", &linkv1.QueryPolicy{Mode: keep}, nil, "y=2", "https://a.com/?x=1&y=2"},
		{"order, duplicates and bytes", "https://a.com/", &linkv1.QueryPolicy{Mode: keep}, nil, "b=%7e+%2B&a&b=%zz&=c&a==", "https://a.com/?b=%7e+%2B&a&b=%zz&=c&a=="},
		{"empty ones", "https://a.com/", &linkv1.QueryPolicy{Mode: keep}, nil, "&&a=1&&", "https://a.com/?a=1"},
		{"bytes that no URL has", "https://a.com/", &linkv1.QueryPolicy{Mode: keep}, nil, "a=\"<>\\`#\x00\xff\r\n {}|^", "https://a.com/?a=%22%3C%3E%5C%60%23%00%FF%0D%0A%20{}|^"},
		{"names that are escaped", "https://a.com/?ref=1", &linkv1.QueryPolicy{Mode: keep}, nil, "%72ef=2&%72=3", "https://a.com/?ref=1&%72=3"},
		{"names that differ in case", "https://a.com/?ref=1", &linkv1.QueryPolicy{Mode: keep}, nil, "REF=2", "https://a.com/?ref=1&REF=2"},
		{"allow", "https://a.com/", &linkv1.QueryPolicy{Mode: keep, Allow: []string{"a", "b c"}}, nil, "a=1&b+c=2&d=3", "https://a.com/?a=1&b+c=2"},
		{"deny", "https://a.com/", &linkv1.QueryPolicy{Mode: keep, Deny: []string{"a"}}, nil, "a=1&%61=2&b=3", "https://a.com/?b=3"},
		{"capture", "https://a.com/", &linkv1.QueryPolicy{Mode: keep, Capture: []string{"a"}}, nil, "a=1&b=3", "https://a.com/?b=3"},
		{"denied ones do not override", "https://a.com/?x=1", &linkv1.QueryPolicy{Mode: override, Deny: []string{"x"}}, nil, "x=2", "https://a.com/?x=1"},
		{"affiliate", "https://a.com/", nil, aff, "", "https://a.com/?ref=aff%2001&net=n"},
		{"affiliate, and the link sets one", "https://a.com/?ref=x#f", nil, aff, "", "https://a.com/?ref=x&net=n#f"},
		{"affiliate and keep", "https://a.com/", &linkv1.QueryPolicy{Mode: keep}, aff, "ref=y&z=1", "https://a.com/?ref=aff%2001&net=n&z=1"},
		{"affiliate and override", "https://a.com/", &linkv1.QueryPolicy{Mode: override}, aff, "ref=y", "https://a.com/?net=n&ref=y"},
		{"template that sets it", "https://a.com/?ref={sub1}", nil, aff, "sub1=s", "https://a.com/?ref=s&net=n"},
	} {
		l := summer()
		l.Destination, l.Query = c.destination, c.policy
		var a *linkv1.Affiliate
		if c.parameters != nil {
			a = &linkv1.Affiliate{Id: "aff_01", Parameters: c.parameters}
		}
		m, req := matchOf(t, l, nil, a), request("/summer", c.query)
		var d link.Decision
		if link.Resolve(m, req, &d); string(d.Location) != c.want {
			t.Errorf("%s: %s, want %s", c.name, d.Location, c.want)
		}
		if n := testing.AllocsPerRun(10, func() { link.Resolve(m, req, &d) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
		req.Trace = new(link.Trace)
		if link.Resolve(m, req, &d); string(d.Location) != c.want {
			t.Errorf("%s, explained: %s, want %s", c.name, d.Location, c.want)
		}
	}
}

func TestDomainSaysWhatLinksDoNot(t *testing.T) {
	domain := &linkv1.Domain{Host: "*", Query: &linkv1.QueryPolicy{Mode: keep, Deny: []string{"a"}, Capture: []string{"c"}}}
	for _, c := range []struct {
		policy *linkv1.QueryPolicy
		want   string
	}{
		{nil, "https://a.com/?b=2"},
		{&linkv1.QueryPolicy{}, "https://a.com/?a=1&b=2&c=3"},
		{&linkv1.QueryPolicy{Mode: drop}, "https://a.com/"},
		{&linkv1.QueryPolicy{Deny: []string{"b"}}, "https://a.com/?a=1&c=3"},
	} {
		l := summer()
		l.Destination, l.Query = "https://a.com/", c.policy
		var d link.Decision
		if link.Resolve(matchOf(t, l, domain, nil), request("/summer", "a=1&b=2&c=3"), &d); string(d.Location) != c.want {
			t.Errorf("%v: %s, want %s", c.policy, d.Location, c.want)
		}
	}
}

func TestParametersAreRecordedByteForByte(t *testing.T) {
	record := func(q *linkv1.QueryPolicy, query string) string {
		l := summer()
		l.Query = q
		var d link.Decision
		link.Resolve(matchOf(t, l, nil, nil), request("/summer", query), &d)
		var b strings.Builder
		for _, p := range d.Params {
			fmt.Fprintf(&b, "%s=%s ", p.Name, p.Value)
		}
		return strings.TrimSuffix(b.String(), " ")
	}
	capture := &linkv1.QueryPolicy{Capture: []string{"utm source"}}
	for _, c := range []struct {
		policy      *linkv1.QueryPolicy
		query, want string
	}{
		{nil, "sub1=a%20b+c&x=1&gclid=%zz&sub1=again", "sub1=a%20b+c gclid=%zz sub1=again"},
		{nil, "sub10=&sub11=1&external_id=e&fbclid=f&ttclid=t&msclkid=m&wbraid=w&gbraid=g", "sub10= external_id=e fbclid=f ttclid=t msclkid=m wbraid=w gbraid=g"},
		{nil, "%73ub2=1&Sub3=2", "sub2=1"},
		{capture, "utm+source=a&utm%20source=b&sub1=c", "utm source=a utm source=b sub1=c"},
		{&linkv1.QueryPolicy{Mode: keep, Deny: []string{"sub1"}}, "sub1=a", "sub1=a"},
	} {
		if got := record(c.policy, c.query); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	if n := strings.Count(record(nil, strings.Repeat("sub1=a&", 200)), "sub1"); n != link.MaxParams {
		t.Errorf("%d parameters recorded, want %d", n, link.MaxParams)
	}
	l := summer()
	m, req := matchOf(t, l, nil, nil), request("/summer", "sub1=a&gclid=b")
	var d link.Decision
	if n := testing.AllocsPerRun(10, func() { link.Resolve(m, req, &d) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	d.Reset()
	if len(d.Params) != 0 || d.Params[:2][0].Name != nil {
		t.Error("a decision that is reset holds on to the request")
	}
}
