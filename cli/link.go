package cli

import (
	"errors"
	"strconv"
	"strings"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

var linkNoun = &noun{
	name: "link", plural: "links", kind: adminv1.Kind_KIND_LINK,
	short:  "Send one path of a host to a destination",
	keyArg: "DOMAIN/PATH", valueArg: "DESTINATION", valueField: "destination",
	long: `A link sends one path of a host to a destination. Its key is DOMAIN/PATH, such
as go.example.com/summer; /summer alone is for every host that has no link of
its own there. A path that ends in /* is that of a prefix link: it serves every
path below it that has no link of its own, the longest one first.`,
	make: func(arg string) (*linkv1.Resource, error) {
		domain, path, err := linkKey(arg)
		if err != nil {
			return nil, err
		}
		return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: domain, Path: path}}}, nil
	},
	fields: []fieldFlag{
		{"affiliate", "affiliate", "`ID` of the affiliate that earns"},
		{"campaign", "campaign", "campaign `ID`, recorded with each click"},
		{"status", "status_code", "`CODE`: 301, 302, 303, 307 or 308"},
		{"fallback", "fallback", "`URL` while it is disabled, outside its schedule or over its cap, or its affiliate is suspended"},
		{"not-before", "not_before", "serve it from this `TIME` on: 2026-12-24, +36h"},
		{"expires", "expires_at", "serve it until this `TIME`"},
		{"disabled", "disabled", "keep it, but do not serve it; --disabled=false: serve it again"},
		{"sticky", "sticky", "`BY`: a variant is by client (the default), query or none"},
		{"sticky-parameter", "sticky_parameter", "`NAME` of the parameter, with --sticky query"},
		{"allow-loop", "allow_loop", "destinations may be on its own domain"},
		{"rest", "rest", "`MODE`: append (the default) or drop the rest of the path, on a prefix link"},
	},
	shorts:  linkShorts,
	filters: []string{"domain", "affiliate", "label", "prefix"},
	columns: []column{
		{"LINK", func(_ *app, r *linkv1.Resource) string { return r.GetLink().GetDomain() + r.GetLink().GetPath() }},
		{"DESTINATION", func(_ *app, r *linkv1.Resource) string { return r.GetLink().GetDestination() }},
		{"CODE", func(_ *app, r *linkv1.Resource) string { return codeCell(r.GetLink().GetStatusCode()) }},
		{"AFFILIATE", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetLink().GetAffiliate()) }},
		{"CAMPAIGN", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetLink().GetCampaign()) }},
		{"STATE", func(a *app, r *linkv1.Resource) string { return a.linkState(r.GetLink()) }},
	},
	examples: map[string]string{
		"create": "  affctl link create go.example.com/summer https://store.com/p/123\n" +
			"  affctl link create /go/sale https://store.com/sale --affiliate aff_01 \\\n    --status 301 --expires 2026-12-24 --label team=eu --wait\n" +
			"  affctl link create 'go.example.com/shop/*' https://store.com/\n" +
			"  affctl link create '/old/*' https://store.com/moved --rest drop\n" +
			"  affctl link create /app 'https://store.com/?s={sub1|none}' --query keep \\\n" +
			"    --rule 'os == \"ios\" => https://apps.example/ios'\n" +
			"  affctl link create /deal https://store.com/ --cap 1000/day \\\n" +
			"    --fallback https://b.com/ --split 'a=7:https://a.com/,b=3:https://b.com/'",
		"get":  "  affctl link get go.example.com/summer\n  affctl link get /go/sale -o yaml",
		"list": "  affctl link list --domain go.example.com --prefix /sum\n  affctl link list --affiliate aff_01 --label team=eu -o name",
		"update": "  affctl link update go.example.com/summer https://store.com/p/124\n" +
			"  affctl link update /go/sale --disabled --fallback https://store.com/\n" +
			"  affctl link update /go/sale --campaign '' --label team=us --label old-\n" +
			"  affctl link update /go/sale --cap 500/hour --rule ''",
		"delete": "  affctl link delete go.example.com/summer\n  affctl link delete /go/sale --etag 42 --wait",
	},
}

// linkKey reads DOMAIN/PATH, /PATH, a URL or a name that affctl printed.
func linkKey(arg string) (domain, path string, err error) {
	rest := strings.TrimPrefix(arg, link.Links.Prefix())
	for _, scheme := range []string{"http://", "https://"} {
		rest = strings.TrimPrefix(rest, scheme)
	}
	if rest == "" {
		return "", "", usagef("a link looks like go.example.com/summer", "%q is not a link", arg)
	}
	domain, path = link.SplitLinkID(rest)
	if domain == "" {
		domain = link.AnyHost
	}
	if path == "" {
		return "", "", usagef("a link looks like go.example.com/summer; its root is "+domain+"/", "%q has no path", arg)
	}
	if domain, err = link.CanonicalHost(domain); err != nil {
		return "", "", argument(arg, err)
	}
	if path, err = link.CanonicalPath(path); err != nil {
		return "", "", argument(arg, err)
	}
	return domain, path, nil
}

// argument makes a usage error of what proto/link says of an argument.
func argument(arg string, err error) error {
	if e, ok := errors.AsType[*link.Error](err); ok {
		return usagef(e.Hint, "%q: %s %s", arg, e.Field, e.Message)
	}
	return usagef("", "%q: %s", arg, err)
}

// linkState says in a word whether a link is served.
func (a *app) linkState(l *linkv1.Link) string { return explain.LinkState(l, a.now()) }

// codeCell is a status code, which is the domain's when it is not set.
func codeCell(code int32) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(int(code))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
