package publish

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestWhatTheStreamRefusesStaysInTheSpoolForTheNextBoot(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	config := jetstream.StreamConfig{Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 1}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	first := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	const n = 1000
	for i := range n {
		first.Record(event(i))
	}
	p, stop := start(t, s.URL(), first)
	for p.errors.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if got := first.Unacknowledged(); got != n {
		t.Errorf("%d of %d clicks are not acknowledged, and the stream has none", got, n)
	}
	stop()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	config.MaxBytes = 100 << 20
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	second := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	q, _ := start(t, s.URL(), second)
	flush(t, q)
	if got := inStream(t, js, 5); got != n {
		t.Errorf("the stream has %d of %d clicks", got, n)
	}
}
