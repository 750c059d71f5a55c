package publish

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// Clicks that cannot be published must not hold up those behind them.

func TestAClickLargerThanTheStreamTakesIsGivenUp(t *testing.T) {
	s := natstest.Start(t)
	if _, err := s.JetStream().CreateStream(t.Context(), jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 200 << 20, MaxMsgSize: 4096,
	}); err != nil {
		t.Fatal(err)
	}
	givesUp(t, s, 6000)
}

func TestAServerWithASmallPayloadGetsSmallBatches(t *testing.T) {
	givesUp(t, natstest.Start(t, func(o *server.Options) { o.MaxPayload = 8 << 10 }), 20<<10)
}

// givesUp publishes many clicks, and among them one of so many bytes, which does not fit
// in any message, however it is compressed.
func givesUp(t *testing.T, s *natstest.Server, size int) {
	t.Helper()
	r := openRecorder(t)
	p, _ := start(t, s.URL(), r)
	const n = 2000
	for i := range n {
		r.Record(event(i))
	}
	random := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	r.Record(&click.Event{Destination: random})
	r.Record(event(0))
	flush(t, p)
	clicks, account := consumed(t, s.JetStream(), r.Log().Identity().Boot)
	if len(clicks) != n+1 || account.Recorded != n+1 || account.Answered != n+2 || account.Dropped["too_large"] != 1 {
		t.Fatalf("%d clicks, %+v", len(clicks), account)
	}
}

func TestABootWhoseFolderIsGoneIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	first := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	for i := range 100 {
		first.Record(event(i))
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	segments, err := filepath.Glob(filepath.Join(dir, "*5", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("%v, %v", segments, err)
	}
	for _, path := range segments {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	s := natstest.Start(t)
	p, _ := start(t, s.URL(), second)
	for i := range 100 {
		second.Record(event(i))
	}
	flush(t, p)
	if clicks, account := consumed(t, s.JetStream(), 6); len(clicks) != 100 || account.Recorded != 100 {
		t.Errorf("%d clicks, %+v", len(clicks), account)
	}
	if clicks, account := consumed(t, s.JetStream(), 5); len(clicks) != 0 || account.Answered != 100 || account.Dropped["corrupt"] != 100 {
		t.Errorf("of the boot that is gone: %d clicks, %+v", len(clicks), account)
	}
}

func TestTheStreamIsToTakeTheLargestBatch(t *testing.T) {
	for size, lines := range map[int32]int{maxBatchBytes: 1, maxBatchBytes + headRoom: 0} {
		c := jetstream.StreamConfig{
			Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 1 << 30, Duplicates: 2 * time.Minute, MaxMsgSize: size,
		}
		if got := clickstream.CheckStream(c, 1); len(got) != lines {
			t.Errorf("messages of at most %d bytes: %q", size, got)
		}
	}
}
