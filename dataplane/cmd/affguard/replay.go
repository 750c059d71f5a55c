package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	"github.com/affleet/affleet/dataplane/internal/guard/replay"
	"github.com/affleet/affleet/deploy/service"
)

// replaying is the subcommand that looks at clicks of the past.
type replaying struct {
	input, nats, policy string
	from, to            string
	stats               bool

	rules      *policy.Policy
	start, end time.Time
}

func replayMain(args []string) int {
	var r replaying
	return service.Server{
		Name:    "affguard replay",
		Summary: "affguard replay prints what would have been found in clicks of the past, and decided, as lines of JSON. It changes nothing.",
		Example: "affguard replay --from 2026-03-02T00:00:00Z --to 2026-03-03T00:00:00Z --policy policy.yaml\naffguard replay --input clicks.bin --stats",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&r.input, "input", "", "`file` of messages of the stream, each with its length before it as a varint, rather than the stream; - is the standard input")
			fs.StringVar(&r.nats, "nats", "nats://127.0.0.1:4222", "`URLs` of NATS servers, separated by commas")
			fs.StringVar(&r.from, "from", "", "`time` from which on the stream is read: 2026-03-02T00:00:00Z, or 24h ago; default: its beginning")
			fs.StringVar(&r.to, "to", "", "`time` up to which it is read; default: now")
			fs.StringVar(&r.policy, "policy", "", "`file` with a policy, YAML or JSON, as affctl prints it; default: the default policy")
			fs.BoolVar(&r.stats, "stats", false, "print a last line with the time and memory that it took")
		},
		LogLevel: "warn",
		Check:    r.check,
		Run:      r.run,
	}.Main(args, os.Stdout, os.Stderr)
}

func (r *replaying) check() (err error) {
	if r.rules, err = readPolicy(r.policy); err != nil {
		return err
	}
	if err := clickstream.ValidateURLs(r.nats); r.input == "" && err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	now := time.Now()
	if r.start, err = parseTime(r.from, time.Time{}, now); err != nil {
		return fmt.Errorf("from: %w", err)
	}
	if r.end, err = parseTime(r.to, now, now); err != nil {
		return fmt.Errorf("to: %w", err)
	}
	if r.input != "" && (r.from != "" || r.to != "") {
		return errors.New("from and to choose from the stream: a file is read as a whole")
	}
	if !r.start.Before(r.end) {
		return errors.New("from is not before to")
	}
	return nil
}

// readPolicy reads a file; without one it is the default policy.
func readPolicy(path string) (*policy.Policy, error) {
	if path == "" {
		return policy.New(nil)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := policy.ParseFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// parseTime reads a time, or a duration before now.
func parseTime(text string, none, now time.Time) (time.Time, error) {
	if text == "" {
		return none, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("%q is neither a time such as 2026-03-02T00:00:00Z nor a duration such as 24h", text)
	}
	return t, nil
}

func (r *replaying) run(ctx context.Context, log *slog.Logger) error {
	pass, err := replay.New(guard.Settings{}, r.rules, os.Stdout)
	if err != nil {
		return err
	}
	if r.input != "" {
		err = r.file(pass)
	} else {
		err = r.stream(ctx, log, pass)
	}
	return errors.Join(err, pass.Close(r.stats))
}

func (r *replaying) file(pass *replay.Replay) error {
	var in io.Reader = os.Stdin
	if r.input != "-" {
		file, err := os.Open(r.input)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	if err := pass.Read(in); err != nil {
		return fmt.Errorf("%s: %w", r.input, err)
	}
	return nil
}

func (r *replaying) stream(ctx context.Context, log *slog.Logger, pass *replay.Replay) error {
	conn, err := nats.Connect(r.nats, nats.Name("affguard replay"), nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	options := clickstream.Options{Until: r.end, Log: log}
	if !r.start.IsZero() {
		options.Start = clickstream.At(r.start)
	}
	return clickstream.Consume(ctx, js, options, func(_ context.Context, b *clickstream.Batch) error { return pass.Add(b) })
}
