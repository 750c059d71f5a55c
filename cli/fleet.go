package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func newFleet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "fleet", Short: "See what the fleet holds back, and decide about it",
		Example: "  affctl fleet status\n  affctl fleet release --version 4711\n  affctl fleet new-epoch",
		RunE:    group, Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newFleetStatus(a), newFleetRelease(a), newFleetEpoch(a))
	return cmd
}

func newFleetStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show the replicas of the control plane, and what is held back",
		Long: `Show the replicas of the control plane. VERSION is what a replica serves, ETCD
the revision up to which it knows everything, AUDIT how long ago it found that
it holds what etcd holds. What has to be looked at follows, with the cure.`,
		Example: "  affctl fleet status\n  affctl fleet status -o json",
		Args:    argCount(0, 0),
	}
	var out format
	out.addTo(cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		fleet, err := a.fleet()
		if err != nil {
			return err
		}
		resp, err := fleet.GetStatus(cmd.Context(), &adminv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		switch out.value {
		case "json":
			text, err := protoJSON(resp)
			a.printf("%s", text)
			return err
		case "yaml":
			text, err := protoYAML(resp)
			a.printf("%s", text)
			return err
		}
		var b strings.Builder
		a.fleetStatus(&b, resp)
		a.printf("%s", b.String())
		return nil
	}
	return cmd
}

// fleetStatus writes the status for people.
func (a *app) fleetStatus(w *strings.Builder, resp *adminv1.GetStatusResponse) {
	t := a.table("REPLICA", "VERSION", "ETCD", "NODES", "LINKS", "SIZE", "AUDIT", "STATE")
	for _, header := range []string{"VERSION", "ETCD", "NODES", "LINKS", "SIZE", "AUDIT"} {
		t.right[header] = true
	}
	for _, r := range resp.GetReplicas() {
		if r.GetHead() == nil && r.GetBuild() == "" { // all that is known of it is its alarm
			t.row(r.GetReplica(), "-", "-", "-", "-", "-", "-", "does not answer")
			continue
		}
		state, audit := "follows etcd", "-"
		switch {
		case r.GetHeldBack() != nil:
			state = fmt.Sprintf("holds back %d", r.GetHeldBack().GetVersion().GetRevision())
		case !r.GetFollowing():
			state = "without etcd"
		}
		if at := r.GetAuditTime(); at != nil {
			audit = age(a.now().Sub(at.AsTime()))
		}
		t.row(r.GetReplica(), versionCell(r.GetHead()), fmt.Sprint(r.GetSeenRevision()), thousands(r.GetNodes()), thousands(r.GetLinks()),
			size(uint64(r.GetBytes())), audit, state)
	}
	t.write(w, t.lineWidth())
	for _, r := range resp.GetReplicas() {
		if h := r.GetHeldBack(); h != nil {
			fmt.Fprintf(w, "%s serves %s links, and %s with the %s it holds back for %s\n", printable(r.GetReplica()), thousands(h.GetLinksBefore()),
				thousands(h.GetLinksAfter()), count(h.GetRevisions(), "revision"), age(a.now().Sub(h.GetSince().AsTime())))
		}
		if n := r.GetAuditMismatches(); n > 0 {
			fmt.Fprintf(w, "%s held something else than etcd %s, and read it again\n", printable(r.GetReplica()), count(n, "time"))
		}
	}
	a.alarms(w, resp.GetAlarms())
}

// alarms writes what an operator has to look at, a line each.
func (a *app) alarms(w io.Writer, alarms []string) {
	for _, alarm := range alarms {
		fmt.Fprintf(w, "%s %s\n", a.paint(a.stdout, red, "alarm:"), printable(alarm))
	}
}

func newFleetRelease(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "release --version VERSION", Short: "Let a version pass that is held back",
		Long: `Let a version pass that the guards of the control plane or of nodes hold back,
and all versions before it. Look at what was written first: affctl fleet status
says how many links it removes.`,
		Example: "  affctl fleet release --version 4711 --wait",
		Args:    argCount(0, 0), DisableFlagsInUseLine: true,
	}
	var version int64
	var wait waiting
	cmd.Flags().Int64Var(&version, "version", 0, "the `VERSION` up to which all is released")
	wait.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if version <= 0 {
			return usagef(`see what is held back with "affctl fleet status"`, "--version is missing")
		}
		fleet, err := a.fleet()
		if err != nil {
			return err
		}
		resp, err := fleet.Release(cmd.Context(), &adminv1.ReleaseRequest{Version: &linkv1.Version{Revision: version}})
		if err != nil {
			return err
		}
		if resp.GetHeldBack() {
			a.printf("released up to version %d\n", resp.GetVersion().GetRevision())
		} else {
			a.printf("released up to version %d: the control plane held nothing back, nodes may have\n", resp.GetVersion().GetRevision())
		}
		return a.wait(cmd.Context(), &wait, resp.GetVersion())
	}
	return cmd
}

func newFleetEpoch(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "new-epoch", Short: "Serve an etcd that was restored from a backup",
		Long: `Begin a new epoch: every replica reads etcd anew, and every node takes what is
there now, whatever it served before. For after a restore of etcd from a backup:
what was written since the backup is gone, and until then nodes refuse to go
back to before it. An etcd that was set up anew has lost the epoch itself: name
the one that the nodes hold with --adopt.`,
		Example: "  affctl fleet new-epoch\n  affctl fleet new-epoch --yes --adopt 5f3c0d9a1b2e4f60",
		Args:    argCount(0, 0),
	}
	var yes bool
	var adopt []string
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringArrayVar(&adopt, "adopt", nil, "also take over nodes of this `EPOCH`; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		req := &adminv1.NewEpochRequest{}
		for _, text := range adopt {
			epoch, err := strconv.ParseUint(text, 16, 64)
			if err != nil || epoch == 0 {
				return usagef("", "--adopt %q is not an epoch: 16 hexadecimal digits, as in a node's log", text)
			}
			req.Adopt = append(req.Adopt, epoch)
		}
		fleet, err := a.fleet()
		if err != nil {
			return err
		}
		status, err := fleet.GetStatus(cmd.Context(), &adminv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		for _, r := range status.GetReplicas() {
			if head := r.GetHead(); head != nil {
				req.Current = head.GetEpoch()
			}
		}
		if !yes {
			a.alarms(a.stderr, status.GetAlarms())
			if err := a.confirm("Make every node serve what etcd holds now, and nothing else?", `"affctl fleet status"`); err != nil {
				return err
			}
		}
		resp, err := fleet.NewEpoch(cmd.Context(), req)
		if err != nil {
			return err
		}
		a.printf("epoch %016x begins at version %d\n", resp.GetVersion().GetEpoch(), resp.GetVersion().GetRevision())
		return nil
	}
	return cmd
}
