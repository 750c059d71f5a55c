package publish

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// publishBursts records bursts of clicks, each of which is acknowledged before
// the next, and gives how many clicks that were.
func publishBursts(t *testing.T, r *click.Recorder, bursts int) int {
	t.Helper()
	const each = 100
	for range bursts {
		for i := range each {
			r.Record(event(i))
		}
		acknowledged(t, r)
	}
	return bursts * each
}

func acknowledged(t *testing.T, r *click.Recorder) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); r.Unacknowledged() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d are not acknowledged", r.Unacknowledged())
		}
	}
}

// stored counts the clicks of a boot that are in the stream, each once.
func inStream(t *testing.T, js jetstream.JetStream, boot uint64) int {
	t.Helper()
	seen := make(map[uint64]bool)
	for _, m := range messages(t, js) {
		b, err := clickstream.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range b.Clicks {
			if uint64(b.Boot) == boot {
				seen[c.Sequence] = true
			}
		}
	}
	return len(seen)
}

func waitInStream(t *testing.T, js jetstream.JetStream, boot uint64, want int) {
	t.Helper()
	got := 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = inStream(t, js, boot); got == want {
			return
		}
	}
	t.Fatalf("the stream has %d clicks of boot %x, want %d", got, boot, want)
}

// deleteLast deletes messages at the stream's end behind the node's back, and gives how
// many clicks were in them.
func deleteLast(t *testing.T, js jetstream.JetStream, count uint64) (clicks int) {
	t.Helper()
	ctx := context.Background()
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	last := stream.CachedInfo().State.LastSeq
	for i := range count {
		clicks += deleteMessage(t, stream, last-i)
	}
	return clicks
}

// deleteMessage deletes a message, and gives how many clicks were in it.
func deleteMessage(t *testing.T, stream jetstream.Stream, sequence uint64) (clicks int) {
	t.Helper()
	m, err := stream.GetMsg(t.Context(), sequence)
	must(t, err)
	b, err := clickstream.Decode(m.Data)
	must(t, err)
	must(t, stream.DeleteMsg(t.Context(), sequence))
	return len(b.Clicks)
}

func TestAnAcknowledgedTailThatTheStreamLosesIsPublishedAgain(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	registry := prometheus.NewRegistry()
	p, _ := start(t, s.URL(), r, func(c *Config) { c.Registerer = registry })
	n := publishBursts(t, r, 6)
	js := s.JetStream()
	boot := r.Log().Identity().Boot
	gone := deleteLast(t, js, 3)
	if got := inStream(t, js, boot); got != n-gone || gone == 0 {
		t.Fatalf("%d of %d clicks are lost, and %d are there", gone, n, got)
	}
	s.Stop()
	s.Restart()
	waitInStream(t, js, boot, n)
	n += publishBursts(t, r, 2)
	flush(t, p)
	waitInStream(t, js, boot, n)
	counted(t, registry, "aff_clicks_published_total", float64(n))
	counted(t, registry, "aff_clicks_republished_total", float64(gone))
}

// counted checks a counter by its name, which is what operators look at.
func counted(t *testing.T, registry *prometheus.Registry, name string, want float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			if got := f.GetMetric()[0].GetCounter().GetValue(); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
			return
		}
	}
	t.Errorf("there is no metric %s", name)
}

// deleteMiddle deletes messages between others behind the node's back, and gives
// how many clicks were in them.
func deleteMiddle(t *testing.T, js jetstream.JetStream, skip, count int) (clicks int) {
	t.Helper()
	ctx := context.Background()
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	state := stream.CachedInfo().State
	for at := state.FirstSeq + uint64(skip); at < state.LastSeq && count > 0; at++ {
		if _, err := stream.GetMsg(ctx, at); errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		clicks += deleteMessage(t, stream, at)
		count--
	}
	if count > 0 {
		t.Fatalf("%d messages are too few", state.Msgs)
	}
	return clicks
}

// NATS neither restarts nor says anything.
func TestMessagesThatAreDeletedInTheMiddleArePublishedAgain(t *testing.T) {
	s := natstest.Start(t)
	dir := t.TempDir()
	soon := func(c *Config) { c.CheckEvery = 20 * time.Millisecond }
	r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	p, stop := start(t, s.URL(), r, soon)
	n := publishBursts(t, r, 8)
	js := s.JetStream()
	gone := deleteMiddle(t, js, 1, 3)
	waitInStream(t, js, 5, n)
	// Once more, of what has come back as well.
	n += publishBursts(t, r, 1)
	gone += deleteMiddle(t, js, 2, 5)
	waitInStream(t, js, 5, n)
	flush(t, p)
	if got := p.republished.Load(); got != uint64(gone) {
		t.Fatalf("%d clicks were published again, want %d", got, gone)
	}
	stop()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// The next boot finds the holes, and that they are filled.
	r = openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	p, _ = start(t, s.URL(), r, soon)
	publishBursts(t, r, 2)
	flush(t, p)
	if got := p.republished.Load(); got != 0 {
		t.Fatalf("%d clicks were published again, want none", got)
	}
	if clicks, account := consumed(t, js, 5); len(clicks) != n || account.Answered != uint64(n) {
		t.Fatalf("%d clicks, %+v", len(clicks), account)
	}
}

// Another node's messages are none of this node's business.
func TestHolesOfOtherNodesAreLeftAlone(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	p, _ := start(t, s.URL(), r, func(c *Config) { c.CheckEvery = 20 * time.Millisecond })
	publishBursts(t, r, 1)
	js := s.JetStream()
	ctx := context.Background()
	ack, err := js.Publish(ctx, clickstream.Subject("eu", "other"), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	n := 100 + publishBursts(t, r, 1)
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err == nil {
		err = stream.DeleteMsg(ctx, ack.Sequence)
	}
	if err != nil {
		t.Fatal(err)
	}
	n += publishBursts(t, r, 10)
	flush(t, p)
	if got := inStream(t, js, r.Log().Identity().Boot); got != n || p.republished.Load() != 0 {
		t.Fatalf("the stream has %d clicks, %d were published again", got, p.republished.Load())
	}
}

// A stream that deletes what its consumers have read, or all but some messages
// of each node, would be filled for ever.
func TestWhatAStreamDeletesByItselfIsNotPublishedAgain(t *testing.T) {
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"interest":             func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"messages per subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.Discard = 2, jetstream.DiscardOld },
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.Start(t)
			config := jetstream.StreamConfig{Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}}
			change(&config)
			if _, err := s.JetStream().CreateStream(context.Background(), config); err != nil {
				t.Fatal(err)
			}
			r := openRecorder(t)
			p, _ := start(t, s.URL(), r, func(c *Config) { c.CheckEvery = time.Millisecond })
			publishBursts(t, r, 10)
			flush(t, p)
			if got := p.republished.Load(); got != 0 {
				t.Fatalf("%d clicks were published again", got)
			}
		})
	}
}

func TestAnIDLosesOnlyWhatWasAppendedToIt(t *testing.T) {
	for id, want := range map[string]string{
		"n-00000000000000ff-5":          "n-00000000000000ff-5",
		"n-00000000000000ff-5-again-77": "n-00000000000000ff-5",
		"x-again-5-00000000000000ff-12": "x-again-5-00000000000000ff-12",
	} {
		if got := firstID(id); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
}

func TestTheNextBootPublishesAgainWhatTheStreamHasLost(t *testing.T) {
	s := natstest.Start(t)
	dir := t.TempDir()
	first := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	p, stop := start(t, s.URL(), first)
	n := publishBursts(t, first, 5)
	flush(t, p)
	stop()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	js := s.JetStream()
	if err := js.DeleteStream(context.Background(), clickstream.StreamName); err != nil {
		t.Fatal(err)
	}
	second := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	p, _ = start(t, s.URL(), second)
	flush(t, p)
	waitInStream(t, js, 5, n)
	if _, account := consumed(t, js, 5); account.Answered != uint64(n) {
		t.Fatalf("%+v", account)
	}
}

func TestWhatAStreamWasToldToForgetIsNotPublishedAgain(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	p, _ := start(t, s.URL(), r)
	publishBursts(t, r, 3)
	js := s.JetStream()
	stream, err := js.Stream(context.Background(), clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Restart()
	publishBursts(t, r, 1)
	flush(t, p)
	if got := inStream(t, js, r.Log().Identity().Boot); got != 100 || p.republished.Load() != 0 {
		t.Fatalf("the stream has %d clicks", got)
	}
}

// connected is a publisher whose loop is the test, with a stream and bursts of clicks in it.
func connected(t *testing.T, s *natstest.Server, bursts int) (p *Publisher, r *click.Recorder) {
	t.Helper()
	r = openRecorder(t)
	p = byHand(t, Config{URL: s.URL(), Recorder: r})
	settle(t, p)
	for range bursts {
		r.Record(event(0))
		publishAll(t, p, r)
	}
	return p, r
}

// publishAll runs a publisher until all is acknowledged.
func publishAll(t *testing.T, p *Publisher, r *click.Recorder) {
	t.Helper()
	for deadline := time.After(20 * time.Second); r.Unacknowledged() > 0 || p.repeating(); {
		p.pump(t.Context(), time.Now())
		select {
		case m := <-p.acks:
			p.answered(m)
		case s := <-p.setups:
			p.settled(s)
		case <-time.After(tick):
		case <-deadline:
			t.Fatalf("%d are not acknowledged", r.Unacknowledged())
		}
	}
}

func TestWhatIsFoundMissingBeforeAReconnectIsNotPublishedTwice(t *testing.T) {
	s := natstest.Start(t)
	p, _ := connected(t, s, 5)
	deleteLast(t, s.JetStream(), 2)
	p.checkLost(t.Context(), time.Now())
	p.reconnected()
	settle(t, p)
	if !p.checking {
		t.Error("it is asked still, and Run would not wait for that")
	}
	p.looked(<-p.checks)
	if len(p.again) != 2 || p.checking {
		t.Errorf("%d messages are to be published again, want 2; it is asked still: %t", len(p.again), p.checking)
	}
}

// The stream was found, and then it has lost what was acknowledged, with a reconnect.
func TestAStreamThatWasFoundBeforeAReconnectIsAskedAgainWhatItHasLost(t *testing.T) {
	s := natstest.Start(t)
	p, r := connected(t, s, 5)
	p.ready = false // as behind a refusal
	p.pump(t.Context(), time.Now())
	found := <-p.setups
	js := s.JetStream()
	deleteLast(t, js, 2)
	p.reconnected()
	p.settled(found)
	settle(t, p)
	publishAll(t, p, r)
	if got := inStream(t, js, r.Log().Identity().Boot); got != 5 {
		t.Errorf("the stream has %d of 5 clicks", got)
	}
}

// overwritten is a publisher of four clicks whose stream has got a store of before the last
// two, and in which another node has gone on: where those were, there are others. The
// publisher has not been told of the reconnect.
func overwritten(t *testing.T) (p *Publisher, r *click.Recorder, js jetstream.JetStream) {
	t.Helper()
	var store string
	s := natstest.Start(t, func(o *server.Options) { store = o.StoreDir })
	p, r = connected(t, s, 2)
	before := filepath.Join(t.TempDir(), "store")
	restart := func(between func()) {
		t.Helper()
		s.Stop()
		between()
		s.Restart()
		for deadline := time.Now().Add(20 * time.Second); !p.nc.IsConnected(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no connection")
			}
		}
	}
	restart(func() { must(t, os.CopyFS(before, os.DirFS(store))) })
	p.reconnected()
	settle(t, p)
	for range 2 {
		r.Record(event(0))
		publishAll(t, p, r)
	}
	restart(func() { must(t, os.RemoveAll(store)); must(t, os.CopyFS(store, os.DirFS(before))) })
	js = s.JetStream()
	for range 3 {
		_, err := js.Publish(t.Context(), clickstream.Subject("eu", "other"), nil)
		must(t, err)
	}
	if got := inStream(t, js, r.Log().Identity().Boot); got != 2 {
		t.Fatalf("nothing was lost: the stream has %d clicks", got)
	}
	return p, r, js
}

func TestAStreamIsAskedWhatItHasLostAlsoWhereTheReconnectIsToldLate(t *testing.T) {
	p, r, js := overwritten(t)
	r.Record(event(0))
	publishAll(t, p, r)
	p.reconnected()
	settle(t, p)
	publishAll(t, p, r)
	if got := inStream(t, js, r.Log().Identity().Boot); got != 5 {
		t.Errorf("the stream has %d of 5 clicks", got)
	}
}

func TestWhatTheStreamHasLostIsFoundAlsoWhereItDoesNotAnswerAtFirst(t *testing.T) {
	p, r, js := overwritten(t)
	p.reconnected()
	p.pump(t.Context(), time.Now())
	found := <-p.setups
	found.checked = check{turn: found.turn, err: context.DeadlineExceeded}
	p.settled(found)
	r.Record(event(0))
	publishAll(t, p, r)
	p.pump(t.Context(), time.Now().Add(p.config.CheckEvery+time.Second))
	p.looked(<-p.checks)
	publishAll(t, p, r)
	if got := inStream(t, js, r.Log().Identity().Boot); got != 5 {
		t.Errorf("the stream has %d of 5 clicks", got)
	}
}

// The new stream is further than the one before by the time that this node publishes.
func TestWhatWasInAStreamThatIsMadeAnewIsPublishedAgain(t *testing.T) {
	s := natstest.Start(t)
	p, r := connected(t, s, 2)
	js := s.JetStream()
	stream, err := js.Stream(t.Context(), clickstream.StreamName)
	must(t, err)
	must(t, js.DeleteStream(t.Context(), clickstream.StreamName))
	natstest.CreateStream(t, js, stream.CachedInfo().Config)
	for range 3 {
		_, err := js.Publish(t.Context(), clickstream.Subject("eu", "other"), nil)
		must(t, err)
	}
	r.Record(event(0))
	publishAll(t, p, r)
	p.pump(t.Context(), time.Now().Add(p.config.CheckEvery+time.Second))
	p.looked(<-p.checks)
	publishAll(t, p, r)
	if got := inStream(t, js, r.Log().Identity().Boot); got != 3 {
		t.Errorf("the stream has %d of 3 clicks", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
