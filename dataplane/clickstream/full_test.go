package clickstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// lines are what a logger has said.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(text))
}

// await asks again and again until something is so.
func await(ctx context.Context, t *testing.T, what string, is func() bool) {
	t.Helper()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not in time", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// acknowledgedUpTo waits until the server has taken in that a consumer has acknowledged
// what comes before and up to a message.
func acknowledgedUpTo(t *testing.T, js jetstream.JetStream, consumer string, sequence uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	await(ctx, t, fmt.Sprintf("message %d is acknowledged", sequence), func() bool {
		cons, err := js.Consumer(ctx, StreamName, consumer)
		return err == nil && cons.CachedInfo().AckFloor.Stream == sequence
	})
}

// The server offers what is not acknowledged again meanwhile.
func TestAConsumerWhoseMarksHaveNoRoomWaitsAndStaysExact(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	bucket := jetstream.KeyValueConfig{Bucket: MarksBucket, History: 1, Storage: jetstream.FileStorage, MaxBytes: 16 << 10}
	kv, err := js.CreateKeyValue(ctx, bucket)
	if err != nil {
		t.Fatal(err)
	}
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	var log lines
	var mu sync.Mutex
	var got []uint64
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, js, Options{
			Durable: "sink", SaveEvery: time.Millisecond, AckWait: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Gap: func(g Gap) { t.Errorf("%+v", g) },
		}, func(_ context.Context, b *Batch) error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range b.Clicks {
				got = append(got, uint64(c.Boot))
			}
			return nil
		})
	}()
	info := func() *jetstream.ConsumerInfo {
		cons, err := js.Consumer(ctx, StreamName, "sink")
		if err != nil {
			t.Fatal(err)
		}
		return cons.CachedInfo()
	}
	acknowledgedUpTo(t, js, "sink", 1)
	for i, room := 0, 1<<10; room > 0; i++ { // until not a byte more is taken
		if _, err := kv.Put(ctx, fmt.Sprint("other-", i), make([]byte, room)); err != nil {
			room /= 2
		}
	}
	const last = 20
	for i := uint64(2); i <= last; i++ {
		publish(Subject("eu", "n"), message(t, "n", i, 1, 1)) // each boot has a mark of its own
	}
	await(ctx, t, "it is said", func() bool { return log.count("cannot be kept") > 0 })
	await(ctx, t, "the server offers it again", func() bool { return info().NumRedelivered > 0 })
	if floor := info().AckFloor.Stream; floor != 1 {
		t.Errorf("%d messages are acknowledged, and the marks know 1", floor)
	}
	bucket.MaxBytes = 1 << 20
	if _, err := js.UpdateKeyValue(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	acknowledgedUpTo(t, js, "sink", last)
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(got) != last || !slices.IsSorted(got) || len(slices.Compact(got)) != last {
		t.Error(got)
	}
	if n := log.count("\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, &log.text)
	}
}

// A consumer that is stopped while it saves saves once more: what it wrote has got in,
// or it has not.
func TestASaveWhoseAnswerNobodyHeardDoesNotDelayTheNext(t *testing.T) {
	js := natstest.Start(t).JetStream()
	stream(t, js)
	var log lines
	store := NewKVStore(js, "sink", slog.New(slog.NewTextHandler(&log, nil))).(*kvStore)
	if _, err := store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	known := store.revision
	for next := uint64(2); next <= 3; next++ {
		store.revision = known
		if err := store.Save(t.Context(), State{Next: next}); err != nil {
			t.Fatal(err)
		}
	}
	if n := log.count("\n"); n != 0 {
		t.Errorf("it is told:\n%s", &log.text)
	}
	if state, err := NewKVStore(js, "sink", quiet()).Load(t.Context()); err != nil || state.Next != 3 {
		t.Errorf("%+v, %v", state, err)
	}
}
