package publish

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// A batch was stored and its acknowledgement never arrived; the process that
// follows cuts other ranges, and its ids must not hide new clicks behind it.
func TestALostAcknowledgementBeforeARestartCostsAndDoublesNothing(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	dir := t.TempDir()
	first := openRecorder(t, func(c *click.Config) { c.Dir = dir; c.Boot = 5 })
	for i := range 10 {
		first.Record(event(i))
	}
	lost := newSource(first.Log(), newEncoder(first.Log().Identity()), func() []byte { return nil })
	b, err := lost.fill(time.Now(), 0, true)
	if err != nil {
		t.Fatal(err)
	}
	lost.cursor.Close()
	for i := range 10 {
		first.Record(event(10 + i))
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openRecorder(t, func(c *click.Config) { c.Dir = dir; c.Boot = 6 })
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.PublishMsg(context.Background(), &nats.Msg{
		Subject: clickstream.Subject("eu", "node-1"), Data: b.data, Header: nats.Header{"Nats-Msg-Id": {b.id}},
	}); err != nil {
		t.Fatal(err)
	}
	p, _ := start(t, s.URL(), second)
	flush(t, p)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got []uint64
	done := errors.New("done")
	err = clickstream.Consume(ctx, js, clickstream.Options{}, func(_ context.Context, b *clickstream.Batch) error {
		if b.Boot == 6 {
			return done
		}
		for _, c := range b.Clicks {
			got = append(got, c.Sequence)
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	if len(got) != 20 || got[0] != 1 || got[19] != 20 {
		t.Fatalf("%v", got)
	}
}

func TestAnAcknowledgementThatIsLostOnTheWayLeadsToTheSameMessageAgain(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	p := byHand(t, Config{URL: s.URL(), Recorder: r})
	ctx := t.Context()
	settle(t, p)
	for i := range 10 {
		r.Record(event(i))
	}
	now := time.Now()
	p.pump(ctx, now)
	p.pump(ctx, now.Add(maxAge))
	<-p.acks // stored, and the answer is lost
	if len(p.inFlight) != 1 || r.Unacknowledged() != 10 {
		t.Fatalf("%d batches under way, %d clicks not acknowledged", len(p.inFlight), r.Unacknowledged())
	}
	later := now.Add(maxAge + p.config.Timeout + 1)
	p.pump(ctx, later) // too late: it looks for the stream again
	if p.ready {
		t.Fatal("it waits for the answer still")
	}
	settle(t, p)
	p.pump(ctx, later)
	p.answered(<-p.acks)
	if len(p.inFlight) != 0 || r.Unacknowledged() != 0 {
		t.Fatalf("%d batches under way, %d clicks not acknowledged", len(p.inFlight), r.Unacknowledged())
	}
	if got := messages(t, s.JetStream()); len(got) != 1 {
		t.Fatalf("the stream has %d messages", len(got))
	}
}

// unanswered sends clicks whose acknowledgement is lost, and waits for longer
// than the server remembers their ids.
func unanswered(t *testing.T, s *natstest.Server, r *click.Recorder, clicks int) *Publisher {
	t.Helper()
	const window = 200 * time.Millisecond
	p := byHand(t, Config{URL: s.URL(), Recorder: r, Stream: StreamLimits{Duplicates: window}})
	settle(t, p)
	for i := range clicks {
		r.Record(event(i))
	}
	p.pump(t.Context(), time.Now())
	p.pump(t.Context(), time.Now().Add(maxAge))
	<-p.acks // stored, and the answer is lost
	stored := time.Now()
	for time.Since(stored) < 4*window {
		time.Sleep(window)
	}
	return p
}

// byHand is a connected publisher whose loop is the test.
func byHand(t *testing.T, config Config) *Publisher {
	t.Helper()
	config.Log = slog.New(slog.DiscardHandler)
	p, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.nc.Close)
	p.openSources()
	t.Cleanup(func() { p.closeSources() })
	return p
}

func settle(t *testing.T, p *Publisher) {
	t.Helper()
	for deadline := time.After(60 * time.Second); !p.ready; {
		p.pump(t.Context(), time.Now())
		select {
		case setup := <-p.setups:
			p.settled(setup)
		case <-time.After(tick): // it may be on its way, or wait because of an error
		case <-deadline:
			t.Fatal("no stream")
		}
	}
}

// The stream takes smaller messages by now, and has the first batch of before that. It may
// store the second one late, behind being asked for it: what is cut anew from that one's
// first click on has other clicks, and must not have its id.
func TestBatchesThatAreCutAnewBehindWhatTheStreamHasGetIDsOfTheirOwn(t *testing.T) {
	s := natstest.Start(t)
	js := s.JetStream()
	config := jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 200 << 20,
	}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	r := openRecorder(t)
	p := byHand(t, Config{URL: s.URL(), Recorder: r})
	settle(t, p)
	cut := func() *batch {
		for i := range 10 {
			r.Record(event(i))
		}
		now := time.Now()
		p.next(now) // opens it
		return p.next(now.Add(maxAge))
	}
	early, late := cut(), cut()
	p.inFlight = append(p.inFlight, early, late)
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: early.subject, Data: early.data, Header: nats.Header{jetstream.MsgIDHeader: {early.id}}}); err != nil {
		t.Fatal(err)
	}
	config.MaxMsgSize = 4 * headRoom
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	p.reconnected()
	settle(t, p)
	if r.Log().Acknowledged() != early.last {
		t.Fatalf("%d are acknowledged, and the stream has %d", r.Log().Acknowledged(), early.last)
	}
	if anew := cut(); anew.first != late.first || anew.last == late.last || anew.id == late.id {
		t.Errorf("clicks %d to %d have the id %s, and so had %d to %d", anew.first, anew.last, anew.id, late.first, late.last)
	}
}

// clicksInAll counts clicks in the stream, duplicates too.
func clicksInAll(t *testing.T, js jetstream.JetStream, boot uint64) (n int) {
	t.Helper()
	for _, m := range messages(t, js) {
		b, err := clickstream.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if uint64(b.Boot) == boot {
			n += len(b.Clicks)
		}
	}
	return n
}

func TestAnOutageLongerThanTheDuplicateWindowMakesNoDuplicates(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	p := unanswered(t, s, r, 10)
	p.reconnected()
	settle(t, p)
	if len(p.inFlight) != 0 || r.Unacknowledged() != 0 {
		t.Fatalf("%d batches under way, %d clicks not acknowledged", len(p.inFlight), r.Unacknowledged())
	}
	for i := range 10 {
		r.Record(event(i))
	}
	now := time.Now()
	p.pump(t.Context(), now)
	p.pump(t.Context(), now.Add(maxAge))
	p.answered(<-p.acks)
	if got := clicksInAll(t, s.JetStream(), r.Log().Identity().Boot); got != 20 || r.Unacknowledged() != 0 {
		t.Fatalf("the stream has %d clicks, %d are not acknowledged", got, r.Unacknowledged())
	}
}

func TestARestartAfterTheDuplicateWindowMakesNoDuplicatesAndNoHoles(t *testing.T) {
	s := natstest.Start(t)
	dir := t.TempDir()
	first := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	p := unanswered(t, s, first, 10)
	for i := range 7 { // never sent
		first.Record(event(i))
	}
	p.closeSources()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	q, _ := start(t, s.URL(), second)
	flush(t, q)
	js := s.JetStream()
	if all, each := clicksInAll(t, js, 5), inStream(t, js, 5); all != 17 || each != 17 {
		t.Fatalf("the stream has %d clicks, %d different ones", all, each)
	}
}
