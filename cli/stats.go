package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/axiomhq/hyperloglog"
	"github.com/spf13/cobra"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// dimensions are what clicks are counted by.
var dimensions = []struct {
	name string
	key  func(*clickstream.Click) string
}{
	{"link", func(c *clickstream.Click) string { return c.Link }},
	{"affiliate", func(c *clickstream.Click) string { return c.Affiliate }},
	{"country", func(c *clickstream.Click) string { return c.Country }},
	{"hour", func(c *clickstream.Click) string { return c.Time.Local().Format("2006-01-02 15:00") }},
}

func newStats(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stats", Short: "Count clicks and visitors",
		Long: `Count the clicks that the stream took between two times: by link, by affiliate,
by country and by hour (local time). Each click counts once.

VISITORS are different pairs of address and user agent, estimated to about 2 %.
Nodes record the network of an address by default, so that people behind one who
use the same browser are one visitor. Where they record hashes, a visitor counts
anew each day (UTC) and, unless they share --click-hash-key, on each node.
LABELLED is the share of clicks with at least one label, such as those of bots.`,
		Example: "  affctl stats\n  affctl stats --from 24h --by hour\n  affctl stats --from 2026-11-01 --to 2026-12-01 --by affiliate --top 50 -o json",
		Args:    argCount(0, 0),
	}
	s := &stats{a: a, top: 10}
	var out format
	var names []string
	for _, d := range dimensions {
		names = append(names, d.name)
	}
	s.window.addTo(cmd, a, "1h")
	cmd.Flags().StringSliceVar(&s.by, "by", nil, "only by these `NAMES`: "+strings.Join(names, ", "))
	must(cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
	cmd.Flags().IntVar(&s.top, "top", s.top, "at most `N` rows of each, the most clicks first; of hours at least 24")
	s.chosen.addTo(cmd)
	out.addTo(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.check(names); err != nil {
			return err
		}
		if err := s.run(cmd.Context()); err != nil {
			return err
		}
		if out.value == "json" {
			return s.json()
		}
		return s.print()
	}
	return cmd
}

// stats is one run of affctl stats.
type stats struct {
	a      *app
	window window
	chosen chosen
	by     []string
	top    int

	total  *tally
	groups map[string]map[string]*tally
	// missing clicks are in the window, as clicks verify counts them.
	missing uint64
	// The visitor's key, before it is hashed.
	visitor []byte
}

// tally is what is known about some clicks.
type tally struct {
	clicks, labelled uint64
	visitors         *hyperloglog.Sketch
}

const (
	// maxKeys bounds the memory of each dimension: a sketch takes up to 4 KiB. What comes
	// later is counted under others.
	maxKeys = 50_000
	others  = "(others)"
)

func newTally(precision uint8) *tally {
	sketch, err := hyperloglog.NewSketch(precision, true)
	must(err) // only for a precision that is none
	return &tally{visitors: sketch}
}

func (s *stats) check(names []string) error {
	for _, by := range s.by {
		if !slices.Contains(names, by) {
			return usagef("it is one of "+strings.Join(names, ", "), "--by %s: there is no such thing to count by", by)
		}
	}
	if len(s.by) == 0 {
		s.by = names
	}
	if s.top < 1 {
		return usagef("", "--top must be at least 1")
	}
	if err := s.chosen.check(); err != nil {
		return err
	}
	return s.window.check(s.a.now())
}

func (s *stats) run(ctx context.Context) error {
	conn, js, err := s.a.jetStream(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	bar, err := s.a.reading(ctx, js, "counting", &s.window, s.chosen.regions)
	if err != nil {
		return err
	}
	defer bar.end()
	s.total, s.groups = newTally(14), map[string]map[string]*tally{}
	for _, by := range s.by {
		s.groups[by] = map[string]*tally{}
	}
	options := s.window.options(s.a, bar.now)
	options.Regions, options.Filter, options.Progress = s.chosen.regions, s.chosen.filter, bar.at
	options.Audit = &clickstream.Audit{Whole: bar.whole}
	err = consumeAudited(ctx, js, options, bar.now, func(_ context.Context, b *clickstream.Batch) error {
		for i := range b.Clicks {
			s.add(&b.Clicks[i])
		}
		return nil
	})
	for _, account := range options.Audit.Accounts() {
		if account.Undecided() { // and may be missing
			for _, r := range account.Missing {
				s.missing += r.Len()
			}
		}
		s.missing += uint64(max(0, account.Difference()))
	}
	return err
}

func (s *stats) add(c *clickstream.Click) {
	s.visitor = append(append(append(s.visitor[:0], c.Address.String()...), 0), c.UserAgent...)
	s.total.add(c, s.visitor)
	for _, d := range dimensions {
		group, ok := s.groups[d.name]
		if !ok {
			continue
		}
		key := d.key(c)
		in := group[key]
		if in == nil {
			if len(group) >= maxKeys {
				key = others
			}
			if in = group[key]; in == nil {
				in = newTally(12)
				group[strings.Clone(key)] = in
			}
		}
		in.add(c, s.visitor)
	}
}

func (n *tally) add(c *clickstream.Click, visitor []byte) {
	n.clicks++
	if len(c.Labels) > 0 {
		n.labelled++
	}
	n.visitors.Insert(visitor)
}

func (n *tally) share() float64 { return float64(n.labelled) / float64(max(1, n.clicks)) }

// ranked are the keys of a group as they are shown: hours in their order, the
// latest ones, and others by clicks.
func (s *stats) ranked(by string) (keys []string) {
	group := s.groups[by]
	keys = slices.Collect(maps.Keys(group))
	if by == "hour" {
		slices.Sort(keys)
		return keys[max(0, len(keys)-max(s.top, 24)):]
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(group[b].clicks, group[a].clicks), cmp.Compare(a, b))
	})
	return keys[:min(s.top, len(keys))]
}

func (s *stats) print() error {
	a, t := s.a, s.total
	a.printf("%s\n%s clicks, about %s visitors, %s labelled\n", &s.window, thousands(int64(t.clicks)),
		thousands(int64(t.visitors.Estimate())), percent(t))
	if s.missing > 0 {
		a.notef("%s %s clicks are missing: affctl clicks verify", a.paint(a.stderr, amber, "warning:"), thousands(int64(s.missing)))
	}
	if t.clicks == 0 {
		return nil
	}
	for _, by := range s.by {
		keys := s.ranked(by)
		a.printf("\n")
		s.bars(by, keys)
		if more := len(s.groups[by]) - len(keys); more > 0 {
			a.printf("and %s more\n", thousands(int64(more)))
		}
	}
	return nil
}

// barWidth is the length of the longest bar.
const barWidth = 16

// bars prints the rows of one dimension in the terminal's width.
func (s *stats) bars(by string, keys []string) {
	columns, _ := s.a.size()
	width := max(12, min(60, columns-barWidth-36))
	most := uint64(1)
	for _, key := range keys {
		most = max(most, s.groups[by][key].clicks)
	}
	line := func(key, clicks, visitors, labelled, bar string) string {
		if n := utf8.RuneCountInString(key); n > width {
			key = string([]rune(key)[:width-1]) + "…"
		}
		pad := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(key)))
		return strings.TrimRight(fmt.Sprintf("%s%s %11s %11s %8s  %s", key, pad, clicks, visitors, labelled, bar), " ")
	}
	s.a.printf("%s\n", s.a.paint(s.a.stdout, bold, line(strings.ToUpper(by), "CLICKS", "VISITORS", "LABELLED", "")))
	for _, key := range keys {
		n := s.groups[by][key]
		name := printable(key)
		if key == "" {
			name = "(none)"
		}
		s.a.printf("%s\n", line(name, thousands(int64(n.clicks)), thousands(int64(n.visitors.Estimate())), percent(n),
			s.a.paint(s.a.stdout, cyan, bar(float64(n.clicks)/float64(most)))))
	}
}

// bar is a part of barWidth, to an eighth of a column.
func bar(part float64) string {
	eighths := int(math.Ceil(part * barWidth * 8))
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return text
}

func percent(n *tally) string { return fmt.Sprintf("%.1f %%", 100*n.share()) }

// statsRow is a tally as JSON.
type statsRow struct {
	Key           *string `json:"key,omitempty"`
	Clicks        uint64  `json:"clicks"`
	Visitors      uint64  `json:"visitors"`
	LabelledShare float64 `json:"labelled_share"`
}

func statsRowOf(key *string, n *tally) statsRow {
	return statsRow{key, n.clicks, n.visitors.Estimate(), math.Round(n.share()*1e4) / 1e4}
}

func (s *stats) json() error {
	out := struct {
		From    *time.Time            `json:"from,omitempty"`
		To      time.Time             `json:"to"`
		Missing uint64                `json:"missing"`
		Total   statsRow              `json:"total"`
		By      map[string][]statsRow `json:"by"`
	}{To: s.window.to.UTC(), Missing: s.missing, Total: statsRowOf(nil, s.total), By: map[string][]statsRow{}}
	if !s.window.from.IsZero() {
		from := s.window.from.UTC()
		out.From = &from
	}
	for _, by := range s.by {
		out.By[by] = []statsRow{}
		for _, key := range s.ranked(by) {
			out.By[by] = append(out.By[by], statsRowOf(&key, s.groups[by][key]))
		}
	}
	text, err := json.MarshalIndent(out, "", "  ")
	s.a.printf("%s\n", text)
	return err
}
