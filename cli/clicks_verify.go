package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/dataplane/clickstream"
)

func clicksVerify(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove that no click is missing",
		Long: `Prove that no click is missing. Nodes publish with their clicks how many
redirects they have answered; for each start of each node this must equal the
clicks in the stream and those that the node had to drop, by reason. What is in
the stream twice, as consumers know how to drop, is counted once.

From the beginning of a stream that forgets nothing, each start of a node is
proven from its first click on.

What does not close is listed, and the exit code is 1. A node that was killed
proves what it has published; the rest follows when it starts again.`,
		Example: "  affctl clicks verify\n  affctl clicks verify --from 24h --region eu\n  affctl clicks verify --from 2026-11-01 --to 2026-12-01 -o json",
		Args:    argCount(0, 0),
	}
	var w window
	var c chosen
	var out format
	w.addTo(cmd, a, "")
	c.addRegionTo(cmd)
	out.addTo(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := w.check(a.now()); err != nil {
			return err
		}
		proof, err := a.verify(cmd.Context(), &w, c.regions)
		if err != nil {
			return err
		}
		if err := a.printProof(proof, &w, out.value); err != nil {
			return err
		}
		if !proof.Closes {
			return silent(codeError)
		}
		return nil
	}
	return cmd
}

// proof is what verify found.
type proof struct {
	Closes    bool                  `json:"closes"`
	Accounts  []clickstream.Account `json:"accounts"`
	Malformed []string              `json:"malformed,omitempty"`
}

func (a *app) verify(ctx context.Context, w *window, regions []string) (*proof, error) {
	conn, js, err := a.jetStream(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	bar, err := a.reading(ctx, js, "verifying", w, regions)
	if err != nil {
		return nil, err
	}
	defer bar.end()
	p, options := &proof{}, w.options(a, bar.now)
	options.Regions, options.Audit = regions, &clickstream.Audit{Whole: bar.whole}
	options.Malformed = func(m clickstream.Malformed) {
		if line, within := w.unread(m); within {
			p.Malformed = append(p.Malformed, line)
		} else {
			a.warnf("%s", printable(line))
		}
	}
	options.Progress = bar.at
	if err := consumeAudited(ctx, js, options, bar.now, func(context.Context, *clickstream.Batch) error { return nil }); err != nil {
		return nil, err
	}
	p.Accounts = options.Audit.Accounts()
	p.Closes = len(p.Malformed) == 0 && len(troubles(p.Accounts)) == 0
	return p, nil
}

func (a *app) printProof(p *proof, w *window, form string) error {
	if form == "json" {
		if p.Accounts == nil {
			p.Accounts = []clickstream.Account{}
		}
		text, err := json.MarshalIndent(p, "", "  ")
		a.printf("%s\n", text)
		return err
	}
	if len(p.Accounts) == 0 && len(p.Malformed) == 0 {
		a.printf("no clicks from %s\n", w)
		return nil
	}
	t := a.table("NODE", "BOOT", "ANSWERED", "IN STREAM", "DROPPED", "MISSING", "STATE")
	for _, header := range []string{"ANSWERED", "IN STREAM", "DROPPED", "MISSING"} {
		t.right[header] = true
	}
	var answered, clicks, lost uint64
	for i := range p.Accounts {
		c := &p.Accounts[i]
		t.row(c.Node, c.Boot.String()[:8], thousands(int64(c.Answered)), thousands(int64(c.Clicks)), thousands(int64(c.Lost())),
			thousands(max(0, c.Difference())), state(c))
		answered, clicks, lost = answered+c.Answered, clicks+c.Clicks, lost+c.Lost()
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, line := range dropLines(p.Accounts) {
		a.printf("%s\n", line)
	}
	for _, line := range earlierLines(p.Accounts) {
		a.printf("%s\n", line)
	}
	for _, line := range append(troubles(p.Accounts), p.Malformed...) {
		a.printf("%s %s\n", a.paint(a.stdout, red, "not proven:"), printable(line))
	}
	if p.Closes {
		a.printf("%s %s answered = %s in the stream + %s dropped\n", a.paint(a.stdout, green, "proven:"),
			thousands(int64(answered)), thousands(int64(clicks)), thousands(int64(lost)))
	}
	return nil
}

// state is what is known about the end of a boot.
func state(c *clickstream.Account) string {
	if c.Ended {
		return "ended"
	}
	return "open" // it runs, or was killed
}

// dropLines say what nodes dropped, by reason.
func dropLines(accounts []clickstream.Account) (lines []string) {
	for _, c := range accounts {
		var parts []string
		for _, reason := range slices.Sorted(maps.Keys(c.Dropped)) {
			if n := c.Dropped[reason]; n > 0 {
				parts = append(parts, fmt.Sprintf("%s %s", thousands(int64(n)), strings.ReplaceAll(reason, "_", " ")))
			}
		}
		if len(parts) > 0 {
			lines = append(lines, fmt.Sprintf("dropped: node %s, boot %s: %s", printable(c.Node), c.Boot.String()[:8], strings.Join(parts, ", ")))
		}
	}
	return lines
}

// earlierLines say what nodes counted as dropped within a window, and is from before it.
func earlierLines(accounts []clickstream.Account) (lines []string) {
	for _, c := range accounts {
		if c.Earlier == 0 {
			continue
		}
		line := fmt.Sprintf("from before: node %s, boot %s: %s were counted as dropped by now", printable(c.Node), c.Boot.String()[:8], thousands(int64(c.Earlier)))
		if c.Unsure > 0 {
			line += fmt.Sprintf("; of %s of them nothing was read that tells whether they are in the stream as well", thousands(int64(c.Unsure)))
		}
		lines = append(lines, line)
	}
	return lines
}

// troubles are what does not close in accounts, a line each.
func troubles(accounts []clickstream.Account) (lines []string) {
	for i := range accounts {
		c := &accounts[i]
		who := fmt.Sprintf("node %s, boot %s: ", c.Node, c.Boot.String()[:8])
		if !c.Explained {
			doubt := ""
			if c.Undecided() {
				doubt = "; whether the node counts these as dropped, or others from before or behind, cannot be known"
			}
			for _, r := range c.Missing {
				lines = append(lines, who+fmt.Sprintf("clicks %d to %d (%s) are missing%s", r.From, r.To, thousands(int64(r.Len())), doubt))
			}
		}
		switch d := c.Difference(); {
		case d > 0 && (c.Explained || len(c.Missing) == 0):
			lines = append(lines, who+fmt.Sprintf("%s were answered and are neither in the stream nor counted as dropped", thousands(d)))
		case d < 0:
			lines = append(lines, who+fmt.Sprintf("%s are in the stream and counted as dropped as well", thousands(-d)))
		}
		if c.Open {
			lines = append(lines, who+"its own counts do not add up: answered is not recorded + dropped")
		}
	}
	return lines
}
