package clickstream

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Start says where a consumer begins that has not been there before. The zero
// value is the beginning of the stream.
type Start struct {
	now      bool
	at       time.Time
	sequence uint64
}

// Now begins with what is published from now on. That moment is saved before
// anything is handled: whoever goes on with the consumer's Store begins there.
func Now() Start { return Start{now: true} }

// At begins with what the stream stored at this time or later.
func At(t time.Time) Start { return Start{at: t} }

// AtSequence begins with this message of the stream.
func AtSequence(n uint64) Start { return Start{sequence: n} }

// Beginning begins with the oldest message of the stream.
func Beginning() Start { return Start{} }

// Options of Consume. The zero value reads the whole stream, of all regions,
// and leaves nothing behind.
type Options struct {
	// Durable is the name under which the server shows the consumer and its lag.
	// Empty: none. One process at a time consumes under a name.
	Durable string
	// Store keeps where the consumer is. Default: with Durable, the NATS KV
	// bucket MarksBucket; without, the memory, for the life of the call.
	Store Store
	// SaveEvery is the longest time, and SaveClicks about the most clicks, from
	// the handler to Store.Save and the acknowledgement. Default: 1 s, 100,000.
	SaveEvery  time.Duration
	SaveClicks int

	Start Start // for a consumer that is new
	// Lead is how long before a Start at a time messages are read as well, only
	// to know which clicks had been there before.
	Lead time.Duration
	// Until ends Consume, without an error, when everything is handled that the
	// stream stored before, and its server's clock shows that time. Default: never.
	Until time.Time
	// Trail is how long behind Until messages are read as well, only for the
	// Audit to know what came late, or was counted as dropped late.
	Trail time.Duration

	Regions  []string // only these; the server filters. Default: all
	Subjects []string // only these, that Subject gives, and those of Regions. Default: all
	Filter   Filter   // only these clicks; the others are not decoded

	// Gap is called, after the handler, when clicks are missing, and again when
	// they have come after all, or the node has accounted for them.
	Gap func(Gap)
	// Malformed is called with each message that is no batch, or one that makes
	// no sense. It is passed over. Default: it is logged as an error.
	Malformed func(Malformed)
	// Audit, if given, keeps the account of all that is read.
	Audit *Audit

	// Progress is called with each batch that was read, behind all others, also
	// when the handler did not get it.
	Progress func(*Batch)

	// Reuse says that the handler keeps neither the batch's Clicks nor what they
	// point to beyond its return, strings excepted: their storage is used again.
	Reuse bool
	// Prefetch is how many batches may wait for the handler. Default: 64.
	Prefetch int
	// AckWait is how long a batch may take until the server offers it again.
	// Default: 1 min; at least four times SaveEvery.
	AckWait time.Duration
	Log     *slog.Logger // for NATS coming and going. Default: slog.Default
}

// maxUnsaved bounds the messages between two calls of Store.Save.
const maxUnsaved = 8192

func (o *Options) complete() error {
	if o.SaveEvery <= 0 {
		o.SaveEvery = time.Second
	}
	if o.SaveClicks <= 0 {
		o.SaveClicks = 100_000
	}
	if o.Prefetch <= 0 {
		o.Prefetch = 64
	}
	if o.AckWait <= 0 {
		o.AckWait = time.Minute
	}
	o.AckWait = max(o.AckWait, 4*o.SaveEvery)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Lead < 0 || o.Lead > 0 && o.Start.at.IsZero() {
		return errors.New("consume clicks: Lead needs a Start at a time")
	}
	if o.Trail < 0 || o.Trail > 0 && o.Until.IsZero() {
		return errors.New("consume clicks: Trail needs Until")
	}
	return nil
}

// end is when the stream stored what is not read any more.
func (o *Options) end() time.Time { return o.Until.Add(o.Trail) }

// part is where a batch lies to what is asked for: in its middle, or before or
// behind it.
type part int

const (
	middle part = iota
	lead
	trail
)

func (o *Options) part(b *Batch) part {
	switch {
	case o.Lead > 0 && b.Stored.Before(o.Start.at):
		return lead
	case o.Trail > 0 && !b.Stored.Before(o.Until):
		return trail
	}
	return middle
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
	// Explained: the node itself counts all clicks that are missing of this
	// boot as lost after they were recorded. Ledger.Dropped has the reasons.
	Explained bool
	// GivenUp: there are so many gaps that this one is not remembered. What
	// comes of it is taken for a duplicate.
	GivenUp bool
	// Ledger is the node's account in the batch that showed it. When it is
	// final, nothing more is recorded.
	Ledger Ledger
}

// Malformed is a message of the stream that cannot be used.
type Malformed struct {
	Subject  string
	Sequence uint64    // of the stream
	Stored   time.Time // when the stream took it
	Data     []byte
	Err      error // wraps ErrMalformed
}

// check refuses sequences that no node gives.
func (b *Batch) check() error {
	switch {
	case b.Node == "":
		return fmt.Errorf("%w: it names no node", ErrMalformed)
	case b.First == 0, b.First+b.Count < b.First, int64(b.First+b.Count) < 0:
		return fmt.Errorf("%w: clicks %d and %d more have no such sequences", ErrMalformed, b.First, b.Count)
	}
	return nil
}
