package link_test

import (
	"net/netip"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// somebody is a visitor of whom everything is known.
type somebody struct {
	place     link.Place
	agent     link.Agent
	languages []string
	referrer  string
	id        string
}

func (s *somebody) Place() *link.Place              { return &s.place }
func (s *somebody) Agent() *link.Agent              { return &s.agent }
func (s *somebody) Languages() []string             { return s.languages }
func (s *somebody) ReferrerDomain() string          { return s.referrer }
func (s *somebody) AppendClickID(dst []byte) []byte { return append(dst, s.id...) }

func berliner() *somebody {
	return &somebody{
		place:     link.Place{Country: "DE", Region: "BE", City: "Berlin", ASN: 3320},
		agent:     link.Agent{Device: "mobile", OS: "android", Browser: "chrome"},
		languages: []string{"de-de", "en"}, referrer: "blog.example.org", id: "n1-7f.42",
	}
}

// request is a request of the berliner.
func request(path, query string) *link.Request {
	return &link.Request{
		Host: []byte("go.example.com"), Path: []byte(path), Query: []byte(query), UnixMicro: 1_780_315_200_000_000,
		Address: netip.MustParseAddr("192.0.2.7"), UserAgent: []byte("Mozilla/5.0 (Android)"), Random: 42, Visitor: berliner(),
	}
}

// matchOf is what a table finds for a link.
func matchOf(t testing.TB, l *linkv1.Link, d *linkv1.Domain, a *linkv1.Affiliate) *link.Match {
	t.Helper()
	m := new(link.Match)
	value, err := link.Encode(resource(l))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(value); err != nil {
		t.Fatal(err)
	}
	if d != nil {
		value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: d}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Domain, err = link.CompileDomain(value); err != nil {
			t.Fatal(err)
		}
	}
	if a != nil {
		value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: a}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Affiliate, err = link.CompileAffiliate(value); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func sends(to string) *linkv1.Rule_Destination { return &linkv1.Rule_Destination{Destination: to} }

// withThreeRules are rules on country and device, of which the last matches.
func withThreeRules() *linkv1.Link {
	l := summer()
	l.Rules = []*linkv1.Rule{
		{When: `country == "FR"`, Outcome: sends("https://store.fr/p/123")},
		{When: `country in ["AT", "CH", "DE"] && device == "desktop"`, Outcome: sends("https://store.de/p/123")},
		{When: `country == "DE" && device == "mobile"`, Outcome: sends("https://m.store.de/p/123")},
	}
	return l
}

func withMacros() *linkv1.Link {
	l := summer()
	l.Destination = "https://store.com/p/123?click={click_id}&s={sub1}&c={country}&ref=x"
	l.Query = &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_OVERRIDE}
	return l
}

// cases are the links whose decisions have a figure to keep.
var cases = []struct {
	name  string
	link  func() *linkv1.Link
	query string
	want  string
}{
	{"plain", summer, "", "https://store.com/p/123?ref=aff_01"},
	{"plain with a query", summer, "sub1=a&gclid=b", "https://store.com/p/123?ref=aff_01"},
	{"three macros and override", withMacros, "sub1=news%20letter&ref=y", "https://store.com/p/123?click=n1-7f.42&s=news%20letter&c=DE&sub1=news%20letter&ref=y"},
	{"three rules", withThreeRules, "", "https://m.store.de/p/123"},
	{"split", func() *linkv1.Link {
		l := summer()
		l.Splits = []*linkv1.Split{{Name: "a", Weight: 70, Destination: "https://store.com/a"}, {Name: "b", Weight: 30, Destination: "https://store.com/b"}}
		return l
	}, "", "https://store.com/a"},
}

func TestDecisionsThatHaveAFigureDoNotAllocate(t *testing.T) {
	for _, c := range cases {
		m, req := matchOf(t, c.link(), nil, nil), request("/summer", c.query)
		var d link.Decision
		if link.Resolve(m, req, &d); string(d.Location) != c.want {
			t.Errorf("%s: %s, want %s", c.name, d.Location, c.want)
		}
		if n := testing.AllocsPerRun(100, func() { link.Resolve(m, req, &d) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			m, req := matchOf(b, c.link(), nil, nil), request("/summer", c.query)
			var d link.Decision
			b.ReportAllocs()
			for b.Loop() {
				link.Resolve(m, req, &d)
			}
		})
	}
}

func BenchmarkNewPlan(b *testing.B) {
	value, _ := link.Encode(resource(withThreeRules()))
	c, _ := link.Compile(value)
	keep, _ := link.NewPlan(c.Plan(value))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := link.NewPlan(c.Plan(value)); err != nil {
			b.Fatal(err)
		}
	}
	if len(keep.Bytes()) == 0 {
		b.Error("no plan")
	}
}

func BenchmarkEncode(b *testing.B) {
	r := resource(summer())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := link.Encode(r); err != nil {
			b.Fatal(err)
		}
	}
}
