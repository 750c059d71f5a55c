package clickstream

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// behind is a server whose clock is behind.
type behind struct {
	jetstream.JetStream
	by time.Duration
}

func (b behind) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	stream, err := b.JetStream.Stream(ctx, name)
	return streamBehind{stream, b.by}, err
}

type streamBehind struct {
	jetstream.Stream
	by time.Duration
}

func (s streamBehind) CachedInfo() *jetstream.StreamInfo {
	info := *s.Stream.CachedInfo()
	info.TimeStamp = info.TimeStamp.Add(-s.by)
	return &info
}

// What the stream takes until then may have a time before Until.
func TestConsumeEndsWhenTheClockOfTheServerSaysSo(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	begin, clicks := time.Now(), 0
	err := Consume(t.Context(), behind{js, time.Second}, Options{Until: begin, Log: quiet()}, func(context.Context, *Batch) error {
		clicks++
		return nil
	})
	if took := time.Since(begin); err != nil || clicks != 1 || took < time.Second {
		t.Errorf("it ends after %v with %d clicks: %v", took, clicks, err)
	}
}
