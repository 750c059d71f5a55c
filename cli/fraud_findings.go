package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	"github.com/affleet/affleet/proto/link"
)

// findings is one run of fraud findings.
type findings struct {
	a                   *app
	since               time.Duration
	detector, affiliate string
	follow              bool
	limit, seen         int
	out                 format
	shown               map[string]bool // findings that were printed, where some are not
	header              bool
}

func newFraudFindings(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "findings", Short: "Print what affguard found, and what it did about it",
		Long: `Print what affguard found, and what it did about it: a line for each finding,
and one for the decision, which names the block, or why there is none. JSON has
the figures, and clicks as samples.`,
		Example: "  affctl fraud findings --since 1h\n  affctl fraud findings --follow --detector flood\n  affctl fraud findings --affiliate aff_01 -o json",
		Args:    argCount(0, 0),
	}
	f := &findings{a: a, shown: map[string]bool{}}
	flags := cmd.Flags()
	flags.DurationVar(&f.since, "since", 0, "begin this long ago (else with the oldest)")
	flags.StringVar(&f.detector, "detector", "", "only those of this detector `NAME`")
	flags.StringVar(&f.affiliate, "affiliate", "", "only those about this affiliate `ID`, or its clicks")
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on with those that come")
	flags.IntVar(&f.limit, "limit", 0, "end after `N` findings")
	f.out.addTo(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.since < 0 || f.limit < 0 {
			return usagef("", "--since and --limit must not be negative")
		}
		if hint, ok := link.CheckDetector(f.detector); f.detector != "" && !ok {
			return usagef(hint, "there is no detector %q", f.detector)
		}
		return f.run(cmd.Context())
	}
	return cmd
}

func (f *findings) run(ctx context.Context) error {
	conn, js, err := f.a.jetStream(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	options := clickstream.ReportOptions{
		Detector: f.detector, Follow: f.follow,
		Malformed: func(sequence uint64, err error) { f.a.warnf("message %d: %s", sequence, err) },
	}
	if f.since > 0 {
		options.Since = f.a.now().Add(-f.since)
	}
	if f.follow && terminal(f.a.stderr) && f.out.value == "table" {
		f.a.notef("waiting for findings; Ctrl-C ends")
	}
	err = clickstream.Reports(ctx, js, options, f.report)
	switch {
	case errors.Is(err, errEnough), f.follow && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	case f.seen == 0 && f.out.value == "table":
		f.a.notef("no findings")
	}
	return nil
}

// report prints a report, if it is asked for.
func (f *findings) report(r *clickstream.Report) error {
	id := r.GetDecision().GetFinding()
	if found := r.GetFinding(); found != nil {
		id = found.GetId()
		if f.affiliate != "" && found.GetAffiliate() != f.affiliate && found.GetSubject().GetAffiliate() != f.affiliate {
			return nil
		}
		if f.limit > 0 && f.seen == f.limit {
			return errEnough
		}
		f.seen++
		f.shown[id] = f.affiliate != ""
	} else if f.affiliate != "" && !f.shown[id] {
		return nil
	}
	if f.out.value == "json" {
		text, err := reportJSON(r)
		if err != nil {
			return err
		}
		f.a.printf("%s\n", text)
		return f.a.out.Flush()
	}
	if !f.header {
		f.header = true
		f.a.printf("%s\n", f.a.paint(f.a.stdout, bold, findingLine("TIME", "DETECTOR", "SURE", "WHO", "WHAT")))
	}
	if found := r.GetFinding(); found != nil {
		f.a.printFinding(found, r.Stored)
	} else {
		f.a.printDecision(r.GetDecision(), r.Stored)
	}
	return f.a.out.Flush()
}

// reportJSON is a report in one line, with the time at which it was stored.
func reportJSON(r *clickstream.Report) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.Report)
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	if fields["stored"], err = json.Marshal(r.Stored.UTC()); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

func findingLine(at, detector, sure, who, what string) string {
	return strings.TrimRight(fmt.Sprintf("%-19s  %-14s  %-5s  %-20s  %s", at, detector, sure, who, what), " ")
}

func (a *app) printFinding(f *clickv1.Finding, at time.Time) {
	a.printf("%s\n", printable(findingLine(at.Local().Format(time.DateTime), f.GetDetector(), fmt.Sprintf("%.3g", f.GetConfidence()), subjectText(f.GetSubject()), f.GetSummary()+" ["+f.GetId()+"]")))
}

func (a *app) printDecision(d *clickv1.Decision, at time.Time) {
	a.printf("%s\n", printable(findingLine(at.Local().Format(time.DateTime), d.GetDetector(), "", "", decisionText(d)+" ["+d.GetFinding()+"]")))
}

// subjectText says whom a finding is about.
func subjectText(s *clickv1.Subject) string {
	switch s := s.GetSubject().(type) {
	case *clickv1.Subject_Prefix:
		return s.Prefix
	case *clickv1.Subject_UserAgent:
		return fmt.Sprintf("%q", s.UserAgent)
	case *clickv1.Subject_Affiliate:
		return "affiliate " + s.Affiliate
	case *clickv1.Subject_Asn:
		return fmt.Sprintf("AS%d", s.Asn)
	}
	return "nobody"
}

// verdictTexts say what became of a finding.
var verdictTexts = map[clickv1.Verdict]string{
	clickv1.Verdict_VERDICT_BLOCKED:      "blocked",
	clickv1.Verdict_VERDICT_FINDING_ONLY: "not blocked: the policy wants only findings",
	clickv1.Verdict_VERDICT_NOT_SURE:     "not blocked: it is less sure than the policy asks for",
	clickv1.Verdict_VERDICT_ALLOWED:      "not blocked: it is on a list of what is never blocked",
	clickv1.Verdict_VERDICT_TOO_WIDE:     "not blocked: the prefix is wider than the policy allows",
	clickv1.Verdict_VERDICT_NO_BUDGET:    "not blocked: the hour's blocks are used up",
	clickv1.Verdict_VERDICT_OFF:          "not blocked: everything is switched off",
	clickv1.Verdict_VERDICT_FAILED:       "not blocked: the control plane did not take it",
	clickv1.Verdict_VERDICT_STANDS:       "blocked already",
}

func decisionText(d *clickv1.Decision) string {
	text := first(verdictTexts[d.GetVerdict()], d.GetVerdict().String())
	if d.GetBlock() != "" && (d.GetVerdict() == clickv1.Verdict_VERDICT_BLOCKED || d.GetVerdict() == clickv1.Verdict_VERDICT_STANDS) {
		text += " by " + subject(d.GetBlock())
	}
	if d.GetExpireTime() != nil {
		text += " until " + d.GetExpireTime().AsTime().Local().Format(time.DateTime)
	}
	if d.GetReason() != "" {
		text += " (" + d.GetReason() + ")"
	}
	return text
}
