package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// tail is one run of clicks tail.
type tail struct {
	a           *app
	chosen      chosen
	since       time.Duration
	limit, seen int
	out         format
	columns     int // of the terminal; 0: lines are not cut
}

// errEnough ends a tail at its limit.
var errEnough = errors.New("enough")

func clicksTail(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "tail", Short: "Print clicks as they come",
		Long: `Print clicks as they come, from now on or from --since ago. A link is chosen by
its key, such as go.example.com/summer; /summer is the one of every host.`,
		Example: "  affctl clicks tail --link go.example.com/summer\n  affctl clicks tail --since 10m --region eu -o json --limit 100",
		Args:    argCount(0, 0),
	}
	t := &tail{a: a}
	t.chosen.addTo(cmd)
	cmd.Flags().DurationVar(&t.since, "since", 0, "begin this long ago")
	cmd.Flags().IntVar(&t.limit, "limit", 0, "end after `N` clicks")
	t.out.addTo(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if t.since < 0 || t.limit < 0 {
			return usagef("", "--since and --limit must not be negative")
		}
		if err := t.chosen.check(); err != nil {
			return err
		}
		return t.run(cmd.Context())
	}
	return cmd
}

func (t *tail) run(ctx context.Context) error {
	conn, js, err := t.a.jetStream(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := t.a.clickStream(ctx, js); err != nil {
		return err
	}
	if terminal(t.a.stdout) {
		t.columns, _ = t.a.size()
	}
	options := clickstream.Options{
		Start: clickstream.Now(), Regions: t.chosen.regions, Filter: t.chosen.filter, Gap: t.gap,
		Log: slog.New(slog.NewTextHandler(t.a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if t.since > 0 {
		options.Start = clickstream.At(t.a.now().Add(-t.since))
	}
	if terminal(t.a.stderr) && t.out.value == "table" {
		t.a.notef("waiting for clicks; Ctrl-C ends")
	}
	err = clickstream.Consume(ctx, js, options, t.batch)
	if errors.Is(err, errEnough) || ctx.Err() != nil {
		return nil
	}
	return err
}

// batch prints a batch.
func (t *tail) batch(_ context.Context, b *clickstream.Batch) error {
	for i := range b.Clicks {
		if err := t.print(&b.Clicks[i]); err != nil {
			return err
		}
		if t.seen++; t.seen == t.limit {
			return errEnough
		}
	}
	return t.a.out.Flush()
}

func (t *tail) print(c *clickstream.Click) error {
	if t.out.value == "json" {
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		t.a.printf("%s\n", text)
		return nil
	}
	if t.seen == 0 {
		t.a.printf("%s\n", t.a.paint(t.a.stdout, bold, clickLine("TIME", "NODE", "CODE", "LINK", "DESTINATION")))
	}
	t.printLine(c)
	return nil
}

// clickLine lines up what fits into its column, and what does not pushes the
// rest aside: nothing is held back to measure it.
func clickLine(at, node, code, key, rest string) string {
	return strings.TrimRight(fmt.Sprintf("%-12s  %-8s  %-4s  %-28s  %s", at, node, code, key, rest), " ")
}

func (t *tail) printLine(c *clickstream.Click) {
	key := c.Link
	if key == "" {
		key = "(" + c.Host + c.Path + ")"
	}
	rest := orDash(c.Destination)
	if c.Outcome != 0 {
		rest += " [" + c.Outcome.String() + "]"
	}
	if c.Affiliate != "" {
		rest += " affiliate=" + c.Affiliate
	}
	if c.Campaign != "" {
		rest += " campaign=" + c.Campaign
	}
	if c.Method == http.MethodHead {
		rest += " HEAD"
	}
	if address := c.Address.String(); address != "" {
		rest += " " + address
	}
	for _, l := range c.Labels {
		rest += " #" + l.Name
	}
	if c.UserAgent != "" {
		rest += " " + c.UserAgent
	}
	line := []rune(printable(clickLine(c.Time.Local().Format("15:04:05.000"), c.Node, fmt.Sprint(c.Status), key, rest)))
	if t.columns > 1 && len(line) > t.columns {
		line = append(line[:t.columns-1], '…')
	}
	t.a.printf("%s\n", string(line))
}

// gap tells of clicks that are missing.
func (t *tail) gap(g clickstream.Gap) {
	switch {
	case g.Filled:
		t.a.notef("node %s: clicks %d to %d came late", printable(g.Node), g.From, g.To)
	case g.Explained:
		t.a.warnf("node %s: clicks %d to %d are lost, as the node says itself", printable(g.Node), g.From, g.To)
	default:
		t.a.warnf("node %s: clicks %d to %d are missing", printable(g.Node), g.From, g.To)
	}
}
