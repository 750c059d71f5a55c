package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func newNodes(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "nodes", Short: "Show the nodes and what they serve",
		Long: `Show the nodes that are connected, and what they serve. VERSION is what a node
serves, LAG how far that is behind, HASH whether it holds what the control plane
does at that version, SPOOL how many clicks are on their way, UNSERVED how many
resources it holds and cannot serve. What it last rejected is told below, and
which replicas of the control plane do not reach etcd, and which do not answer:
the nodes of these are not listed.`,
		Example: "  affctl nodes\n  affctl nodes --watch\n  affctl nodes --region eu -o json",
		Args:    argCount(0, 0),
	}
	var region string
	var watch bool
	var interval time.Duration
	var out format
	cmd.Flags().StringVar(&region, "region", "", "only those of this `REGION`")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on and refresh in place")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between refreshes; at least 100ms")
	out.addTo(cmd, "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if watch {
			return a.watchNodes(cmd.Context(), region, interval, out.value)
		}
		fleet, err := a.fleet()
		if err != nil {
			return err
		}
		resp, err := fleet.ListNodes(cmd.Context(), &adminv1.ListNodesRequest{Region: region})
		if err != nil {
			return err
		}
		text, err := a.nodesText(resp, region, out.value)
		if err != nil {
			return err
		}
		a.printf("%s", text)
		if out.value == "name" {
			a.alarms(a.stderr, resp.GetAlarms()) // names may be missing
		}
		return nil
	}
	return cmd
}

// watchNodes prints the nodes again and again: over each other on a terminal.
func (a *app) watchNodes(ctx context.Context, region string, interval time.Duration, form string) error {
	const fastest = 100 * time.Millisecond
	if interval < fastest {
		return usagef("", "--interval must be at least %s", fastest)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fleet, err := a.fleet()
	if err != nil {
		return err
	}
	stream, err := fleet.WatchNodes(ctx, &adminv1.WatchNodesRequest{Region: region, Interval: durationpb.New(interval)})
	if err != nil {
		return err
	}
	inPlace := terminal(a.stdout) && form == "table"
	updates := make(chan *adminv1.WatchNodesResponse)
	ended := make(chan error, 1)
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case updates <- resp:
			case <-ctx.Done():
			}
		}
	}()
	// The server speaks when something changes; ages change all the time.
	var tick <-chan time.Time
	if inPlace {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	return a.refreshNodes(ctx, updates, tick, ended, region, form, inPlace)
}

// refreshNodes prints what comes, until it ends. Its events: a list of nodes,
// time to print the last one again, the end of the stream.
func (a *app) refreshNodes(ctx context.Context, updates <-chan *adminv1.WatchNodesResponse, tick <-chan time.Time, ended <-chan error, region, form string, inPlace bool) error {
	var last *adminv1.WatchNodesResponse
	lines := 0
	for {
		select {
		case last = <-updates:
		case <-tick:
		case err := <-ended:
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the user has seen enough
			}
			return err
		}
		if last == nil {
			continue
		}
		text, err := a.nodesText(&adminv1.ListNodesResponse{Nodes: last.GetNodes(), Head: last.GetHead(), Alarms: last.GetAlarms()}, region, form)
		if err != nil {
			return err
		}
		if inPlace {
			text, lines = a.overwrite(text, beneath(text, last.GetNodes()), lines)
		}
		a.printf("%s", text)
		if err := a.out.Flush(); err != nil {
			return err
		}
	}
}

// beneath is how many lines say beneath the table what is wrong.
func beneath(text string, nodes []*adminv1.Node) int {
	return strings.Count(text, "\n") - 1 - len(nodes)
}

// overwrite makes text replace the lines above the cursor, and no larger than
// the screen: a line that is wider would be several rows of it. What does not fit
// is left out before the last lines, as far as these take half of the screen.
func (a *app) overwrite(text string, last, above int) (string, int) {
	columns, rows := a.size()
	all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(all) >= rows {
		shown := max(rows-2, 0)
		last = min(max(last, 0), shown/2)
		more := fmt.Sprintf("and %d more lines", len(all)-shown)
		all = slices.Concat(all[:shown-last], []string{more}, all[len(all)-last:])
	}
	up, clearLine, clearRest := "", "", ""
	if above > 0 { // line by line: of a screen that is cleared whole, some terminals keep a copy
		up, clearLine, clearRest = fmt.Sprintf("\x1b[%dA", above), "\x1b[K", "\x1b[J"
	}
	for i, line := range all {
		all[i] = clearLine + clip(line, columns) + "\n"
	}
	return up + strings.Join(all, "") + clearRest, len(all)
}

// nodesText is a list of nodes, of a region if one is asked for, in a format.
func (a *app) nodesText(resp *adminv1.ListNodesResponse, region, form string) (string, error) {
	var b strings.Builder
	switch form {
	case "name":
		for _, n := range resp.GetNodes() {
			fmt.Fprintln(&b, n.GetName())
		}
		return b.String(), nil
	case "json":
		text, err := protoJSON(resp)
		return string(text), err
	case "yaml":
		text, err := protoYAML(resp)
		return string(text), err
	}
	if len(resp.GetNodes()) == 0 {
		where := ""
		if region != "" {
			where = " in region " + region
		}
		fmt.Fprintf(&b, "no nodes are connected%s\n", where)
		a.alarms(&b, resp.GetAlarms())
		return b.String(), nil
	}
	t := a.table("NODE", "REGION", "VERSION", "LAG", "HASH", "LINKS", "REQ/S", "SPOOL", "UNSERVED", "SINCE")
	for _, header := range []string{"VERSION", "LAG", "LINKS", "REQ/S", "SPOOL", "UNSERVED", "SINCE"} {
		t.right[header] = true
	}
	for _, n := range resp.GetNodes() {
		t.row(n.GetName(), orDash(n.GetRegion()), versionCell(n.GetVersion()), lagCell(n), hashCell(n, resp.GetNodes()), thousands(n.GetLinks()),
			thousands(int64(math.Round(n.GetRequestsPerSecond()))), thousands(n.GetSpoolClicks()), thousands(n.GetUnservedEntries()), age(a.now().Sub(n.GetConnectTime().AsTime())))
	}
	t.write(&b, t.lineWidth())
	a.nodeTroubles(&b, resp)
	return b.String(), nil
}

// nodeTroubles says what is wrong with nodes, a line each.
func (a *app) nodeTroubles(w io.Writer, resp *adminv1.ListNodesResponse) {
	for _, n := range resp.GetNodes() {
		name := a.paint(a.stdout, amber, printable(n.GetName())+":")
		if !n.GetSetHashMatch() && n.GetVersion().GetRevision() > 0 && (proto.Equal(n.GetVersion(), resp.GetHead()) || stillKnown(n, resp.GetNodes())) {
			fmt.Fprintf(w, "%s holds something else than the control plane at the same version\n", name)
		}
		if reason := n.GetLastRejection(); reason != "" {
			fmt.Fprintf(w, "%s rejected an update: %s\n", name, printable(reason))
		}
		if down := n.GetTakenDownRevision(); down > 0 {
			fmt.Fprintf(w, "%s refuses what was taken down up to version %d already\n", name, down)
		}
	}
	a.alarms(w, resp.GetAlarms())
}

// hashCell says whether a node holds what the control plane does; "-" when the
// control plane may not know what that was any more.
func hashCell(n *adminv1.Node, all []*adminv1.Node) string {
	switch {
	case n.GetSetHashMatch():
		return "ok"
	case n.GetVersion().GetRevision() > 0 && (n.GetLagRevisions() == 0 || stillKnown(n, all)):
		return "differs"
	}
	return "-"
}

// stillKnown says whether a node's replica knows what was held at the node's
// version: another of its nodes matches that.
func stillKnown(n *adminv1.Node, all []*adminv1.Node) bool {
	return slices.ContainsFunc(all, func(other *adminv1.Node) bool {
		return other.GetSetHashMatch() && other.GetReplica() == n.GetReplica() && proto.Equal(other.GetVersion(), n.GetVersion())
	})
}

func versionCell(v *linkv1.Version) string {
	if v.GetRevision() == 0 {
		return "-"
	}
	return fmt.Sprint(v.GetRevision())
}

// lagCell is 0, or how many changes and since when.
func lagCell(n *adminv1.Node) string {
	if n.GetLagRevisions() == 0 {
		return "0"
	}
	if d := n.GetLag().AsDuration(); d > 0 {
		return fmt.Sprintf("%s (%s)", thousands(n.GetLagRevisions()), age(d))
	}
	return thousands(n.GetLagRevisions())
}

// age is a duration in its largest unit, as people say it: 90s, 12m, 5h, 3d.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", max(0, d.Milliseconds()))
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
