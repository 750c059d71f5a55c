// Package policy decides what is done about a finding of the fraud detector.
//
// It is pure: time comes with each call. A Judge belongs to one goroutine; a
// Policy does not change.
package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Policy is a GuardPolicy with its defaults.
type Policy struct {
	Revision int64 // of the resource; 0: the default

	off              bool
	detectors        map[string]*linkv1.DetectorPolicy
	blocksPerHour    int
	widest4, widest6 int
	prefixes         []netip.Prefix
	agents           map[string]bool
	affiliates       map[string]bool
}

// New reads the policy of scope "*". nil is the default: a detector blocks
// addresses and user agents, with the action label, from a confidence of 0.95
// on, for an hour, at most 100 times an hour.
func New(p *linkv1.Policy) (*Policy, error) {
	if p != nil {
		if err := link.Validate(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}); err != nil {
			return nil, err
		}
	}
	g := p.GetGuard()
	set := &Policy{
		Revision:      p.GetRevision(),
		off:           p.GetOff(),
		detectors:     make(map[string]*linkv1.DetectorPolicy),
		blocksPerHour: int(cmp.Or(g.GetBlocksPerHour(), link.DefaultBlocksPerHour)),
		widest4:       int(cmp.Or(g.GetWidestIpv4(), link.DefaultWidestIPv4)),
		widest6:       int(cmp.Or(g.GetWidestIpv6(), link.DefaultWidestIPv6)),
		agents:        make(map[string]bool),
		affiliates:    make(map[string]bool),
	}
	for _, d := range g.GetDetectors() {
		set.detectors[d.GetDetector()] = d
	}
	for _, text := range g.GetAllowPrefixes() {
		prefix, err := parsePrefix(text)
		if err != nil {
			return nil, err
		}
		set.prefixes = append(set.prefixes, prefix)
	}
	for _, agent := range g.GetAllowUserAgents() {
		set.agents[agent] = true
	}
	for _, id := range g.GetAllowAffiliates() {
		set.affiliates[id] = true
	}
	return set, nil
}

// Off says that the kill switch is on.
func (p *Policy) Off() bool { return p.off }

func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	return prefix.Masked(), err
}

// rule is what the policy says about a detector.
func (p *Policy) rule(detector string) (action linkv1.BlockAction, confidence float64, ttl time.Duration, d *linkv1.DetectorPolicy) {
	d = p.detectors[detector]
	action = cmp.Or(d.GetAction(), linkv1.BlockAction_BLOCK_ACTION_LABEL)
	confidence = cmp.Or(d.GetMinConfidence(), link.DefaultMinConfidence)
	ttl = cmp.Or(d.GetTtl().AsDuration(), link.DefaultGuardTTL*time.Second)
	return action, confidence, ttl, d
}

// allowed says whether an allow-list has a prefix, a part of it, or what it lies
// in.
func (p *Policy) allowed(prefix netip.Prefix) bool {
	return slices.ContainsFunc(p.prefixes, func(a netip.Prefix) bool { return a.Overlaps(prefix) })
}

// tooWide says whether a prefix is wider than the policy lets be blocked.
func (p *Policy) tooWide(prefix netip.Prefix) bool {
	if prefix.Addr().Is4() {
		return prefix.Bits() < p.widest4
	}
	return prefix.Bits() < p.widest6
}
