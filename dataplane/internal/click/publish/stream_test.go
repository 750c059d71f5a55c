package publish

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestAFullStreamIsTriedUntilItTakesClicks(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	ctx := context.Background()
	config := jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 200 << 10,
	}
	if _, err := js.CreateStream(ctx, config); err != nil {
		t.Fatal(err)
	}
	r := openRecorder(t)
	registry := prometheus.NewRegistry()
	p, _ := start(t, s.URL(), r, func(c *Config) { c.Registerer = registry })
	const n = 20000
	random := rand.NewChaCha8([32]byte{}) // what compresses well would fit
	for i := range n {
		e := event(i)
		e.Referrer = make([]byte, 50)
		_, _ = random.Read(e.Referrer)
		r.Record(e)
	}
	for deadline := time.Now().Add(20 * time.Second); p.errors.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stream takes all")
		}
	}
	config.MaxBytes = 100 << 20
	if _, err := js.UpdateStream(ctx, config); err != nil {
		t.Fatal(err)
	}
	flush(t, p)
	counted(t, registry, "aff_clicks_publish_errors_total", float64(p.errors.Load()))
	clicks, account := consumed(t, js, r.Log().Identity().Boot)
	if len(clicks) != n || account.Answered != n {
		t.Fatalf("%d clicks, %+v", len(clicks), account)
	}
}

func TestAServerWithLittleRoomGetsASmallStream(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) { o.JetStreamMaxStore = 1 << 30 })
	r := openRecorder(t)
	p, _ := start(t, s.URL(), r)
	r.Record(event(1))
	flush(t, p)
	stream, err := s.JetStream().Stream(context.Background(), clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	if c.MaxBytes > 1<<30 || c.MaxBytes < minStreamBytes || c.Storage != jetstream.FileStorage || c.Discard != jetstream.DiscardNew || c.Duplicates != 2*time.Minute {
		t.Fatalf("%+v", c)
	}
}

func TestTheLogSaysOnceWhatIsUnsafeAboutTheStream(t *testing.T) {
	s := natstest.Start(t)
	config := jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardOld,
		Duplicates: time.Second,
	}
	if _, err := s.JetStream().CreateStream(context.Background(), config); err != nil {
		t.Fatal(err)
	}
	var log lines
	r := openRecorder(t)
	start(t, s.URL(), r, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	publishBursts(t, r, 1)
	s.Stop()
	s.Restart()
	publishBursts(t, r, 1)
	warnings := clickstream.CheckStream(config, 1)
	if len(warnings) < 2 {
		t.Fatalf("%q", warnings)
	}
	for _, warning := range warnings {
		if told := log.count(fmt.Sprintf("level=WARN msg=%q", warning)); told != 1 {
			t.Errorf("%q is told %d times:\n%s", warning, told, log.b.String())
		}
	}
}
