package clickstream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

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
