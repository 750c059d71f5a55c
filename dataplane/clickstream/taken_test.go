package clickstream

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// sooner is a server at which somebody else is sooner to make a consumer.
type sooner struct {
	jetstream.JetStream
	make func()
}

func (s sooner) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	stream, err := s.JetStream.Stream(ctx, name)
	return streamSooner{stream, s.make}, err
}

// soonerTaking lets another one make the same consumer, and take its first message.
func soonerTaking(t *testing.T, js jetstream.JetStream, options Options, taken func(jetstream.Msg)) sooner {
	return sooner{js, sync.OnceFunc(func() {
		other, err := js.CreateConsumer(t.Context(), StreamName, (&consumer{options: options}).config())
		if err != nil {
			t.Fatal(err)
		}
		m, err := other.Next()
		if err != nil {
			t.Fatal(err)
		}
		taken(m)
	})}
}

type streamSooner struct {
	jetstream.Stream
	make func()
}

func (s streamSooner) CreateConsumer(ctx context.Context, config jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	s.make()
	return s.Stream.CreateConsumer(ctx, config)
}

// The other one has begun at another place, and lost its marks to this one.
func TestAConsumerGoesOnWhereAnotherHasMadeTheServersSooner(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	other := jetstream.ConsumerConfig{
		Durable: "sink", AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 2,
	}
	raced := sooner{js, sync.OnceFunc(func() {
		if _, err := js.CreateConsumer(t.Context(), StreamName, other); err != nil {
			t.Error(err)
		}
	})}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := Consume(ctx, raced, Options{Durable: "sink", Log: quiet()}, func(_ context.Context, b *Batch) error {
		if b.First == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The other one has begun at the same place, so that its consumer is taken for a new one,
// and ends with a click unhandled.
func TestAConsumerHandlesWhatTheServerHadGivenToAnotherThatWasSooner(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	options := Options{Durable: "sink", Log: quiet()}
	if err := options.complete(); err != nil {
		t.Fatal(err)
	}
	raced := soonerTaking(t, js, options, func(jetstream.Msg) {})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []uint64
	err := Consume(ctx, raced, options, func(_ context.Context, b *Batch) error {
		if got = append(got, b.First); b.First == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(got, []uint64{1, 2}) {
		t.Error(got, err)
	}
}

// The other one has begun at the same place, and has handled all.
func TestAConsumerEndsWhereAnotherThatWasSoonerHasHandledAll(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	options := Options{Durable: "sink", Until: time.Now(), Store: newTable(), Log: quiet()}
	if err := options.complete(); err != nil {
		t.Fatal(err)
	}
	raced := soonerTaking(t, js, options, func(m jetstream.Msg) {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := Consume(ctx, raced, options, func(_ context.Context, b *Batch) error {
		t.Errorf("click %d, which is acknowledged", b.First)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Without a click, too: the two would remove each other's consumer of the server, again
// and again.
func TestAConsumerThatIsIdleEndsWhenAnotherTakesOver(t *testing.T) {
	js := natstest.Start(t).JetStream()
	stream(t, js)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	run := func() <-chan error {
		ended := make(chan error, 1)
		go func() {
			ended <- Consume(ctx, js, Options{Durable: "sink", Log: quiet()}, func(context.Context, *Batch) error { return nil })
		}()
		return ended
	}
	first := run()
	for {
		if _, err := js.Consumer(ctx, StreamName, "sink"); err == nil {
			break
		} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Fatal(err)
		}
	}
	second := run()
	if err := <-first; !errors.Is(err, ErrTakenOver) {
		t.Error(err)
	}
	stop()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// cutDialer makes connections that can be cut, and then refuses others for a while.
type cutDialer struct {
	mu    sync.Mutex
	conns []net.Conn
	away  bool
}

func (d *cutDialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, errors.New("the network is away")
	}
	c, err := net.Dial(network, address)
	d.conns = append(d.conns, c)
	return c, err
}

func (d *cutDialer) cut(away bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = away
	if away {
		for _, c := range d.conns {
			c.Close()
		}
		d.conns = nil
	}
}

// connectCut is a connection by such a dialer, which is tried again at once.
func connectCut(t *testing.T, url string) (jetstream.JetStream, *cutDialer) {
	t.Helper()
	dialer := new(cutDialer)
	conn, err := nats.Connect(url, nats.Timeout(20*time.Second), nats.MaxReconnects(-1), nats.ReconnectWait(time.Millisecond), nats.SetCustomDialer(dialer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js, dialer
}

// Nothing comes any more of the server's consumer that another one has made anew, and has
// been given all of.
func TestAConsumerThatWasAwayDoesNotTakeAnothersEndForItsOwn(t *testing.T) {
	s := natstest.Start(t)
	publish := stream(t, s.JetStream())
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	far, dialer := connectCut(t, s.URL())
	c := &consumer{js: far, options: Options{Durable: "sink", Until: time.Now(), Log: quiet()}}
	if err := c.options.complete(); err != nil {
		t.Fatal(err)
	}
	cons, err := c.openSoon(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cons.Next(); err != nil {
		t.Fatal(err)
	}
	c.expected++
	if done, err := c.atEnd(ctx, cons); !done || err != nil {
		t.Fatal(done, err)
	}
	dialer.cut(true)
	await(ctx, t, "the consumer is away", func() bool { return !far.Conn().IsConnected() })
	dialer.cut(false)
	await(ctx, t, "the consumer is back", far.Conn().IsConnected)
	if done, err := c.atEnd(ctx, cons); done || !errors.Is(err, errLostDelivery) {
		t.Error(done, err)
	}
}

// The server counts deliveries of each consumer that it makes from 1: those of another
// one under the same name may go on where those of the first ended.
func TestAConsumerThatWasAwayDoesNotGoOnWithAnotherOfTheServer(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	publish := stream(t, js)
	for i := range uint64(2) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+i, 1))
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	far, dialer := connectCut(t, s.URL())
	conn := far.Conn()
	var got []uint64
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, far, Options{Durable: "sink", Store: newTable(), SaveEvery: time.Millisecond, Log: quiet()}, func(_ context.Context, b *Batch) error {
			if got = append(got, b.First); b.First == 5 {
				stop()
			}
			return nil
		})
	}()
	acknowledgedUpTo(t, js, "sink", 2)
	dialer.cut(true)
	await(ctx, t, "the consumer is away", func() bool { return !conn.IsConnected() })
	// Somebody else makes the server's consumer anew, and ends with two clicks unhandled.
	if err := js.DeleteConsumer(ctx, StreamName, "sink"); err != nil {
		t.Fatal(err)
	}
	other, err := js.CreateConsumer(ctx, StreamName, jetstream.ConsumerConfig{
		Durable: "sink", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		publish(Subject("eu", "n"), message(t, "n", 1, 3+i, 1))
	}
	fetched, err := other.Fetch(2)
	if err != nil {
		t.Fatal(err)
	}
	for range fetched.Messages() { // until both are delivered
	}
	dialer.cut(false)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Error(got)
	}
}
