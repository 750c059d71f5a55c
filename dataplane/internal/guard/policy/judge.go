package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Judge decides, and remembers for what has been decided before: which blocks
// stand, and how many were made in the last hour. What it remembers is what the
// stream of findings says, so that another process decides alike.
type Judge struct {
	stands map[string]standing // by block
	made   []time.Time         // blocks of the last hour, in order
}

// standing is a block that was made.
type standing struct {
	prefix netip.Prefix
	only   string // whose visitors it is held against; empty: everybody's
	action linkv1.BlockAction
	from   time.Time
	until  time.Time
}

// Verdict is a decision, and the block to make when it is to block.
type Verdict struct {
	Decision *clickv1.Decision
	Block    *linkv1.Block
}

// Decide says what is done about a finding at a moment. A block that is to be
// made counts at once, as Note counts one that was made.
func (j *Judge) Decide(p *Policy, f *clickv1.Finding, now time.Time) Verdict {
	action, least, ttl, rule := p.rule(f.GetDetector())
	d := &clickv1.Decision{Finding: f.GetId(), Detector: f.GetDetector(), Time: timestamppb.New(now), PolicyRevision: p.Revision}
	refuse := func(v clickv1.Verdict, format string, args ...any) Verdict {
		d.Verdict, d.Reason = v, fmt.Sprintf(format, args...)
		return Verdict{Decision: d}
	}
	block, prefix, err := blockFor(f, action)
	if err != nil {
		return refuse(clickv1.Verdict_VERDICT_FINDING_ONLY, "%v", err)
	}
	if block != nil {
		d.Block = "blocks/" + block.GetId()
	}
	affiliate := f.GetSubject().GetAffiliate()
	agent := f.GetSubject().GetUserAgent()
	switch {
	case p.off:
		return refuse(clickv1.Verdict_VERDICT_OFF, "the kill switch is on")
	case rule.GetFindingsOnly():
		return refuse(clickv1.Verdict_VERDICT_FINDING_ONLY, "the policy wants only findings of %s", f.GetDetector())
	case block == nil:
		return refuse(clickv1.Verdict_VERDICT_FINDING_ONLY, "no block matches an autonomous system")
	case affiliate != "" && !rule.GetMayBlockAffiliates():
		return refuse(clickv1.Verdict_VERDICT_FINDING_ONLY, "the policy lets no affiliate be blocked for %s", f.GetDetector())
	case f.GetConfidence() < least:
		return refuse(clickv1.Verdict_VERDICT_NOT_SURE, "the confidence is %.3f, and the policy asks for %.3f", f.GetConfidence(), least)
	case now.Sub(f.GetTo().AsTime()) > ttl:
		return refuse(clickv1.Verdict_VERDICT_FINDING_ONLY, "its last click is older than a block would stand")
	case prefix.IsValid() && p.allowed(prefix), agent != nil && p.agents[string(agent)], affiliate != "" && p.affiliates[affiliate]:
		return refuse(clickv1.Verdict_VERDICT_ALLOWED, "an allow-list of the policy has it")
	case prefix.IsValid() && p.tooWide(prefix):
		return refuse(clickv1.Verdict_VERDICT_TOO_WIDE, "the policy lets prefixes of at least /%d (IPv4) and /%d (IPv6) be blocked", p.widest4, p.widest6)
	}
	if name, s, ok := j.standing(d.Block, prefix, action, now); ok {
		d.Block, d.ExpireTime = name, timestamppb.New(s.until)
		return refuse(clickv1.Verdict_VERDICT_STANDS, "%s with the same effect stands until %s", name, s.until.UTC().Format(time.DateTime))
	}
	j.forget(now)
	if len(j.made) >= p.blocksPerHour {
		return refuse(clickv1.Verdict_VERDICT_NO_BUDGET, "%d blocks were made in the last hour, which is all that the policy lets be made", len(j.made))
	}
	block.Ttl = durationpb.New(ttl)
	d.Verdict, d.ExpireTime = clickv1.Verdict_VERDICT_BLOCKED, timestamppb.New(now.Add(ttl))
	d.Reason = fmt.Sprintf("confidence %.3f of at least %.3f", f.GetConfidence(), least)
	j.made = append(j.made, now)
	j.stand(d.Block, standing{prefix, block.GetOnlyAffiliate(), action, now, now.Add(ttl)})
	return Verdict{Decision: d, Block: block}
}

// Note remembers a decision that was made before, for a finding that is known,
// or nil when it is not known any more.
func (j *Judge) Note(d *clickv1.Decision, f *clickv1.Finding) {
	if d.GetVerdict() != clickv1.Verdict_VERDICT_BLOCKED {
		return
	}
	at := d.GetTime().AsTime()
	i, _ := slices.BinarySearchFunc(j.made, at, time.Time.Compare)
	j.made = slices.Insert(j.made, i, at)
	// Of which action it was is in the block's id.
	s := standing{from: at, until: d.GetExpireTime().AsTime(), action: actionOf(d.GetBlock())}
	if f != nil {
		s.prefix, _ = parsePrefix(f.GetSubject().GetPrefix())
		s.only = only(f, s.prefix)
	}
	j.stand(d.GetBlock(), s)
}

// Undo forgets a block that could not be made.
func (j *Judge) Undo(d *clickv1.Decision) {
	delete(j.stands, d.GetBlock())
	if i := slices.IndexFunc(j.made, d.GetTime().AsTime().Equal); i >= 0 {
		j.made = slices.Delete(j.made, i, i+1)
	}
}

// maxStanding bounds what is remembered: the budget does, but for long ttls.
const maxStanding = 100_000

func (j *Judge) stand(name string, s standing) {
	if j.stands == nil {
		j.stands = make(map[string]standing)
	}
	if len(j.stands) < maxStanding {
		j.stands[name] = s
	}
}

// standing finds a block that makes another one needless: the same one, or one
// of a wider prefix with the same action. In the last quarter of its time it is
// made anew. A block that somebody has removed counts as standing too: for its
// time, people know better.
func (j *Judge) standing(name string, prefix netip.Prefix, action linkv1.BlockAction, now time.Time) (string, standing, bool) {
	stands := func(s standing) bool {
		return now.Before(s.until.Add(-s.until.Sub(s.from) / 4))
	}
	if s, ok := j.stands[name]; ok && stands(s) {
		return name, s, true
	}
	if !prefix.IsValid() {
		return "", standing{}, false
	}
	var best string
	for other, s := range j.stands {
		if s.prefix.IsValid() && s.only == "" && s.action == action && s.prefix.Bits() <= prefix.Bits() && s.prefix.Contains(prefix.Addr()) && stands(s) && (best == "" || other < best) {
			best = other
		}
	}
	return best, j.stands[best], best != ""
}

// forget drops what counts no more.
func (j *Judge) forget(now time.Time) {
	old := now.Add(-time.Hour)
	n, _ := slices.BinarySearchFunc(j.made, old, func(t, old time.Time) int {
		if t.After(old) {
			return 1
		}
		return -1
	})
	j.made = slices.Delete(j.made, 0, n)
	for name, s := range j.stands {
		if !now.Before(s.until) {
			delete(j.stands, name)
		}
	}
}

// only is whose visitors a block is held against; empty: everybody's. Others may
// have the same browser, or be neighbours.
func only(f *clickv1.Finding, prefix netip.Prefix) string {
	if f.GetAffiliateShare() < oneAffiliate || f.GetSubject().GetAffiliate() != "" || prefix.IsValid() && prefix.IsSingleIP() {
		return ""
	}
	return f.GetAffiliate()
}

// oneAffiliate is the share of a finding's clicks from which its block is for the
// links of their affiliate only: the others may be a neighbour's, of sixteen clicks
// by which a script is found again, say.
const oneAffiliate = 0.8

// maxReason is what a block's reason may have.
const maxReason = 256

// blockFor makes the block of a finding. Its id says whom it is for, and what it
// does: the same again has the same id. nil for what no block can match.
func blockFor(f *clickv1.Finding, action linkv1.BlockAction) (*linkv1.Block, netip.Prefix, error) {
	b := &linkv1.Block{Action: action, Reason: reason(f), Finding: f.GetId()}
	var prefix netip.Prefix
	switch s := f.GetSubject().GetSubject().(type) {
	case *clickv1.Subject_Prefix:
		var err error
		if prefix, err = parsePrefix(s.Prefix); err != nil {
			return nil, prefix, fmt.Errorf("%q is no prefix", s.Prefix)
		}
		text := prefix.String()
		if prefix.IsSingleIP() {
			text = prefix.Addr().String()
		}
		b.Match = &linkv1.Block_Prefix{Prefix: text}
	case *clickv1.Subject_UserAgent:
		if len(s.UserAgent) == 0 || len(s.UserAgent) > 1024 || !validText(s.UserAgent) {
			return nil, prefix, fmt.Errorf("a block cannot name this user agent: it is empty, long, or no text")
		}
		b.Match = &linkv1.Block_UserAgent{UserAgent: string(s.UserAgent)}
	case *clickv1.Subject_Affiliate:
		b.Match = &linkv1.Block_Affiliate{Affiliate: s.Affiliate}
	default:
		return nil, prefix, nil
	}
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(f.GetSubject())
	if err != nil {
		return nil, prefix, err
	}
	b.OnlyAffiliate = only(f, prefix)
	if b.OnlyAffiliate != "" {
		key = append(append(key, 0), b.OnlyAffiliate...)
	}
	b.Id = fmt.Sprintf("guard-%s-%016x", actionName(action), xxh3.Hash(key))
	return b, prefix, nil
}

func validText(b []byte) bool {
	return strings.ToValidUTF8(string(b), "") == string(b) && !strings.ContainsRune(string(b), 0)
}

func actionName(a linkv1.BlockAction) string {
	return strings.ToLower(strings.TrimPrefix(a.String(), "BLOCK_ACTION_"))
}

// actionOf reads the action from a block's name.
func actionOf(name string) linkv1.BlockAction {
	name = strings.TrimPrefix(name, "blocks/guard-")
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		return linkv1.BlockAction(linkv1.BlockAction_value["BLOCK_ACTION_"+strings.ToUpper(name[:i])])
	}
	return linkv1.BlockAction_BLOCK_ACTION_UNSPECIFIED
}

// reason says why, in what a block has room for.
func reason(f *clickv1.Finding) string {
	text := strings.ToValidUTF8(f.GetDetector()+": "+f.GetSummary(), "?")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason-3], "") + "..."
	}
	return text
}
