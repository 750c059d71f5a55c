package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func config() traffic.Config {
	cfg := traffic.Default(1)
	cfg.Affiliates, cfg.Baseline, cfg.Length, cfg.Attacks = 40, time.Hour, 10*time.Hour, 1
	cfg.Only = []traffic.Class{traffic.Flood, traffic.Botnet}
	return cfg
}

// oracle knows the truth: what it is asked to say of an attack, or of an honest
// click.
type oracle struct {
	t     *testing.T
	lines strings.Builder
	n     int
}

func (o *oracle) say(detector string, subject *clickv1.Subject, from, to, at int64, v clickv1.Verdict) {
	o.n++
	confidence := .96
	if v == clickv1.Verdict_VERDICT_NOT_SURE {
		confidence = .94
	}
	id := fmt.Sprintf("f%d", o.n)
	stamp := func(us int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMicro(us)) }
	for _, r := range []*clickv1.Report{
		{Report: &clickv1.Report_Finding{Finding: &clickv1.Finding{Id: id, Detector: detector, Subject: subject, Confidence: confidence, From: stamp(from), To: stamp(to)}}},
		{Report: &clickv1.Report_Decision{Decision: &clickv1.Decision{Finding: id, Detector: detector, Verdict: v, Time: stamp(at)}}},
	} {
		line, err := protojson.Marshal(r)
		if err != nil {
			o.t.Fatal(err)
		}
		fmt.Fprintf(&o.lines, "%s\n", line)
	}
}

func (o *oracle) judge(cfg traffic.Config) *Score {
	o.t.Helper()
	r, err := Read(strings.NewReader(o.lines.String()))
	if err != nil {
		o.t.Fatal(err)
	}
	var all Truth
	for c := range traffic.New(cfg).Clicks() {
		all.Add(c)
	}
	return Sum([]*Jury{Judge(traffic.New(cfg), &all, r)})
}

// clicksOf gives the clicks of a class.
func clicksOf(cfg traffic.Config, class traffic.Class) (all []traffic.Click) {
	for c := range traffic.New(cfg).Clicks() {
		if c.Class == class {
			all = append(all, *c)
		}
	}
	return all
}

func prefix(p string) *clickv1.Subject {
	return &clickv1.Subject{Subject: &clickv1.Subject_Prefix{Prefix: p}}
}

func find(s *Score, class traffic.Class) ClassScore {
	for _, c := range s.Classes {
		if c.Class == class {
			return c
		}
	}
	return ClassScore{}
}

func TestAFloodIsFoundByABlockOfItsAddress(t *testing.T) {
	cfg := config()
	flood := clicksOf(cfg, traffic.Flood)
	tenth := flood[len(flood)/10].Time
	o := oracle{t: t}
	o.say("flood", prefix(flood[0].Address.String()), flood[0].Time, tenth, tenth, clickv1.Verdict_VERDICT_BLOCKED)
	s := o.judge(cfg)
	c := find(s, traffic.Flood)
	if c.Recall() != 1 || c.Precision() != 1 || c.ClickRecall() != 1 || c.ClickPrecision() != 1 {
		t.Errorf("recall %v, precision %v; by clicks %v and %v", c.Recall(), c.Precision(), c.ClickRecall(), c.ClickPrecision())
	}
	if want := len(flood) / 10; c.Before < want-2 || c.Before > want+2 {
		t.Errorf("%d clicks before it was found, want about %d", c.Before, want)
	}
	if b := find(s, traffic.Botnet); b.Recall() != 0 || len(b.By) != 0 {
		t.Errorf("the botnet, of which nobody spoke, has recall %v", b.Recall())
	}
	if s.Confusion[traffic.Flood]["flood"] != 1 || len(s.Hurt) != 0 {
		t.Errorf("confusion %v, hurt %v", s.Confusion, s.Hurt)
	}
}

func TestWhatIsSaidAfterTheEndOrNotForSureFindsNothing(t *testing.T) {
	cfg := config()
	flood := clicksOf(cfg, traffic.Flood)
	first, last := flood[0], flood[len(flood)-1]
	o := oracle{t: t}
	o.say("flood", prefix(first.Address.String()), first.Time, last.Time, last.Time+1, clickv1.Verdict_VERDICT_BLOCKED)
	o.say("flood", prefix(first.Address.String()), first.Time, last.Time, first.Time+1, clickv1.Verdict_VERDICT_NOT_SURE)
	s := o.judge(cfg)
	if c := find(s, traffic.Flood); c.Found != 0 {
		t.Error("a flood was found by what came too late or was not sure")
	}
	if s.NotSure != 1 || s.Findings != 2 {
		t.Errorf("%d findings, %d not sure", s.Findings, s.NotSure)
	}
}

func TestOneAddressOfABotnetIsNotTheBotnet(t *testing.T) {
	cfg := config()
	botnet := clicksOf(cfg, traffic.Botnet)
	o := oracle{t: t}
	o.say("flood", prefix(botnet[0].Address.String()), botnet[0].Time, botnet[0].Time, botnet[0].Time, clickv1.Verdict_VERDICT_BLOCKED)
	if c := find(o.judge(cfg), traffic.Botnet); c.Found != 0 || c.Precision() != 1 {
		t.Errorf("found %d, precision %v", c.Found, c.Precision())
	}
	affiliate := traffic.New(cfg).Shop.Affiliates[botnet[0].Affiliate].ID
	at := botnet[20].Time
	o.say("entropy", &clickv1.Subject{Subject: &clickv1.Subject_Affiliate{Affiliate: affiliate}}, botnet[0].Time, at, at, clickv1.Verdict_VERDICT_FINDING_ONLY)
	if c := find(o.judge(cfg), traffic.Botnet); c.Found != 1 || c.UnderBlock > 1 {
		t.Errorf("its affiliate was accused: found %d, %d clicks under blocks", c.Found, c.UnderBlock)
	}
}

func TestWhoeverAccusesTheHonestLosesPrecision(t *testing.T) {
	cfg := config()
	flood, people := clicksOf(cfg, traffic.Flood), clicksOf(cfg, traffic.NAT)
	begin, end := flood[0].Time, flood[len(flood)-1].Time
	o := oracle{t: t}
	o.say("flood", prefix(flood[0].Address.String()), begin, end, begin, clickv1.Verdict_VERDICT_BLOCKED)
	for range 2 { // twice the same one: counted once
		o.say("flood", prefix(people[0].Address.String()), people[0].Time, end, people[0].Time, clickv1.Verdict_VERDICT_BLOCKED)
	}
	honest := traffic.New(cfg).Shop.Affiliates[people[0].Affiliate].ID
	o.say("country_mix", &clickv1.Subject{Subject: &clickv1.Subject_Affiliate{Affiliate: honest}}, people[0].Time, people[0].Time+1, people[0].Time, clickv1.Verdict_VERDICT_FINDING_ONLY)
	s := o.judge(cfg)
	c := find(s, traffic.Flood)
	if c.Precision() != .5 || c.ClickPrecision() >= 1 || c.Recall() != 1 {
		t.Errorf("precision %v, by clicks %v, recall %v", c.Precision(), c.ClickPrecision(), c.Recall())
	}
	if s.Blocked[traffic.NAT] == 0 || s.Confusion[traffic.NAT]["flood"] != 1 || s.Wrong["country_mix"] != 1 {
		t.Errorf("blocked %v, confusion %v, wrong %v", s.Blocked, s.Confusion, s.Wrong)
	}
}

func TestLinesThatAreNoReportsAreRefused(t *testing.T) {
	for _, text := range []string{"x", `{}`, `{"decision":{"finding":"unheard-of"}}`, `{"finding":{"id":"a","confidence":1}}` + "\n" + `{"decision":{"finding":"a","verdict":"VERDICT_BLOCKED"}}`} {
		if _, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
