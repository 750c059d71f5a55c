package clickstream

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// rewindBy is how far behind its last message a consumer begins again when the
// stream has lost its end: its server, started again after a crash, may have
// lost what it had acknowledged shortly before.
const rewindBy = 15 * time.Minute

// patience is how long a request to the server may take: one that it got just
// before it was killed is never answered.
const patience = 5 * time.Second

func (c *consumer) openSoon(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.open(ctx)
}

// open finds the place to go on from, and a consumer of the server that
// delivers from there, in order. What an earlier session had fetched and not
// handled would come late, out of order, and look like gaps; a consumer for
// which such messages are under way is made again.
func (c *consumer) open(ctx context.Context) (jetstream.Consumer, error) {
	stream, err := c.js.Stream(ctx, StreamName)
	if err != nil {
		return nil, err
	}
	info := stream.CachedInfo()
	if err := c.place(ctx, stream, info); err != nil {
		return nil, err
	}
	config := c.config()
	if c.name != "" || c.options.Durable != "" {
		name := c.options.Durable
		if name == "" {
			name = c.name
		}
		cons, err := c.reuse(ctx, stream, name, &config)
		if cons != nil || err != nil {
			return cons, err
		}
	}
	cons, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return nil, err
	}
	made := cons.CachedInfo()
	c.name, c.expected = made.Name, 1
	if made.Delivered.Consumer > 0 { // to somebody who was sooner to make the same
		return nil, errLostDelivery
	}
	return cons, nil
}

// place finds where to go on, if that is not what the state says.
func (c *consumer) place(ctx context.Context, stream jetstream.Stream, info *jetstream.StreamInfo) error {
	log, s := c.options.Log, &c.state
	last := info.State.LastSeq
	created := info.Created.UTC().Truncate(time.Microsecond)
	switch {
	case s.Next == 0 && c.rewind.IsZero():
		floor, err := c.floor(ctx, stream)
		switch {
		case err != nil:
			return err
		case floor > 0: // it was used without marks: nothing below is wanted again
			s.Next = floor + 1
		case c.options.Start.now: // saved before anything is handled, or a restart began at a later now
			s.Next, s.Stored, c.unsaved = last+1, info.State.LastTime, true
			s.Begin = s.Stored.Add(1)
		}
	case s.Next == 0:
	case !s.Stream.IsZero() && !s.Stream.Equal(created):
		log.Warn("the stream of clicks was made anew: it is read from its beginning", "created", created)
		s.Next = 1
	case s.Next > last+1:
		c.lostEnd()
	case s.Next > 1 && s.Next-1 >= info.State.FirstSeq && !s.Stored.IsZero():
		m, err := stream.GetMsg(ctx, s.Next-1)
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
		if err == nil && !m.Time.Equal(s.Stored) { // what came later has taken its number
			c.lostEnd()
		}
	case s.Next < info.State.FirstSeq && !s.Stored.IsZero():
		log.Warn("messages with clicks were removed from the stream before they were read: raise its limits, or consume sooner",
			"from", s.Next, "to", info.State.FirstSeq-1)
	}
	s.Stream = created
	return nil
}

// floor is up to where the server's consumer has been acknowledged, if it is there.
func (c *consumer) floor(ctx context.Context, stream jetstream.Stream) (uint64, error) {
	if c.options.Durable == "" {
		return 0, nil
	}
	cons, err := stream.Consumer(ctx, c.options.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return cons.CachedInfo().AckFloor.Stream, nil
}

func (c *consumer) lostEnd() {
	c.options.Log.Warn("the stream has lost its end: what came shortly before is read again, and duplicates are dropped", "sequence", c.state.Next-1)
	c.rewind = c.state.Stored.Add(-rewindBy)
	if begin := c.begin(); c.rewind.Before(begin) { // and what lies before that is not wanted
		c.rewind = begin
	}
	c.state.Next = 0
}

// begin is State.Begin, or what is known of it where a release that had none has saved
// the state.
func (c *consumer) begin() time.Time {
	switch {
	case !c.state.Begin.IsZero():
		return c.state.Begin
	case len(c.marks) == 0: // nothing was handled since Now
		return c.state.Stored.Add(1)
	}
	return c.options.Start.at.Add(-c.options.Lead)
}

// config is the server's consumer.
func (c *consumer) config() jetstream.ConsumerConfig {
	o := &c.options
	config := jetstream.ConsumerConfig{
		Durable:       o.Durable,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       o.AckWait,
		MaxAckPending: maxUnsaved + 4*o.Prefetch,
	}
	if o.Durable == "" {
		config.InactiveThreshold = 5 * time.Minute
	}
	config.FilterSubjects = slices.Clone(o.Subjects)
	for _, region := range o.Regions {
		config.FilterSubjects = append(config.FilterSubjects, RegionSubjects(region))
	}
	at := o.Start.at.Add(-o.Lead)
	if !c.rewind.IsZero() {
		at = c.rewind
	}
	switch {
	case c.rewind.IsZero() && c.state.Next == 0 && o.Start.now:
		config.DeliverPolicy = jetstream.DeliverNewPolicy
	case c.state.Next > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, c.state.Next
	case o.Start.sequence > 0 && c.rewind.IsZero():
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, o.Start.sequence
	case !o.Start.at.IsZero() || !c.rewind.IsZero():
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &at
	}
	return config
}

// reuse gives the consumer that is there if it goes on at the right place, and
// removes it otherwise.
func (c *consumer) reuse(ctx context.Context, stream jetstream.Stream, name string, config *jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	cons, err := stream.Consumer(ctx, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info := cons.CachedInfo()
	if info.NumAckPending == 0 && info.Delivered.Consumer > 0 && info.Delivered.Stream < c.state.Next &&
		info.Config.AckWait == config.AckWait && info.Config.MaxAckPending == config.MaxAckPending &&
		slices.Equal(info.Config.FilterSubjects, config.FilterSubjects) {
		c.name, c.expected = info.Name, info.Delivered.Consumer+1
		return cons, nil
	}
	if err := stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	return nil, nil
}

// wasAway says that the connection has been lost in this session. Somebody may have made
// the server's consumer anew meanwhile, and nobody told this one: numbers may be right by
// chance.
func (c *consumer) wasAway() bool { return c.js.Conn().Stats().Reconnects != c.reconnects }

// atEnd says that there is nothing more to read until Options.Until. That is a time of
// the clock that the stream takes messages by, which is not this one.
func (c *consumer) atEnd(ctx context.Context, cons jetstream.Consumer) (bool, error) {
	if c.options.Until.IsZero() || time.Now().Before(c.endAt) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stream, err := c.js.Stream(ctx, StreamName)
	if err != nil {
		return false, err
	}
	if left := c.options.end().Sub(stream.CachedInfo().TimeStamp); left > 0 {
		c.endAt = time.Now().Add(left)
		return false, nil
	}
	info, err := cons.Info(ctx)
	if err != nil {
		return false, err
	}
	if c.wasAway() {
		return false, errLostDelivery
	}
	c.more = info.NumPending > 0 || info.Delivered.Consumer >= c.expected
	return !c.more, nil
}

// leave removes what the server need not remember.
func (c *consumer) leave(ctx context.Context) {
	if c.name == "" || c.options.Durable != "" || !c.js.Conn().IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = c.js.DeleteConsumer(ctx, StreamName, c.name) // it would go by itself
}

// Pending is how many messages the stream holds from a place on, of some
// regions or of all.
func Pending(ctx context.Context, js jetstream.JetStream, start Start, regions []string) (uint64, error) {
	c := &consumer{js: js, options: Options{Start: start, Regions: regions}}
	config := c.config()
	config.AckPolicy, config.MaxAckPending, config.AckWait = jetstream.AckNonePolicy, 0, 0
	cons, err := js.CreateConsumer(ctx, StreamName, config)
	if err != nil {
		return 0, err
	}
	c.name = cons.CachedInfo().Name
	c.leave(ctx)
	return cons.CachedInfo().NumPending, nil
}
