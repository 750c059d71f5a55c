package clickstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Start says where a consumer begins that has not been there before. The zero
// value is the beginning of the stream.
type Start struct {
	now bool
	at  time.Time
}

// Now begins with what is published from now on.
func Now() Start { return Start{now: true} }

// At begins with what the stream stored at this time or later.
func At(t time.Time) Start { return Start{at: t} }

// Beginning begins with the oldest message of the stream.
func Beginning() Start { return Start{} }

// Options of Consume. The zero value reads the whole stream, of all regions,
// and leaves nothing behind.
type Options struct {
	Durable string   // name under which the server remembers the position; empty: none
	Start   Start    // for a consumer that is new
	Regions []string // only these; the server filters. Default: all
	Marks   *Marks   // what has been handled before. Default: empty
	// Gap is called, after the handler, when clicks are missing, and again when
	// they have come after all.
	Gap func(Gap)
	// Prefetch is how many batches may wait for the handler. Default: 64.
	Prefetch int
	// AckWait is how long a batch may take, with those that wait before it,
	// until the server offers it again. Default: 1 min.
	AckWait time.Duration
	Log     *slog.Logger // for NATS coming and going. Default: slog.Default
}

// Gap is a range of clicks of one boot that did not come when it was due.
type Gap struct {
	Node   string
	Region string
	Boot   Hex
	Range
	// Filled: they have come now. The stream has them behind their successors,
	// because it refused them for a while.
	Filled bool
	// Explained: the node itself counts at least as many clicks of this boot as
	// lost after they were recorded.
	Explained bool
	// Ledger is the node's account in the batch that showed it.
	Ledger Ledger
}

// Consume delivers each click once: decoded, without those that the marks know,
// in batches as the nodes published them. Batches without a new click are not
// delivered, except the last one of a boot. A batch is acknowledged after handle
// returned nil; its error ends Consume and is returned, and the batch comes
// again to the next consumer.
//
// Consume returns when the context ends, with its error. While NATS or the
// stream is away it waits. Delivered once means: within the life of the marks.
// A consumer that must be exact over its own restarts keeps Marks.All together
// with what it has made of the clicks.
func Consume(ctx context.Context, js jetstream.JetStream, options Options, handle func(context.Context, *Batch) error) error {
	if options.Marks == nil {
		options.Marks = NewMarks()
	}
	if options.Prefetch <= 0 {
		options.Prefetch = 64
	}
	if options.AckWait <= 0 {
		options.AckWait = time.Minute
	}
	if options.Log == nil {
		options.Log = slog.Default()
	}
	c := &consumer{js: js, options: options, handle: handle}
	pause := 100 * time.Millisecond
	waiting := false
	for {
		before := c.handled
		err := c.session(ctx)
		var failed handlerError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &failed):
			return failed.error
		case isRefusal(err):
			return fmt.Errorf("consume clicks: %w", err)
		}
		if c.handled > before {
			pause, waiting = 100*time.Millisecond, false
		}
		if !waiting {
			options.Log.Warn("clicks do not come: waiting for NATS", "error", err)
			waiting = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// handlerError tells the handler's errors from all others.
type handlerError struct{ error }

// isRefusal is true for what waiting does not mend.
func isRefusal(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrInvalidConsumerName) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.As(err, &api) && api.Code == 400
}

type consumer struct {
	js      jetstream.JetStream
	options Options
	handle  func(context.Context, *Batch) error
	handled uint64 // messages
	last    uint64 // highest stream sequence that was handled
}

// session consumes until something fails.
func (c *consumer) session(ctx context.Context) error {
	cons, err := c.open(ctx)
	if err != nil {
		return err
	}
	messages, err := cons.Messages(jetstream.PullMaxMessages(c.options.Prefetch), jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := c.message(ctx, m); err != nil {
			return err
		}
	}
}

// open finds the durable consumer or makes a new one. One that is made again
// goes on behind the last message that was handled.
func (c *consumer) open(ctx context.Context) (jetstream.Consumer, error) {
	o := &c.options
	if o.Durable != "" {
		cons, err := c.js.Consumer(ctx, StreamName, o.Durable)
		if !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return cons, err
		}
	}
	config := jetstream.ConsumerConfig{
		Durable:       o.Durable,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       o.AckWait,
		MaxAckPending: 4 * o.Prefetch,
	}
	if o.Durable == "" {
		config.InactiveThreshold = 5 * time.Minute
	}
	for _, region := range o.Regions {
		config.FilterSubjects = append(config.FilterSubjects, RegionSubjects(region))
	}
	switch {
	case c.last > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, c.last+1
	case o.Start.now:
		config.DeliverPolicy = jetstream.DeliverNewPolicy
	case !o.Start.at.IsZero():
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &o.Start.at
	}
	return c.js.CreateConsumer(ctx, StreamName, config)
}

// message handles one message.
func (c *consumer) message(ctx context.Context, m jetstream.Msg) error {
	b, err := Decode(m.Data())
	if err != nil {
		// It will not get better, and nothing of ours writes such a thing.
		c.options.Log.Error("a message in the stream of clicks is none of ours", "subject", m.Subject(), "error", err)
		return m.Term()
	}
	news := c.options.Marks.news(b)
	all := b.Clicks
	if len(news) != 1 || news[0].To-news[0].From+1 != uint64(len(all)) {
		b.Clicks = nil
		for _, r := range news {
			b.Clicks = append(b.Clicks, all[r.From-b.First:r.To-b.First+1]...)
		}
	}
	if len(b.Clicks) > 0 || b.Ledger.Final {
		if err := c.handle(ctx, b); err != nil {
			return handlerError{err}
		}
	}
	b.Clicks = all
	opened, filled := c.options.Marks.handled(b)
	if c.options.Gap != nil {
		gap := Gap{Node: b.Node, Region: b.Region, Boot: b.Boot, Ledger: b.Ledger}
		if opened != nil {
			gap.Range = *opened
			gap.Explained = b.Ledger.Dropped["corrupt"]+b.Ledger.Dropped["too_large"] >= opened.To-opened.From+1
			c.options.Gap(gap)
		}
		for _, r := range filled {
			gap.Range, gap.Filled, gap.Explained = r, true, true
			c.options.Gap(gap)
		}
	}
	c.handled++
	if meta, err := m.Metadata(); err == nil {
		c.last = max(c.last, meta.Sequence.Stream)
	}
	return m.Ack() // an acknowledgement that is lost costs a duplicate, and marks know those
}
