package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

// buildVersion is the version of the module, or the commit that it was built
// from.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of affctl and of the fleet",
		Long:    `Show the version of affctl, and of what the control plane holds if it answers.`,
		Example: "  affctl version", Args: argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.printf("affctl   %s (%s %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			fleet, err := a.fleet()
			if err != nil {
				return err
			}
			resp, err := fleet.ListNodes(cmd.Context(), &adminv1.ListNodesRequest{})
			if err != nil {
				a.printf("control  %s: %s\n", a.target, describe(err).lines[0])
				return nil
			}
			a.printf("control  %s: version %d, epoch %016x\n", a.target, resp.GetHead().GetRevision(), resp.GetHead().GetEpoch())
			builds := map[string]int64{}
			var order []string
			for _, n := range resp.GetNodes() {
				if builds[n.GetBuild()]++; builds[n.GetBuild()] == 1 {
					order = append(order, n.GetBuild())
				}
			}
			for _, build := range order {
				a.printf("nodes    %s: %s\n", first(printable(build), "unknown"), fmt.Sprint(count(builds[build], "node")))
			}
			return nil
		},
	}
}
