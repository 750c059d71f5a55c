package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

var now = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

func finding(detector string, confidence float64, subject any) *clickv1.Finding {
	f := &clickv1.Finding{Id: fmt.Sprint(detector, "-", subject), Detector: detector, Confidence: confidence, Summary: "it did", To: timestamppb.New(now), Subject: &clickv1.Subject{}}
	switch s := subject.(type) {
	case string:
		f.Subject.Subject = &clickv1.Subject_Prefix{Prefix: s}
	case []byte:
		f.Subject.Subject = &clickv1.Subject_UserAgent{UserAgent: s}
	case int:
		f.Subject.Subject = &clickv1.Subject_Affiliate{Affiliate: fmt.Sprint("aff-", s)}
	case uint32:
		f.Subject.Subject = &clickv1.Subject_Asn{Asn: s}
	}
	return f
}

func parse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := ParseFile([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return p
}

func TestABlockIsForOneAffiliateWhenNearlyAllIsForIt(t *testing.T) {
	for _, c := range []struct {
		subject any
		share   float64
		want    string
	}{
		{"203.0.113.0/24", 0.95, "aff-7"},
		{"203.0.113.0/24", 0.8, "aff-7"},
		{"203.0.113.0/24", 0.75, ""},
		{"203.0.113.9/32", 1, ""},
		{[]byte("agent"), 0.9, "aff-7"},
		{1, 1, ""},
	} {
		f := finding("bursts", 0.96, c.subject)
		f.Affiliate, f.AffiliateShare = "aff-7", c.share
		v := new(Judge).Decide(parse(t, "guard: {detectors: [{detector: bursts, may_block_affiliates: true}]}"), f, now)
		if v.Block.GetOnlyAffiliate() != c.want || v.Block == nil {
			t.Errorf("%v: %v", c.subject, v.Block)
		}
	}
	// A network that is blocked for one affiliate does not stand for its addresses.
	j, wide := new(Judge), finding("flood", 0.96, "203.0.113.0/24")
	wide.Affiliate, wide.AffiliateShare = "aff-7", 1
	p := parse(t, "scope: '*'")
	first := j.Decide(p, wide, now)
	if v := j.Decide(p, finding("flood", 0.96, "203.0.113.9/32"), now); v.Block == nil {
		t.Errorf("the address: %v", v.Decision)
	}
	again := new(Judge)
	again.Note(first.Decision, wide)
	if v := again.Decide(p, finding("flood", 0.96, "203.0.113.9/32"), now); v.Block == nil {
		t.Errorf("the address, after a restart: %v", v.Decision)
	}
}

func TestAPolicyDecidesWhatIsDone(t *testing.T) {
	const limits = "guard: {widest_ipv4: 24, allow_prefixes: [10.0.0.0/8, 203.0.113.77, '2001:db8::/32'], allow_user_agents: [good], allow_affiliates: [aff-1], detectors: [" +
		"{detector: entropy, findings_only: true}, {detector: bursts, may_block_affiliates: true, action: refuse, ttl: 2h}, {detector: timing, min_confidence: 0.99}]}"
	for _, c := range []struct {
		policy string
		f      *clickv1.Finding
		want   clickv1.Verdict
	}{
		{"scope: '*'", finding("flood", 0.96, "203.0.113.9/32"), clickv1.Verdict_VERDICT_BLOCKED},
		{"scope: '*'", finding("flood", 0.96, "203.0.113.0/24"), clickv1.Verdict_VERDICT_BLOCKED},
		{"scope: '*'", finding("low_and_slow", 0.96, []byte("agent")), clickv1.Verdict_VERDICT_BLOCKED},
		{"scope: '*'", finding("low_and_slow", 0.96, []byte{0xff, 0xfe}), clickv1.Verdict_VERDICT_FINDING_ONLY},
		{"scope: '*'", finding("low_and_slow", 0.96, uint32(64500)), clickv1.Verdict_VERDICT_FINDING_ONLY},
		{"scope: '*'", finding("flood", 0.96, 1), clickv1.Verdict_VERDICT_FINDING_ONLY},
		{"scope: '*'", finding("flood", 0.94, "203.0.113.9/32"), clickv1.Verdict_VERDICT_NOT_SURE},
		{"scope: '*'", finding("flood", 0.96, "203.0.112.0/23"), clickv1.Verdict_VERDICT_TOO_WIDE},
		{"scope: '*'", finding("flood", 0.96, "2001:db8::/47"), clickv1.Verdict_VERDICT_TOO_WIDE},
		{"scope: '*'", finding("flood", 0.96, "2001:db8:1::/48"), clickv1.Verdict_VERDICT_BLOCKED},
		{"off: true", finding("flood", 0.96, "203.0.113.9/32"), clickv1.Verdict_VERDICT_OFF},
		{limits, finding("flood", 0.96, "10.1.2.3/32"), clickv1.Verdict_VERDICT_ALLOWED},
		{limits, finding("flood", 0.96, "203.0.113.0/24"), clickv1.Verdict_VERDICT_ALLOWED}, // it has an allowed address in it
		{limits, finding("flood", 0.96, "203.0.113.9/32"), clickv1.Verdict_VERDICT_BLOCKED},
		{limits, finding("flood", 0.96, "2001:db8:1::/48"), clickv1.Verdict_VERDICT_ALLOWED},
		{limits, finding("low_and_slow", 0.96, []byte("good")), clickv1.Verdict_VERDICT_ALLOWED},
		{limits, finding("bursts", 0.96, 1), clickv1.Verdict_VERDICT_ALLOWED},
		{limits, finding("bursts", 0.96, 2), clickv1.Verdict_VERDICT_BLOCKED},
		{limits, finding("entropy", 0.99, "203.0.113.9/32"), clickv1.Verdict_VERDICT_FINDING_ONLY},
		{limits, finding("timing", 0.98, "203.0.113.9/32"), clickv1.Verdict_VERDICT_NOT_SURE},
	} {
		v := new(Judge).Decide(parse(t, c.policy), c.f, now)
		if v.Decision.GetVerdict() != c.want || (v.Block != nil) != (c.want == clickv1.Verdict_VERDICT_BLOCKED) || v.Decision.GetReason() == "" {
			t.Errorf("%s, %s %v: %v", c.policy, c.f.GetDetector(), c.f.GetSubject(), v.Decision)
			continue
		}
		if v.Block != nil {
			if err := link.Validate(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: v.Block}}); err != nil {
				t.Errorf("%v: %v", v.Block, err)
			}
			if v.Decision.GetBlock() != "blocks/"+v.Block.GetId() || v.Block.GetFinding() != c.f.GetId() {
				t.Errorf("%v, %v", v.Decision, v.Block)
			}
		}
	}
	v := new(Judge).Decide(parse(t, limits), finding("bursts", 0.96, 2), now)
	if v.Block.GetAction() != linkv1.BlockAction_BLOCK_ACTION_REFUSE || v.Block.GetTtl().AsDuration() != 2*time.Hour || !v.Decision.GetExpireTime().AsTime().Equal(now.Add(2*time.Hour)) {
		t.Errorf("%v", v)
	}
}

func TestWhatIsOverIsNotBlocked(t *testing.T) {
	f := finding("flood", 0.96, "203.0.113.9/32")
	f.To = timestamppb.New(now.Add(-61 * time.Minute))
	if v := new(Judge).Decide(parse(t, "scope: '*'"), f, now); v.Decision.GetVerdict() != clickv1.Verdict_VERDICT_FINDING_ONLY {
		t.Fatal(v)
	}
}

func TestABlockStandsUntilItsLastQuarterAndAWiderOneStandsForIt(t *testing.T) {
	var j Judge
	p := parse(t, "scope: '*'")
	decide := func(subject string, after time.Duration) clickv1.Verdict {
		f := finding("flood", 0.96, subject)
		f.To = timestamppb.New(now.Add(after))
		return j.Decide(p, f, now.Add(after)).Decision.GetVerdict()
	}
	for _, c := range []struct {
		subject string
		after   time.Duration
		want    clickv1.Verdict
	}{
		{"203.0.113.0/24", 0, clickv1.Verdict_VERDICT_BLOCKED},
		{"203.0.113.0/24", 30 * time.Minute, clickv1.Verdict_VERDICT_STANDS},
		{"203.0.113.9/32", 30 * time.Minute, clickv1.Verdict_VERDICT_STANDS},
		{"203.0.112.9/32", 30 * time.Minute, clickv1.Verdict_VERDICT_BLOCKED},
		{"203.0.113.0/24", 50 * time.Minute, clickv1.Verdict_VERDICT_BLOCKED},
		{"203.0.113.0/24", 80 * time.Minute, clickv1.Verdict_VERDICT_STANDS},
		{"203.0.113.0/24", 200 * time.Minute, clickv1.Verdict_VERDICT_BLOCKED},
	} {
		if got := decide(c.subject, c.after); got != c.want {
			t.Errorf("%s after %s: %v, not %v", c.subject, c.after, got, c.want)
		}
	}
}

func TestTheBudgetHoldsForAnHourAndForTheNextJudge(t *testing.T) {
	p := parse(t, "guard: {blocks_per_hour: 3}")
	var first Judge
	var decisions []*clickv1.Decision
	var findings []*clickv1.Finding
	decide := func(j *Judge, i int, after time.Duration) clickv1.Verdict {
		f := finding("flood", 0.96, fmt.Sprintf("203.0.113.%d/32", i))
		f.To = timestamppb.New(now.Add(after))
		v := j.Decide(p, f, now.Add(after))
		decisions, findings = append(decisions, v.Decision), append(findings, f)
		return v.Decision.GetVerdict()
	}
	for i := range 3 {
		if v := decide(&first, i, time.Duration(i)*time.Minute); v != clickv1.Verdict_VERDICT_BLOCKED {
			t.Fatal(i, v)
		}
	}
	if v := decide(&first, 3, 4*time.Minute); v != clickv1.Verdict_VERDICT_NO_BUDGET {
		t.Fatal(v)
	}
	var second Judge
	for i, d := range decisions {
		second.Note(d, findings[i])
	}
	if v := decide(&second, 4, 5*time.Minute); v != clickv1.Verdict_VERDICT_NO_BUDGET {
		t.Fatal(v)
	}
	if v := decide(&second, 0, 6*time.Minute); v != clickv1.Verdict_VERDICT_STANDS {
		t.Fatal(v)
	}
	if v := decide(&second, 5, 60*time.Minute+time.Second); v != clickv1.Verdict_VERDICT_BLOCKED {
		t.Fatal(v)
	}
	if v := decide(&second, 6, 60*time.Minute+2*time.Second); v != clickv1.Verdict_VERDICT_NO_BUDGET {
		t.Fatal(v)
	}
	second.Undo(decisions[len(decisions)-2])
	if v := decide(&second, 7, 60*time.Minute+3*time.Second); v != clickv1.Verdict_VERDICT_BLOCKED {
		t.Fatal(v)
	}
}

func TestAMalformedPolicyFileIsRefusedWithItsField(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "empty",
		"kind: Link":                             "no Policy",
		"scope: domains/go.example.com":          "scope",
		"guard: {blocks_per_hour: -1}":           "blocks_per_hour",
		"guard: {detectors: [{detector: flod}]}": "flod",
		"guard: {detectors: [{detector: flood, action: maim}]}": "MAIM",
		"guard: {allow_prefixes: [nowhere]}":                    "nowhere",
		"gards: {}":                                             "gards",
		"guard: {detectors: [{detector: flood, ttl: 1500ms}]}":  "ttl",
		"guard: [": "line 1",
	} {
		if _, err := ParseFile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	p := parse(t, `{"kind":"Policy","scope":"*","off":true,"revision":"7"}`)
	if !p.Off() || p.Revision != 7 {
		t.Errorf("%+v", p)
	}
}

func FuzzParseFile(f *testing.F) {
	for _, text := range []string{"kind: Policy\nscope: '*'\noff: true\n", `{"guard":{"blocksPerHour":3}}`, "guard: {detectors: [{detector: flood, ttl: 2h, action: refuse}]}", "a: &a [*a]", "1: 2"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseFile(data)
		if (p == nil) == (err == nil) {
			t.Fatal(p, err)
		}
		if p != nil {
			new(Judge).Decide(p, finding("flood", 1, "203.0.113.9/32"), now)
		}
	})
}
