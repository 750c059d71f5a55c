package clickstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// placed does something when its consumer's place is saved.
type placed struct {
	Store
	then func()
}

func (s *placed) Save(ctx context.Context, state State) error {
	err := s.Store.Save(ctx, state)
	if then := s.then; err == nil && then != nil {
		s.then = nil
		then()
	}
	return err
}

// beginNow runs a consumer from now on until its place is saved, without a click.
func beginNow(t *testing.T, js jetstream.JetStream, store Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := Consume(ctx, js, Options{Start: Now(), Store: &placed{store, cancel}, Log: quiet()}, func(_ context.Context, b *Batch) error {
		return fmt.Errorf("click %d is from before", b.First)
	})
	if !errors.Is(err, context.Canceled) {
		t.Error("the place is not saved before the first click: ", err)
	}
}

func TestAConsumerFromNowOnGoesOnFromThereHoweverSoonItEnds(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 1))
	for name, store := range map[string]Store{
		"marks in NATS": NewKVStore(js, "sink", quiet()),
		"transactions":  newTable(),
	} {
		beginNow(t, js, store)
		publish(subject, message(t, "n", 1, 2, 1))
		publish(subject, message(t, "n", 1, 3, 1))
		if got := read(t, js, Options{Start: Now(), Store: store}); !slices.Equal(got, []string{"n/1:2", "n/1:3"}) {
			t.Errorf("%s: behind a restart came %v", name, got)
		}
	}
}

// The first Save that has a click in it fails: the click comes again.
func TestASinkFromNowOnThatFailsGetsItsClicksAgain(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	sink := &table{clicks: map[string]int{}}
	sink.crash = func() bool { return len(sink.collected) > 0 }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	store := &placed{sink, func() { publish(Subject("eu", "n"), message(t, "n", 1, 2, 1)) }}
	err := Consume(ctx, js, Options{Start: Now(), Store: store, SaveClicks: 1, Log: quiet()}, func(_ context.Context, b *Batch) error {
		sink.collected = append(sink.collected, b.Clicks[0].ID())
		return nil
	})
	if !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	sink.crash = func() bool { return false }
	if got := read(t, js, Options{Start: Now(), Store: sink}); !slices.Equal(got, []string{"n/1:2"}) {
		t.Fatal(got)
	}
}

// What the stream took before now stays out also when its server has lost what it
// had taken shortly before, and gives its numbers again.
func TestAConsumerFromNowOnOfAStreamThatLostItsEndBeginsThere(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 1))
	sink := newTable()
	beginNow(t, js, sink)
	publish(subject, message(t, "n", 1, 2, 1))
	for _, next := range []uint64{2 + 3, 3} { // there had been more; others have the numbers
		state := sink.state
		state.Next = next
		if next == 3 { // the last one before now had been another
			state.Stored = state.Stored.Add(time.Nanosecond)
		}
		store := &table{clicks: map[string]int{}, crash: sink.crash, state: state}
		if got := read(t, js, Options{Start: Now(), Store: store}); !slices.Equal(got, []string{"n/1:2"}) {
			t.Errorf("next %d: %v", next, got)
		}
	}
}

// What was fetched and not acknowledged is no older than now was.
func TestAConsumerFromNowOnThatLostItsMarksGoesOnWhereItAcknowledged(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	broken := errors.New("broken")
	store := &placed{NewKVStore(js, "sink", quiet()), func() {
		publish(subject, message(t, "n", 1, 1, 1))
		publish(subject, message(t, "n", 1, 2, 1))
		publish(subject, message(t, "n", 1, 3, 1))
	}}
	n := 0
	err := Consume(ctx, js, Options{Start: Now(), Durable: "sink", Store: store, Log: quiet(), SaveClicks: 1}, func(_ context.Context, b *Batch) error {
		if n++; n == 2 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	acknowledgedUpTo(t, js, "sink", 1)
	if err := js.DeleteKeyValue(ctx, MarksBucket); err != nil {
		t.Fatal(err)
	}
	if got := read(t, js, Options{Start: Now(), Durable: "sink"}); !slices.Equal(got, []string{"n/1:2", "n/1:3"}) {
		t.Fatal(got)
	}
}
