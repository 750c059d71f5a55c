package clickstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// stream makes the stream and gives a function that publishes to it.
func stream(t testing.TB, js jetstream.JetStream) func(subject string, data []byte) {
	t.Helper()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: StreamName, Subjects: []string{Subjects}})
	return func(subject string, data []byte) {
		t.Helper()
		if _, err := js.Publish(context.Background(), subject, data); err != nil {
			t.Fatal(err)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestConsumeDeliversEachClickOnceAndReportsGaps(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	publish(subject, message(t, "n", 1, 1, 5)) // twice
	publish(subject, message(t, "n", 1, 4, 4)) // overlaps
	publish(subject, []byte("none of ours"))
	publish(subject, message(t, "n", 1, 10, 2)) // 8 and 9 are missing
	publish(subject, message(t, "n", 2, 1, 1))  // another boot
	publish(subject, message(t, "n", 1, 8, 2))  // and here they are
	publish(subject, message(t, "n", 1, 15, 1, func(b *clickv1.Batch) {
		b.Ledger.Recorded, b.Ledger.Dropped = 12, []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: 3}}
	}))
	publish(subject, message(t, "n", 1, 16, 0, func(b *clickv1.Batch) { b.Ledger.Recorded, b.Ledger.Final = 12, true }))
	var got []string
	var gaps []string
	done := errors.New("done")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := Consume(ctx, js, Options{Log: quiet(), Gap: func(g Gap) {
		gaps = append(gaps, fmt.Sprintf("%s/%d %d-%d filled=%t explained=%t", g.Node, g.Boot, g.From, g.To, g.Filled, g.Explained))
	}}, func(_ context.Context, b *Batch) error {
		for _, c := range b.Clicks {
			got = append(got, fmt.Sprintf("%d:%d", c.Boot, c.Sequence))
		}
		if b.Ledger.Final {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	if want := "1:1 1:2 1:3 1:4 1:5 1:6 1:7 1:10 1:11 2:1 1:8 1:9 1:15"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
	if want := []string{"n/1 8-9 filled=false explained=false", "n/1 8-9 filled=true explained=true", "n/1 12-14 filled=false explained=true"}; !slices.Equal(gaps, want) {
		t.Errorf("%q", gaps)
	}
}

func TestConsumeStartsWhereItIsTold(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	between := apart()
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	publish(Subject("us", "m"), message(t, "m", 1, 1, 1))
	first := func(o Options) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		o.Log = quiet()
		var id string
		done := errors.New("done")
		if o.Start.now {
			o.Store = &placed{memory{}, func() { publish(Subject("eu", "n"), message(t, "n", 1, 3, 1)) }}
		}
		if err := Consume(ctx, js, o, func(_ context.Context, b *Batch) error {
			id = fmt.Sprintf("%s:%d", b.Node, b.First)
			return done
		}); !errors.Is(err, done) {
			t.Fatal(err)
		}
		return id
	}
	for want, o := range map[string]Options{
		"n:1": {Start: Beginning()},
		"n:2": {Start: At(between)},
		"m:1": {Regions: []string{"us", "asia"}},
	} {
		if got := first(o); got != want {
			t.Errorf("%+v: %s, want %s", o, got, want)
		}
	}
	for sequence, want := range map[uint64]string{1: "n:1", 2: "n:2", 3: "m:1"} {
		if got := first(Options{Start: AtSequence(sequence)}); got != want {
			t.Errorf("sequence %d: %s, want %s", sequence, got, want)
		}
	}
	if got := first(Options{Start: Now()}); got != "n:3" {
		t.Errorf("now: %s", got)
	}
}

func TestADurableConsumerGoesOnWhereTheHandlerSucceededLast(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	publish := stream(t, js)
	for i := range 10 {
		publish(Subject("eu", "n"), message(t, "n", 1, uint64(1+10*i), 10))
	}
	broken := errors.New("warehouse is away")
	var got []uint64
	consume := func(until uint64, failAt uint64) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		err := Consume(ctx, js, Options{Durable: "sink", Log: quiet(), AckWait: time.Second}, func(_ context.Context, b *Batch) error {
			if b.First == failAt {
				return broken
			}
			for _, c := range b.Clicks {
				got = append(got, c.Sequence)
			}
			if got[len(got)-1] == until {
				cancel()
			}
			return nil
		})
		if len(got) == 0 || got[len(got)-1] != until && failAt == 0 {
			t.Fatalf("ended early: %v, %v", got, err)
		}
		return err
	}
	if err := consume(0, 31); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := consume(100, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(got) != 100 || got[0] != 1 || got[99] != 100 || !slices.IsSorted(got) {
		t.Fatalf("%v", got)
	}
}

func TestConsumeWaitsForTheStreamAndOutlivesTheServer(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	got := make(chan uint64, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, js, Options{Log: quiet()}, func(_ context.Context, b *Batch) error {
			for _, c := range b.Clicks {
				got <- c.Sequence
			}
			return nil
		})
	}()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	if seq := <-got; seq != 1 {
		t.Fatal(seq)
	}
	s.Stop()
	s.Restart()
	for { // the publisher's own connection comes back in its own time
		short, stop := context.WithTimeout(ctx, time.Second)
		_, err := js.Publish(short, Subject("eu", "n"), message(t, "n", 1, 2, 1))
		stop()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	select {
	case seq := <-got:
		if seq != 2 {
			t.Fatal(seq)
		}
	case <-ctx.Done():
		t.Fatal("nothing comes after the restart")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// What a handler does not get through waits in the stream, and not in the consumer.
func TestAHandlerThatIsSlowHoldsUpWhatIsFetched(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	const batches, prefetch = 100, 4
	for i := range uint64(batches) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+i, 1))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begun, goOn := make(chan struct{}), make(chan struct{})
	var got []uint64
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, js, Options{Durable: "slow", Prefetch: prefetch, Log: quiet()}, func(_ context.Context, b *Batch) error {
			if got = append(got, b.First); len(got) == 1 {
				close(begun)
				<-goOn
			}
			if len(got) == batches {
				cancel()
			}
			return nil
		})
	}()
	<-begun
	cons, err := js.Consumer(t.Context(), StreamName, "slow")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		info, err := cons.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if fetched := info.Delivered.Consumer; fetched > prefetch+1 { // one is with the handler
			t.Errorf("%d batches are fetched, and the handler has not returned from the first", fetched)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(goOn)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(got) != batches || !slices.IsSorted(got) {
		t.Fatal(got)
	}
}
