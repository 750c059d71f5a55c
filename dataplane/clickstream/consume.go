package clickstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Consume delivers each click once: decoded, without those that were handled
// before, in batches as the nodes published them. Batches without a click that
// is new and wanted are not delivered, except the last one of a boot.
//
// It returns when the context ends, with its error, and when Until is reached,
// with nil. While NATS or the stream is away it waits. While handle works,
// nothing more than Options.Prefetch batches is fetched.
//
// # What is exact, and what is not
//
// After handle has returned nil, the consumer's state is saved with the next
// Store.Save, at most Options.SaveEvery later, and then the messages are
// acknowledged. When Consume returns, for whatever reason, it saves first.
// Thus nothing is lost; but when the process is killed in between, the clicks
// since the last Save are delivered again to the next one: at least once.
//
// A sink is exact, over crashes too, when its handle only collects and its own
// Store writes in Save, in one transaction, what was collected and the state.
// What deploy/sinks holds does that for PostgreSQL and for files.
//
// An error of handle ends Consume and is returned; handle must then have kept
// nothing of the batch, which comes again to the next consumer.
func Consume(ctx context.Context, js jetstream.JetStream, options Options, handle func(context.Context, *Batch) error) error {
	if err := options.complete(); err != nil {
		return err
	}
	c := &consumer{js: js, options: options, handle: handle, store: options.Store}
	switch {
	case c.store != nil:
	case options.Durable != "":
		c.store = NewKVStore(js, options.Durable, options.Log)
	default:
		c.store = memory{}
	}
	state, err := c.store.Load(ctx)
	if err != nil {
		return fmt.Errorf("load the marks of a consumer of clicks: %w", err)
	}
	c.state, c.marks, c.decoder.reuse = state, newMarks(state.Marks), options.Reuse
	err = c.run(ctx)
	c.leave(ctx)
	if _, failed := errors.AsType[*storeError](err); !failed {
		// Whoever ends a consumer does not want to wait for long.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if saveErr := c.save(last); err == nil || saveErr != nil && ctx.Err() == nil {
			err = errors.Join(err, saveErr)
		}
	}
	return err
}

type consumer struct {
	js      jetstream.JetStream
	options Options
	handle  func(context.Context, *Batch) error
	store   Store
	state   State // but for its marks
	marks   marks
	decoder decoder

	name     string    // of the server's consumer
	expected uint64    // number of its next delivery
	rewind   time.Time // begin at this time, and not at state.Next
	more     bool      // the server has said that more is to come
	endAt    time.Time // not sooner is Options.Until, by this clock; zero until the server was asked

	// Handled, and not saved yet.
	unsaved bool
	acks    []string // where they are acknowledged
	clicks  int
	saveAt  time.Time

	sessions, messages uint64
	reconnects         uint64 // of the connection, when the session began
}

// run consumes in sessions, until something ends it that waiting does not mend.
func (c *consumer) run(ctx context.Context) error {
	pause := 100 * time.Millisecond
	waiting := false
	for {
		before := c.messages
		err := c.session(ctx)
		var failed *handlerError
		var store *storeError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &failed):
			return failed.error
		case errors.As(err, &store):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case isRefusal(err):
			return fmt.Errorf("consume clicks: %w", err)
		}
		if c.messages > before {
			pause, waiting = 100*time.Millisecond, false
		}
		if errors.Is(err, errLostDelivery) {
			continue
		}
		if !waiting {
			c.options.Log.Warn("clicks do not come: waiting for NATS", "error", err)
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

// handlerError and storeError tell the caller's errors from all others.
type (
	handlerError struct{ error }
	storeError   struct{ error }
)

func (e *storeError) Unwrap() error { return e.error }

// errLostDelivery says that the server has sent what did not arrive.
var errLostDelivery = errors.New("a message was lost on the way")

// errEnd says that all until Options.Until is handled.
var errEnd = errors.New("end")

// isRefusal is true for what waiting does not mend. A consumer that somebody else was
// sooner to make is found by the next session.
func isRefusal(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrInvalidConsumerName) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.As(err, &api) && api.Code == 400 && api.ErrorCode != jetstream.JSErrCodeConsumerExists
}

// session consumes until something fails, or the end is reached.
func (c *consumer) session(ctx context.Context) error {
	if c.sessions++; c.sessions > 1 { // if another one has taken over, it ends here: the store knows
		c.unsaved = c.unsaved || c.options.Durable != "" && c.name != "" && c.rewind.IsZero()
		if err := c.save(ctx); err != nil {
			return err
		}
	}
	c.reconnects = c.js.Conn().Stats().Reconnects
	cons, err := c.openSoon(ctx)
	if err != nil {
		return err
	}
	if done, err := c.atEnd(ctx, cons); done || err != nil {
		return err
	}
	messages, err := cons.Messages(jetstream.PullMaxMessages(c.options.Prefetch), jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := c.next(ctx, messages)
		if err != nil {
			return err
		}
		if m == nil { // nothing came for a while
			if done, err := c.atEnd(ctx, cons); done || err != nil {
				return err
			}
			continue
		}
		switch err := c.message(ctx, m); {
		case errors.Is(err, errEnd):
			return nil
		case err != nil:
			return err
		case !c.more: // when it was sent; others may have come while it was handled
			if done, err := c.atEnd(ctx, cons); done || err != nil {
				return err
			}
		}
	}
}

// next waits for a message, and saves in time. nil: none came until the end
// might be reached.
func (c *consumer) next(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	for {
		if c.due(time.Now()) {
			if err := c.save(ctx); err != nil {
				return nil, err
			}
		}
		wake, last := c.saveAt, false
		if !c.options.Until.IsZero() {
			end := time.Now().Add(c.quiet())
			if end.Before(c.endAt) {
				end = c.endAt
			}
			if !c.unsaved || end.Before(wake) {
				wake, last = end, true
			}
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if c.unsaved || last {
			wait, cancel = context.WithDeadline(ctx, wake)
		}
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		case last:
			return nil, nil
		}
	}
}

// quiet is how long nothing comes until the end may be reached. Where more is to
// come, the connection is slow: the answer to a question would come behind all the
// messages that are under way, too late perhaps, and none of them be handled until
// then. Only when they have been deleted does nothing come.
func (c *consumer) quiet() time.Duration {
	if c.more {
		return patience
	}
	return 100 * time.Millisecond
}

func (c *consumer) due(now time.Time) bool {
	return c.unsaved && (c.clicks >= c.options.SaveClicks || len(c.acks) >= maxUnsaved || !now.Before(c.saveAt))
}

// save keeps the state and acknowledges what it covers.
func (c *consumer) save(ctx context.Context) error {
	if !c.unsaved {
		return nil
	}
	c.marks.forget(c.state.Stored)
	state := c.state
	state.Marks = c.marks.all()
	if err := c.store.Save(ctx, state); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &storeError{fmt.Errorf("save clicks or marks: %w", err)}
	}
	for _, reply := range c.acks {
		// One that is lost costs a duplicate, and the marks know those.
		_ = c.js.Conn().Publish(reply, []byte("+ACK"))
	}
	c.unsaved, c.acks, c.clicks = false, c.acks[:0], 0
	return nil
}

// message handles one message.
func (c *consumer) message(ctx context.Context, m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	if meta.Sequence.Consumer != c.expected || c.wasAway() {
		return errLostDelivery
	}
	c.expected++
	c.more = meta.NumPending > 0
	if !c.options.Until.IsZero() && !meta.Timestamp.Before(c.options.end()) {
		return errEnd
	}
	if c.state.Begin.IsZero() && len(c.marks) == 0 { // it is the first
		c.state.Begin = meta.Timestamp
	}
	if err := c.batch(ctx, m, meta); err != nil {
		return err
	}
	c.messages++
	c.rewind = time.Time{}
	if meta.Sequence.Stream >= c.state.Next {
		c.state.Next, c.state.Stored = meta.Sequence.Stream+1, meta.Timestamp
	}
	if !c.unsaved {
		c.unsaved, c.saveAt = true, time.Now().Add(c.options.SaveEvery)
	}
	c.acks = append(c.acks, m.Reply())
	return nil
}

// batch hands over what is new of a message.
func (c *consumer) batch(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata) error {
	b, err := c.decoder.head(m.Data())
	if err == nil {
		err = b.check()
	}
	if err != nil {
		c.malformed(m, meta, err)
		return nil
	}
	b.StreamSequence, b.Stored, b.Pending = meta.Sequence.Stream, meta.Timestamp, meta.NumPending
	part := c.options.part(b)
	news := c.marks.news(b)
	if part == middle {
		if err := c.deliver(ctx, b, news); errors.Is(err, ErrMalformed) {
			c.malformed(m, meta, err)
			return nil
		} else if err != nil {
			return err
		}
	}
	changed := c.marks.handled(b)
	if c.options.Audit != nil {
		c.options.Audit.note(b, news, c.marks[bootKey{b.Node, b.Boot}], part)
	}
	if c.options.Gap != nil && part != lead {
		c.gaps(b, changed)
	}
	if c.options.Progress != nil {
		c.options.Progress(b)
	}
	return nil
}

// deliver gives the handler what is new and wanted of a batch.
func (c *consumer) deliver(ctx context.Context, b *Batch, news []Range) error {
	if len(news) > 0 {
		filter := &c.options.Filter
		if filter.empty() {
			filter = nil
		}
		if err := c.decoder.clicks(news, filter); err != nil {
			return err
		}
	}
	if len(b.Clicks) == 0 && !b.Ledger.Final {
		return nil
	}
	c.clicks += len(b.Clicks)
	if err := c.handle(ctx, b); err != nil {
		return &handlerError{err}
	}
	return nil
}

func (c *consumer) malformed(m jetstream.Msg, meta *jetstream.MsgMetadata, err error) {
	if c.options.Malformed == nil {
		c.options.Log.Error("a message in the stream of clicks is none of ours", "subject", m.Subject(), "sequence", meta.Sequence.Stream, "error", err)
		return
	}
	c.options.Malformed(Malformed{m.Subject(), meta.Sequence.Stream, meta.Timestamp, slices.Clone(m.Data()), err})
}

// gaps tells what a batch has changed about the gaps of its boot.
func (c *consumer) gaps(b *Batch, changed change) {
	tell := func(ranges []Range, filled, explained, givenUp bool) {
		for _, r := range ranges {
			c.options.Gap(Gap{b.Node, b.Region, b.Boot, r, filled, explained, givenUp, b.Ledger})
		}
	}
	tell(changed.filled, true, true, false)
	if changed.opened != nil {
		tell([]Range{*changed.opened}, false, changed.explained, false)
	}
	tell(changed.settled, false, true, false)
	tell(changed.givenUp, false, false, true)
}
