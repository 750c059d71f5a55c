package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// explanation is how a request is decided, step by step.
type explanation struct {
	URL          string      `json:"url"`
	Host         string      `json:"host"`
	Path         string      `json:"path"`
	At           time.Time   `json:"at"`
	Version      int64       `json:"version"`
	Candidates   []candidate `json:"candidates"`
	Link         string      `json:"link,omitempty"`
	Affiliate    string      `json:"affiliate,omitempty"`
	Campaign     string      `json:"campaign,omitempty"`
	Outcome      string      `json:"outcome"`
	Because      string      `json:"because"`
	Status       int         `json:"status"`
	Location     string      `json:"location,omitempty"`
	CacheControl string      `json:"cache_control,omitempty"`

	winner            *linkv1.Link // nil if none was found
	policy            link.Policy
	affiliateFallback string
}

// candidate is a resource that may have a say.
type candidate struct {
	Name   string `json:"name"`
	Stored string `json:"stored,omitempty"` // the link's own name, where a policy found it under this one
	Found  bool   `json:"found"`
	Used   bool   `json:"used"`
	State  string `json:"state,omitempty"`
}

func newExplain(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain URL", Short: "Say where a request would go, and why",
		Long: `Say where a request would go, and why: which links and domains were looked up,
in which order, what state they are in, and the answer. It is decided by the
code that the nodes run, on what the control plane holds.`,
		Example: "  affctl explain http://go.example.com/summer\n  affctl explain /go/sale --at 2026-12-25",
		Args:    argCount(1, 1), DisableFlagsInUseLine: true,
	}
	var at string
	var out format
	cmd.Flags().StringVar(&at, "at", "", "at this `TIME` instead of now: 2026-12-25T08:00:00Z, +36h")
	out.addTo(cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		when := a.now()
		if at != "" {
			fd := (&linkv1.Link{}).ProtoReflect().Descriptor().Fields().ByName("not_before")
			var err error
			if when, err = document.ParseTime(a.relativeTime(fd, at)); err != nil {
				return usagef("", "--at %s", err)
			}
		}
		e, err := a.explain(cmd.Context(), args[0], when)
		if err != nil {
			return err
		}
		return a.printExplanation(e, out.value)
	}
	return cmd
}

// splitURL takes a URL, or one without scheme, apart as an HTTP client does.
func splitURL(raw string) (host, path, query string) {
	rest, _, _ := strings.Cut(raw, "#")
	if _, behind, ok := strings.Cut(rest, "://"); ok {
		rest = behind
	}
	rest, query, _ = strings.Cut(rest, "?")
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return rest, "/", query
	}
	return rest[:i], rest[i:], query
}

// explain looks up what a node has in its table, and decides as it does.
func (a *app) explain(ctx context.Context, raw string, at time.Time) (*explanation, error) {
	rawHost, rawPath, query := splitURL(raw)
	host, ok := link.AppendCanonicalHost(nil, []byte(rawHost))
	if !ok && rawHost != link.AnyHost {
		return nil, usagef("", "%q: %q is not a host: a node answers 400 Bad Request", raw, rawHost)
	}
	path, ok := link.AppendCanonicalPath(nil, []byte(rawPath))
	if !ok {
		return nil, usagef("write a percent sign as %25", "%q: the path has a broken escape: a node answers 400 Bad Request", raw)
	}
	e := &explanation{URL: raw, Host: string(host), Path: string(path), At: at.UTC()}
	var match link.Match
	if err := a.look(ctx, e, &match, at); err != nil {
		return nil, err
	}
	var d link.Decision
	link.Resolve(&match, &link.Request{Host: host, Path: path, Query: []byte(query), UnixMicro: at.UnixMicro()}, &d)
	e.Status, e.Location, e.Outcome = d.Status, string(d.Location), d.Outcome.String()
	e.Affiliate, e.Campaign = string(d.Affiliate), string(d.Campaign)
	if d.Location != nil {
		e.CacheControl = d.CacheControl
	}
	e.Because = because(&d, e)
	return e, nil
}

// look reads the candidates and fills the match from those that are used.
func (a *app) look(ctx context.Context, e *explanation, match *link.Match, at time.Time) error {
	domains, err := a.lookDomain(ctx, e, match)
	if err != nil {
		return err
	}
	policy := match.Domain.Policy()
	for _, name := range link.Candidates(e.Host, e.Path, policy) {
		if !strings.HasPrefix(name, link.Links.Prefix()) {
			continue
		}
		r, err := a.same(ctx, e, name, policy)
		if err != nil {
			return err
		}
		c := candidate{Name: name, Found: r != nil, Used: r != nil && match.Value == nil}
		if c.Found {
			c.State = linkStateAt(r.GetLink(), at)
			if stored := link.LinkName(r.GetLink().GetDomain(), r.GetLink().GetPath()); stored != name {
				c.Stored = stored
			}
		}
		e.Candidates = append(e.Candidates, c)
		if !c.Used {
			continue
		}
		e.Link, e.winner, e.policy = cmp.Or(c.Stored, name), r.GetLink(), policy
		if match.Value, err = link.Marshal(r); err != nil {
			return err
		}
		if match.Link, err = link.Compile(match.Value); err != nil {
			return fmt.Errorf("compile %s: %w", name, err)
		}
		if id := r.GetLink().GetAffiliate(); id != "" {
			if err := a.lookAffiliate(ctx, e, match, id); err != nil {
				return err
			}
		}
	}
	e.Candidates = append(e.Candidates, domains...)
	return nil
}

// lookDomain reads the domains that may say what holds for the host.
func (a *app) lookDomain(ctx context.Context, e *explanation, match *link.Match) (domains []candidate, err error) {
	for _, name := range link.DomainCandidates(e.Host) {
		r, err := a.stored(ctx, e, name)
		if err != nil {
			return nil, err
		}
		c := candidate{Name: name, Found: r != nil, Used: r != nil && match.Domain == nil}
		if c.Used {
			value, err := link.Marshal(r)
			if err != nil {
				return nil, err
			}
			if match.Domain, err = link.CompileDomain(value); err != nil {
				return nil, fmt.Errorf("compile %s: %w", name, err)
			}
			if ignored := ignores(match.Domain.Policy()); ignored != "" {
				c.State = "ignores " + ignored
			}
		}
		domains = append(domains, c)
	}
	return domains, nil
}

// ignores says in words what a policy ignores.
func ignores(policy link.Policy) string {
	switch policy {
	case link.IgnoreCase:
		return "case"
	case link.IgnoreSlash:
		return "a slash at the end"
	case link.IgnoreCase | link.IgnoreSlash:
		return "case and a slash at the end"
	}
	return ""
}

func (a *app) lookAffiliate(ctx context.Context, e *explanation, match *link.Match, id string) error {
	name := link.Affiliates.Prefix() + id
	r, err := a.stored(ctx, e, name)
	if err != nil {
		return err
	}
	c := candidate{Name: name, Found: r != nil, Used: r != nil}
	if r != nil {
		c.State, e.affiliateFallback = "active", r.GetAffiliate().GetFallback()
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

// because says why in words.
func because(d *link.Decision, e *explanation) string {
	var state string
	switch d.Outcome {
	case link.ToDestination:
		return served(e)
	case link.ToRoot:
		return "no link is at /, and the domain has a root"
	case link.ToNotFound:
		if e.winner == nil {
			return "no link is there" + without(d)
		}
		return fmt.Sprintf("with the rest of the path, the link's destination would be longer than %d bytes", link.MaxLocation) + asIf + without(d)
	case link.IsDisabled:
		state = "the link is disabled"
	case link.IsNotYet:
		state = "the link is not served yet"
	case link.IsExpired:
		state = "the link has expired"
	case link.IsSuspended:
		state = "affiliate " + e.Affiliate + " is suspended"
	default:
		return d.Outcome.String()
	}
	switch location := string(d.Location); {
	case location == "" && d.Status == http.StatusGone:
		return state + ", and has no fallback"
	case location == "":
		return state + asIf + without(d)
	case location == e.winner.GetFallback():
		return state + ": its fallback is taken"
	case location == e.affiliateFallback:
		return state + ": the affiliate's fallback is taken"
	}
	return state + asIf + without(d)
}

const asIf = ": it is as if there were no link"

// without says what becomes of a request without a link.
func without(d *link.Decision) string {
	if d.Location != nil {
		return ", and the domain says where such requests go"
	}
	return ", and no domain says where such requests go"
}

// served says why it is this link that is served.
func served(e *explanation) string {
	path := e.winner.GetPath()
	if !link.IsPrefix(path) {
		if path == e.Path {
			return "the link is served"
		}
		return "the link is served: its path is the same, as the domain ignores " + ignores(e.policy)
	}
	why := "no link is at the path itself, and this is the longest prefix link above it"
	rest := strings.TrimLeft(e.Path[min(len(path)-1, len(e.Path)):], "/")
	switch {
	case rest == "":
		return why
	case e.winner.GetRest() == linkv1.RestPolicy_REST_POLICY_DROP:
		return why + ": the rest, " + rest + ", is dropped"
	}
	return why + ": the rest, " + rest + ", is appended"
}

func (a *app) printExplanation(e *explanation, form string) error {
	if form != "table" {
		text, err := json.MarshalIndent(e, "", "  ")
		if err != nil {
			return err
		}
		text = append(text, '\n')
		if form == "yaml" {
			if text, err = document.ToYAML(text); err != nil {
				return err
			}
		}
		a.printf("%s", text)
		return nil
	}
	a.printf("request   %s\n", printable(e.URL))
	a.printf("          host %s, path %s\n", orDash(e.Host), e.Path)
	label := "looked up"
	width := 0
	for _, c := range e.Candidates {
		width = max(width, len(c.Name))
	}
	for _, c := range e.Candidates {
		verdict := "not found"
		switch {
		case c.Used:
			verdict = a.paint(a.stdout, bold, found(c))
		case c.Found:
			verdict = "found, but the one before it wins"
		}
		a.printf("%-9s %-*s  %s\n", label, width, c.Name, verdict)
		label = ""
	}
	answer := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	color := green
	if e.Location == "" {
		color = red
	}
	a.printf("answer    %s\n", a.paint(a.stdout, color, answer))
	if e.Location != "" {
		a.printf("          Location: %s\n          Cache-Control: %s\n", e.Location, e.CacheControl)
	}
	a.printf("because   %s\n", e.Because)
	return nil
}

// found says as what a candidate was found, and in which state it is.
func found(c candidate) string {
	text := "found"
	if c.Stored != "" {
		text += " as " + c.Stored
	}
	if c.State != "" {
		text += ", " + c.State
	}
	return text
}
