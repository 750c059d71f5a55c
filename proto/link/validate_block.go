package link

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// How long a block may stand.
const (
	MinTTL = time.Second
	MaxTTL = 10 * 365 * 24 * time.Hour
)

func (p *problems) block(b *linkv1.Block) {
	p.add(checkIdentifier("id", b.GetId()))
	switch match := b.GetMatch().(type) {
	case *linkv1.Block_Prefix:
		p.prefix("prefix", match.Prefix)
	case *linkv1.Block_UserAgent:
		p.userAgent("user_agent", match.UserAgent)
	case *linkv1.Block_Affiliate:
		p.add(checkIdentifier("affiliate", match.Affiliate))
	default:
		p.add(invalid("match", "set prefix, user_agent or affiliate", "is missing"))
	}
	if only := b.GetOnlyAffiliate(); only != "" {
		p.add(checkIdentifier("only_affiliate", only))
		if b.GetAffiliate() != "" {
			p.add(invalid("only_affiliate", "leave it out", "is set beside affiliate, which says the same"))
		}
	}
	p.action("action", b.GetAction())
	p.name("reason", b.GetReason(), MaxText)
	p.ttl("ttl", b.GetTtl())
	p.blockLabel(b.GetLabel())
	switch end := b.GetExpireTime(); {
	case end == nil:
	case end.CheckValid() != nil:
		p.add(invalid("expire_time", "", "is no time between the years 1 and 9999"))
	case b.GetTtl() == nil:
		p.add(invalid("expire_time", "set ttl; it is worked out from that", "is set without ttl"))
	}
	p.textOf("finding", b.GetFinding(), MaxIdentifier)
}

func (p *problems) prefix(field, text string) {
	if _, err := parsePrefix(text); err != nil {
		err.Field = field
		p.add(err)
	}
}

// userAgent checks a user agent that a request can have: the text of a header.
func (p *problems) userAgent(field, s string) {
	switch {
	case s == "":
		p.add(invalid(field, "a request without one has the label no_ua", "is missing"))
	case len(s) > MaxUserAgent:
		p.add(invalid(field, "", "is %d bytes long, and at most %d are allowed", len(s), MaxUserAgent))
	case !utf8.ValidString(s):
		p.add(invalid(field, "", "is not valid UTF-8"))
	case strings.Trim(s, " \t") != s:
		p.add(invalid(field, "leave it out", "has space around it, which no header has"))
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		p.add(invalid(field, "", "has a control character in it, which no header has"))
	}
}

const hintAction = "LABEL, REFUSE, FALLBACK or NO_AFFILIATE"

func (p *problems) action(field string, a linkv1.BlockAction) {
	if linkv1.BlockAction_name[int32(a)] == "" {
		p.add(invalid(field, hintAction, "%d is no action", a))
	}
}

// ttl checks how long a block stands; nil is for ever.
func (p *problems) ttl(field string, d *durationpb.Duration) {
	const hint = `write "3600s", from 1s to 315360000s`
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		p.add(invalid(field, hint, "is no duration"))
	case d.GetNanos() != 0:
		p.add(invalid(field, hint, "%v is not in whole seconds", d.AsDuration()))
	case d.GetSeconds() < int64(MinTTL/time.Second):
		p.add(invalid(field, hint, "%v is less than %v", d.AsDuration(), MinTTL))
	case d.GetSeconds() > int64(MaxTTL/time.Second):
		p.add(invalid(field, hint, "%d seconds are more than 10 years", d.GetSeconds()))
	}
}

// blockLabel checks which label the requests of a block get.
func (p *problems) blockLabel(label string) {
	able := []string{LabelBlocked.String(), LabelDatacenter.String()}
	_, _, known := ParseLabel(label)
	switch {
	case label == "" || slices.Contains(able, label):
	case known:
		p.add(invalid("label", "use blocked or datacenter; nodes find the others themselves", "%s is no label of a block", label))
	default:
		p.add(invalid("label", "do you mean "+nearest(label, able)+"? Blocks label as blocked or datacenter", "%.64q is no label", label))
	}
}
