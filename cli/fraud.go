package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/cli/internal/document"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func newFraud(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "fraud", Short: "Say what is done about suspicious clicks, and see why",
		Long: `A node labels what is suspicious about a click (rate, bot, datacenter and
others), affguard finds what only the whole stream shows, and a block labels the
clicks of an address, a user agent or an affiliate. All that is redirected as if
nothing had happened, unless a policy or a block says otherwise.

When something is blocked by mistake, either of these holds on all nodes within
a second, whatever else waits:
  affctl fraud unblock 203.0.113.7
  affctl fraud policy set --off`,
		Example: "  affctl fraud findings --since 1h\n  affctl fraud block 203.0.113.7 --reason 'click flood' --ttl 1h --action refuse\n  affctl fraud explain 203.0.113.7",
		Args:    cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(newFraudPolicy(a), newFraudBlock(a), newFraudUnblock(a), newFraudBlocks(a), newFraudFindings(a), newFraudExplain(a))
	return cmd
}

// Blocks and policies have verbs of their own, below fraud; what all kinds share
// knows them by these.
var blockNoun = &noun{
	name: "block", plural: "blocks", kind: adminv1.Kind_KIND_BLOCK, keyArg: "ID",
	make: func(arg string) (*linkv1.Resource, error) {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: strings.TrimPrefix(arg, link.Blocks.Prefix())}}}
		if _, err := link.Name(r); err != nil {
			return nil, argument(arg, err)
		}
		return r, nil
	},
	columns: []column{
		{"BLOCK", func(_ *app, r *linkv1.Resource) string { return r.GetBlock().GetId() }},
		{"MATCHES", func(_ *app, r *linkv1.Resource) string { return scopeText(r.GetBlock()) }},
		{"ACTION", func(_ *app, r *linkv1.Resource) string { return actionText(r.GetBlock().GetAction()) }},
		{"LABEL", func(_ *app, r *linkv1.Resource) string {
			return labelOf(r.GetBlock())
		}},
		{"ENDS IN", func(a *app, r *linkv1.Resource) string { return a.remaining(r.GetBlock()) }},
		{"WHO", func(_ *app, r *linkv1.Resource) string { return r.GetBlock().GetUpdatedBy() }},
		{"REASON", func(_ *app, r *linkv1.Resource) string { return r.GetBlock().GetReason() }},
	},
}

var policyNoun = &noun{
	name: "policy", plural: "policies", kind: adminv1.Kind_KIND_POLICY, keyArg: "SCOPE",
	make: func(arg string) (*linkv1.Resource, error) {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: strings.TrimPrefix(arg, link.Policies.Prefix())}}}
		if _, err := link.Name(r); err != nil {
			return nil, argument(arg, err)
		}
		return r, nil
	},
	columns: []column{
		{"POLICY", func(_ *app, r *linkv1.Resource) string { return r.GetPolicy().GetScope() }},
		{"OFF", func(_ *app, r *linkv1.Resource) string {
			return map[bool]string{true: "off", false: "-"}[r.GetPolicy().GetOff()]
		}},
		{"LABELS", func(_ *app, r *linkv1.Resource) string { return orDash(labelPolicies(r.GetPolicy())) }},
		{"WHO", func(_ *app, r *linkv1.Resource) string { return r.GetPolicy().GetUpdatedBy() }},
	},
}

// allNouns are the kinds that are exported and imported.
var allNouns = append(append([]*noun{}, nouns...), blockNoun, policyNoun)

// matchText says what a block matches.
func matchText(b *linkv1.Block) string {
	switch m := b.GetMatch().(type) {
	case *linkv1.Block_Prefix:
		return m.Prefix
	case *linkv1.Block_UserAgent:
		return strconv.Quote(m.UserAgent)
	case *linkv1.Block_Affiliate:
		return "affiliate " + m.Affiliate
	}
	return "nothing"
}

// scopeText says what a block matches, and of whom only.
func scopeText(b *linkv1.Block) string {
	if only := b.GetOnlyAffiliate(); only != "" {
		return matchText(b) + " for " + only
	}
	return matchText(b)
}

// actionText is an action as it is written in flags: "no_affiliate".
func actionText(a linkv1.BlockAction) string {
	if a == linkv1.BlockAction_BLOCK_ACTION_UNSPECIFIED {
		a = linkv1.BlockAction_BLOCK_ACTION_LABEL
	}
	name, ok := strings.CutPrefix(a.String(), "BLOCK_ACTION_")
	if !ok {
		return a.String()
	}
	return strings.ToLower(name)
}

// parseAction reads "refuse", and "no-affiliate" as "no_affiliate".
func parseAction(text string) (linkv1.BlockAction, error) {
	n, ok := linkv1.BlockAction_value["BLOCK_ACTION_"+strings.ToUpper(strings.ReplaceAll(text, "-", "_"))]
	if !ok || n == 0 {
		names := []string{"label", "no_affiliate", "fallback", "refuse"}
		hint := "it is one of " + strings.Join(names, ", ")
		if near := document.Nearest(text, names); near != "" {
			hint = "did you mean " + near + "? " + hint
		}
		return 0, usagef(hint, "there is no action %q", text)
	}
	return linkv1.BlockAction(n), nil
}

// remaining says in how long a block ends: "-" for never.
func (a *app) remaining(b *linkv1.Block) string {
	if b.GetTtl() == nil {
		return "-"
	}
	left := b.GetExpireTime().AsTime().Sub(a.now())
	if left <= 0 {
		return "over"
	}
	return age(left)
}

// labelPolicies are what a policy says about labels: "rate=refuse bot=fallback".
func labelPolicies(p *linkv1.Policy) string {
	var all []string
	for _, l := range p.GetLabels() {
		all = append(all, l.GetLabel()+"="+actionText(l.GetAction()))
	}
	return strings.Join(all, " ")
}

// parseTTL reads "90s", "12h" and "30d".
func parseTTL(text string) (*durationpb.Duration, error) {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int64
		if n, err = strconv.ParseInt(days, 10, 32); err == nil {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d < link.MinTTL || d > link.MaxTTL || d%time.Second != 0 {
		return nil, fmt.Errorf("must be 90s, 12h or 30d: whole seconds, at most 10 years, not %q", text)
	}
	return durationpb.New(d), nil
}

// matching are the arguments that say what a block matches.
type matching struct{ userAgent, affiliate string }

func (m *matching) addTo(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.userAgent, "user-agent", "", "this `AGENT`, byte for byte, instead of an address")
	cmd.Flags().StringVar(&m.affiliate, "affiliate", "", "this affiliate `ID`, instead of an address")
}

// setPrefix has a block match an address or a prefix.
func setPrefix(b *linkv1.Block, text string) error {
	p, err := link.ParsePrefix(text)
	if err != nil {
		return err
	}
	b.Match = &linkv1.Block_Prefix{Prefix: link.FormatPrefix(p)}
	return nil
}

// set has a block match what the flags say; not at all when they say nothing.
func (m *matching) set(b *linkv1.Block) {
	switch {
	case m.userAgent != "":
		b.Match = &linkv1.Block_UserAgent{UserAgent: m.userAgent}
	case m.affiliate != "":
		b.Match = &linkv1.Block_Affiliate{Affiliate: m.affiliate}
	}
}

// matchID is the id of a block that is given none: the same for the same match,
// so that what is blocked again is one block.
func matchID(b *linkv1.Block) string {
	only := ""
	if b.GetOnlyAffiliate() != "" {
		only = fmt.Sprintf("-only-%016x", xxh3.HashString(b.GetOnlyAffiliate()))
	}
	switch m := b.GetMatch().(type) {
	case *linkv1.Block_Prefix:
		return "net-" + strings.NewReplacer(":", "_", "/", "-").Replace(m.Prefix) + only
	case *linkv1.Block_UserAgent:
		return fmt.Sprintf("agent-%016x", xxh3.HashString(m.UserAgent)) + only
	case *linkv1.Block_Affiliate:
		if id := "affiliate-" + m.Affiliate; len(id) <= link.MaxIdentifier {
			return id
		}
		return fmt.Sprintf("affiliate-%016x", xxh3.HashString(m.Affiliate))
	}
	return ""
}

// sameMatch says whether two blocks match the same requests, if it were not for
// whose links they are about.
func sameMatch(a, b *linkv1.Block) bool {
	if a.GetPrefix() == "" || b.GetPrefix() == "" {
		return a.GetMatch() != nil && matchText(a) == matchText(b)
	}
	p, err := link.ParsePrefix(a.GetPrefix())
	q, other := link.ParsePrefix(b.GetPrefix())
	return err == nil && other == nil && p == q
}

// covers says whether a block has all of a prefix in it.
func covers(b *linkv1.Block, p netip.Prefix) bool {
	q, err := link.ParsePrefix(b.GetPrefix())
	return err == nil && q.Bits() <= p.Bits() && q.Contains(p.Addr())
}

// blocks reads all blocks.
func (a *app) blocks(cmd *cobra.Command, each func(*linkv1.Block) error) error {
	return a.list(cmd.Context(), &adminv1.Filter{Kind: adminv1.Kind_KIND_BLOCK}, 0, func(r *linkv1.Resource) error { return each(r.GetBlock()) })
}
