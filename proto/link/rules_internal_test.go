package link

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/common/ast"
	"google.golang.org/protobuf/encoding/protowire"
)

// stranger is a visitor that a test makes up.
type stranger struct {
	place     Place
	agent     Agent
	languages []string
	referrer  string
}

func (s *stranger) Place() *Place                   { return &s.place }
func (s *stranger) Agent() *Agent                   { return &s.agent }
func (s *stranger) Languages() []string             { return s.languages }
func (s *stranger) ReferrerDomain() string          { return s.referrer }
func (s *stranger) AppendClickID(dst []byte) []byte { return append(dst, "id"...) }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// randomFacts makes up a request and what is known about it.
func randomFacts(r *rand.Rand) *facts {
	s := &stranger{
		place:    Place{Country: pick(r, "", "DE", "FR", "US"), Region: pick(r, "", "BY", "CA"), City: pick(r, "", "Munich", "Köln"), ASN: pick[uint32](r, 0, 1, 3320)},
		agent:    Agent{Device: pick(r, "", "mobile", "desktop"), OS: pick(r, "", "ios"), Browser: pick(r, "", "chrome"), Bot: r.IntN(3) == 0},
		referrer: pick(r, "", "a.example.org"),
	}
	for range r.IntN(4) {
		s.languages = append(s.languages, pick(r, "de", "de-at", "en", ""))
	}
	q := pick(r, "", "a=1", "a=DE&b=%44E", "%61=x+y&&a=2", "a", "b=&a=%zz", "m=mobile&a=Munich")
	req := &Request{
		Host: []byte(pick(r, "go.example.com", "")), Path: []byte(pick(r, "/", "/DE", "/go/summer")), Query: []byte(q),
		UnixMicro: pick[int64](r, 0, -1, 1_780_315_200_000_000, 1_780_315_199_999_999, r.Int64N(4e15)),
		Address:   pick(r, netip.Addr{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1%eth0")),
		Visitor:   s,
	}
	labels := protowire.AppendTag(nil, linkLabels, protowire.BytesType)
	labels = protowire.AppendBytes(labels, []byte("\x0a\x01a\x12\x02DE"))
	f := new(facts)
	f.begin(&Match{Value: protowire.AppendBytes([]byte{0x0a}, labels)}, req)
	return f
}

// expressions writes random ones of the types that rules can have.
type expressions struct{ *rand.Rand }

func (e expressions) bool(depth int) string {
	if depth == 0 {
		return pick(e.Rand, "bot", "true", "false", `"a" in query`, `has(query.b)`, `country == "DE"`)
	}
	switch e.IntN(14) {
	case 0, 1:
		return fmt.Sprintf("(%s && %s)", e.bool(depth-1), e.bool(depth-1))
	case 2, 3:
		return fmt.Sprintf("(%s || %s)", e.bool(depth-1), e.bool(depth-1))
	case 4:
		return "!" + "(" + e.bool(depth-1) + ")"
	case 5:
		return fmt.Sprintf("(%s ? %s : %s)", e.bool(depth-1), e.bool(depth-1), e.bool(depth-1))
	case 6:
		return fmt.Sprintf("%s %s %s", e.text(depth-1), e.operator(), e.text(depth-1))
	case 7:
		return fmt.Sprintf("%s %s %s", e.int(depth-1), e.operator(), e.int(depth-1))
	case 8:
		return fmt.Sprintf("%s.%s(%s)", e.text(depth-1), pick(e.Rand, "contains", "startsWith", "endsWith"), e.text(depth-1))
	case 9:
		return fmt.Sprintf("%s in %s", e.text(depth-1), pick(e.Rand, `["DE", "FR"]`, "languages", "query", "labels", `["a","b","c","d","e","f","g","h","i","j","k","DE"]`, "[city]"))
	case 10:
		return fmt.Sprintf("%s in %s", e.int(depth-1), pick(e.Rand, "[1, 2, 3320]", "[asn]"))
	case 11:
		return fmt.Sprintf(`cidr("%s").containsIP(ip)`, pick(e.Rand, "10.0.0.0/8", "2001:db8::/32", "fe80::/10"))
	case 12:
		return fmt.Sprintf(`%s.matches(%q)`, e.text(depth-1), pick(e.Rand, "^D", "[a-z]+e$", "ö"))
	}
	return fmt.Sprintf("now %s %s", e.operator(), pick(e.Rand, `timestamp("2026-06-01T12:00:00Z")`, `timestamp("1970-01-01T00:00:00+01:00")`, `timestamp("2026-06-01T12:00:00.0000001Z")`))
}

func (e expressions) operator() string { return pick(e.Rand, "==", "!=", "<", "<=", ">", ">=") }

func (e expressions) text(depth int) string {
	if depth > 0 && e.IntN(4) == 0 {
		return pick(e.Rand,
			fmt.Sprintf("(%s ? %s : %s)", e.bool(depth-1), e.text(depth-1), e.text(depth-1)),
			fmt.Sprintf("query[%s]", e.text(depth-1)), fmt.Sprintf("languages[%s]", e.int(depth-1)), "("+e.text(depth-1)+" + "+e.text(depth-1)+")")
	}
	return pick(e.Rand, `"DE"`, `"a"`, `""`, `"mobile"`, "country", "region", "city", "device", "os", "browser", "language",
		"referrer_domain", "host", "path", "ip", "query.a", `query["b"]`, "labels.a", `labels["none"]`, "languages[0]")
}

func (e expressions) int(depth int) string {
	if depth > 0 && e.IntN(3) == 0 {
		return pick(e.Rand, e.text(depth-1)+".size()", "size("+e.text(depth-1)+")", "size(languages)", "now."+
			pick(e.Rand, "getHours", "getMinutes", "getDayOfWeek", "getDate", "getDayOfMonth", "getMonth", "getFullYear", "getDayOfYear", "getSeconds", "getMilliseconds")+"("+
			pick(e.Rand, "", `"Europe/Berlin"`, `"-03:30"`, `"UTC"`)+")")
	}
	if depth > 0 && e.IntN(3) == 0 {
		return fmt.Sprintf("(%s %s %s)", e.int(depth-1), pick(e.Rand, "+", "-", "*", "/", "%"), e.int(depth-1))
	}
	return pick(e.Rand, "0", "1", "12", "asn", "3320", "-1", "9223372036854775807", "-9223372036854775808")
}

func TestCompiledRulesAgreeWithCEL(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1))
	fast, slow, answers := 0, 0, map[answer]int{}
	for range 4000 {
		text := expressions{r}.bool(3)
		if len(text) > MaxExpression {
			continue
		}
		checked, issues := environment().Compile(text)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", text, issues.Err())
		}
		compiled := compileFast(checked.NativeRep())
		if compiled == nil {
			slow++
			continue
		}
		fast++
		judge, err := environment().Program(checked)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for range 10 {
			f := randomFacts(r)
			want, err := (&program{slow: judge}).evalSlowly(f)
			if got := compiled(f); got != want {
				t.Fatalf("%s\n%q %+v %+v\ngives %d, and CEL gives %d (%v)", text, f.req.Query, f.req, f.visitor, got, want, err)
			}
			answers[want]++
		}
	}
	t.Logf("%d expressions compiled, %d left to CEL; answers %v", fast, slow, answers)
	if fast < slow || answers[no] < 1000 || answers[yes] < 1000 || answers[failed] < 100 {
		t.Errorf("%d expressions compiled, %d left to CEL; answers %v: that proves little", fast, slow, answers)
	}
}

func TestCommonRulesAreCompiled(t *testing.T) {
	for _, text := range []string{
		`country == "DE"`, `country in ["DE", "AT"] && device == "mobile"`, `bot || asn in [1, 2]`, `!("de" in languages)`,
		`query["utm_source"] == "mail"`, `has(query.gclid)`, `query.a.startsWith("x")`, `labels["tier"] == "gold"`,
		`cidr("10.0.0.0/8").containsIP(ip)`, `now >= timestamp("2026-12-24T00:00:00Z")`, `now.getHours("Europe/Berlin") >= 18`,
		`now.getDayOfWeek() in [0, 6]`, `path.matches("^/a/[0-9]+$")`, `referrer_domain.endsWith(".example.com")`, `language != "de"`,
	} {
		p, err := programOf(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if p.fast == nil {
			t.Errorf("%s is left to CEL", text)
		}
		f := randomFacts(rand.New(rand.NewPCG(1, 1)))
		p.eval(f)
		if n := testing.AllocsPerRun(50, func() { p.eval(f) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

func TestRulesThatAreLeftToCELGiveItsAnswers(t *testing.T) {
	f := randomFacts(rand.New(rand.NewPCG(1, 1)))
	f.req.Query, f.tags, f.asked = []byte("a=1&b=two"), []string{"de-at", "en"}, askedLanguages
	for text, want := range map[string]answer{
		`languages.exists(l, l.startsWith("de"))`: yes,
		`query.all(k, size(query[k]) > 1)`:        no,
		`int(query.a) + 1 == 2`:                   yes,
		`int(query.b) == 2`:                       failed,
		`labels == {"a": "DE"}`:                   yes,
		`(query.a + query.b) == "1two"`:           yes,
	} {
		p, err := programOf(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := p.eval(f); p.fast != nil || got != want {
			t.Errorf("%s gives %d, want %d", text, got, want)
		}
	}
}

func TestOneTextIsOneProgramAsLongAsSomebodyHoldsIt(t *testing.T) {
	text := fmt.Sprintf(`country == "%d"`, time.Now().UnixNano())
	p, err := programOf(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := programOf(strings.Clone(text)); again != p {
		t.Error("compiled twice")
	}
	known := func() bool {
		programs.RLock()
		defer programs.RUnlock()
		_, ok := programs.byText[text]
		return ok
	}
	if !known() {
		t.Error("is not kept")
	}
	runtime.KeepAlive(p)
	for deadline := time.Now().Add(10 * time.Second); known(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("is kept for ever")
		}
		runtime.GC()
	}
}

func TestTimeZonesAreReadAsCELReadsThem(t *testing.T) {
	for _, zone := range []string{"Europe/Berlin", "UTC", "", "+02:00", "-03:30", "-00:30", "05:45", "America/New_York"} {
		text := fmt.Sprintf("now.getHours(%q) * 60 + now.getMinutes(%q) == %%d", zone, zone)
		for _, at := range []int64{0, 1_780_315_200_000_000, 1_767_268_799_000_000} {
			f := randomFacts(rand.New(rand.NewPCG(1, 1)))
			f.req.UnixMicro = at
			loc, ok := zoneOf(mustParse(t, fmt.Sprintf("%q", zone)))
			if !ok {
				t.Fatalf("%q is refused", zone)
			}
			here := time.UnixMicro(at).In(loc)
			checked, issues := environment().Compile(fmt.Sprintf(text, here.Hour()*60+here.Minute()))
			if issues.Err() != nil {
				t.Fatal(issues.Err())
			}
			judge, err := environment().Program(checked)
			if err != nil {
				t.Fatal(err)
			}
			if a, err := (&program{slow: judge}).evalSlowly(f); a != yes {
				t.Errorf("%q at %d: CEL disagrees with %s: %v", zone, at, here, err)
			}
		}
	}
}

func mustParse(t *testing.T, text string) ast.Expr {
	t.Helper()
	checked, issues := environment().Compile(text)
	if issues.Err() != nil {
		t.Fatal(issues.Err())
	}
	return checked.NativeRep().Expr()
}
