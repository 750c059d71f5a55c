package link_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func blockResource(b *linkv1.Block) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
}

func policyResource(p *linkv1.Policy) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}
}

func prefixBlock(prefix string) *linkv1.Block {
	return &linkv1.Block{Id: "b.1", Match: &linkv1.Block_Prefix{Prefix: prefix}, Reason: "a flood"}
}

func TestWhatIsWrongWithABlockIsNamed(t *testing.T) {
	long := strings.Repeat("a", 129)
	prefix := func(text string) func(*linkv1.Block) {
		return func(b *linkv1.Block) { b.Match = &linkv1.Block_Prefix{Prefix: text} }
	}
	agent := func(text string) func(*linkv1.Block) {
		return func(b *linkv1.Block) { b.Match = &linkv1.Block_UserAgent{UserAgent: text} }
	}
	affiliate := func(text string) func(*linkv1.Block) {
		return func(b *linkv1.Block) { b.Match = &linkv1.Block_Affiliate{Affiliate: text} }
	}
	ttl := func(d *durationpb.Duration) func(*linkv1.Block) { return func(b *linkv1.Block) { b.Ttl = d } }
	for _, c := range []wrong[*linkv1.Block]{
		{"no id", func(b *linkv1.Block) { b.Id = "" }, "id", "missing"},
		{"long id", func(b *linkv1.Block) { b.Id = long }, "id", "at most 128"},
		{"hostile id", func(b *linkv1.Block) { b.Id = "a/../b" }, "id", "letters, digits"},
		{"no match", func(b *linkv1.Block) { b.Match = nil }, "match", "set prefix, user_agent or affiliate"},

		{"no prefix", prefix(""), "prefix", "missing"},
		{"long prefix", prefix(strings.Repeat("1", 1<<20)), "prefix", "is no address"},
		{"long prefix behind a slash", prefix("10.0.0.0/" + strings.Repeat("0", 100)), "prefix", "is no address"},
		{"text for a prefix", prefix("example.com"), "prefix", "203.0.113.0/24"},
		{"hostile prefix", prefix("10.0.0.1\r\n"), "prefix", "is no address"},
		{"bits behind the prefix", prefix("10.0.0.1/24"), "prefix", "write it as 10.0.0.0/24, or as 10.0.0.1"},
		{"bits behind an IPv6 prefix", prefix("2001:db8::1/48"), "prefix", "write it as 2001:db8::/48"},
		{"too many bits", prefix("10.0.0.0/33"), "prefix", `"33" is not its length`},
		{"no bits", prefix("10.0.0.0/"), "prefix", "length in bits"},
		{"negative bits", prefix("10.0.0.0/-1"), "prefix", "length in bits"},
		{"leading zero", prefix("10.0.0.0/08"), "prefix", "length in bits"},
		{"octal address", prefix("010.0.0.1"), "prefix", "is no address"},
		{"IPv4 as IPv6", prefix("::ffff:10.0.0.1"), "prefix", "write it as 10.0.0.1"},
		{"IPv4 prefix as IPv6", prefix("::ffff:10.0.0.0/120"), "prefix", "write it as 10.0.0.0/24"},
		{"all of IPv4 as IPv6", prefix("::ffff:0.0.0.0/96"), "prefix", "IPv4 address written as IPv6"},
		{"everybody", prefix("0.0.0.0/0"), "prefix", "is everybody"},
		{"everybody of IPv6", prefix("::/0"), "prefix", "is everybody"},
		{"zone", prefix("fe80::1%eth0"), "prefix", "write it as fe80::1"},
		{"upper case", prefix("2001:DB8::/32"), "prefix", "write it as 2001:db8::/32"},
		{"long form", prefix("2001:db8:0:0::/32"), "prefix", "write it as 2001:db8::/32"},

		{"hostile affiliate that it is for only", func(b *linkv1.Block) { b.OnlyAffiliate = "a b" }, "only_affiliate", "letters, digits"},
		{"long affiliate that it is for only", func(b *linkv1.Block) { b.OnlyAffiliate = long }, "only_affiliate", "at most 128"},
		{"affiliate twice", func(b *linkv1.Block) {
			b.Match, b.OnlyAffiliate = &linkv1.Block_Affiliate{Affiliate: "aff_1"}, "aff_2"
		}, "only_affiliate", "leave it out"},

		{"no user agent", agent(""), "user_agent", "no_ua"},
		{"long user agent", agent(strings.Repeat("a", 1025)), "user_agent", "at most 1024"},
		{"hostile user agent", agent("a\r\nX: b"), "user_agent", "control"},
		{"user agent that is no text", agent("a\xff"), "user_agent", "UTF-8"},
		{"space around a user agent", agent("a "), "user_agent", "space around"},
		{"no affiliate", affiliate(""), "affiliate", "missing"},
		{"long affiliate", affiliate(long), "affiliate", "at most 128"},
		{"hostile affiliate", affiliate("a b"), "affiliate", "letters, digits"},

		{"action of another time", func(b *linkv1.Block) { b.Action = 9 }, "action", "LABEL, REFUSE, FALLBACK or NO_AFFILIATE"},
		{"negative action", func(b *linkv1.Block) { b.Action = -1 }, "action", "is no action"},
		{"no reason", func(b *linkv1.Block) { b.Reason = "" }, "reason", "missing"},
		{"blank reason", func(b *linkv1.Block) { b.Reason = " " }, "reason", "missing"},
		{"long reason", func(b *linkv1.Block) { b.Reason = strings.Repeat("a", 257) }, "reason", "at most 256"},
		{"hostile reason", func(b *linkv1.Block) { b.Reason = "a\x1b[31m" }, "reason", "control"},
		{"no ttl", ttl(&durationpb.Duration{}), "ttl", "less than 1s"},
		{"negative ttl", ttl(durationpb.New(-time.Second)), "ttl", "less than 1s"},
		{"half a second", ttl(durationpb.New(1500 * time.Millisecond)), "ttl", "whole seconds"},
		{"long ttl", ttl(&durationpb.Duration{Seconds: 10*365*86400 + 1}), "ttl", "10 years"},
		{"endless ttl", ttl(&durationpb.Duration{Seconds: math.MaxInt64}), "ttl", "no duration"},
		{"label that there is not", func(b *linkv1.Block) { b.Label = "datacentre" }, "label", "do you mean datacenter?"},
		{"label of nodes", func(b *linkv1.Block) { b.Label = "bot" }, "label", "blocked or datacenter"},
		{"huge label", func(b *linkv1.Block) { b.Label = strings.Repeat("a", 1<<20) }, "label", "is no label"},
		{"end without ttl", func(b *linkv1.Block) { b.Ttl, b.ExpireTime = nil, timestamppb.Now() }, "expire_time", "set ttl"},
		{"end that is no time", func(b *linkv1.Block) { b.ExpireTime = &timestamppb.Timestamp{Seconds: math.MinInt64} }, "expire_time", "years 1 and 9999"},
		{"long finding", func(b *linkv1.Block) { b.Finding = long }, "finding", "at most 128"},
		{"hostile finding", func(b *linkv1.Block) { b.Finding = "a\n" }, "finding", "control"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := prefixBlock("10.0.0.0/24")
			b.Ttl = durationpb.New(time.Hour)
			c.edit(b)
			c.check(t, blockResource(b))
		})
	}
}

func TestWhatIsWrongWithAPolicyIsNamed(t *testing.T) {
	label := func(name string, action linkv1.BlockAction) func(*linkv1.Policy) {
		return func(p *linkv1.Policy) { p.Labels = []*linkv1.LabelPolicy{{Label: name, Action: action}} }
	}
	guard := func(g *linkv1.GuardPolicy) func(*linkv1.Policy) { return func(p *linkv1.Policy) { p.Guard = g } }
	detector := func(d *linkv1.DetectorPolicy) func(*linkv1.Policy) {
		return guard(&linkv1.GuardPolicy{Detectors: []*linkv1.DetectorPolicy{d}})
	}
	scope := func(s string) func(*linkv1.Policy) { return func(p *linkv1.Policy) { p.Scope = s } }
	const refuse = linkv1.BlockAction_BLOCK_ACTION_REFUSE
	many := make([]string, 257)
	for i := range many {
		many[i] = fmt.Sprintf("a%d", i)
	}
	for _, c := range []wrong[*linkv1.Policy]{
		{"no scope", scope(""), "scope", "missing"},
		{"scope that is none", scope("links/a"), "scope", "domains/go.example.com"},
		{"huge scope", scope(strings.Repeat("a", 1<<20)), "scope", "is no scope"},
		{"scope of no host", scope("domains/"), "scope", "missing"},
		{"scope of another host", scope("domains/Go.Example.com"), "scope", "write it as go.example.com"},
		{"scope of no affiliate", scope("affiliates/"), "scope", "missing"},
		{"hostile scope", scope("affiliates/a\n"), "scope", "letters, digits"},
		{"label without name", label("", refuse), "labels[0].label", "missing"},
		{"label that there is not", label("rat", refuse), "labels[0].label", "do you mean rate?"},
		{"hostile label", label("rate\x00", refuse), "labels[0].label", "is no label"},
		{"label without action", label("rate", 0), "labels[0].action", "missing"},
		{"action of another time", label("rate", 17), "labels[0].action", "17 is no action"},
		{"label twice", func(p *linkv1.Policy) {
			label("rate", refuse)(p)
			p.Labels = append(p.Labels, p.Labels[0])
		}, "labels[1].label", "twice: first in labels[0]"},
		{"off of a domain", func(p *linkv1.Policy) { p.Scope, p.Off = "domains/a.com", true }, "off", `scope "*"`},
		{"guard of an affiliate", func(p *linkv1.Policy) { p.Scope, p.Guard = "affiliates/a", &linkv1.GuardPolicy{} }, "guard", `scope "*"`},
		{"too many blocks", guard(&linkv1.GuardPolicy{BlocksPerHour: 10_001}), "guard.blocks_per_hour", "1 to 10000"},
		{"negative blocks", guard(&linkv1.GuardPolicy{BlocksPerHour: -1}), "guard.blocks_per_hour", "1 to 10000"},
		{"half of IPv4", guard(&linkv1.GuardPolicy{WidestIpv4: 7}), "guard.widest_ipv4", "8 to 32"},
		{"more than IPv4", guard(&linkv1.GuardPolicy{WidestIpv4: 33}), "guard.widest_ipv4", "8 to 32"},
		{"wide IPv6", guard(&linkv1.GuardPolicy{WidestIpv6: 15}), "guard.widest_ipv6", "16 to 128"},
		{"more than IPv6", guard(&linkv1.GuardPolicy{WidestIpv6: 129}), "guard.widest_ipv6", "16 to 128"},
		{"allowed prefix with bits", guard(&linkv1.GuardPolicy{AllowPrefixes: []string{"10.0.0.0/8", "10.0.0.1/8"}}), "guard.allow_prefixes[1]", "10.0.0.0/8"},
		{"allowed prefix twice", guard(&linkv1.GuardPolicy{AllowPrefixes: []string{"10.0.0.1", "10.0.0.1"}}), "guard.allow_prefixes[1]", "twice"},
		{"too many allowed", guard(&linkv1.GuardPolicy{AllowAffiliates: many}), "guard.allow_affiliates", "at most 256"},
		{"hostile user agent", guard(&linkv1.GuardPolicy{AllowUserAgents: []string{"a\n"}}), "guard.allow_user_agents[0]", "control"},
		{"empty affiliate", guard(&linkv1.GuardPolicy{AllowAffiliates: []string{""}}), "guard.allow_affiliates[0]", "missing"},
		{"detector without name", detector(&linkv1.DetectorPolicy{}), "guard.detectors[0].detector", "missing"},
		{"detector that there is not", detector(&linkv1.DetectorPolicy{Detector: "floods"}), "guard.detectors[0].detector", "do you mean flood?"},
		{"detector twice", guard(&linkv1.GuardPolicy{Detectors: []*linkv1.DetectorPolicy{{Detector: "flood"}, {Detector: "flood"}}}), "guard.detectors[1].detector", "twice"},
		{"action of a detector", detector(&linkv1.DetectorPolicy{Detector: "flood", Action: 5}), "guard.detectors[0].action", "is no action"},
		{"more than sure", detector(&linkv1.DetectorPolicy{Detector: "flood", MinConfidence: 1.01}), "guard.detectors[0].min_confidence", "up to 1"},
		{"less than unsure", detector(&linkv1.DetectorPolicy{Detector: "flood", MinConfidence: -0.1}), "guard.detectors[0].min_confidence", "above 0"},
		{"no number", detector(&linkv1.DetectorPolicy{Detector: "flood", MinConfidence: math.NaN()}), "guard.detectors[0].min_confidence", "NaN"},
		{"no ttl", detector(&linkv1.DetectorPolicy{Detector: "flood", Ttl: &durationpb.Duration{}}), "guard.detectors[0].ttl", "less than 1s"},
		{"long ttl", detector(&linkv1.DetectorPolicy{Detector: "flood", Ttl: &durationpb.Duration{Seconds: 1 << 40}}), "guard.detectors[0].ttl", "no duration"},
		{"affiliates and nothing", detector(&linkv1.DetectorPolicy{Detector: "flood", FindingsOnly: true, MayBlockAffiliates: true}), "guard.detectors[0].may_block_affiliates", "findings_only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &linkv1.Policy{Scope: "*"}
			c.edit(p)
			c.check(t, policyResource(p))
		})
	}
}

func TestShortestAndLongestBlocksAndPoliciesAreAccepted(t *testing.T) {
	end := timestamppb.New(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
	blocks := []*linkv1.Block{
		prefixBlock("10.0.0.1"), prefixBlock("10.0.0.1/32"), prefixBlock("128.0.0.0/1"), prefixBlock("2001:db8::1"), prefixBlock("8000::/1"),
		{Id: strings.Repeat("i", 128), Match: &linkv1.Block_UserAgent{UserAgent: strings.Repeat("a", 1024)}, Reason: strings.Repeat("r", 256)},
		{Id: "i", Match: &linkv1.Block_UserAgent{UserAgent: "curl/8"}, Reason: "r", OnlyAffiliate: strings.Repeat("a", 128)},
		{Id: "i", Match: &linkv1.Block_UserAgent{UserAgent: "ä\tb"}, Reason: "r", Label: "blocked", Finding: strings.Repeat("f", 128)},
		{Id: "i", Match: &linkv1.Block_Affiliate{Affiliate: strings.Repeat("a", 128)}, Reason: "r", Ttl: durationpb.New(link.MaxTTL), ExpireTime: end, Label: "datacenter"},
		{Id: "i", Match: &linkv1.Block_Affiliate{Affiliate: "a"}, Reason: "r", Ttl: durationpb.New(link.MinTTL)},
	}
	for a := range linkv1.BlockAction_name {
		b := prefixBlock("10.0.0.1")
		b.Action = linkv1.BlockAction(a)
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		if err := link.Validate(blockResource(b)); err != nil {
			t.Error(err)
		}
	}
	full := &linkv1.Policy{Scope: "*", Off: true, Guard: &linkv1.GuardPolicy{BlocksPerHour: 10_000, WidestIpv4: 8, WidestIpv6: 16}}
	for l := range link.NumLabels {
		full.Labels = append(full.Labels, &linkv1.LabelPolicy{Label: l.String(), Action: linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE})
	}
	for _, name := range link.Detectors() {
		full.Guard.Detectors = append(full.Guard.Detectors, &linkv1.DetectorPolicy{
			Detector: name, Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE, MinConfidence: 1, Ttl: durationpb.New(link.MaxTTL), FindingsOnly: true,
		})
	}
	for i := range link.MaxAllowed / 4 * 3 { // as many as 65,535 bytes of a resource can have
		full.Guard.AllowPrefixes = append(full.Guard.AllowPrefixes, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
		full.Guard.AllowUserAgents = append(full.Guard.AllowUserAgents, fmt.Sprintf("%0150d", i))
		full.Guard.AllowAffiliates = append(full.Guard.AllowAffiliates, fmt.Sprintf("%0128d", i))
	}
	for _, p := range []*linkv1.Policy{full, {Scope: "*"}, {Scope: "*", Guard: &linkv1.GuardPolicy{}}, {Scope: "domains/*"}, {Scope: "affiliates/" + strings.Repeat("a", 128)}} {
		if err := link.Validate(policyResource(p)); err != nil {
			t.Error(err)
		}
	}
	for i := range 16 {
		full.Guard.AllowUserAgents = append(full.Guard.AllowUserAgents, fmt.Sprintf("%01024d", 1000+i))
	}
	if err := link.Validate(policyResource(full)); err == nil || !strings.Contains(err.Error(), "at most 65535") {
		t.Errorf("a policy that is too large: %v", err)
	}
}

// TestPrefixesAreReadAsTheyAreWritten makes up prefixes: the canonical form is
// read back, and what ParsePrefix calls the cure of another form is one.
func TestPrefixesAreReadAsTheyAreWritten(t *testing.T) {
	m := maker{rand.New(rand.NewPCG(7, 3))}
	for range 5000 {
		p := m.prefix()
		for _, text := range []string{link.FormatPrefix(p), p.String()} {
			if got, err := link.ParsePrefix(text); err != nil || got != p {
				t.Fatalf("%s is read as %v, %v", text, got, err)
			}
		}
		loose := netip.PrefixFrom(m.addr(p.Addr().Is6()), p.Bits())
		if loose.Masked() == loose {
			continue
		}
		_, err := link.ParsePrefix(strings.ToUpper(loose.String()))
		cure, _, _ := strings.Cut(strings.TrimPrefix(link.Problems(err)[0].Hint, "write it as "), ",")
		if got, err := link.ParsePrefix(cure); err != nil || got != loose.Masked() {
			t.Fatalf("the cure of %s is %s: %v, %v", loose, cure, got, err)
		}
	}
}

func (m maker) addr(v6 bool) netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(m.IntN(256))
	}
	if v6 {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[:4]))
}

func (m maker) prefix() netip.Prefix {
	a := m.addr(m.IntN(2) == 0)
	return netip.PrefixFrom(a, 1+m.IntN(a.BitLen())).Masked()
}

func (m maker) action() linkv1.BlockAction { return linkv1.BlockAction(m.IntN(5)) }

func (m maker) ttl() *durationpb.Duration {
	return some(m, &durationpb.Duration{Seconds: 1 + m.Int64N(10*365*86400)})
}

func (m maker) block() *linkv1.Block {
	b := &linkv1.Block{
		Id: pick(m, "a", "guard-1", "x.y_Z"), Action: m.action(), Reason: pick(m, "a flood", "ä, ü"), Ttl: m.ttl(),
		Label: pick(m, "", "blocked", "datacenter"), Finding: some(m, "flood.1"),
	}
	if b.Ttl != nil {
		b.ExpireTime = some(m, timestamppb.New(time.Unix(m.Int64N(1<<35), 0)))
	}
	switch m.IntN(3) {
	case 0:
		b.Match = &linkv1.Block_Prefix{Prefix: link.FormatPrefix(m.prefix())}
	case 1:
		b.Match = &linkv1.Block_UserAgent{UserAgent: pick(m, "curl/8.5.0", "Mozilla/5.0 (ü)")}
	default:
		b.Match = &linkv1.Block_Affiliate{Affiliate: "aff_01"}
	}
	return b
}

func (m maker) policy() *linkv1.Policy {
	p := &linkv1.Policy{Scope: pick(m, "*", "domains/a.com", "affiliates/a")}
	for l := range link.NumLabels {
		if a := m.action(); a != 0 {
			p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: l.String(), Action: a})
		}
	}
	if p.Scope != "*" {
		return p
	}
	p.Off = m.IntN(3) == 0
	if m.IntN(3) > 0 {
		p.Guard = &linkv1.GuardPolicy{
			BlocksPerHour: some(m, 1+m.Int32N(10_000)), WidestIpv4: some(m, 8+m.Int32N(25)), WidestIpv6: some(m, 16+m.Int32N(113)),
			AllowPrefixes:   some(m, []string{link.FormatPrefix(m.prefix())}),
			AllowUserAgents: some(m, []string{"a", "b"}), AllowAffiliates: some(m, []string{"aff_01"}),
		}
		for _, name := range link.Detectors() {
			if m.IntN(2) == 0 {
				p.Guard.Detectors = append(p.Guard.Detectors, &linkv1.DetectorPolicy{
					Detector: name, Action: m.action(), MinConfidence: some(m, 1-m.Float64()), Ttl: m.ttl(), FindingsOnly: m.IntN(3) == 0,
				})
			}
		}
	}
	return p
}

// TestBlocksAndPoliciesSurviveTheirBytes makes up valid blocks and policies: what
// they say survives their bytes, which are always the same for the same.
func TestBlocksAndPoliciesSurviveTheirBytes(t *testing.T) {
	m := maker{rand.New(rand.NewPCG(7, 1))}
	for i := range 4000 {
		r := policyResource(m.policy())
		if i%2 == 0 {
			r = blockResource(m.block())
		}
		name, err := link.Name(r)
		if err != nil {
			t.Fatal(err)
		}
		link.SetReadOnly(r, 7, &linkv1.Record{UpdatedBy: "ada", UpdateTime: timestamppb.Now(), CreateTime: timestamppb.Now()})
		value, err := link.Encode(r)
		if err != nil {
			t.Fatalf("%v: %v", r, err)
		}
		link.SetReadOnly(r, 0, nil)
		back, err := link.Unmarshal(name, value)
		if err != nil || !proto.Equal(back, r) {
			t.Fatalf("%v becomes %v, %v", r, back, err)
		}
		if again, err := link.Encode(back); err != nil || !bytes.Equal(again, value) {
			t.Fatalf("%v has other bytes: %x and %x, %v", r, value, again, err)
		}
	}
}

// FuzzParsePrefix reads any text: what is a prefix has one canonical form, and
// whatever is none has an error that is not as long as the text.
func FuzzParsePrefix(f *testing.F) {
	for _, text := range []string{"10.0.0.1", "10.0.0.0/8", "::/0", "::ffff:1.2.3.4/120", "fe80::1%a/64", "2001:DB8::/32", "1/2/3", "/"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := link.ParsePrefix(text)
		if err != nil {
			if e := link.Problems(err)[0]; len(e.Message)+len(e.Hint) > 1000 {
				t.Fatalf("%d bytes about %d", len(e.Message)+len(e.Hint), len(text))
			}
			return
		}
		if again, err := link.ParsePrefix(link.FormatPrefix(p)); err != nil || again != p || p.Bits() == 0 || p.Addr().Is4In6() {
			t.Fatalf("%q is %v, and that %v, %v", text, p, again, err)
		}
	})
}
