package link_test

import (
	"fmt"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// wrong is a resource with something wrong, and what is said about it.
type wrong[T any] struct {
	name  string
	edit  func(T)
	field string
	says  string // in the message or the hint
}

func (w *wrong[T]) check(t *testing.T, r *linkv1.Resource) {
	t.Helper()
	problems := link.Problems(link.Validate(r))
	if len(problems) != 1 {
		t.Fatalf("%d problems, want 1: %v", len(problems), problems)
	}
	p := problems[0]
	if p.Kind != link.Invalid || p.Field != w.field || !strings.Contains(p.Message+" "+p.Hint, w.says) {
		t.Errorf("field %q: %s (%s); want field %q and %q", p.Field, p.Message, p.Hint, w.field, w.says)
	}
}

func rule(when string) func(*linkv1.Link) {
	return func(l *linkv1.Link) { l.Rules = []*linkv1.Rule{{When: when, Outcome: sends("https://store.com/")}} }
}

func outcome(r *linkv1.Rule) func(*linkv1.Link) {
	return func(l *linkv1.Link) { r.When, l.Rules = "true", []*linkv1.Rule{r} }
}

func split(edit func(*linkv1.Split)) func(*linkv1.Link) {
	return func(l *linkv1.Link) {
		s := &linkv1.Split{Name: "a", Weight: 1, Destination: "https://store.com/"}
		edit(s)
		l.Splits = []*linkv1.Split{s}
	}
}

func policy(q *linkv1.QueryPolicy) func(*linkv1.Link) { return func(l *linkv1.Link) { l.Query = q } }

func TestWhatIsWrongWithADecisionIsNamed(t *testing.T) {
	long := strings.Repeat("a", 300)
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprint("n", i)
	}
	const loops = `languages.all(a, languages.all(b, languages.all(c, languages.all(d, a + b == c + d))))`
	for _, c := range []wrong[*linkv1.Link]{
		{"no condition", rule(""), "rules[0].when", "is missing"},
		{"blank condition", rule(" "), "rules[0].when", "column"},
		{"long condition", rule(`country == "` + strings.Repeat("a", 2048) + `"`), "rules[0].when", "at most 2048"},
		{"condition that is none", rule(`country = "DE"`), "rules[0].when", "column 9"},
		{"condition with a NUL", rule("country == \"D\x00\""), "rules[0].when", "control"},
		{"unknown name", rule(`contry == "DE"`), "rules[0].when", "did you mean country?"},
		{"unknown function", rule(`country.lower() == "de"`), "rules[0].when", "undeclared reference"},
		{"wrong type", rule(`asn == "3320"`), "rules[0].when", "no matching overload"},
		{"no bool", rule(`country`), "rules[0].when", "gives a string"},
		{"dyn", rule(`dyn(bot)`), "rules[0].when", "gives a dyn"},
		{"loops in loops", rule(loops), "rules[0].when", "at most 50000"},
		{"time zone of the request", rule(`now.getHours(query.tz) > 3`), "rules[0].when", "literal"},
		{"time zone that is none", rule(`now.getHours("Mars/Base") > 3`), "rules[0].when", "time zone"},
		{"time zone of the machine", rule(`now.getHours("Local") > 3`), "rules[0].when", "time zone"},
		{"time zone in a loop", rule(`languages.exists(l, l == "de" && now.getHours("Europe/Berlin") > 3)`), "rules[0].when", "several rules"},
		{"broken pattern", rule(`path.matches("(")`), "rules[0].when", "missing closing"},
		{"broken prefix", rule(`cidr("10.0.0.0/99").containsIP(ip)`), "rules[0].when", "CIDR"},
		{"too much together", func(l *linkv1.Link) {
			for range 20 {
				rule(`query.exists(k, query[k].contains("x"))`)(l)
				l.Rules = append(l.Rules, l.Rules[0])
			}
			for len(l.Rules) < 60 {
				l.Rules = append(l.Rules, l.Rules[0])
			}
		}, "rules", "together"},
		{"too many rules", func(l *linkv1.Link) {
			for rule("bot")(l); len(l.Rules) < 65; l.Rules = append(l.Rules, l.Rules[0]) {
			}
		}, "rules", "at most 64"},
		{"long name of a rule", outcome(&linkv1.Rule{Name: long, Outcome: sends("https://store.com/")}), "rules[0].name", "at most 64"},
		{"hostile name of a rule", outcome(&linkv1.Rule{Name: "a\r\n", Outcome: sends("https://store.com/")}), "rules[0].name", "control"},
		{"no outcome", outcome(&linkv1.Rule{}), "rules[0]", "no outcome"},
		{"empty destination", outcome(&linkv1.Rule{Outcome: sends("")}), "rules[0].destination", "missing"},
		{"hostile destination", outcome(&linkv1.Rule{Outcome: sends("javascript:alert(1)")}), "rules[0].destination", "http"},
		{"loop of a rule", outcome(&linkv1.Rule{Outcome: sends("https://GO.example.com:443/x")}), "rules[0].destination", "allow_loop"},
		{"fallback that is none", outcome(&linkv1.Rule{Outcome: &linkv1.Rule_Fallback{Fallback: true}}), "rules[0].fallback", "set the link's fallback"},
		{"false not_found", outcome(&linkv1.Rule{Outcome: &linkv1.Rule_NotFound{}}), "rules[0].not_found", "is false"},
		{"no splits", outcome(&linkv1.Rule{Outcome: &linkv1.Rule_Splits{}}), "rules[0].splits", "missing"},
		{"weight in a rule", outcome(&linkv1.Rule{Outcome: &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: []*linkv1.Split{{Name: "a", Destination: "https://store.com/"}}}}}), "rules[0].splits.splits[0].weight", "at least 1"},

		{"variant without name", split(func(s *linkv1.Split) { s.Name = "" }), "splits[0].name", "missing"},
		{"blank variant", split(func(s *linkv1.Split) { s.Name = " " }), "splits[0].name", "missing"},
		{"long variant", split(func(s *linkv1.Split) { s.Name = long }), "splits[0].name", "at most 64"},
		{"hostile variant", split(func(s *linkv1.Split) { s.Name = "a\x00" }), "splits[0].name", "control"},
		{"variant twice", func(l *linkv1.Link) {
			split(func(*linkv1.Split) {})(l)
			l.Splits = append(l.Splits, l.Splits[0])
		}, "splits[1].name", "twice"},
		{"weight of nothing", split(func(s *linkv1.Split) { s.Weight = 0 }), "splits[0].weight", "at least 1"},
		{"weight too large", split(func(s *linkv1.Split) { s.Weight = 1<<32 - 1 }), "splits[0].weight", "at most 1000000"},
		{"variant to nowhere", split(func(s *linkv1.Split) { s.Destination = "" }), "splits[0].destination", "missing"},
		{"loop of a variant", split(func(s *linkv1.Split) { s.Destination = "https://go.example.com" }), "splits[0].destination", "loop"},
		{"too many variants", func(l *linkv1.Link) { l.Splits = make([]*linkv1.Split, 65) }, "splits", "at most 64"},

		{"sticky without splits", func(l *linkv1.Link) { l.Sticky = linkv1.StickyKey_STICKY_KEY_NONE }, "sticky", "no"},
		{"sticky by what is not said", func(l *linkv1.Link) {
			split(func(*linkv1.Split) {})(l)
			l.Sticky = linkv1.StickyKey_STICKY_KEY_QUERY
		}, "sticky_parameter", "missing"},
		{"sticky of another time", func(l *linkv1.Link) { l.Sticky = -1 }, "sticky", "CLIENT, QUERY or NONE"},
		{"parameter for nothing", func(l *linkv1.Link) { l.StickyParameter = "a" }, "sticky_parameter", "leave it out"},

		{"cap without fallback", func(l *linkv1.Link) { l.Cap = &linkv1.Cap{Clicks: 1} }, "fallback", "cap"},
		{"cap of nothing", func(l *linkv1.Link) { l.Cap, l.Fallback = &linkv1.Cap{}, "https://store.com/" }, "cap.clicks", "at least 1"},
		{"cap of another time", func(l *linkv1.Link) { l.Cap, l.Fallback = &linkv1.Cap{Clicks: 1, Period: 9}, "https://store.com/" }, "cap.period", "TOTAL, HOUR or DAY"},

		{"mode of another time", policy(&linkv1.QueryPolicy{Mode: -1}), "query.mode", "DROP, KEEP, OVERRIDE or APPEND"},
		{"empty name", policy(&linkv1.QueryPolicy{Allow: []string{"a", ""}}), "query.allow[1]", "missing"},
		{"long name", policy(&linkv1.QueryPolicy{Deny: []string{long}}), "query.deny[0]", "at most 256"},
		{"hostile name", policy(&linkv1.QueryPolicy{Capture: []string{"a\n"}}), "query.capture[0]", "control"},
		{"too many names", policy(&linkv1.QueryPolicy{Capture: many}), "query.capture", "at most 64"},
		{"allowed and denied", policy(&linkv1.QueryPolicy{Allow: []string{"a"}, Deny: []string{"a"}}), "query.deny[0]", "in allow as well"},

		{"loop", func(l *linkv1.Link) { l.Destination = "https://go.example.com/winter" }, "destination", "allow_loop"},
		{"loop of the fallback", func(l *linkv1.Link) { l.Fallback = "http://go.example.com.:80/" }, "fallback", "loop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := summer()
			c.edit(l)
			c.check(t, resource(l))
		})
	}
}

func TestWhatIsWrongWithDomainsAndAffiliatesIsNamed(t *testing.T) {
	for _, c := range []wrong[*linkv1.Domain]{
		{"long robots.txt", func(d *linkv1.Domain) { d.RobotsTxt = strings.Repeat("a", 32<<10+1) }, "robots_txt", "at most 32768"},
		{"binary robots.txt", func(d *linkv1.Domain) { d.RobotsTxt = "a\x00" }, "robots_txt", "control"},
		{"hostile robots_tag", func(d *linkv1.Domain) { d.RobotsTag = "a\r\nSet-Cookie: b" }, "robots_tag", "control"},
		{"robots_tag outside ASCII", func(d *linkv1.Domain) { d.RobotsTag = "ä" }, "robots_tag", "ASCII"},
		{"long robots_tag", func(d *linkv1.Domain) { d.RobotsTag = strings.Repeat("a", 257) }, "robots_tag", "at most 256"},
		{"query policy", func(d *linkv1.Domain) { d.Query = &linkv1.QueryPolicy{Allow: []string{""}} }, "query.allow[0]", "missing"},
		{"not_found with a macro in its host", func(d *linkv1.Domain) { d.NotFound = "https://{domain}/" }, "not_found", "in its host"},
		{"root with an unknown macro", func(d *linkv1.Domain) { d.Root = "https://a.com/{lang}" }, "root", "did you mean {language}?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &linkv1.Domain{Host: "go.example.com"}
			c.edit(d)
			c.check(t, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: d}})
		})
	}
	parameter := func(name, value string) func(*linkv1.Affiliate) {
		return func(a *linkv1.Affiliate) { a.Parameters = []*linkv1.Parameter{{Name: name, Value: value}} }
	}
	for _, c := range []wrong[*linkv1.Affiliate]{
		{"parameter without name", parameter("", "a"), "parameters[0].name", "missing"},
		{"long parameter name", parameter(strings.Repeat("a", 257), ""), "parameters[0].name", "at most 256"},
		{"long parameter", parameter("a", strings.Repeat("a", 2049)), "parameters[0].value", "at most 2048"},
		{"hostile parameter", parameter("a", "\r\n"), "parameters[0].value", "control"},
		{"parameter that is no text", parameter("a", "\xff"), "parameters[0].value", "UTF-8"},
		{"too many parameters", func(a *linkv1.Affiliate) {
			for parameter("a", "b")(a); len(a.Parameters) < 33; a.Parameters = append(a.Parameters, a.Parameters[0]) {
			}
		}, "parameters", "at most 32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &linkv1.Affiliate{Id: "a"}
			c.edit(a)
			c.check(t, &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: a}})
		})
	}
}

func TestEveryProblemOfARuleIsReportedAtOnce(t *testing.T) {
	l := summer()
	l.Rules = []*linkv1.Rule{
		{When: "contry", Outcome: sends("x")},
		{Outcome: &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: []*linkv1.Split{{}}}}},
		{When: "1"},
	}
	l.Query, l.Cap = &linkv1.QueryPolicy{Mode: 9}, &linkv1.Cap{}
	var fields []string
	for _, p := range link.Problems(link.Validate(resource(l))) {
		fields = append(fields, p.Field)
	}
	want := "query.mode rules[0].when rules[0].destination rules[1].when rules[1].splits.splits[0].name rules[1].splits.splits[0].weight " +
		"rules[1].splits.splits[0].destination rules[2].when rules[2] cap.clicks fallback"
	if got := strings.Join(fields, " "); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
}

func TestLongestValuesAreAccepted(t *testing.T) {
	l := withEverything()
	l.Rules = nil
	for range link.MaxRules {
		l.Rules = append(l.Rules, &linkv1.Rule{
			When: `country == "` + strings.Repeat("a", 200) + `"`, Name: strings.Repeat("n", link.MaxName), Outcome: sends("https://store.com/"),
		})
	}
	l.Rules[0].When = `country == "` + strings.Repeat("a", link.MaxExpression-13) + `"`
	l.Splits = nil
	for i := range link.MaxSplits {
		l.Splits = append(l.Splits, &linkv1.Split{Name: fmt.Sprintf("%064d", i), Weight: link.MaxWeight, Destination: "https://store.com/"})
	}
	l.Query.Allow = nil
	for i := range link.MaxNames {
		l.Query.Allow = append(l.Query.Allow, fmt.Sprintf("%0256d", i))
	}
	if err := link.Validate(resource(l)); err != nil {
		t.Error(err)
	}
	l.Destination = "https://store.com/" + strings.Repeat("{sub1}", 1300)
	if err := link.Validate(resource(l)); err != nil {
		t.Error(err)
	}
	l.AllowLoop, l.Destination = true, "https://go.example.com/"
	if err := link.Validate(resource(l)); err != nil {
		t.Errorf("a loop that is allowed: %v", err)
	}
}

func TestEncodeNamedNamesAsNameDoes(t *testing.T) {
	wrong := func(change func(*linkv1.Link)) *linkv1.Resource {
		l := summer()
		change(l)
		return resource(l)
	}
	for _, r := range []*linkv1.Resource{
		resource(summer()),
		resource(withEverything()),
		wrong(func(l *linkv1.Link) { l.Domain = "Not Canonical" }),
		wrong(func(l *linkv1.Link) { l.Path = "no-slash" }),
		wrong(func(l *linkv1.Link) { l.Destination = "ftp://x.test/" }),
		wrong(func(l *linkv1.Link) { l.Path, l.Destination = "", "" }),
		resource(nil),
		{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "a"}}},
		{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "no spaces"}}},
		{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: "a.test"}}},
		{},
	} {
		want, wrong := link.Name(r)
		name, value, err := link.EncodeNamed(r)
		if name != want || wrong != nil && err == nil || (err == nil) != (value != nil) {
			t.Errorf("%v: named %q, %v; Name says %q, %v", r, name, err, want, wrong)
		}
		again, errAgain := link.Encode(r)
		if string(again) != string(value) || (err == nil) != (errAgain == nil) {
			t.Errorf("%v: Encode says %q, %v", r, again, errAgain)
		}
	}
}
