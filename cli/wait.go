package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// waiting are the flags of commands that can wait until nodes serve what they
// wrote.
type waiting struct {
	where   where
	timeout positive
}

// where is the value of --wait: "" (do not wait), "all", a region or a share, "90%".
type where string

func (w *where) String() string { return string(*w) }
func (*where) Type() string     { return "where" }

// Set checks it: once something is written it is too late for a mistake.
func (w *where) Set(text string) error {
	if text == "" {
		return usagef("it is all, a region, or a share such as 90%", "--wait= names no nodes")
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		if n, err := strconv.Atoi(share); err != nil || n < 1 || n > 100 {
			return usagef("", "--wait=%s: a share is 1%% to 100%%", text)
		}
	}
	*w = where(text)
	return nil
}

// positive is a flag's duration that is more than 0.
type positive time.Duration

func (p *positive) String() string { return time.Duration(*p).String() }
func (*positive) Type() string     { return "duration" }

func (p *positive) Set(text string) error {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return err
	case d <= 0:
		return errors.New("it must be more than 0")
	}
	*p = positive(d)
	return nil
}

func (w *waiting) addTo(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&w.where, "wait", "`all|REGION|N%`: wait until all nodes, those of a region, or N% of all serve it")
	flags.Lookup("wait").NoOptDefVal = "all"
	must(cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"all"}, cobra.ShellCompDirectiveNoFileComp)))
	w.timeout = positive(30 * time.Second)
	flags.Var(&w.timeout, "wait-timeout", "how long to wait at most")
}

// region is "" for all.
func (w *waiting) region() string {
	if w.where == "all" || w.percent() > 0 {
		return ""
	}
	return string(w.where)
}

// percent is the share of the nodes that is waited for; 0: all.
func (w *waiting) percent() int32 {
	share, ok := strings.CutSuffix(string(w.where), "%")
	if !ok {
		return 0
	}
	n, _ := strconv.ParseInt(share, 10, 32) // Set has looked at it
	return int32(n)
}

// wait waits, if asked to, until the nodes serve a version.
func (a *app) wait(ctx context.Context, w *waiting, version *linkv1.Version) error {
	if w.where == "" || version.GetRevision() == 0 {
		return nil
	}
	fleet, err := a.fleet()
	if err != nil {
		return err
	}
	_ = a.out.Flush() // the error stays in the writer and comes up at the end
	limited, cancel := context.WithTimeout(ctx, time.Duration(w.timeout))
	defer cancel()
	resp, err := fleet.WaitForVersion(limited, &adminv1.WaitForVersionRequest{
		Version: version, Region: w.region(), Percent: w.percent(), MinNodes: 1,
	})
	switch {
	case err == nil:
		after := "at once"
		if waited := resp.GetWaited().AsDuration().Round(time.Millisecond); waited > 0 {
			after = "after " + waited.String()
		}
		served := count(int64(resp.GetNodes()), "node")
		if lagging := int64(len(resp.GetLagging())); lagging > 0 {
			served = fmt.Sprintf("%s of %s", thousands(int64(resp.GetNodes())-lagging), served)
		}
		a.notef("served by %s %s", served, after)
		return nil
	case status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil, errors.Is(err, context.DeadlineExceeded):
		for _, detail := range status.Convert(err).Details() {
			if counted, ok := detail.(*adminv1.WaitForVersionResponse); ok {
				return w.late(counted)
			}
		}
		return a.behind(ctx, w, version)
	}
	return err
}

// late says what was waited for when time was up, as the control plane has counted
// it: a node may keep to a version that it does not serve, or may serve it at an
// older one after which nothing has changed.
func (w *waiting) late(counted *adminv1.WaitForVersionResponse) error {
	if counted.GetNodes() == 0 && len(counted.GetSilentReplicas()) == 0 {
		return w.nobody()
	}
	var why []string
	if names := counted.GetLagging(); len(names) > 0 {
		why = append(why, "waiting for "+abbreviated(names, most))
	}
	for _, at := range counted.GetSilentReplicas() {
		why = append(why, "replica "+at+" does not answer: its nodes are not counted")
	}
	late := w.notServed()
	if len(why) > 0 {
		late.message += ": " + strings.Join(why, "; ")
	}
	return late
}

// behind says which nodes are at an older version, for when the control plane has
// not said what it waits for.
func (a *app) behind(ctx context.Context, w *waiting, version *linkv1.Version) error {
	late := w.notServed()
	fleet, err := a.fleet()
	if err != nil {
		return errors.Join(late, err)
	}
	resp, err := fleet.ListNodes(ctx, &adminv1.ListNodesRequest{Region: w.region()})
	if err != nil {
		return errors.Join(late, err)
	}
	if len(resp.GetNodes()) == 0 {
		return w.nobody()
	}
	var names []string
	for _, n := range resp.GetNodes() {
		if n.GetVersion().GetRevision() < version.GetRevision() {
			names = append(names, n.GetName()+" ("+n.GetRegion()+")")
		}
	}
	if len(names) > 0 {
		late.message += ": at an older version are " + abbreviated(names, most)
	}
	return late
}

// most is how many names a message has.
const most = 20

// notServed is the error for a wait that was too short.
func (w *waiting) notServed() *failure {
	return &failure{code: codeTimeout, message: fmt.Sprintf("not served everywhere after %s", &w.timeout), hint: `it is written; watch it arrive with "affctl nodes --watch"`}
}

// nobody is the error for a wait without any node.
func (w *waiting) nobody() error {
	none := w.notServed()
	none.message = fmt.Sprintf("not served after %s: no node is connected", &w.timeout)
	if region := w.region(); region != "" {
		none.message += " in region " + region
	}
	return none
}

// abbreviated joins at most n names and counts the others.
func abbreviated(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), len(names)-n)
}

// count is "1 node" or "2,000 nodes".
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return thousands(n) + " " + noun + "s"
}

// thousands groups the digits of a number by commas.
func thousands(n int64) string {
	if n < 0 {
		return "-" + thousands(-n)
	}
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
