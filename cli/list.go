package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// filterFlags choose resources.
type filterFlags struct {
	domain, affiliate, prefix string
	labels                    []string
}

// addTo adds the flags that a command has use for.
func (f *filterFlags) addTo(cmd *cobra.Command, which []string) {
	flags := cmd.Flags()
	for _, name := range which {
		switch name {
		case "domain":
			flags.StringVar(&f.domain, name, "", "only those of this `HOST`")
		case "affiliate":
			flags.StringVar(&f.affiliate, name, "", "only those of this affiliate `ID`")
		case "label":
			flags.StringArrayVar(&f.labels, name, nil, "only those with this label, `KEY=VALUE` or KEY; may be repeated")
		case "prefix":
			flags.StringVar(&f.prefix, name, "", "only those whose path starts with `/PATH`; with --domain")
		}
	}
}

// filter is nil when no flag is set.
func (f *filterFlags) filter(kind adminv1.Kind) (*adminv1.Filter, error) {
	filter := &adminv1.Filter{Kind: kind, Affiliate: f.affiliate, PathPrefix: f.prefix}
	if f.domain != "" {
		host, err := link.CanonicalHost(f.domain)
		if err != nil {
			return nil, argument(f.domain, err)
		}
		filter.Domain = host
	}
	if f.prefix != "" && f.domain == "" {
		return nil, usagef("--domain '*' is the default domain", "--prefix needs --domain")
	}
	for _, text := range f.labels {
		key, value, _ := strings.Cut(text, "=")
		if key == "" {
			return nil, usagef("", "--label must be key=value or key, not %q", text)
		}
		if filter.Labels == nil {
			filter.Labels = map[string]string{}
		}
		filter.Labels[key] = value
	}
	return filter, nil
}

func (n *noun) listCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "Show " + n.plural + ", in the order of their names",
		Example: n.examples["list"], Args: argCount(0, 0),
	}
	var flags filterFlags
	var out format
	var limit int
	flags.addTo(cmd, n.filters)
	cmd.Flags().IntVar(&limit, "limit", 0, "at most `N` (else all)")
	out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := flags.filter(n.kind)
		if err != nil {
			return err
		}
		if limit < 0 {
			return usagef("", "--limit must not be negative")
		}
		p := a.printer(n, out.value, true)
		if err := a.list(cmd.Context(), filter, limit, p.resource); err != nil {
			return err
		}
		return p.end()
	}
	return cmd
}

// list calls each for what matches, page by page, at most limit times (0: no
// limit).
func (a *app) list(ctx context.Context, filter *adminv1.Filter, limit int, each func(*linkv1.Resource) error) error {
	service, err := a.links()
	if err != nil {
		return err
	}
	const page = 1000
	left := limit
	for token := ""; ; {
		size := page
		if limit > 0 {
			size = min(left, page)
		}
		resp, err := service.List(ctx, &adminv1.ListRequest{Filter: filter, PageSize: int32(size), PageToken: token}) //nolint:gosec // at most 1000
		if err != nil {
			return err
		}
		for _, r := range resp.GetResources() {
			if err := each(r); err != nil {
				return err
			}
			if left--; limit > 0 && left == 0 {
				return nil
			}
		}
		if token = resp.GetNextPageToken(); token == "" {
			return nil
		}
	}
}

// complete offers the keys that start with what was typed.
func (n *noun) complete(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const most, patience = 50, 2 * time.Second
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), patience)
		defer cancel()
		filter := &adminv1.Filter{Kind: n.kind}
		if domain, path := link.SplitLinkID(typed); n.kind == adminv1.Kind_KIND_LINK && path != "" {
			if filter.Domain, filter.PathPrefix = domain, path; domain == "" {
				filter.Domain = link.AnyHost
			}
		}
		var keys []string
		limit := most
		if filter.GetDomain() == "" && n.kind != adminv1.Kind_KIND_LINK {
			limit = 1000
		}
		err := a.list(ctx, filter, limit, func(r *linkv1.Resource) error {
			name, err := link.Name(r)
			if err != nil {
				return err
			}
			key := name[strings.IndexByte(name, '/')+1:]
			if strings.HasPrefix(typed, "/") {
				key = strings.TrimPrefix(key, link.AnyHost)
			}
			if strings.HasPrefix(key, typed) && !slices.Contains(args, key) {
				keys = append(keys, key)
			}
			return nil
		})
		if err != nil {
			cobra.CompErrorln(fmt.Sprint(err))
			return nil, cobra.ShellCompDirectiveError
		}
		return keys, cobra.ShellCompDirectiveNoFileComp
	}
}
