package cli

import (
	"strings"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

var affiliateNoun = &noun{
	name: "affiliate", plural: "affiliates", kind: adminv1.Kind_KIND_AFFILIATE,
	short:  "Name who earns, and suspend all their links at once",
	keyArg: "ID",
	long: `An affiliate earns from its links. Suspending one sends all its links to their
fallback, in one write.`,
	make: func(arg string) (*linkv1.Resource, error) {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{
			Id: strings.TrimPrefix(arg, link.Affiliates.Prefix()),
		}}}
		if _, err := link.Name(r); err != nil {
			return nil, argument(arg, err)
		}
		return r, nil
	},
	fields: []fieldFlag{
		{"state", "state", "`STATE`: active or suspended"},
		{"fallback", "fallback", "`URL` of its links while it is suspended"},
		{"display-name", "display_name", "`NAME` for people"},
	},
	shorts:  affiliateShorts,
	filters: []string{"label"},
	columns: []column{
		{"AFFILIATE", func(_ *app, r *linkv1.Resource) string { return r.GetAffiliate().GetId() }},
		{"STATE", func(_ *app, r *linkv1.Resource) string {
			if r.GetAffiliate().GetState() == linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED {
				return "suspended"
			}
			return "active"
		}},
		{"NAME", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetAffiliate().GetDisplayName()) }},
		{"FALLBACK", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetAffiliate().GetFallback()) }},
	},
	examples: map[string]string{
		"create": "  affctl affiliate create aff_01 --display-name 'Ada Ltd' --parameter ref=aff_01",
		"get":    "  affctl affiliate get aff_01",
		"list":   "  affctl affiliate list --label tier=gold",
		"update": "  affctl affiliate update aff_01 --state suspended --wait",
		"delete": "  affctl affiliate delete aff_01",
	},
}
