// Package verdict compares what the fraud detector says about labelled traffic
// with the truth. What is counted, exactly:
//
// An accusation is a finding that is sure enough for the default policy to act on:
// its confidence is at least 0.95. It holds from the decision's time until the
// block's end, or an hour where there is no block. What is less sure is a finding
// for people to look at, and counts neither way.
//
// An accusation of a user agent or a network of which four fifths are for one
// affiliate is held against that affiliate's clicks only, as its block is.
//
// An accusation of an address, a network, an autonomous system or a user agent is
// right when at least half of the clicks of its subject in the finding's span are
// clicks of attacks; it is about each attack that has a tenth of these. An
// accusation of an affiliate is right when ten clicks of an attack that the
// affiliate earns from lie in the span; it is about that attack.
//
// An attack is found when an accusation about it is made before its last click,
// and from the first one on at least half of its clicks fall under accusations.
// Recall is the share of attacks of a class that are found.
//
// A detector stands for a class if it was the first to accuse an attack of it.
// Precision of a class is the share of right ones among all subjects that the
// detectors which stand for it accused: each subject counts once for a detector,
// however often it accused it, and a detector's wrong ones count for every class
// that it stands for.
//
// By clicks: recall is the share of an attack's clicks, from the first accusation
// about it on, that fall under accusations; precision is the share of clicks of
// attacks among all that fall under blocks of the detectors that stand for the
// class.
//
// A Jury belongs to one goroutine.
package verdict

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Accusation is one.
type Accusation struct {
	Detector, Subject string
	Confidence        float64
	From, To          int64 // µs since 1970: the finding's span
	At, Until         int64 // when it holds
	Block             bool
	Summary           string

	affiliate bool
	only      string // whose clicks it is held against; empty: all

	// By the truth.
	Right  bool
	Honest traffic.Class // whom it hurts most, when it is wrong

	classes   [traffic.NumClasses]int // clicks of the subject in the span
	instances map[int32]int
	attack    int // clicks under the block
	honest    int
	Spike     int // of these, clicks of viral spikes
}

// Whom says whose clicks were those of the subject, for people.
func (a *Accusation) Whom() string {
	var text []string
	for class, n := range a.classes {
		if n > 0 {
			text = append(text, fmt.Sprintf("%d %s", n, traffic.Class(class)))
		}
	}
	return strings.Join(text, ", ")
}

// Reports are what affguard replay printed.
type Reports struct {
	Accusations []*Accusation
	Findings    int
	NotSure     int
	byPrefix    map[netip.Prefix][]*Accusation
	bits4       []int
	bits6       []int
	byAgent     map[string][]*Accusation
	byASN       map[uint32][]*Accusation
	byAffiliate map[string][]*Accusation
}

// sure is what min_confidence of a DetectorPolicy is by default.
const sure = 0.95

// hour is how long an accusation holds where there is no block, in µs.
const hour = int64(3_600_000_000)

// Read reads the lines of affguard replay: a Report in JSON each.
func Read(in io.Reader) (*Reports, error) {
	r := &Reports{
		byPrefix: make(map[netip.Prefix][]*Accusation), byAgent: make(map[string][]*Accusation),
		byASN: make(map[uint32][]*Accusation), byAffiliate: make(map[string][]*Accusation),
	}
	findings := make(map[string]*clickv1.Finding)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		if !json.Valid(lines.Bytes()) {
			return nil, fmt.Errorf("not JSON: %.200s", lines.Bytes())
		}
		var report clickv1.Report
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(lines.Bytes(), &report); err != nil {
			return nil, fmt.Errorf("%w: %.200s", err, lines.Bytes())
		}
		switch v := report.GetReport().(type) {
		case *clickv1.Report_Finding:
			r.Findings++
			findings[v.Finding.GetId()] = v.Finding
		case *clickv1.Report_Decision:
			f, ok := findings[v.Decision.GetFinding()]
			if !ok {
				return nil, fmt.Errorf("a decision about the finding %q, which was not told", v.Decision.GetFinding())
			}
			if err := r.decide(f, v.Decision); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("neither a finding nor a decision: %.200s", lines.Bytes())
		}
	}
	for p := range r.byPrefix {
		bits := &r.bits4
		if p.Addr().Is6() {
			bits = &r.bits6
		}
		if !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	return r, lines.Err()
}

func (r *Reports) decide(f *clickv1.Finding, d *clickv1.Decision) error {
	if f.GetConfidence() < sure {
		r.NotSure++
		return nil
	}
	a := &Accusation{
		Detector: f.GetDetector(), Confidence: f.GetConfidence(), Summary: f.GetSummary(),
		From: f.GetFrom().AsTime().UnixMicro(), To: f.GetTo().AsTime().UnixMicro(), At: d.GetTime().AsTime().UnixMicro(),
		Block:     d.GetVerdict() == clickv1.Verdict_VERDICT_BLOCKED || d.GetVerdict() == clickv1.Verdict_VERDICT_STANDS,
		instances: make(map[int32]int),
	}
	a.Until = a.At + hour
	if d.GetExpireTime() != nil {
		a.Until = d.GetExpireTime().AsTime().UnixMicro()
	}
	switch s := f.GetSubject().GetSubject().(type) {
	case *clickv1.Subject_Prefix:
		p, err := netip.ParsePrefix(s.Prefix)
		if err != nil {
			single, err := netip.ParseAddr(s.Prefix)
			if err != nil {
				return fmt.Errorf("finding %s: %w", f.GetId(), err)
			}
			p = netip.PrefixFrom(single, single.BitLen())
		}
		p = p.Masked()
		a.Subject = p.String()
		if !p.IsSingleIP() {
			a.holdOnly(f)
		}
		r.byPrefix[p] = append(r.byPrefix[p], a)
	case *clickv1.Subject_UserAgent:
		a.Subject = string(s.UserAgent)
		a.holdOnly(f)
		r.byAgent[a.Subject] = append(r.byAgent[a.Subject], a)
	case *clickv1.Subject_Affiliate:
		a.Subject, a.affiliate = s.Affiliate, true
		r.byAffiliate[a.Subject] = append(r.byAffiliate[a.Subject], a)
	case *clickv1.Subject_Asn:
		a.Subject = fmt.Sprintf("AS%d", s.Asn)
		r.byASN[s.Asn] = append(r.byASN[s.Asn], a)
	default:
		return fmt.Errorf("finding %s has no subject", f.GetId())
	}
	r.Accusations = append(r.Accusations, a)
	return nil
}

// holdOnly has the accusation held against an affiliate's clicks only, if nearly all
// are for it.
func (a *Accusation) holdOnly(f *clickv1.Finding) {
	if f.GetAffiliateShare() >= 0.8 {
		a.only = f.GetAffiliate()
	}
}

// of calls f with every accusation whose subject a click is of.
func (r *Reports) of(c *truth, agent, affiliate string, f func(*Accusation)) {
	each := func(all []*Accusation) {
		for _, a := range all {
			if a.only == "" || a.only == affiliate {
				f(a)
			}
		}
	}
	bits := r.bits4
	if c.address.Is6() {
		bits = r.bits6
	}
	for _, n := range bits {
		p, _ := c.address.Prefix(n) // parsed from one of the same family
		each(r.byPrefix[p])
	}
	each(r.byAgent[agent])
	each(r.byASN[c.asn])
	each(r.byAffiliate[affiliate])
}

// Attack is what became of one.
type Attack struct {
	traffic.Instance
	ID            int
	Clicks        int
	First, Last   int64          // of its clicks
	Accused       int64          // when first; 0: never
	By            string         // the detector that was first
	Detectors     map[string]int // how often each accused
	After         int            // clicks from the first accusation on
	Under         int            // of these, under accusations
	UnderBlock    int            // under blocks
	Found         bool
	times         []int64
	under, blocks []bool
}

// Jury counts the truth about the accusations of one run.
type Jury struct {
	Reports *Reports
	Attacks []*Attack // in the order of traffic.Instances; nil for honest events
	// Clicks of each class, and those that fell under blocks and under accusations.
	Clicks, Blocked, Accused [traffic.NumClasses]int
	shop                     *traffic.Shop
}

// Truth is the clicks of some traffic, and who made them.
type Truth struct {
	clicks  []truth
	agents  []string
	numbers map[string]uint32
}

// truth is what matters of a click.
type truth struct {
	at         int64
	address    netip.Addr
	agent, asn uint32
	affiliate  int32
	instance   int32
	class      traffic.Class
}

// Add notes a click.
func (t *Truth) Add(c *traffic.Click) {
	n, ok := t.numbers[c.Agent]
	if !ok {
		if t.numbers == nil {
			t.numbers = make(map[string]uint32)
		}
		n = uint32(len(t.agents))
		t.agents = append(t.agents, c.Agent)
		t.numbers[c.Agent] = n
	}
	t.clicks = append(t.clicks, truth{c.Time, c.Address, n, c.ASN, c.Affiliate, c.Instance, c.Class})
}

// Judge compares the reports about some traffic with the truth.
func Judge(t *traffic.Traffic, all *Truth, r *Reports) *Jury {
	j := &Jury{Reports: r, shop: t.Shop, Attacks: make([]*Attack, len(t.Instances))}
	for i, in := range t.Instances {
		if in.Class.Attack() {
			j.Attacks[i] = &Attack{Instance: in, ID: i, Detectors: make(map[string]int)}
		}
	}
	for i := range all.clicks {
		j.click(&all.clicks[i], all)
	}
	for _, a := range r.Accusations {
		j.accuse(a)
	}
	for _, a := range j.Attacks {
		if a != nil {
			a.close()
		}
	}
	return j
}

func (j *Jury) click(c *truth, all *Truth) {
	under, blocked := false, false
	attack := c.class.Attack()
	j.Reports.of(c, all.agents[c.agent], j.shop.Affiliates[c.affiliate].ID, func(a *Accusation) {
		if c.at >= a.From && c.at <= a.To {
			a.classes[c.class]++
			if attack {
				a.instances[c.instance]++
			}
		}
		if c.at < a.At || c.at >= a.Until {
			return
		}
		under = true
		if a.Block {
			blocked = true
			if attack {
				a.attack++
			} else {
				a.honest++
				if c.class == traffic.Viral {
					a.Spike++
				}
			}
		}
	})
	j.Clicks[c.class]++
	if under {
		j.Accused[c.class]++
	}
	if blocked {
		j.Blocked[c.class]++
	}
	if attack {
		a := j.Attacks[c.instance]
		a.times, a.under, a.blocks = append(a.times, c.at), append(a.under, under), append(a.blocks, blocked)
	}
}

// enough clicks of an attack make an accusation of its affiliate right.
const enough = 10

// accuse finds out whether an accusation is right, and which attacks it is about.
func (j *Jury) accuse(a *Accusation) {
	attack, honest := 0, 0
	for class, n := range a.classes {
		if c := traffic.Class(class); c.Attack() {
			attack += n
		} else {
			honest += n
			if n > a.classes[a.Honest] {
				a.Honest = c
			}
		}
	}
	for id, n := range a.instances {
		in := j.Attacks[id]
		about := 10*n >= attack && attack >= honest
		if a.affiliate {
			about = n >= enough && in.Affiliate >= 0 && j.shop.Affiliates[in.Affiliate].ID == a.Subject
		}
		if !about {
			continue
		}
		a.Right = true
		in.Detectors[a.Detector]++
		if in.Accused == 0 || a.At < in.Accused || a.At == in.Accused && a.Detector < in.By {
			in.Accused, in.By = a.At, a.Detector
		}
	}
}

// close sums up.
func (a *Attack) close() {
	a.Clicks = len(a.times)
	if a.Clicks == 0 {
		return
	}
	a.First, a.Last = a.times[0], a.times[a.Clicks-1]
	if a.Accused == 0 {
		return
	}
	for i, at := range a.times {
		if at < a.Accused {
			continue
		}
		a.After++
		if a.under[i] {
			a.Under++
		}
		if a.blocks[i] {
			a.UnderBlock++
		}
	}
	a.Found = a.After > 0 && 2*a.Under >= a.After
	a.times, a.under, a.blocks = nil, nil, nil
}

// Spiked are the accusations whose blocks viral spikes fell under.
func (r *Reports) Spiked() (all []*Accusation) {
	for _, a := range r.Accusations {
		if a.Spike > 0 {
			all = append(all, a)
		}
	}
	return all
}

// Wrong are the accusations that hurt the honest, one of each detector and
// subject, in the order of the detectors' names.
func (r *Reports) Wrong() (all []*Accusation) {
	seen := make(map[string]bool)
	for _, a := range r.Accusations {
		if key := a.Detector + "\x00" + a.Subject; !a.Right && !seen[key] {
			seen[key] = true
			all = append(all, a)
		}
	}
	slices.SortStableFunc(all, func(a, b *Accusation) int { return cmp.Compare(a.Detector, b.Detector) })
	return all
}
