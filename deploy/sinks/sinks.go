// Package sinks is what the programs that bring clicks into a store share: they
// read the stream with clickstream.Consume, collect in its handler, and write
// what is collected together with the place in the stream, so that each click
// is in the store exactly once, whatever is killed when. README.md tells how to
// run them, and is the place to begin when writing another.
//
// A Sink belongs to the goroutine of Run.
package sinks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// Sink is a store of clicks.
type Sink interface {
	// Store's Save writes what Collect was given since the last one, and the
	// state, both or neither. Load forgets what was collected and not saved.
	clickstream.Store
	// Collect keeps a batch in memory, or where a crash leaves no trace.
	Collect(ctx context.Context, b *clickstream.Batch) error
}

// Source says what a sink reads.
type Source struct {
	NATS    string // URLs, separated by commas
	Name    string // of the consumer; one process at a time runs under it
	Regions string // separated by commas; empty: all
	From    string // "beginning", "now" or a time: where a sink begins that is new
	Every   time.Duration
	Clicks  int // after so many clicks, or after Every, they are written
}

// Flags declares the settings, with the defaults that are there.
func (s *Source) Flags(fs *flag.FlagSet) {
	fs.StringVar(&s.NATS, "nats", "nats://127.0.0.1:4222", "`URLs` of NATS servers, separated by commas")
	fs.StringVar(&s.Name, "name", s.Name, "`name` of this sink in NATS; one process at a time runs under it")
	fs.StringVar(&s.Regions, "regions", "", "`names` of regions, separated by commas; all by default")
	fs.StringVar(&s.From, "from", "beginning", "where a new sink begins in the stream: beginning, now or a `time` (RFC 3339)")
	fs.DurationVar(&s.Every, "every", s.Every, "`time` after which clicks are written")
	fs.IntVar(&s.Clicks, "clicks", s.Clicks, "`number` of clicks after which they are written sooner")
}

// Check validates the settings.
func (s *Source) Check() error {
	if _, err := s.start(); err != nil {
		return err
	}
	if err := clickstream.ValidateURLs(s.NATS); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	switch {
	case s.Name == "" || strings.ContainsAny(s.Name, ". *>/\\\t"):
		return fmt.Errorf("name %q: it must not be empty, and must not contain dots, blanks, slashes, * or >", s.Name)
	case s.Every <= 0 || s.Clicks <= 0:
		return errors.New("every and clicks must be above 0")
	}
	return nil
}

func (s *Source) start() (clickstream.Start, error) {
	switch s.From {
	case "beginning", "":
		return clickstream.Beginning(), nil
	case "now":
		return clickstream.Now(), nil
	}
	t, err := time.Parse(time.RFC3339, s.From)
	if err != nil {
		return clickstream.Start{}, fmt.Errorf("from %q: it is beginning, now, or a time such as 2026-12-24T18:00:00Z", s.From)
	}
	return clickstream.At(t), nil
}

// Run brings clicks into the sink until the context ends. When the sink fails,
// it begins again from what is saved, after a while that grows to half a
// minute; NATS holds the clicks meanwhile. It ends with an error when another
// process has taken over its name.
func (s *Source) Run(ctx context.Context, log *slog.Logger, sink Sink) error {
	start, err := s.start()
	if err != nil {
		return err
	}
	conn, err := nats.Connect(s.NATS, nats.Name("affleet sink "+s.Name), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	options := clickstream.Options{
		Durable: s.Name, Store: sink, SaveEvery: s.Every, SaveClicks: s.Clicks, Start: start, Log: log,
		Gap: func(g clickstream.Gap) { logGap(log, g) },
		Malformed: func(m clickstream.Malformed) {
			log.Error("a message is no batch of clicks, and is passed over", "sequence", m.Sequence, "subject", m.Subject, "error", m.Err)
		},
	}
	if s.Regions != "" {
		options.Regions = strings.Split(s.Regions, ",")
	}
	const least, most = time.Second, 30 * time.Second
	for pause := least; ; pause = min(2*pause, most) {
		began := time.Now()
		err := clickstream.Consume(ctx, js, options, sink.Collect)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, clickstream.ErrTakenOver):
			return err
		}
		if time.Since(began) > time.Minute {
			pause = least
		}
		log.Error("clicks do not get into the sink: trying again", "in", pause, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func logGap(log *slog.Logger, g clickstream.Gap) {
	args := []any{"node", g.Node, "boot", g.Boot, "from", g.From, "to", g.To, "clicks", g.Len()}
	switch {
	case g.Filled:
		log.Info("clicks came late", args...)
	case g.Explained:
		log.Warn("clicks are lost, as their node says itself", append(args, "dropped", g.Ledger.Dropped)...)
	default:
		log.Warn("clicks are missing", args...)
	}
}
