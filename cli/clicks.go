package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/affleet/affleet/cli/internal/document"
	"github.com/affleet/affleet/dataplane/clickstream"
)

func newClicks(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "clicks", Short: "See, export and verify the clicks",
		Long: `See the clicks: every answered redirect is one, published to JetStream. Times
are those at which the stream took them, seconds after the redirect unless NATS
was away.`,
		Example: "  affctl clicks tail --affiliate aff_01 -o json | jq .destination\n  affctl clicks export clicks.parquet --from 2026-11-01 --to 2026-12-01\n  affctl clicks verify --from 24h",
		Args:    cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(clicksTail(a), clicksExport(a), clicksVerify(a))
	return cmd
}

// jetStream connects to NATS; the connection is the caller's to close.
func (a *app) jetStream(ctx context.Context) (*nats.Conn, jetstream.JetStream, error) {
	to, err := a.endpoints()
	if err != nil {
		return nil, nil, err
	}
	d := dialer{ctx: ctx, timeout: time.Duration(a.timeout), connected: make(chan struct{})}
	conn, err := nats.Connect(to.NATS, nats.Name("affctl"), nats.Timeout(d.timeout), nats.MaxReconnects(-1), nats.SetCustomDialer(d), nats.SkipHostLookup())
	close(d.connected)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.As(err, new(*url.Error)): // it tells the secret
		return nil, nil, usagef("it looks like nats://USER:PASSWORD@HOST:PORT, with a % of the password as %25, and a / as %2F", "the URL of NATS cannot be read")
	case err != nil:
		return nil, nil, notConnected(clickstream.RedactURLs(to.NATS), strings.TrimPrefix(err.Error(), "nats: "))
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, js, nil
}

// dialer makes connections that end with ctx until NATS has answered: the client of
// NATS itself waits for its timeout.
type dialer struct {
	ctx       context.Context
	timeout   time.Duration
	connected chan struct{} // closed then
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: d.timeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(d.ctx, func() {
		select {
		case <-d.connected:
		default:
			_ = conn.Close() // whoever reads is told
		}
	})
	return conn, nil
}

// notConnected tells a server that refuses from one that does not answer.
func notConnected(address, reason string) error {
	for _, refusal := range []string{"authorization violation", "authentication expired", "authentication revoked"} {
		if strings.Contains(strings.ToLower(reason), refusal) {
			return &failure{
				code: codeError, message: fmt.Sprintf("NATS at %s refuses: %s", address, reason),
				hint: "give user and password, or a token, in the URL: nats://USER:PASSWORD@HOST:PORT, nats://TOKEN@HOST:PORT",
			}
		}
	}
	return &unreachable{what: "NATS", address: address, flag: "--nats", variable: envNATS, err: errors.New(reason)}
}

// clickStream finds the stream of clicks.
func (a *app) clickStream(ctx context.Context, js jetstream.JetStream) (*jetstream.StreamInfo, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	s, err := js.Stream(ctx, clickstream.StreamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, &failure{code: codeNotFound, message: "there is no stream of clicks (" + clickstream.StreamName + ")", hint: "the first node that connects to this NATS makes it"}
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		return nil, &failure{code: codeError, message: "this NATS server has no JetStream", hint: "start it with -js, or jetstream {} in its configuration"}
	case err != nil:
		return nil, err
	}
	return s.CachedInfo(), nil
}

// chosen are the flags that choose clicks.
type chosen struct {
	regions []string
	filter  clickstream.Filter
}

func (c *chosen) addTo(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&c.filter.Links, "link", nil, "only those of this link, `DOMAIN/PATH`; may be repeated")
	flags.StringArrayVar(&c.filter.Affiliates, "affiliate", nil, "only those of this affiliate `ID`; may be repeated")
	flags.StringArrayVar(&c.filter.Labels, "label", nil, "only those with this label `NAME`; may be repeated")
	c.addRegionTo(cmd)
}

func (c *chosen) addRegionTo(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&c.regions, "region", nil, "only those of this `REGION`; may be repeated")
}

// check completes the links, each of which may be "/path" of every host.
func (c *chosen) check() error {
	for i, text := range c.filter.Links {
		domain, path, err := linkKey(text)
		if err != nil {
			return err
		}
		c.filter.Links[i] = domain + path
	}
	return nil
}

// all says that no click is left out.
func (c *chosen) all() bool {
	return len(c.filter.Links)+len(c.filter.Affiliates)+len(c.filter.Labels) == 0
}

// window are the flags --from and --to.
type window struct {
	from, to time.Time // zero from: the beginning of the stream
	open     bool      // to was not given
}

func (w *window) addTo(cmd *cobra.Command, a *app, from string) {
	help := "begin at this `TIME`, or so long ago"
	if from == "" {
		help += " (the beginning of the stream)"
	}
	cmd.Flags().Var(&when{time: &w.from, now: a.now}, "from", help)
	cmd.Flags().Var(&when{time: &w.to, now: a.now}, "to", "end before this `TIME`, or so long ago (now)")
	cmd.Flags().Lookup("from").DefValue = from
	if from != "" {
		must((&when{time: &w.from, now: a.now}).Set(from))
	}
}

func (w *window) check(now time.Time) error {
	if w.to.IsZero() {
		w.to, w.open = now, true
	}
	switch {
	case w.to.After(now):
		return usagef("", "--to must not be in the future")
	case !w.from.Before(w.to):
		return usagef("", "--from must be before --to")
	}
	return nil
}

// reach ends a window that was to end now at what the clock of the stream shows: what it
// takes from then on has later times, though this clock may be ahead.
func (w *window) reach(now time.Time) error {
	if w.open && w.to.After(now) {
		w.to = now
	}
	if !w.from.Before(w.to) {
		return usagef("", "--from must be before now, and by the clock of NATS it is %s", stamp(now))
	}
	return nil
}

// unread says what cannot be read, and whether that is of the window: it may also lie
// around it.
func (w *window) unread(m clickstream.Malformed) (line string, within bool) {
	line = fmt.Sprintf("message %d on %s: %s", m.Sequence, m.Subject, m.Err)
	if m.Stored.Before(w.from) || !m.Stored.Before(w.to) {
		return line + "; it is not of the window", false
	}
	return line, true
}

// start is where reading begins.
func (w *window) start() clickstream.Start {
	if w.from.IsZero() {
		return clickstream.Beginning()
	}
	return clickstream.At(w.from)
}

// around is how much is read before and behind a window to know which of its
// clicks were there before, and which came late: nodes publish again what is
// that old. Where clicks are missing, consumeAudited reads on.
const around = 10 * time.Minute

// options to read all of a window, and what came late until now by the clock of the stream.
func (w *window) options(a *app, now time.Time) clickstream.Options {
	o := clickstream.Options{
		Start: w.start(), Until: w.to, Trail: max(0, min(around, now.Sub(w.to))),
		Log: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if !w.from.IsZero() {
		o.Lead = around
	}
	return o
}

// consumeAudited consumes with an Audit. Where clicks are missing at its end, it reads all
// that their nodes have published since, until now: they may have come later, or be
// counted as dropped.
func consumeAudited(ctx context.Context, js jetstream.JetStream, options clickstream.Options, now time.Time, handle func(context.Context, *clickstream.Batch) error) error {
	options.Store = new(handover)
	if err := clickstream.Consume(ctx, js, options, handle); err != nil || !options.Until.Add(options.Trail).Before(now) {
		return err
	}
	var nodes []string
	for _, account := range options.Audit.Accounts() {
		if len(account.Missing) > 0 && !account.Explained {
			nodes = append(nodes, clickstream.Subject(account.Region, account.Node))
		}
	}
	if len(nodes) == 0 {
		return nil
	}
	slices.Sort(nodes) // a node may have several boots
	options.Regions, options.Subjects, options.Trail = nil, slices.Compact(nodes), now.Sub(options.Until)
	return clickstream.Consume(ctx, js, options, handle)
}

// handover keeps where a consumer ended for the next one.
type handover struct{ state clickstream.State }

// Load implements clickstream.Store.
func (h *handover) Load(context.Context) (clickstream.State, error) { return h.state, nil }

// Save implements clickstream.Store.
func (h *handover) Save(_ context.Context, state clickstream.State) error {
	h.state = state
	return nil
}

// String is the window for people.
func (w *window) String() string {
	from := "the beginning"
	if !w.from.IsZero() {
		from = stamp(w.from)
	}
	return from + " to " + stamp(w.to)
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// when is a flag's time: one such as 2026-12-24T18:00:00Z, or a duration, which
// is that long ago.
type when struct {
	time *time.Time
	now  func() time.Time
	text string // as it was given
}

func (*when) Type() string { return "time" }

func (w *when) String() string {
	if w.time == nil || w.time.IsZero() {
		return ""
	}
	return w.time.Format(time.RFC3339)
}

func (w *when) Set(text string) error {
	w.text = text
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		*w.time = w.now().Add(-ago)
		return nil
	}
	t, err := document.ParseTime(text)
	if err != nil {
		return usagef("or how long ago, such as 90m or 24h", "%s", strings.Replace(err.Error(), "must be", "it must be", 1))
	}
	*w.time = t
	return nil
}

// reading shows how far the reading of a window is.
type reading struct {
	*progress
	whole         bool      // the window is all that there ever was
	now           time.Time // by the clock of the stream
	total, behind uint64    // messages of the window, and behind it
}

// reading finds what is to be read, and starts a bar.
func (a *app) reading(ctx context.Context, js jetstream.JetStream, what string, w *window, regions []string) (*reading, error) {
	info, err := a.clickStream(ctx, js)
	if err != nil {
		return nil, err
	}
	if err := w.reach(info.TimeStamp); err != nil {
		return nil, err
	}
	r := &reading{whole: w.from.IsZero() && info.Config.MaxAge == 0, now: info.TimeStamp}
	if terminal(a.stderr) {
		ctx, cancel := a.limit(ctx)
		defer cancel()
		all, err := clickstream.Pending(ctx, js, w.start(), regions)
		if err != nil {
			return nil, err
		}
		if r.behind, err = clickstream.Pending(ctx, js, clickstream.At(w.to), regions); err != nil {
			return nil, err
		}
		r.total = all - min(all, r.behind)
	}
	r.progress = a.progressOf(what, max(1, int64(r.total)), "messages")
	return r, nil
}

// at moves the bar to a batch.
func (r *reading) at(b *clickstream.Batch) {
	if left := b.Pending - min(b.Pending, r.behind); left <= r.total {
		r.set(int64(r.total - left))
	}
}
