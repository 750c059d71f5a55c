package clickstream

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestConsumeEndsWhenAllUntilATimeIsHandled(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	if got := read(t, js, Options{}); len(got) != 0 {
		t.Fatal(got)
	}
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 2))
	publish(Subject("us", "m"), message(t, "m", 1, 1, 1))
	if got := strings.Join(read(t, js, Options{}), " "); got != "n/1:1 n/1:2 m/1:1" {
		t.Fatal(got)
	}
	if got := strings.Join(read(t, js, Options{Regions: []string{"eu"}}), " "); got != "n/1:1 n/1:2" {
		t.Fatal(got)
	}
	if got := strings.Join(read(t, js, Options{Subjects: []string{Subject("us", "m")}}), " "); got != "m/1:1" {
		t.Fatal(got)
	}
}

// soon calls try with a stream of one click and a time to come, and again with more time
// while try says that it was not done before.
func soon(t *testing.T, try func(js jetstream.JetStream, publish func(string, []byte), until time.Time) (done bool)) {
	t.Helper()
	for wait := 300 * time.Millisecond; wait < time.Minute; wait *= 2 {
		js := natstest.Start(t).JetStream()
		publish := stream(t, js)
		publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
		if try(js, publish, time.Now().Add(wait)) {
			return
		}
	}
	t.Fatal("it is not done in a minute")
}

func TestConsumeWaitsForWhatComesUntilItsEnd(t *testing.T) {
	soon(t, func(js jetstream.JetStream, publish func(string, []byte), until time.Time) (done bool) {
		var got []string
		err := Consume(t.Context(), js, Options{Until: until, Log: quiet()}, func(_ context.Context, b *Batch) error {
			if got = append(got, b.Node); len(got) == 1 {
				publish(Subject("eu", "k"), message(t, "k", 1, 1, 1))
				done = time.Now().Before(until)
			}
			return nil
		})
		if err != nil || time.Now().Before(until) || done && strings.Join(got, "") != "nk" {
			t.Error(got, err)
		}
		return done
	})
}

// The first message is the last one when it is sent. The second comes before the
// end, which is over when the first is handled.
func TestConsumeEndsBehindWhatCameWhileTheHandlerWorked(t *testing.T) {
	soon(t, func(js jetstream.JetStream, publish func(string, []byte), until time.Time) (done bool) {
		var got []uint64
		err := Consume(t.Context(), js, Options{Until: until, Log: quiet()}, func(_ context.Context, b *Batch) error {
			if got = append(got, b.First); len(got) == 1 {
				publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
				done = time.Now().Before(until)
				time.Sleep(time.Until(until) + 10*time.Millisecond)
			}
			return nil
		})
		if err != nil || done && !slices.Equal(got, []uint64{1, 2}) {
			t.Error(got, err)
		}
		return done
	})
}
