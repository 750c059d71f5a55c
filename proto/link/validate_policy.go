package link

import (
	"fmt"
	"math"
	"strings"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// What the guard may do where its policy does not say.
const (
	DefaultBlocksPerHour = 100
	DefaultWidestIPv4    = 24
	DefaultWidestIPv6    = 48
	DefaultMinConfidence = 0.95
	DefaultGuardTTL      = 3600 // seconds

	MaxBlocksPerHour = 10_000
	LeastWidestIPv4  = 8
	LeastWidestIPv6  = 16
)

// checkScope checks the scope of a policy: "*", "domains/<host>" or
// "affiliates/<id>".
func checkScope(scope string) *Error {
	const hint = `a scope is "*", domains/go.example.com or affiliates/aff_01`
	if scope == "" {
		return invalid("scope", hint, "is missing")
	}
	if scope == AnyHost {
		return nil
	}
	var wrong *Error
	if host, ok := strings.CutPrefix(scope, Domains.Prefix()); ok {
		wrong = checkHost("scope", host)
	} else if id, ok := strings.CutPrefix(scope, Affiliates.Prefix()); ok {
		wrong = checkIdentifier("scope", id)
	} else {
		return invalid("scope", hint, "%.64q is no scope", scope)
	}
	return wrong
}

func (p *problems) policy(l *linkv1.Policy) {
	p.add(checkScope(l.GetScope()))
	seen := map[string]int{}
	for i, label := range l.GetLabels() {
		p.labelPolicy(fmt.Sprintf("labels[%d]", i), label, seen, i)
	}
	if l.GetScope() == AnyHost {
		p.guard(l.GetGuard())
		return
	}
	const hint = `write them into the policy of scope "*"`
	if l.GetOff() {
		p.add(invalid("off", hint, `is only for scope "*"`))
	}
	if l.GetGuard() != nil {
		p.add(invalid("guard", hint, `is only for scope "*"`))
	}
}

func (p *problems) labelPolicy(field string, l *linkv1.LabelPolicy, seen map[string]int, i int) {
	name := l.GetLabel()
	_, hint, ok := ParseLabel(name)
	first, twice := seen[name]
	switch {
	case name == "":
		p.add(invalid(field+".label", "labels are "+strings.Join(labelNames[:], ", "), "is missing"))
	case !ok:
		p.add(invalid(field+".label", hint, "%.64q is no label", name))
	case twice:
		p.add(invalid(field+".label", "", "%s is here twice: first in labels[%d]", name, first))
	default:
		seen[name] = i
	}
	if l.GetAction() == linkv1.BlockAction_BLOCK_ACTION_UNSPECIFIED {
		p.add(invalid(field+".action", hintAction, "is missing"))
		return
	}
	p.action(field+".action", l.GetAction())
}

func (p *problems) guard(g *linkv1.GuardPolicy) {
	if g == nil {
		return
	}
	seen := map[string]int{}
	for i, d := range g.GetDetectors() {
		p.detector(fmt.Sprintf("guard.detectors[%d]", i), d, seen, i)
	}
	p.between("guard.blocks_per_hour", g.GetBlocksPerHour(), 1, MaxBlocksPerHour)
	p.between("guard.widest_ipv4", g.GetWidestIpv4(), LeastWidestIPv4, 32)
	p.between("guard.widest_ipv6", g.GetWidestIpv6(), LeastWidestIPv6, 128)
	p.allowed("guard.allow_prefixes", g.GetAllowPrefixes(), p.prefix)
	p.allowed("guard.allow_user_agents", g.GetAllowUserAgents(), p.userAgent)
	p.allowed("guard.allow_affiliates", g.GetAllowAffiliates(), func(field, id string) { p.add(checkIdentifier(field, id)) })
}

// between checks a number; 0 is the default.
func (p *problems) between(field string, n, least, most int32) {
	if n != 0 && (n < least || n > most) {
		p.add(invalid(field, fmt.Sprintf("use %d to %d", least, most), "%d is not allowed", n))
	}
}

// allowed checks a list of what is never blocked.
func (p *problems) allowed(field string, list []string, check func(field, text string)) {
	if len(list) > MaxAllowed {
		p.add(invalid(field, "", "are %d, and at most %d are allowed", len(list), MaxAllowed))
		return
	}
	seen := make(map[string]int, len(list))
	for i, text := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		check(at, text)
		if first, twice := seen[text]; twice {
			p.add(invalid(at, "", "%q is here twice: first in [%d]", text, first))
		}
		seen[text] = i
	}
}

func (p *problems) detector(field string, d *linkv1.DetectorPolicy, seen map[string]int, i int) {
	name := d.GetDetector()
	hint, ok := CheckDetector(name)
	first, twice := seen[name]
	switch {
	case name == "":
		p.add(invalid(field+".detector", "detectors are "+strings.Join(detectors, ", "), "is missing"))
	case !ok:
		p.add(invalid(field+".detector", hint, "%.64q is no detector", name))
	case twice:
		p.add(invalid(field+".detector", "", "%s is here twice: first in detectors[%d]", name, first))
	default:
		seen[name] = i
	}
	p.action(field+".action", d.GetAction())
	if c := d.GetMinConfidence(); math.IsNaN(c) || c < 0 || c > 1 {
		p.add(invalid(field+".min_confidence", "above 0 and up to 1: 0.95", "%v is no confidence", c))
	}
	p.ttl(field+".ttl", d.GetTtl())
	if d.GetFindingsOnly() && d.GetMayBlockAffiliates() {
		p.add(invalid(field+".may_block_affiliates", "leave one of them out", "contradicts findings_only"))
	}
}
