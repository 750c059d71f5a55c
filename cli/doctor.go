package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

func newDoctor(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check the fleet for what is unsafe",
		Long: `Check the control plane, the nodes, NATS, the stream of clicks and what is done
about fraud. What is wrong or unsafe is said in a line each, with what it can
cost; then the exit code is 1. What cannot be found out is said too, and is no
fault.

How often NATS writes to its disk is known to its monitoring port, which is
looked for at port 8222 of the server unless --monitor names it.`,
		Example: "  affctl doctor\n  affctl doctor --monitor http://nats-1.example.com:8222 -o json",
		Args:    argCount(0, 0),
	}
	d := &doctor{a: a}
	var out format
	cmd.Flags().StringVar(&d.monitor, "monitor", "", "`URL` of the monitoring of NATS")
	out.addTo(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if u, err := url.Parse(d.monitor); d.monitor != "" && (err != nil || u.Host == "") {
			return usagef("it looks like http://nats-1.example.com:8222", "--monitor %s is no URL", d.monitor)
		}
		if _, err := a.endpoints(); err != nil {
			return err
		}
		if d.control(cmd.Context()) {
			d.policy(cmd.Context())
		} else {
			d.say("fraud", levelUnknown, "whether the kill switch is pulled: only the control plane knows")
		}
		d.clicks(cmd.Context())
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		return d.print(out.value)
	}
	return cmd
}

// level is what a check came to.
type level string

const (
	levelOK      level = "ok"
	levelUnknown level = "unknown"
	levelWarning level = "warning" // it works, and can cost something
	levelWrong   level = "wrong"   // it does not work
)

// check is one line of the doctor's.
type check struct {
	Part  string `json:"part"`
	Level level  `json:"level"`
	Text  string `json:"text"`
}

// doctor is one run of affctl doctor.
type doctor struct {
	a       *app
	monitor string
	checks  []check
}

func (d *doctor) say(part string, level level, format string, args ...any) {
	d.checks = append(d.checks, check{part, level, fmt.Sprintf(format, args...)})
}

// control checks the control plane and what it knows of the nodes, and says whether
// it answers.
func (d *doctor) control(ctx context.Context) (answers bool) {
	fleet, err := d.a.fleet()
	if err != nil {
		d.say("control", levelWrong, "%s", err)
		return false
	}
	resp, err := fleet.ListNodes(ctx, &adminv1.ListNodesRequest{})
	if err != nil {
		d.say("control", levelWrong, "%s: nothing can be written; nodes go on with what they have", describe(err).lines[0])
		return false
	}
	d.say("control", levelOK, "%s holds version %d", d.a.target, resp.GetHead().GetRevision())
	for _, alarm := range resp.GetAlarms() {
		d.say("control", levelWarning, "%s", alarm)
	}
	if len(resp.GetNodes()) == 0 {
		d.say("nodes", levelWarning, "no node is connected: changes reach nobody, and nobody may answer redirects")
	}
	sick := 0
	for _, n := range resp.GetNodes() {
		if text := nodeTrouble(n, resp); text != "" {
			sick++
			d.say("nodes", levelWarning, "%s %s", n.GetName(), text)
		}
	}
	if all := len(resp.GetNodes()); all > 0 && sick == 0 {
		d.say("nodes", levelOK, "%s serve what the control plane holds", count(int64(all), "node"))
	}
	return true
}

// manyClicks is more than waits in a spool when all is well, even at 100,000
// redirects a second.
const manyClicks = 100_000

// nodeTrouble says what is wrong with a node.
func nodeTrouble(n *adminv1.Node, resp *adminv1.ListNodesResponse) string {
	switch {
	case n.GetLastRejection() != "" && n.GetLagRevisions() > 0: // else it has taken what followed
		return "rejected an update, and serves what it had: " + n.GetLastRejection()
	case !n.GetSetHashMatch() && n.GetVersion().GetRevision() > 0 && proto.Equal(n.GetVersion(), resp.GetHead()):
		return "holds something else than the control plane at the same version: it may send people to wrong places (restart it)"
	case n.GetLag().AsDuration() > 10*time.Second:
		return fmt.Sprintf("has been behind for %s: it serves old links", age(n.GetLag().AsDuration()))
	case n.GetUnservedEntries() > 0:
		return fmt.Sprintf("cannot serve %s that it holds: they are of a later release than the node, or bad; see its log", count(n.GetUnservedEntries(), "resource"))
	case n.GetSpoolClicks() > manyClicks:
		return fmt.Sprintf("holds %s clicks that NATS has not taken: when its spool is full, clicks are dropped", thousands(n.GetSpoolClicks()))
	}
	return ""
}

// clicks checks NATS and the stream.
func (d *doctor) clicks(ctx context.Context) {
	conn, js, err := d.a.jetStream(ctx)
	if err != nil {
		text := err.Error()
		if _, ok := errors.AsType[*unreachable](err); ok {
			text += ": if nodes do not reach it either, clicks stay in their spools, and are dropped when these are full"
		}
		d.say("NATS", levelWrong, "%s", text)
		return
	}
	defer conn.Close()
	d.say("NATS", levelOK, "%s, nats-server %s, %s known", clickstream.RedactURLs(conn.ConnectedUrl()), conn.ConnectedServerVersion(), count(int64(len(conn.Servers())), "server"))
	info, err := d.a.clickStream(ctx, js)
	if err != nil {
		d.say("stream", levelWrong, "%s: clicks stay in the spools of the nodes", describe(err).lines[0])
		return
	}
	d.stream(conn, info)
	d.sync(ctx, conn, info.Config.Replicas)
	d.consumers(ctx, js)
	d.findings(ctx, js)
}

// stream checks the settings of the stream, and how full it is.
func (d *doctor) stream(conn *nats.Conn, info *jetstream.StreamInfo) {
	c, s := &info.Config, &info.State
	text := fmt.Sprintf("%s holds %s in %s", c.Name, count(int64(s.Msgs), "message"), size(s.Bytes))
	if c.MaxBytes > 0 {
		text += fmt.Sprintf(" of %s (%.0f %%)", size(uint64(c.MaxBytes)), 100*float64(s.Bytes)/float64(c.MaxBytes))
	}
	text += ", " + count(int64(max(1, c.Replicas)), "replica")
	if c.MaxAge > 0 {
		text += ", for " + c.MaxAge.String()
	}
	d.say("stream", levelOK, "%s", text)
	for _, line := range clickstream.CheckStream(*c, len(conn.Servers())) {
		d.say("stream", levelWarning, "%s", line)
	}
	if c.MaxBytes > 0 && s.Bytes > uint64(c.MaxBytes)/5*4 {
		d.say("stream", levelWarning, "the stream is nearly full: then it refuses clicks, they stay in the spools, and are dropped when these are full (nats stream edit --max-bytes, or --max-age)")
	}
	if c.MaxMsgs > 0 && s.Msgs > uint64(c.MaxMsgs)/5*4 {
		d.say("stream", levelWarning, "the stream has nearly as many messages as it may have: then it refuses clicks (nats stream edit --max-msgs -1)")
	}
	if info.Cluster != nil {
		for _, peer := range info.Cluster.Replicas {
			if peer.Offline || !peer.Current {
				d.say("stream", levelWarning, "its replica on %s is %s: losing another server can stop the stream or lose clicks", peer.Name, map[bool]string{true: "offline", false: "behind"}[peer.Offline])
			}
		}
	}
}

// consumers tells how far those that read are behind.
func (d *doctor) consumers(ctx context.Context, js jetstream.JetStream) {
	ctx, cancel := d.a.limit(ctx)
	defer cancel()
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		d.say("consumers", levelUnknown, "%s", err)
		return
	}
	var lines []string
	all := stream.ListConsumers(ctx)
	for c := range all.Info() {
		if c.Config.Durable != "" {
			lines = append(lines, fmt.Sprintf("%s is %s behind", c.Name, count(int64(c.NumPending)+int64(c.NumAckPending), "message")))
		}
	}
	switch {
	case all.Err() != nil:
		d.say("consumers", levelUnknown, "%s", all.Err())
	case len(lines) > 0:
		d.say("consumers", levelOK, "%s", strings.Join(lines, ", "))
	}
}

// varz is what the monitoring of NATS says, as far as it matters here.
type varz struct {
	Name      string `json:"server_name"`
	JetStream struct {
		Config *struct {
			SyncInterval time.Duration `json:"sync_interval"`
			SyncAlways   bool          `json:"sync_always"`
		} `json:"config"`
	} `json:"jetstream"`
}

// sync checks how often the server writes to its disk.
func (d *doctor) sync(ctx context.Context, conn *nats.Conn, replicas int) {
	at := d.monitor
	if at == "" {
		host, _, err := net.SplitHostPort(conn.ConnectedAddr())
		if err != nil {
			host = conn.ConnectedAddr()
		}
		at = "http://" + net.JoinHostPort(host, "8222")
	}
	v, err := readVarz(ctx, strings.TrimRight(at, "/")+"/varz")
	switch {
	case err != nil:
		d.say("disk", levelUnknown, "how often NATS writes to its disk: no monitoring at %s (see --monitor)", at)
		return
	case v.JetStream.Config == nil:
		d.say("disk", levelUnknown, "how often NATS writes to its disk: %s has no JetStream", at)
		return
	}
	c := v.JetStream.Config
	lines := clickstream.CheckSync(c.SyncInterval, c.SyncAlways, replicas)
	for _, line := range lines {
		d.say("disk", levelWarning, "%s", line)
	}
	if len(lines) > 0 {
		return
	}
	how := fmt.Sprintf("every %s; what a power cut takes, nodes publish again, if their --click-level is not memory and their --click-keep is well above that, as by default (%s)",
		c.SyncInterval, clickstream.NodesKeep)
	if c.SyncAlways {
		how = "before it acknowledges"
	}
	d.say("disk", levelOK, "NATS writes to its disk %s", how)
}

func readVarz(ctx context.Context, address string) (*varz, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	v := new(varz)
	return v, json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(v)
}

func (d *doctor) print(form string) error {
	sick := false
	for _, c := range d.checks {
		sick = sick || c.Level == levelWarning || c.Level == levelWrong
	}
	if form == "json" {
		text, err := json.MarshalIndent(map[string]any{"healthy": !sick, "checks": d.checks}, "", "  ")
		if err != nil {
			return err
		}
		d.a.printf("%s\n", text)
	} else {
		columns, _ := d.a.size()
		colors := map[level]string{levelOK: green, levelUnknown: "", levelWarning: amber, levelWrong: red}
		for _, c := range d.checks {
			word := d.a.paint(d.a.stdout, colors[c.Level], string(c.Level)) + strings.Repeat(" ", 8-len(c.Level))
			d.a.printf("%-10s %s %s\n", c.Part, word, wrap(printable(c.Text), max(40, columns)-20, 20))
		}
	}
	if sick {
		return silent(codeError)
	}
	return nil
}

// wrap breaks text into lines of a width, those after the first indented.
func wrap(text string, width, indent int) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case at+1+len([]rune(word)) > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len([]rune(word))
	}
	return b.String()
}

// size is a number of bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1023.5 && unit < len(units)-1 {
		f, unit = f/1024, unit+1
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[unit])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[unit])
}
