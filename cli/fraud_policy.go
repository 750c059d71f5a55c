package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func newFraudPolicy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Say what is done about labels, and what affguard may do by itself",
		Long: `A policy says what is done about the clicks that have a label: label (nothing
else, the default), no_affiliate, fallback or refuse. That of an affiliate wins
over that of its domain, and that over the one for everything, which also says
what affguard may do by itself, and has the kill switch:
  affctl fraud policy set --off    every label and block only labels from now on
  affctl fraud policy set --on     they do again what policies and blocks say`,
		Example: "  affctl fraud policy set --label rate=refuse --affiliate aff_01\n  affctl fraud policy get --all",
		Args:    cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(policyGet(a), policySet(a), policyDelete(a))
	return cmd
}

// scoped are the flags that say what a policy holds for.
type scoped struct{ domain, affiliate string }

func (s *scoped) addTo(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.domain, "domain", "", "the policy of this `HOST`, instead of that for everything")
	cmd.Flags().StringVar(&s.affiliate, "affiliate", "", "the policy of this affiliate `ID`")
}

// scope is "*" when the flags say nothing.
func (s *scoped) scope() (string, error) {
	scope := link.AnyHost
	switch {
	case s.domain != "" && s.affiliate != "":
		return "", usagef("", "a policy is that of --domain or that of --affiliate")
	case s.domain != "":
		host, err := link.CanonicalHost(s.domain)
		if err != nil {
			return "", argument(s.domain, err)
		}
		scope = link.Domains.Prefix() + host
	case s.affiliate != "":
		scope = link.Affiliates.Prefix() + s.affiliate
	}
	if _, err := policyNoun.make(scope); err != nil {
		return "", err
	}
	return scope, nil
}

func policyGet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "get", Short: "Show a policy",
		Example: "  affctl fraud policy get\n  affctl fraud policy get --domain go.example.com -o yaml\n  affctl fraud policy get --all",
		Args:    argCount(0, 0),
	}
	var s scoped
	var all bool
	var out format
	s.addTo(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "all policies, those of domains and affiliates too")
	out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		scope, err := s.scope()
		switch {
		case err != nil:
			return err
		case all && scope != link.AnyHost:
			return usagef("", "--all is all of them")
		case all:
			p := a.printer(policyNoun, out.value, true)
			if err := a.list(cmd.Context(), &adminv1.Filter{Kind: adminv1.Kind_KIND_POLICY}, 0, p.resource); err != nil {
				return err
			}
			return p.end()
		}
		r, err := a.maybe(cmd.Context(), link.Policies.Prefix()+scope)
		switch {
		case err != nil:
			return err
		case r == nil && (scope != link.AnyHost || out.value != "table"):
			return &failure{code: codeNotFound, message: fmt.Sprintf("there is no policy %q", scope), hint: "affctl fraud policy get --all lists them; affctl fraud policy set makes one"}
		case out.value != "table":
			return a.printer(policyNoun, out.value, false).resource(r)
		case r == nil:
			a.printf("There is no policy for everything: these are the defaults.\n")
			r = &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: scope}}}
		}
		a.printPolicy(r.GetPolicy())
		return nil
	}
	return cmd
}

// printPolicy says what a policy says, with the defaults.
func (a *app) printPolicy(p *linkv1.Policy) {
	line := func(name, format string, args ...any) {
		a.printf("%-16s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("scope", "%s", p.GetScope())
	for _, l := range p.GetLabels() {
		line(l.GetLabel(), "%s", actionText(l.GetAction()))
	}
	if p.GetScope() == link.AnyHost {
		if p.GetOff() {
			line("switched off", "labels and blocks only label, and affguard blocks nothing")
		}
		line("other labels", "label")
		g := p.GetGuard()
		line("affguard", "at most %d blocks an hour, no wider than /%d and /%d",
			orElse(g.GetBlocksPerHour(), link.DefaultBlocksPerHour), orElse(g.GetWidestIpv4(), link.DefaultWidestIPv4), orElse(g.GetWidestIpv6(), link.DefaultWidestIPv6))
		for _, name := range link.Detectors() {
			line("  "+name, "%s", detectorText(detectorOf(g, name)))
		}
		for _, list := range [][]string{g.GetAllowPrefixes(), quoted(g.GetAllowUserAgents()), g.GetAllowAffiliates()} {
			if len(list) > 0 {
				line("  never blocks", "%s", strings.Join(list, ", "))
			}
		}
	} else {
		line("other labels", "as the policies say that are less narrow")
	}
	if p.GetRevision() > 0 {
		line("written", "by %s, %s ago", p.GetUpdatedBy(), age(a.now().Sub(p.GetUpdateTime().AsTime())))
	}
}

func orElse(n, standard int32) int32 {
	if n == 0 {
		return standard
	}
	return n
}

func quoted(texts []string) (all []string) {
	for _, text := range texts {
		all = append(all, strconv.Quote(text))
	}
	return all
}

// detectorOf is what a policy says about a detector; nil: nothing.
func detectorOf(g *linkv1.GuardPolicy, name string) *linkv1.DetectorPolicy {
	for _, d := range g.GetDetectors() {
		if d.GetDetector() == name {
			return d
		}
	}
	return nil
}

// detectorText says what affguard does about a detector's findings.
func detectorText(d *linkv1.DetectorPolicy) string {
	if d.GetFindingsOnly() {
		return "findings only"
	}
	confidence, ttl := d.GetMinConfidence(), d.GetTtl().AsDuration()
	if confidence == 0 {
		confidence = link.DefaultMinConfidence
	}
	if d.GetTtl() == nil {
		ttl = link.DefaultGuardTTL * time.Second
	}
	what := "addresses and user agents"
	if d.GetMayBlockAffiliates() {
		what += ", and affiliates"
	}
	return fmt.Sprintf("%s %s for %s, from confidence %v on", actionText(d.GetAction()), what, shortDuration(ttl), confidence)
}

// shortDuration is "2h" rather than "2h0m0s".
func shortDuration(d time.Duration) string {
	text := d.String()
	if rest, ok := strings.CutSuffix(text, "m0s"); ok {
		text = rest + "m"
	}
	if rest, ok := strings.CutSuffix(text, "h0m"); ok {
		text = rest + "h"
	}
	return text
}

// policyEdit are the flags of policy set.
type policyEdit struct {
	scoped
	labels, detectors            []string
	off, on                      bool
	perHour, widest4, widest6    int32
	prefixes, agents, affiliates []string
	dryRun                       bool
	wait                         waiting
	out                          format
}

func policySet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "set", Short: "Change what is given of a policy, and keep the rest",
		Long: `Change what is given of a policy, keep the rest; make it if there is none. A
detector's settings are DETECTOR=ACTION or DETECTOR=findings-only, and then
min-confidence=N, ttl=TIME and affiliates (block those too). LABEL= and
DETECTOR= end what is said about one; a list of what is allowed is added to, and
emptied by an empty text.`,
		Example: `  affctl fraud policy set --off --wait
  affctl fraud policy set --label rate=refuse --label bot=no_affiliate
  affctl fraud policy set --detector flood=refuse,min-confidence=0.99,ttl=2h`,
		Args: argCount(0, 0), DisableFlagsInUseLine: true,
	}
	e := &policyEdit{}
	e.addTo(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&e.labels, "label", nil, "what is done about a label, `LABEL=ACTION`; may be repeated")
	flags.BoolVar(&e.off, "off", false, "the kill switch: everything is switched off, and only labels")
	flags.BoolVar(&e.on, "on", false, "switch it on again")
	flags.StringArrayVar(&e.detectors, "detector", nil, "what affguard does about a detector's findings: `SETTINGS`")
	flags.Int32Var(&e.perHour, "blocks-per-hour", 0, "affguard makes at most `N` blocks an hour")
	flags.Int32Var(&e.widest4, "widest-ipv4", 0, "affguard blocks no wider IPv4 prefix than `BITS`")
	flags.Int32Var(&e.widest6, "widest-ipv6", 0, "affguard blocks no wider IPv6 prefix than `BITS`")
	flags.StringArrayVar(&e.prefixes, "allow-prefix", nil, "affguard never blocks this `PREFIX`, nor one that has it in it")
	flags.StringArrayVar(&e.agents, "allow-user-agent", nil, "affguard never blocks this `AGENT`")
	flags.StringArrayVar(&e.affiliates, "allow-affiliate", nil, "affguard never blocks this affiliate `ID`")
	flags.BoolVar(&e.dryRun, "dry-run", false, "check everything, write nothing")
	e.wait.addTo(cmd)
	e.out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		scope, err := e.scope()
		switch {
		case err != nil:
			return err
		case e.off && e.on:
			return usagef("", "--off and --on contradict each other")
		case !slices.ContainsFunc([]string{
			"label", "off", "on", "detector", "blocks-per-hour", "widest-ipv4", "widest-ipv6", "allow-prefix", "allow-user-agent", "allow-affiliate",
		}, flags.Changed):
			return usagef("affctl fraud policy set --label rate=refuse", "nothing to change")
		}
		if err := e.apply(cmd, &linkv1.Policy{Scope: scope}); err != nil {
			return err // what is wrong with the flags, before anything is asked
		}
		return e.write(cmd, a, scope)
	}
	return cmd
}

// apply makes the changes to a policy.
func (e *policyEdit) apply(cmd *cobra.Command, p *linkv1.Policy) error {
	for _, text := range e.labels {
		name, action, ok := strings.Cut(text, "=")
		if _, hint, known := link.ParseLabel(name); !known {
			return usagef(hint, "--label %s: there is no label %q", text, name)
		}
		if !ok {
			return usagef("--label rate=refuse", "--label must be LABEL=ACTION, not %q", text)
		}
		p.Labels = slices.DeleteFunc(p.Labels, func(l *linkv1.LabelPolicy) bool { return l.GetLabel() == name })
		if action == "" {
			continue
		}
		a, err := parseAction(action)
		if err != nil {
			return err
		}
		p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: name, Action: a})
	}
	if e.off || e.on {
		p.Off = e.off
	}
	g := p.GetGuard()
	if g == nil {
		g = &linkv1.GuardPolicy{}
	}
	for _, text := range e.detectors {
		if err := setDetector(g, text); err != nil {
			return err
		}
	}
	changed := cmd.Flags().Changed
	for _, n := range []struct {
		flag string
		from int32
		to   *int32
	}{{"blocks-per-hour", e.perHour, &g.BlocksPerHour}, {"widest-ipv4", e.widest4, &g.WidestIpv4}, {"widest-ipv6", e.widest6, &g.WidestIpv6}} {
		if changed(n.flag) {
			*n.to = n.from
		}
	}
	g.AllowPrefixes = addAllowed(g.AllowPrefixes, e.prefixes)
	g.AllowUserAgents = addAllowed(g.AllowUserAgents, e.agents)
	g.AllowAffiliates = addAllowed(g.AllowAffiliates, e.affiliates)
	if p.Guard = g; proto.Size(g) == 0 {
		p.Guard = nil
	}
	return nil
}

// addAllowed adds to a list what is not in it; an empty text empties it first.
func addAllowed(list, more []string) []string {
	for _, text := range more {
		switch {
		case text == "":
			list = nil
		case !slices.Contains(list, text):
			list = append(list, text)
		}
	}
	return list
}

// setDetector reads 'flood=refuse,min-confidence=0.99,ttl=2h'.
func setDetector(g *linkv1.GuardPolicy, text string) error {
	name, settings, ok := strings.Cut(text, "=")
	wrong := func(format string, args ...any) error {
		return usagef("--detector 'flood=refuse,min-confidence=0.99,ttl=2h'", "--detector %s: %s", text, fmt.Sprintf(format, args...))
	}
	if hint, known := link.CheckDetector(name); !known {
		return usagef(hint, "--detector %s: there is no detector %q", text, name)
	}
	if !ok {
		return wrong("says nothing")
	}
	g.Detectors = slices.DeleteFunc(g.Detectors, func(d *linkv1.DetectorPolicy) bool { return d.GetDetector() == name })
	if settings == "" {
		return nil
	}
	d := &linkv1.DetectorPolicy{Detector: name}
	for i, part := range strings.Split(settings, ",") {
		part = strings.TrimSpace(part)
		key, value, _ := strings.Cut(part, "=")
		var err error
		switch {
		case key == "min-confidence":
			d.MinConfidence, err = strconv.ParseFloat(value, 64)
			if sure := d.MinConfidence > 0 && d.MinConfidence <= 1; err != nil || !sure { // NaN is neither
				return wrong("min-confidence is above 0 and up to 1, not %q", value)
			}
		case key == "ttl":
			if d.Ttl, err = parseTTL(value); err != nil {
				return wrong("ttl %s", err)
			}
		case part == "affiliates":
			d.MayBlockAffiliates = true
		case part == "findings-only":
			d.FindingsOnly = true
		case i == 0:
			if d.Action, err = parseAction(part); err != nil {
				return err
			}
		default:
			return wrong("%q is none of min-confidence=N, ttl=TIME, affiliates and findings-only", part)
		}
	}
	g.Detectors = append(g.Detectors, d)
	return nil
}

// write makes the changes to what is stored. Somebody else's write in between is
// met with another attempt.
func (e *policyEdit) write(cmd *cobra.Command, a *app, scope string) error {
	service, err := a.links()
	if err != nil {
		return err
	}
	const attempts = 5
	for attempt := 1; ; attempt++ {
		resp, err := e.attempt(cmd, service, scope)
		if code := status.Code(err); (code == codes.Aborted || code == codes.AlreadyExists) && attempt < attempts {
			continue
		}
		if err != nil {
			return err
		}
		verb, p := "updated", resp.GetResource().GetPolicy()
		if proto.Equal(p.GetCreateTime(), p.GetUpdateTime()) {
			verb = "created"
		}
		done := &edit{noun: policyNoun, dryRun: e.dryRun, wait: e.wait, out: e.out}
		return done.done(cmd.Context(), a, verb, resp.GetResource(), resp.GetVersion())
	}
}

// attempt makes the changes once. The kill switch alone is one call, which no
// other write can keep from succeeding.
func (e *policyEdit) attempt(cmd *cobra.Command, service adminv1.LinkServiceClient, scope string) (*adminv1.UpdateResponse, error) {
	ctx, p := cmd.Context(), &linkv1.Policy{Scope: scope}
	req := &adminv1.UpdateRequest{
		Resource: &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}, ValidateOnly: e.dryRun,
	}
	if e.onlySwitch(cmd) {
		req.UpdateMask, req.AllowMissing = &fieldmaskpb.FieldMask{Paths: []string{"off"}}, true
		if err := e.apply(cmd, p); err != nil {
			return nil, err
		}
		return service.Update(ctx, req)
	}
	stored, err := service.Get(ctx, &adminv1.GetRequest{Name: link.Policies.Prefix() + scope})
	switch {
	case err == nil:
		req.Resource, req.Etag = stored.GetResource(), stored.GetEtag()
	case status.Code(err) != codes.NotFound:
		return nil, err
	}
	if err := e.apply(cmd, req.GetResource().GetPolicy()); err != nil {
		return nil, err
	}
	if req.GetEtag() != "" {
		return service.Update(ctx, req)
	}
	made, err := service.Create(ctx, &adminv1.CreateRequest{Resource: req.GetResource(), ValidateOnly: e.dryRun})
	return &adminv1.UpdateResponse{Resource: made.GetResource(), Version: made.GetVersion()}, err
}

// onlySwitch says that only the kill switch is turned.
func (e *policyEdit) onlySwitch(cmd *cobra.Command) bool {
	return (e.off || e.on) && !slices.ContainsFunc([]string{
		"label", "detector", "blocks-per-hour", "widest-ipv4", "widest-ipv6", "allow-prefix", "allow-user-agent", "allow-affiliate",
	}, cmd.Flags().Changed)
}

func policyDelete(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete", Short: "Remove a policy: what is less narrow holds, and the defaults",
		Example: "  affctl fraud policy delete --affiliate aff_01 --wait\n  affctl fraud policy delete",
		Args:    argCount(0, 0),
	}
	var s scoped
	var dryRun bool
	var wait waiting
	s.addTo(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, delete nothing")
	wait.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		scope, err := s.scope()
		if err != nil {
			return err
		}
		service, err := a.links()
		if err != nil {
			return err
		}
		name := link.Policies.Prefix() + scope
		resp, err := service.Delete(cmd.Context(), &adminv1.DeleteRequest{Name: name, ValidateOnly: dryRun})
		if err != nil {
			return err
		}
		a.wrote("deleted", name, resp.GetVersion(), dryRun)
		if dryRun {
			return nil
		}
		return a.wait(cmd.Context(), &wait, resp.GetVersion())
	}
	return cmd
}
