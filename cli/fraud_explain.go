package cli

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

// suspect is whom fraud explain explains: one of them is set.
type suspect struct {
	prefix    netip.Prefix
	userAgent string
	affiliate string
}

func (s *suspect) String() string {
	switch {
	case s.prefix.IsValid():
		return link.FormatPrefix(s.prefix)
	case s.userAgent != "":
		return fmt.Sprintf("the user agent %q", s.userAgent)
	}
	return "affiliate " + s.affiliate
}

// matchedBy says whether a block matches all requests of the suspect, or some: of a
// prefix, or on the links of one affiliate.
func (s *suspect) matchedBy(b *linkv1.Block) (all, some bool) {
	switch {
	case s.prefix.IsValid() && b.GetPrefix() != "":
		q, err := link.ParsePrefix(b.GetPrefix())
		return err == nil && b.GetOnlyAffiliate() == "" && covers(b, s.prefix), err == nil && q.Overlaps(s.prefix)
	case s.userAgent != "":
		some = b.GetUserAgent() == s.userAgent
		return some && b.GetOnlyAffiliate() == "", some
	case s.affiliate != "":
		all = b.GetAffiliate() == s.affiliate
		return all, all || b.GetOnlyAffiliate() == s.affiliate
	}
	return all, all
}

// isSubject says whether a finding is about the suspect.
func (s *suspect) isSubject(f *clickv1.Finding) bool {
	if of, ok := f.GetSubject().GetSubject().(*clickv1.Subject_Prefix); ok && s.prefix.IsValid() {
		p, err := link.ParsePrefix(of.Prefix)
		return err == nil && p.Overlaps(s.prefix)
	}
	return s.userAgent != "" && string(f.GetSubject().GetUserAgent()) == s.userAgent ||
		s.affiliate != "" && (f.GetSubject().GetAffiliate() == s.affiliate || f.GetAffiliate() == s.affiliate)
}

func newFraudExplain(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain ADDRESS|PREFIX|FINDING|BLOCK", Short: "Say what is held against somebody, why, and what is done",
		Long: `Say what is held against an address, a prefix, a user agent or an affiliate, or
against whom a finding or a block is about: the blocks that match, what the
policies say about each label, what affguard found, and what it decided. An
argument that is none of these is a user agent. --domain names the host of the
requests, whose policy is looked at too.`,
		Example: "  affctl fraud explain 203.0.113.7\n  affctl fraud explain net-203.0.113.0-24 --domain go.example.com\n  affctl fraud explain --affiliate aff_01",
		Args:    argCount(0, 1), DisableFlagsInUseLine: true,
	}
	x := &explaining{a: a}
	var match matching
	var domain string
	match.addTo(cmd)
	cmd.Flags().StringVar(&domain, "domain", "", "the requests are for this `HOST`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if n := len(args) + min(1, len(match.userAgent)) + min(1, len(match.affiliate)); n != 1 {
			return usagef("affctl fraud explain 203.0.113.7", "name one of ADDRESS, FINDING, --user-agent and --affiliate")
		}
		if domain != "" {
			host, err := link.CanonicalHost(domain)
			if err != nil {
				return argument(domain, err)
			}
			x.host = host
		}
		x.who = suspect{userAgent: match.userAgent, affiliate: match.affiliate}
		return x.run(cmd, args)
	}
	return cmd
}

// explaining is one run of fraud explain.
type explaining struct {
	a       *app
	host    string
	who     suspect
	reports []*clickstream.Report // of the suspect
	lost    error                 // why there may be more
}

func (x *explaining) run(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	all, err := x.readReports(ctx)
	if err != nil {
		x.lost = err
	}
	if len(args) > 0 {
		if err := x.identify(ctx, args[0], all); err != nil {
			return err
		}
	}
	x.choose(all)
	var matching, partly []*linkv1.Block
	if err := x.a.blocks(cmd, func(b *linkv1.Block) error {
		switch whole, some := x.who.matchedBy(b); {
		case whole:
			matching = append(matching, b)
		case some:
			partly = append(partly, b)
		}
		return nil
	}); err != nil {
		return err
	}
	policies, err := x.policies(ctx)
	if err != nil {
		return err
	}
	now, err := x.judge(matching, policies, nil)
	if err != nil {
		return err
	}
	x.printBlocks(matching, partly, now, policies)
	labels := make([]link.Label, link.NumLabels)
	for l := range link.NumLabels {
		labels[l] = l
	}
	if now, err = x.judge(nil, policies, labels); err != nil {
		return err
	}
	x.printLabels(now)
	x.printReports()
	return nil
}

// identify finds out what an argument is.
func (x *explaining) identify(ctx context.Context, arg string, all []*clickstream.Report) error {
	if p, err := link.ParsePrefix(arg); err == nil {
		x.who.prefix = p
		return nil
	}
	if b, err := blockNoun.make(arg); err == nil {
		block, err := x.a.blockOf(ctx, b.GetBlock().GetId())
		if err != nil {
			return err
		}
		if block != nil {
			x.who = suspectOf(block.GetPrefix(), block.GetUserAgent(), block.GetAffiliate())
			return nil
		}
	}
	for _, r := range all {
		if f := r.GetFinding(); f.GetId() == arg {
			x.who = suspectOf(f.GetSubject().GetPrefix(), string(f.GetSubject().GetUserAgent()), f.GetSubject().GetAffiliate())
			if x.who == (suspect{}) {
				x.a.printFinding(f, r.Stored)
				return &failure{code: codeError, message: "it is about " + subjectText(f.GetSubject()) + ", which nothing can be done about but by address"}
			}
			return nil
		}
	}
	if a, err := affiliateNoun.make(arg); err == nil {
		there, err := x.a.maybe(ctx, link.Affiliates.Prefix()+a.GetAffiliate().GetId())
		if err != nil {
			return err
		}
		if there != nil {
			x.who.affiliate = a.GetAffiliate().GetId()
			return nil
		}
	}
	x.who.userAgent = arg
	return nil
}

func suspectOf(prefix, userAgent, affiliate string) suspect {
	if p, err := link.ParsePrefix(prefix); err == nil {
		return suspect{prefix: p}
	}
	return suspect{userAgent: userAgent, affiliate: affiliate}
}

// readReports reads what the stream of findings holds.
func (x *explaining) readReports(ctx context.Context) (all []*clickstream.Report, err error) {
	conn, js, err := x.a.jetStream(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := x.a.limit(ctx)
	defer cancel()
	err = clickstream.Reports(ctx, js, clickstream.ReportOptions{}, func(r *clickstream.Report) error {
		all = append(all, r)
		return nil
	})
	return all, err
}

// choose keeps the reports about the suspect.
func (x *explaining) choose(all []*clickstream.Report) {
	about := map[string]bool{}
	for _, r := range all {
		if f := r.GetFinding(); f != nil && x.who.isSubject(f) {
			about[f.GetId()] = true
		}
	}
	for _, r := range all {
		if about[r.GetFinding().GetId()] || about[r.GetDecision().GetFinding()] {
			x.reports = append(x.reports, r)
		}
	}
}

// policies reads those that hold for the suspect.
func (x *explaining) policies(ctx context.Context) (found []*linkv1.Policy, err error) {
	scopes := []string{link.AnyHost, link.Domains.Prefix() + link.AnyHost}
	if x.host != "" {
		scopes = append(scopes, link.Domains.Prefix()+x.host)
	}
	if x.who.affiliate != "" {
		scopes = append(scopes, link.Affiliates.Prefix()+x.who.affiliate)
	}
	for _, scope := range scopes {
		r, err := x.a.maybe(ctx, link.Policies.Prefix()+scope)
		if err != nil {
			return nil, err
		}
		if r != nil {
			found = append(found, r.GetPolicy())
		}
	}
	return found, nil
}

// judge does what a node does with a request of the suspect, that blocks match
// and that has labels.
func (x *explaining) judge(blocks []*linkv1.Block, policies []*linkv1.Policy, labels []link.Label) (*link.Trace, error) {
	var book explain.Book
	for _, b := range blocks {
		if err := book.Add(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}); err != nil {
			return nil, err
		}
	}
	for _, p := range policies {
		if err := book.Add(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}); err != nil {
			return nil, err
		}
	}
	req := &link.Request{
		Host: []byte(x.host), Address: x.who.prefix.Addr(), UserAgent: []byte(x.who.userAgent),
		UnixMicro: x.a.now().UnixMicro(), Trace: new(link.Trace),
	}
	var m link.Match
	if x.who.affiliate != "" { // which a node knows by the link
		value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: link.AnyHost, Path: "/", Destination: "https://affiliate.invalid/", Affiliate: x.who.affiliate,
		}}})
		if err == nil {
			m.Link, err = link.Compile(value)
		}
		if err != nil {
			return nil, err
		}
		m.Value = value
	}
	var v link.Verdict
	for _, l := range labels {
		v.Add(l, nil)
	}
	v.Judge(&book, &m, req)
	return req.Trace, nil
}

// doneTexts say what is done to requests.
var doneTexts = map[link.Treatment]string{
	link.TreatNoAffiliate: "are redirected so that they earn nothing",
	link.TreatFallback:    "go to the fallback",
	link.TreatRefuse:      "are refused with 403",
}

// printBlocks says which blocks match, and what is done then.
func (x *explaining) printBlocks(matching, partly []*linkv1.Block, now *link.Trace, policies []*linkv1.Policy) {
	a := x.a
	say := func(format string, args ...any) { a.printf("%s\n", printable(fmt.Sprintf(format, args...))) }
	switch {
	case len(matching) == 0 && len(partly) > 0:
		say("No block matches all requests of %s.", &x.who)
	case len(matching) == 0:
		say("No block matches %s.", &x.who)
	case now.Off:
		off := policies[0] // that of everything is read first
		say("Requests of %s are only labelled: everything is switched off, by %s, %s ago.", &x.who, off.GetUpdatedBy(), age(a.now().Sub(off.GetUpdateTime().AsTime())))
	case now.Treatment == link.TreatLabel:
		say("Requests of %s are labelled, and redirected as if nothing had happened.", &x.who)
	default:
		say("Requests of %s %s: so says %s.", &x.who, doneTexts[now.Treatment], whoSays(now))
	}
	for _, b := range matching {
		say("  %s: %s", subject(link.Blocks.Prefix()+b.GetId()), a.blockText(b))
	}
	for _, b := range partly {
		say("  %s matches some: %s", subject(link.Blocks.Prefix()+b.GetId()), a.blockText(b))
	}
}

// whoSays names the block or the policy that decides.
func whoSays(now *link.Trace) string {
	for _, b := range now.Blocks {
		if b.Counts && b.Treatment == now.Treatment {
			return subject(link.Blocks.Prefix() + b.Block.ID)
		}
	}
	for _, l := range now.Labels {
		if l.Treatment == now.Treatment {
			return fmt.Sprintf("%s, about the label %s", subject(link.Policies.Prefix()+l.Scope), l.Label)
		}
	}
	return "nobody"
}

// labelOf is the label that a block gives.
func labelOf(b *linkv1.Block) string { return first(b.GetLabel(), link.LabelBlocked.String()) }

// blockText says what a block does, until when, who made it and why.
func (a *app) blockText(b *linkv1.Block) string {
	text := fmt.Sprintf("%s, %s as %s", scopeText(b), actionText(b.GetAction()), labelOf(b))
	switch left := a.remaining(b); left {
	case "-":
		text += ", until it is deleted"
	case "over":
		text += ", is over"
	default:
		text += ", for " + left + " more"
	}
	text += fmt.Sprintf("; %q, by %s", b.GetReason(), b.GetUpdatedBy())
	if b.GetFinding() != "" {
		text += " for finding " + b.GetFinding()
	}
	return text
}

// printLabels says what is done about requests that have a label.
func (x *explaining) printLabels(now *link.Trace) {
	a := x.a
	a.printf("\nWhat is done about labels")
	if x.host != "" {
		a.printf(" at %s", x.host)
	}
	a.printf(":\n")
	for _, l := range now.Labels {
		if l.Scope == "" {
			continue // no policy says anything
		}
		text := l.Treatment.String()
		if now.Off {
			text = "label, not " + text + ": it is switched off"
		}
		a.printf("  %-12s %s (policy %q)\n", l.Label, text, l.Scope)
	}
	a.printf("  %-12s label\n", "all others")
}

// printReports prints what was found, oldest first.
func (x *explaining) printReports() {
	a := x.a
	a.printf("\n")
	switch {
	case x.lost != nil:
		a.warnf("findings cannot be read: %s", describe(x.lost).lines[0])
	case len(x.reports) == 0:
		a.printf("affguard has found nothing about it.\n")
	default:
		a.printf("What affguard found and decided:\n")
	}
	const most = 20
	if n := len(x.reports); n > most {
		a.printf("  (%s before these: affctl fraud findings)\n", count(int64(n-most), "report"))
		x.reports = x.reports[n-most:]
	}
	for _, r := range x.reports {
		if f := r.GetFinding(); f != nil {
			a.printFinding(f, r.Stored)
		} else {
			a.printDecision(r.GetDecision(), r.Stored)
		}
	}
}
