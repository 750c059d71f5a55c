package link_test

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestFirstRuleThatMatchesWins(t *testing.T) {
	const fallback = "https://store.com/sorry"
	l := summer()
	l.Fallback = fallback
	l.Rules = []*linkv1.Rule{
		{When: `query["n"] == "0"`, Name: "zero", Outcome: sends("https://store.com/0")},
		{When: `has(query.n) && query.n == "1"`, Name: "one", Outcome: sends("https://store.com/1?c={country}")},
		{When: `has(query.n) && query.n == "2"`, Outcome: &linkv1.Rule_Fallback{Fallback: true}},
		{When: `has(query.n) && query.n == "3"`, Outcome: &linkv1.Rule_NotFound{NotFound: true}},
		{When: `has(query.n) && query.n == "4"`, Outcome: &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: []*linkv1.Split{{Name: "only", Weight: 1, Destination: "https://store.com/4"}}}}},
		{When: `query.n == "4"`, Outcome: sends("https://store.com/never")},
	}
	l.Splits = []*linkv1.Split{{Name: "rest", Weight: 5, Destination: "https://store.com/rest?v={variant}"}}
	home := &linkv1.Domain{Host: "*", NotFound: "https://store.com/404", CacheControl: "max-age=60"}
	m := matchOf(t, l, home, nil)
	for _, c := range []struct {
		query, location string
		outcome         link.Outcome
		rule            uint32
		name, variant   string
		errors          uint32
	}{
		{"n=0", "https://store.com/0", link.ToDestination, 1, "zero", "", 0},
		{"n=1", "https://store.com/1?c=DE", link.ToDestination, 2, "one", "", 0},
		{"n=2", fallback, link.ByRule, 3, "", "", 0},
		{"n=3", "https://store.com/404", link.ByRule, 4, "", "", 0},
		{"n=4", "https://store.com/4", link.ToDestination, 5, "", "only", 0},
		{"n=5", "https://store.com/rest?v=rest", link.ToDestination, 0, "", "rest", 0},
		{"", "https://store.com/rest?v=rest", link.ToDestination, 0, "", "rest", 2},
	} {
		var d link.Decision
		link.Resolve(m, request("/summer", c.query), &d)
		if string(d.Location) != c.location || d.Outcome != c.outcome || d.Rule != c.rule || string(d.RuleName) != c.name || string(d.Variant) != c.variant || d.RuleErrors != c.errors {
			t.Errorf("%q: %s, %v, rule %d %q, variant %q, %d errors; want %+v", c.query, d.Location, d.Outcome, d.Rule, d.RuleName, d.Variant, d.RuleErrors, c)
		}
		if d.CacheControl != "no-store" {
			t.Errorf("%q: Cache-Control %q of what is for one visitor", c.query, d.CacheControl)
		}
	}
	l.Rules[3].When = "true"
	var d link.Decision
	link.Resolve(matchOf(t, l, nil, nil), request("/summer", "n=9"), &d)
	if d.Status != 404 || d.Location != nil || d.Outcome != link.ByRule {
		t.Errorf("not_found without a domain: %d %s", d.Status, d.Location)
	}
}

func TestRulesAreAskedOnlyWhereTheLinkIsServed(t *testing.T) {
	l := withThreeRules()
	l.Disabled, l.Fallback = true, "https://store.com/sorry"
	req := request("/summer", "")
	req.Trace = new(link.Trace)
	var d link.Decision
	link.Resolve(matchOf(t, l, nil, nil), req, &d)
	if string(d.Location) != l.Fallback || d.Outcome != link.IsDisabled || len(req.Trace.Rules) != 0 {
		t.Errorf("%s, %v, %d rules looked at", d.Location, d.Outcome, len(req.Trace.Rules))
	}
}

// variantOf decides for the nth visitor.
func variantOf(m *link.Match, n int, query string) string {
	req := request("/summer", query)
	req.Address = netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	req.Random = uint64(n) * 0x9e3779b97f4a7c15
	var d link.Decision
	link.Resolve(m, req, &d)
	return string(d.Variant)
}

func withSplits(weights ...uint32) *linkv1.Link {
	l := summer()
	for i, w := range weights {
		l.Splits = append(l.Splits, &linkv1.Split{Name: string(rune('a' + i)), Weight: w, Destination: fmt.Sprintf("https://store.com/%d", i)})
	}
	return l
}

func TestSplitsFollowTheirWeights(t *testing.T) {
	const visitors = 40_000
	for _, sticky := range []linkv1.StickyKey{0, linkv1.StickyKey_STICKY_KEY_NONE} {
		l := withSplits(70, 20, 10)
		l.Sticky = sticky
		m := matchOf(t, l, nil, nil)
		counts := map[string]int{}
		for n := range visitors {
			counts[variantOf(m, n, "")]++
		}
		for i, want := range []float64{.7, .2, .1} {
			got := float64(counts[string(rune('a'+i))]) / visitors
			if sigma := math.Sqrt(want * (1 - want) / visitors); math.Abs(got-want) > 5*sigma {
				t.Errorf("%v: %c has %.4f, want %.4f", sticky, 'a'+i, got, want)
			}
		}
	}
}

func TestVisitorsKeepTheirVariantWhenAnotherWeightChanges(t *testing.T) {
	before, after := matchOf(t, withSplits(50, 30, 20), nil, nil), matchOf(t, withSplits(50, 90, 20), nil, nil)
	with := matchOf(t, withSplits(50, 30, 20, 40), nil, nil)
	for n := range 5000 {
		v, w := variantOf(before, n, ""), variantOf(after, n, "")
		if v != w && w != "b" {
			t.Fatalf("visitor %d went from %s to %s when the weight of b grew", n, v, w)
		}
		if w := variantOf(with, n, ""); v != w && w != "d" {
			t.Fatalf("visitor %d went from %s to %s when d came", n, v, w)
		}
	}
}

func TestVisitorsKeepTheirVariantByWhatTheLinkSays(t *testing.T) {
	l := withSplits(1, 1, 1, 1, 1, 1, 1, 1)
	l.Sticky, l.StickyParameter = linkv1.StickyKey_STICKY_KEY_QUERY, "sub id"
	m := matchOf(t, l, nil, nil)
	seen := map[string]bool{}
	for n := range 50 {
		if variantOf(m, n, "x=1&sub+id=7") != variantOf(m, 0, "sub%20id=7") {
			t.Fatal("one sub-id has two variants")
		}
		seen[variantOf(m, 0, fmt.Sprintf("sub+id=%d", n))] = true
		if variantOf(m, n, "") != variantOf(matchOf(t, withSplits(1, 1, 1, 1, 1, 1, 1, 1), nil, nil), n, "") {
			t.Fatal("without the parameter it is not address and user agent that decide")
		}
	}
	if len(seen) < 6 {
		t.Errorf("50 sub-ids have %d variants of 8", len(seen))
	}
	l.Sticky, l.StickyParameter = linkv1.StickyKey_STICKY_KEY_NONE, ""
	m = matchOf(t, l, nil, nil)
	seen = map[string]bool{}
	for n := range 50 {
		seen[variantOf(m, n, "")] = true
	}
	if len(seen) < 6 {
		t.Errorf("50 requests have %d variants of 8", len(seen))
	}
	// Another link with the same splits draws anew.
	other := withSplits(1, 1, 1, 1, 1, 1, 1, 1)
	other.Path = "/winter"
	o, same := matchOf(t, other, nil, nil), 0
	m = matchOf(t, withSplits(1, 1, 1, 1, 1, 1, 1, 1), nil, nil)
	for n := range 1000 {
		if variantOf(o, n, "") == variantOf(m, n, "") {
			same++
		}
	}
	if same > 250 {
		t.Errorf("two links agree on %d visitors of 1000, want about 125", same)
	}
}

// counter is a Caps that lets a number of clicks through.
type counter struct {
	left  int
	asked []link.Cap
}

func (c *counter) Take(_ *link.Match, limit link.Cap) bool {
	c.asked = append(c.asked, limit)
	c.left--
	return c.left >= 0
}

func TestCapsSendWhatIsOverThemToTheFallback(t *testing.T) {
	l := summer()
	l.Cap, l.Fallback = &linkv1.Cap{Clicks: 2, Period: linkv1.CapPeriod_CAP_PERIOD_DAY}, "https://store.com/sorry"
	l.Rules = []*linkv1.Rule{{When: `"out" in query`, Outcome: &linkv1.Rule_NotFound{NotFound: true}}}
	m, caps := matchOf(t, l, nil, nil), &counter{left: 2}
	var d link.Decision
	for i, c := range []struct {
		query, location string
		outcome         link.Outcome
	}{
		{"", l.Destination, link.ToDestination},
		{"out", "", link.ByRule},
		{"", l.Destination, link.ToDestination},
		{"", l.Fallback, link.IsCapped},
	} {
		req := request("/summer", c.query)
		req.Caps = caps
		if link.Resolve(m, req, &d); string(d.Location) != c.location || d.Outcome != c.outcome || d.CacheControl != "no-store" {
			t.Errorf("request %d: %s %v %s, want %s %v", i, d.Location, d.Outcome, d.CacheControl, c.location, c.outcome)
		}
	}
	if len(caps.asked) != 3 || caps.asked[0] != (link.Cap{Clicks: 2, Period: link.PerDay}) {
		t.Errorf("asked %+v", caps.asked)
	}
	if link.Resolve(m, request("/summer", ""), &d); string(d.Location) != l.Destination {
		t.Errorf("with nobody to ask: %s", d.Location)
	}
	l.Cap.Period = 0
	m = matchOf(t, l, nil, nil)
	if limit, ok := m.Link.Cap(m.Value); !ok || limit.Period != link.PerLife {
		t.Errorf("a cap without period: %+v", limit)
	}
	m = matchOf(t, summer(), nil, nil)
	if _, ok := m.Link.Cap(m.Value); ok {
		t.Error("a link without cap has one")
	}
}

func TestDomainAnswersForRobots(t *testing.T) {
	home := &linkv1.Domain{Host: "*", RobotsTxt: "User-agent: *\nDisallow: /\n", RobotsTag: "noindex, nofollow"}
	m := matchOf(t, summer(), home, nil)
	var d link.Decision
	link.Resolve(m, request("/summer", ""), &d)
	if d.RobotsTag != "noindex, nofollow" || d.Body != nil {
		t.Errorf("X-Robots-Tag %q, body %q", d.RobotsTag, d.Body)
	}
	link.Resolve(&link.Match{Domain: m.Domain}, request("/robots.txt", ""), &d)
	if d.Status != 200 || string(d.Body) != home.RobotsTxt || d.Location != nil || d.Outcome != link.ToRobots {
		t.Errorf("robots.txt: %d %q %v", d.Status, d.Body, d.Outcome)
	}
	link.Resolve(&link.Match{}, request("/robots.txt", ""), &d)
	if d.Status != 404 || d.Body != nil || d.RobotsTag != "" {
		t.Errorf("without a domain: %d %q", d.Status, d.Body)
	}
}

func TestTraceTellsEachStep(t *testing.T) {
	l := withThreeRules()
	l.Rules = append([]*linkv1.Rule{{When: `query.x == "1"`, Name: "x", Outcome: sends("https://store.com/x")}}, l.Rules...)
	l.Rules[3].Outcome = &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: []*linkv1.Split{
		{Name: "a", Weight: 3, Destination: "https://store.com/a?s={sub1|none}&t=1"}, {Name: "b", Weight: 1, Destination: "https://store.com/b?s={sub1|none}&t=1"},
	}}}
	l.Query = &linkv1.QueryPolicy{Mode: keep, Deny: []string{"d"}}
	l.Cap, l.Fallback = &linkv1.Cap{Clicks: 9}, "https://store.com/sorry"
	a := &linkv1.Affiliate{Id: "a", Parameters: []*linkv1.Parameter{{Name: "ref", Value: "1"}}}
	req := request("/summer", "t=2&d=3&e=4")
	req.Trace, req.Caps = new(link.Trace), &counter{left: 1}
	var d link.Decision
	link.Resolve(matchOf(t, l, nil, a), req, &d)
	tr := req.Trace
	got := ""
	for _, r := range tr.Rules {
		got += fmt.Sprintln("rule", r.Index, r.Name, r.When, r.Matched, r.Error != "", r.Facts, r.Outcome)
	}
	for _, s := range tr.Splits {
		got += fmt.Sprintln("split", s.Name, s.Share, s.Chosen == (s.Name == string(d.Variant)))
	}
	got += fmt.Sprintln(tr.SplitKey, *tr.Cap, tr.Macros)
	for _, q := range tr.Query {
		got += fmt.Sprintln("query", q.Parameter, q.Origin, q.Sent, q.Because)
	}
	want := `rule 0 x query.x == "1" false true [{query {"d": "3", "e": "4", "t": "2"}}] destination
rule 1  country == "FR" false false [{country "DE"}] destination
rule 2  country in ["AT", "CH", "DE"] && device == "desktop" false false [{country "DE"} {device "mobile"}] destination
rule 3  country == "DE" && device == "mobile" true false [{country "DE"} {device "mobile"}] splits
split a 0.75 true
split b 0.25 true
address and user agent {{9 1} true true} [{{sub1|none} none true}]
query s=none destination true 
query t=1 destination true 
query ref=1 affiliate true 
query t=2 request false the destination has it
query d=3 request false it is in deny
query e=4 request true 
`
	if got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
}
