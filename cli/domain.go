package cli

import (
	"strings"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

var domainNoun = &noun{
	name: "domain", plural: "domains", kind: adminv1.Kind_KIND_DOMAIN,
	short:  "Set what the links of one host have in common",
	keyArg: "HOST",
	long: `A domain holds what the links of one host have in common, and where requests go
that have no link. '*' is the domain of every other host.`,
	make: func(arg string) (*linkv1.Resource, error) {
		host, err := link.CanonicalHost(strings.TrimPrefix(arg, link.Domains.Prefix()))
		if err != nil {
			return nil, argument(arg, err)
		}
		return &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: host}}}, nil
	},
	fields: []fieldFlag{
		{"not-found", "not_found", "`URL` for requests without a link (else 404)"},
		{"root", "root", "`URL` for / (else as --not-found)"},
		{"status", "status_code", "`CODE` for links that have none (else 302)"},
		{"cache-control", "cache_control", "`VALUE` of the header (else no-store)"},
		{"robots-txt", "robots_txt", "`TEXT` of /robots.txt"},
		{"robots-tag", "robots_tag", "`VALUE` of the X-Robots-Tag of every redirect"},
		{"case", "case_policy", "`MODE`: exact (the default), or ignore the case of paths"},
		{"trailing-slash", "trailing_slash", "`MODE`: exact (the default), or ignore a slash at the end of paths"},
	},
	shorts:  domainShorts,
	filters: []string{"domain", "label"},
	columns: []column{
		{"DOMAIN", func(_ *app, r *linkv1.Resource) string { return r.GetDomain().GetHost() }},
		{"NOT FOUND", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetDomain().GetNotFound()) }},
		{"ROOT", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetDomain().GetRoot()) }},
		{"CODE", func(_ *app, r *linkv1.Resource) string { return codeCell(r.GetDomain().GetStatusCode()) }},
		{"CACHE-CONTROL", func(_ *app, r *linkv1.Resource) string { return orDash(r.GetDomain().GetCacheControl()) }},
	},
	examples: map[string]string{
		"create": "  affctl domain create go.example.com --not-found https://store.com/\n  affctl domain create '*' --not-found https://store.com/ --status 301",
		"get":    "  affctl domain get go.example.com -o yaml",
		"list":   "  affctl domain list",
		"update": "  affctl domain update go.example.com --status 301\n  affctl domain update go.example.com --case ignore --trailing-slash ignore\n  affctl domain update '*' --not-found ''",
		"delete": "  affctl domain delete go.example.com",
	},
}
