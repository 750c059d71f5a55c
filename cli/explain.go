package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// explainFlags say who asks, when, and who answers.
type explainFlags struct {
	at, ip, agent, geoHeaders string
	headers, geoip            []string
	bots, file, node          string
	datacenters               []string
	out                       format
}

func newExplain(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain URL", Short: "Say where a request would go, and why",
		Long: `Say where a request would go, and why: which links and domains were looked up,
which blocks match, which labels speak against the request and what policies say
about them, what each rule said, which variant was drawn, where each parameter
comes from, and the answer. It is decided by the code that the nodes run: on
what the control plane holds, on a file (--from-file), or by a node itself on
what it serves (--node). Nothing is recorded or counted, and no cap is touched.`,
		Example: `  affctl explain http://go.example.com/summer
  affctl explain /go/sale --at 2026-12-25
  affctl explain /go/sale --ip 192.0.2.1 --geoip city.mmdb
  affctl explain go.example.com/summer --node 10.0.0.7:9091 --ip 192.0.2.1
  affctl explain go.example.com/summer --from-file links.yaml`,
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	var f explainFlags
	fs := cmd.Flags()
	fs.StringVar(&f.at, "at", "", "at this `TIME` instead of now: 2026-12-25T08:00:00Z, +36h")
	fs.StringVar(&f.ip, "ip", "", "the client's `ADDRESS`")
	fs.StringVar(&f.agent, "ua", "", "the client's `USER-AGENT`")
	fs.StringArrayVar(&f.headers, "header", nil, "another header `'NAME: VALUE'`; may be repeated")
	fs.StringArrayVar(&f.geoip, "geoip", nil, "a MaxMind database `FILE` that knows where addresses are; may be repeated")
	fs.StringVar(&f.geoHeaders, "geo-headers", "", "`HEADERS` that say where the client is, as affnode's flag: cloudflare")
	fs.StringVar(&f.bots, "bots", "", "a list of bots, as affnode's flag: a `FILE`")
	fs.StringArrayVar(&f.datacenters, "datacenters", nil, "a list of networks of data centres, as affnode's flag: a `FILE`; may be repeated")
	fs.StringVar(&f.file, "from-file", "", "decide on this export or YAML `FILE` instead of the control plane")
	fs.StringVar(&f.node, "node", "", "ask a node, by the `HOST:PORT` of its --admin address")
	cmd.MarkFlagsMutuallyExclusive("from-file", "node")
	f.out.addTo(cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := f.request(a, args[0])
		if err != nil {
			return err
		}
		var e *explain.Explanation
		if f.node != "" {
			e, err = f.askNode(cmd.Context(), req)
		} else {
			e, err = f.explain(cmd.Context(), a, req)
		}
		if err != nil {
			return err
		}
		return a.printExplanation(e, f.out.value)
	}
	return cmd
}

// request is what the flags say, without the sources of facts.
func (f *explainFlags) request(a *app, url string) (req *explain.Request, err error) {
	req = &explain.Request{URL: url, At: a.now(), Headers: map[string][]string{}}
	if f.at != "" {
		fd := (&linkv1.Link{}).ProtoReflect().Descriptor().Fields().ByName("not_before")
		if req.At, err = document.ParseTime(a.relativeTime(fd, f.at)); err != nil {
			return nil, usagef("", "--at %s", err)
		}
	}
	if f.ip != "" {
		if req.Address, err = netip.ParseAddr(f.ip); err != nil {
			return nil, usagef("an address looks like 192.0.2.1", "--ip must be an address, not %q", f.ip)
		}
	}
	for _, header := range f.headers {
		name, value, ok := strings.Cut(header, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, usagef("--header 'Accept-Language: de'", "--header must be NAME: VALUE, not %q", header)
		}
		name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
		req.Headers[name] = append(req.Headers[name], strings.TrimSpace(value))
	}
	if f.agent != "" {
		req.Headers["User-Agent"] = []string{f.agent}
	}
	return req, nil
}

// explain decides here.
func (f *explainFlags) explain(ctx context.Context, a *app, req *explain.Request) (*explain.Explanation, error) {
	var err error
	if req.GeoHeaders, err = visitor.ParseGeoHeaders(f.geoHeaders); err != nil {
		return nil, usagef("", "--geo-headers: %s", err)
	}
	if req.Sources, err = visitor.Open(visitor.Config{Geo: f.geoip, Bots: f.bots, Datacenters: f.datacenters}); err != nil {
		return nil, err
	}
	e, err := explain.New(req)
	if errors.Is(err, explain.ErrBadRequest) {
		return nil, usagef("", "%s", err)
	}
	if err != nil {
		return nil, err
	}
	var from resources = &remote{app: a, explanation: e}
	if f.file != "" {
		if from, err = a.readResources(f.file); err != nil {
			return nil, err
		}
	}
	look := looker{resources: from, Explanation: e, at: req.At}
	if err := look.look(ctx); err != nil {
		return nil, err
	}
	book, err := from.book(ctx, e, &look.match, req)
	if err != nil {
		return nil, err
	}
	return e, e.Decide(&look.match, book, req)
}

// resources are where links and what goes with them are looked up.
type resources interface {
	// stored gives a resource, nil if there is none.
	stored(ctx context.Context, name string) (*linkv1.Resource, error)
	// same gives the link that the name of a candidate stands for under a
	// policy, nil if there is none.
	same(ctx context.Context, name string, policy link.Policy) (*linkv1.Resource, error)
	// book gives the blocks and policies that may have a say about a request.
	book(ctx context.Context, e *explain.Explanation, m *link.Match, req *explain.Request) (*explain.Book, error)
}

// looker looks up what a node has in its table.
type looker struct {
	resources
	*explain.Explanation
	at    time.Time
	match link.Match
}

// look reads the candidates and fills the match from those that are used.
func (l *looker) look(ctx context.Context) error {
	e, match := l.Explanation, &l.match
	domains, err := l.lookDomain(ctx)
	if err != nil {
		return err
	}
	policy := match.Domain.Policy()
	for _, name := range link.Candidates(e.Host, e.Path, policy) {
		if !strings.HasPrefix(name, link.Links.Prefix()) {
			continue
		}
		r, err := l.same(ctx, name, policy)
		if err != nil {
			return err
		}
		c := explain.Candidate{Name: name, Found: r != nil, Used: r != nil && match.Value == nil}
		if c.Found {
			c.State = explain.LinkState(r.GetLink(), l.at)
			if stored := link.LinkName(r.GetLink().GetDomain(), r.GetLink().GetPath()); stored != name {
				c.Stored = stored
			}
		}
		e.Candidates = append(e.Candidates, c)
		if !c.Used {
			continue
		}
		e.Link = cmp.Or(c.Stored, name)
		value, err := link.Marshal(r)
		if err != nil {
			return err
		}
		if err := match.Load(value); err != nil {
			return fmt.Errorf("compile %s: %w", name, err)
		}
		if id := r.GetLink().GetAffiliate(); id != "" {
			if err := l.lookAffiliate(ctx, id); err != nil {
				return err
			}
		}
	}
	e.Candidates = append(e.Candidates, domains...)
	return nil
}

// lookDomain reads the domains that may say what holds for the host.
func (l *looker) lookDomain(ctx context.Context) (domains []explain.Candidate, err error) {
	e, match := l.Explanation, &l.match
	for _, name := range link.DomainCandidates(e.Host) {
		r, err := l.stored(ctx, name)
		if err != nil {
			return nil, err
		}
		c := explain.Candidate{Name: name, Found: r != nil, Used: r != nil && match.Domain == nil}
		if c.Used {
			value, err := link.Marshal(r)
			if err != nil {
				return nil, err
			}
			if match.Domain, err = link.CompileDomain(value); err != nil {
				return nil, fmt.Errorf("compile %s: %w", name, err)
			}
			if ignored := explain.Ignores(match.Domain.Policy()); ignored != "" {
				c.State = "ignores " + ignored
			}
		}
		domains = append(domains, c)
	}
	return domains, nil
}

func (l *looker) lookAffiliate(ctx context.Context, id string) error {
	e, match := l.Explanation, &l.match
	name := link.Affiliates.Prefix() + id
	r, err := l.stored(ctx, name)
	if err != nil {
		return err
	}
	c := explain.Candidate{Name: name, Found: r != nil, Used: r != nil}
	if r != nil {
		c.State = "active"
		if r.GetAffiliate().GetState() == linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED {
			c.State = "suspended"
		}
		value, err := link.Marshal(r)
		if err != nil {
			return err
		}
		if match.Affiliate, err = link.CompileAffiliate(value); err != nil {
			return fmt.Errorf("compile %s: %w", name, err)
		}
	}
	e.Candidates = append(e.Candidates, c)
	return nil
}
