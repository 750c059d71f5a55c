package clickstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// read consumes what the stream holds now, and gives "<node>/<boot>:<sequence>"
// of each click.
func read(t testing.TB, js jetstream.JetStream, o Options) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	o.Log, o.Until = quiet(), time.Now()
	if err := Consume(ctx, js, o, func(_ context.Context, b *Batch) error {
		for _, c := range b.Clicks {
			ids = append(ids, fmt.Sprintf("%s/%d:%d", c.Node, c.Boot, c.Sequence))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestADurableConsumerGoesOnFromTheMarksInNATS(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	publish(subject, message(t, "n", 1, 8, 2))
	durable := Options{Durable: "sink"}
	if got := strings.Join(read(t, js, durable), " "); got != "n/1:1 n/1:2 n/1:3 n/1:4 n/1:5 n/1:8 n/1:9" {
		t.Fatal(got)
	}
	publish(subject, message(t, "n", 1, 4, 5)) // 6 and 7 are new
	if got := strings.Join(read(t, js, durable), " "); got != "n/1:6 n/1:7" {
		t.Fatal(got)
	}
	// Somebody removes the server's consumer: the marks know the place.
	if err := js.DeleteConsumer(t.Context(), StreamName, "sink"); err != nil {
		t.Fatal(err)
	}
	publish(subject, message(t, "n", 1, 10, 1))
	if got := strings.Join(read(t, js, durable), " "); got != "n/1:10" {
		t.Fatal(got)
	}
	// And what a durable consumer had acknowledged stays so without marks.
	acknowledgedUpTo(t, js, "sink", 4)
	if err := js.DeleteKeyValue(t.Context(), MarksBucket); err != nil {
		t.Fatal(err)
	}
	publish(subject, message(t, "n", 1, 11, 1))
	if got := strings.Join(read(t, js, durable), " "); got != "n/1:11" {
		t.Fatal(got)
	}
}

// What a session had fetched and not handled comes in order in the next, and
// does not look like a gap until its time is over.
func TestWhatWasFetchedAndNotHandledComesFirst(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	for i := range uint64(50) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+i, 1))
	}
	broken := errors.New("broken")
	var got []uint64
	for len(got) < 50 {
		handled := 0
		err := Consume(t.Context(), js, Options{Durable: "sink", Log: quiet(), Until: time.Now(), Gap: func(g Gap) { t.Errorf("%+v", g) }}, func(_ context.Context, b *Batch) error {
			if handled++; handled == 8 {
				return broken
			}
			got = append(got, b.First)
			return nil
		})
		if !errors.Is(err, broken) && len(got) < 50 {
			t.Fatal(err)
		}
	}
	if len(got) != 50 || !slices.IsSorted(got) {
		t.Fatal(got)
	}
}

func TestAConsumerEndsWhenAnotherTakesOver(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	first, started := make(chan error, 1), make(chan struct{})
	begun := sync.OnceFunc(func() { close(started) })
	go func() {
		first <- Consume(t.Context(), js, Options{Durable: "sink", SaveEvery: time.Millisecond, Log: quiet()}, func(context.Context, *Batch) error {
			begun()
			return nil
		})
	}()
	<-started
	second, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	var got []uint64
	var last atomic.Uint64 // nothing comes behind it
	go func() {
		ended <- Consume(second, js, Options{Durable: "sink", Log: quiet()}, func(_ context.Context, b *Batch) error {
			if got = append(got, b.First); b.First == last.Load() {
				stop()
			}
			return nil
		})
	}()
	var err error
	sequence := uint64(1)
	for err == nil { // each makes the first save, and see that it has lost its place
		sequence++
		publish(Subject("eu", "n"), message(t, "n", 1, sequence, 1))
		select {
		case err = <-first:
		case <-time.After(5 * time.Millisecond):
		}
	}
	if !errors.Is(err, ErrTakenOver) {
		t.Fatal(err)
	}
	last.Store(sequence + 1)
	publish(Subject("eu", "n"), message(t, "n", 1, sequence+1, 1))
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got[len(got)-1] != sequence+1 || !slices.IsSorted(got) {
		t.Fatal(got)
	}
}

// Between the loss of the server's consumer and the first message that it
// delivers lies a while that must not be skipped.
func TestFromNowOnMeansFromTheFirstMomentOn(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := make(chan uint64, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, js, Options{Start: Now(), Log: quiet()}, func(_ context.Context, b *Batch) error {
			got <- b.First
			return nil
		})
	}()
	var name string
	for name == "" {
		s, err := js.Stream(ctx, StreamName)
		if err != nil {
			t.Fatal(err)
		}
		for n := range s.ConsumerNames(ctx).Name() {
			name = n
		}
	}
	if err := js.DeleteConsumer(ctx, StreamName, name); err != nil {
		t.Fatal(err)
	}
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	if first := <-got; first != 2 {
		t.Fatal(first)
	}
	cancel()
	<-ended
}

// table is a sink with transactions: it has what was collected and the state,
// or neither.
type table struct {
	state     State
	clicks    map[string]int
	collected []string
	crash     func() bool
}

// newTable is an empty one of a sink that does not crash.
func newTable() *table {
	return &table{clicks: map[string]int{}, crash: func() bool { return false }}
}

var errCrash = errors.New("crash")

func (s *table) Load(context.Context) (State, error) {
	s.collected = nil
	return s.state, nil
}

func (s *table) Save(_ context.Context, state State) error {
	if s.crash() {
		return errCrash // before it is committed
	}
	for _, id := range s.collected {
		s.clicks[id]++
	}
	s.collected, s.state = nil, state
	if s.crash() {
		return errCrash // after
	}
	return nil
}

func TestASinkThatWritesClicksAndMarksTogetherIsExactOverCrashes(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	rnd := rand.New(rand.NewPCG(3, 3))
	const boots, last = 3, 300
	for boot := range uint64(boots) {
		for at := uint64(1); at <= last; {
			n := min(1+rnd.IntN(20), int(last-at+1))
			publish(Subject("eu", "n"), message(t, "n", boot, at, n))
			at += uint64(n)
			if back := uint64(rnd.IntN(30)); rnd.IntN(4) == 0 && back < at-1 { // published again, cut elsewhere
				publish(Subject("eu", "n"), message(t, "n", boot, at-back, int(min(back, last-at+back))))
			}
		}
	}
	sink := &table{clicks: map[string]int{}, crash: func() bool { return rnd.IntN(6) == 0 }}
	crashes := 0
	for {
		err := Consume(t.Context(), js, Options{
			Durable: "sink", Store: sink, SaveEvery: time.Hour, SaveClicks: 20, Log: quiet(), Until: time.Now(),
			Gap: func(g Gap) { t.Errorf("%+v", g) },
		}, func(_ context.Context, b *Batch) error {
			for _, c := range b.Clicks {
				sink.collected = append(sink.collected, c.ID())
			}
			return nil
		})
		if err == nil {
			break
		}
		if !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		crashes++
	}
	if len(sink.clicks) != boots*last || crashes == 0 {
		t.Fatalf("%d clicks, %d crashes", len(sink.clicks), crashes)
	}
	for id, n := range sink.clicks {
		if n != 1 {
			t.Fatalf("%s came %d times", id, n)
		}
	}
}

// A server that lost power has lost the end of its stream; nodes publish it
// again, and the numbers of its messages are given a second time.
func TestAStreamThatLostItsEndIsReadAgainThere(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	sink := newTable()
	if got := len(read(t, js, Options{Store: sink})); got != 5 {
		t.Fatal(got)
	}
	sink.state.Next += 5 // there had been more messages, with the clicks 6 to 10
	sink.state.Stored = time.Now()
	sink.state.Marks[0].High = 10
	publish(subject, message(t, "n", 1, 6, 5))
	publish(subject, message(t, "n", 1, 11, 1))
	if got := strings.Join(read(t, js, Options{Store: sink}), " "); got != "n/1:11" {
		t.Fatal(got)
	}
	// The numbers have been given again already, and more.
	sink.state.Next, sink.state.Stored = 3, time.Now().Add(-time.Minute)
	publish(subject, message(t, "n", 1, 12, 1))
	sink.state.Marks[0].High = 10
	if got := strings.Join(read(t, js, Options{Store: sink}), " "); got != "n/1:11 n/1:12" {
		t.Fatal(got)
	}
}

func TestAStreamThatLostItsEndIsNotReadFromBeforeTheStart(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	from := apart()
	now := newTable()
	beginNow(t, js, now)
	publish(subject, message(t, "n", 1, 6, 5))
	for name, o := range map[string]Options{
		"a time":     {Store: newTable(), Start: At(from)},
		"a sequence": {Store: newTable(), Start: AtSequence(2)},
		"now":        {Store: now, Start: Now()},
	} {
		if got := len(read(t, js, o)); got != 5 {
			t.Errorf("%s: %d clicks", name, got)
		}
		state := &o.Store.(*table).state
		state.Next += 5 // there had been more messages
		state.Marks[0].High = 9
		if got := read(t, js, o); !slices.Equal(got, []string{"n/1:10"}) {
			t.Errorf("%s: behind what was lost came %v", name, got)
		}
	}
}

// The state was saved by a release that did not keep when it begins.
func TestAStreamThatLostItsEndIsNotReadFromBeforeTheStartAlsoWhereTheStateIsOld(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	from := apart()
	now, at := newTable(), newTable()
	beginNow(t, js, now)
	publish(subject, message(t, "n", 1, 6, 5))
	if got := len(read(t, js, Options{Store: at, Start: At(from)})); got != 5 {
		t.Fatalf("%d clicks", got)
	}
	at.state.Marks[0].High = 9
	for want, o := range map[string]Options{
		"n/1:10":                         {Store: at, Start: At(from)},
		"n/1:6 n/1:7 n/1:8 n/1:9 n/1:10": {Store: now, Start: Now()},
	} {
		state := &o.Store.(*table).state
		state.Next += 5 // there had been more messages
		state.Begin = time.Time{}
		if got := strings.Join(read(t, js, o), " "); got != want {
			t.Errorf("behind what was lost came %s, want %s", got, want)
		}
	}
}

func TestAStreamThatWasMadeAnewIsReadFromItsBeginning(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	for i := range uint64(5) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+i, 1))
	}
	durable := Options{Durable: "sink"}
	if got := len(read(t, js, durable)); got != 5 {
		t.Fatal(got)
	}
	if err := js.DeleteStream(t.Context(), StreamName); err != nil {
		t.Fatal(err)
	}
	publish = stream(t, js)
	for i := range uint64(7) {
		publish(Subject("eu", "n"), message(t, "n", 1, 4+i, 1))
	}
	if got := strings.Join(read(t, js, durable), " "); got != "n/1:6 n/1:7 n/1:8 n/1:9 n/1:10" {
		t.Fatal(got)
	}
}

func TestMessagesDeletedBehindTheBackAreReportedAsAGap(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	for i := range uint64(6) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+10*i, 10))
	}
	s, err := js.Stream(t.Context(), StreamName)
	if err != nil {
		t.Fatal(err)
	}
	for _, sequence := range []uint64{3, 4} {
		if err := s.DeleteMsg(t.Context(), sequence); err != nil {
			t.Fatal(err)
		}
	}
	var gaps []Gap
	var audit Audit
	if got := len(read(t, js, Options{Gap: func(g Gap) { gaps = append(gaps, g) }, Audit: &audit})); got != 40 {
		t.Fatal(got)
	}
	if len(gaps) != 1 || gaps[0].Range != (Range{21, 40}) || gaps[0].Explained || gaps[0].Filled {
		t.Fatalf("%+v", gaps)
	}
	a := audit.Accounts()
	if len(a) != 1 || a[0].Closes() || a[0].Difference() != 20 || !slices.Equal(a[0].Missing, []Range{{21, 40}}) {
		t.Fatalf("%+v", a)
	}
}

func TestAGapIsExplainedAsSoonAsTheLedgerSaysSo(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	ledger := func(recorded, corrupt uint64) func(*clickv1.Batch) {
		return func(b *clickv1.Batch) {
			b.Ledger = &clickv1.Ledger{
				Answered: recorded + corrupt + 2, Recorded: recorded,
				Dropped: []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: corrupt}, {Reason: clickv1.DropReason_DROP_REASON_SPOOL_FULL, Clicks: 2}},
			}
		}
	}
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 5, ledger(5, 0)))
	publish(Subject("eu", "n"), message(t, "n", 1, 8, 1, ledger(8, 0))) // 6 and 7 are missing
	publish(Subject("eu", "n"), message(t, "n", 1, 9, 1, ledger(8, 1))) // the node knows of one
	publish(Subject("eu", "n"), message(t, "n", 1, 10, 0, ledger(7, 2)))
	var gaps []string
	var audit Audit
	read(t, js, Options{Audit: &audit, Gap: func(g Gap) {
		gaps = append(gaps, fmt.Sprint(g.From, "-", g.To, " ", g.Explained, " ", g.Ledger.Dropped))
	}})
	if want := []string{"6-7 false map[corrupt:0 spool_full:2]", "6-7 true map[corrupt:2 spool_full:2]"}; !slices.Equal(gaps, want) {
		t.Fatalf("%q", gaps)
	}
	if a := audit.Accounts(); !a[0].Closes() || a[0].Clicks != 7 || a[0].Lost() != 4 || a[0].Answered != 11 {
		t.Fatalf("%+v", a)
	}
}

func TestMalformedMessagesAreReportedAndPassedOver(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	whole := message(t, "n", 1, 1, 2)
	publish(Subject("eu", "n"), []byte("none of ours"))
	publish(Subject("eu", "n"), whole[:len(whole)-3])
	publish(Subject("eu", "n"), message(t, "n", 1, 0, 1))           // sequences begin at 1
	publish(Subject("eu", "n"), message(t, "n", 1, 1<<64-1, 1))     // and do not run over
	publish(Subject("eu", "n"), message(t, "", 1, 1, 1))            // somebody's
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 1, badIndex)) // found when the clicks are read
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	var bad []uint64
	got := strings.Join(read(t, js, Options{Malformed: func(m Malformed) {
		if !errors.Is(m.Err, ErrMalformed) || len(m.Data) == 0 || m.Subject != "aff.clicks.v1.eu.n" || m.Stored.IsZero() {
			t.Errorf("%+v", m)
		}
		bad = append(bad, m.Sequence)
	}}), " ")
	if got != "n/1:2" || !slices.Equal(bad, []uint64{1, 2, 3, 4, 5, 6}) {
		t.Fatal(got, bad)
	}
}

func badIndex(b *clickv1.Batch) { b.Clicks[0].UserAgent = 99 }

// apart is a time that differs, by any clock, from that of what came before and of what
// comes next.
func apart() time.Time {
	time.Sleep(20 * time.Millisecond)
	t := time.Now()
	time.Sleep(20 * time.Millisecond)
	return t
}
