package clickstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// message is a batch of n clicks as some other program would encode it.
func message(t testing.TB, node string, boot, first uint64, n int, change ...func(*clickv1.Batch)) []byte {
	t.Helper()
	b := &clickv1.Batch{
		Node: node, Region: "eu", Boot: boot, FirstSequence: first, BaseTimeUs: 1_700_000_000_000_000, Strings: [][]byte{nil},
		Ledger: &clickv1.Ledger{Answered: first + uint64(n) - 1, Recorded: first + uint64(n) - 1},
	}
	for i := range n {
		b.Clicks = append(b.Clicks, &clickv1.Click{TimeUs: int64(i)})
	}
	for _, c := range change {
		c(b)
	}
	data, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeReadsEveryField(t *testing.T) {
	data := message(t, "node-1", 0xab, 41, 0, func(b *clickv1.Batch) {
		b.Epoch, b.BaseRevision, b.AddressForm = 0xfeed, 100, clickv1.AddressForm_ADDRESS_FORM_TRUNCATED
		for _, s := range []string{"go.example/a", "aff", "camp", "v1", "https://s.example/", "ua\xff", "ref", "de", "GO.example", "sub1", "x", "bot", "list", "DE"} {
			b.Strings = append(b.Strings, []byte(s))
		}
		b.Clicks = []*clickv1.Click{
			{
				TimeUs: -5, Revision: 3, Link: 1, Affiliate: 2, Campaign: 3, Variant: 4, Rule: 2, Destination: 5, Status: 301,
				Method: clickv1.Method_METHOD_HEAD, Outcome: clickv1.Outcome_OUTCOME_EXPIRED, Address: []byte{203, 0, 113, 0},
				UserAgent: 6, Referrer: 7, Languages: 8, Host: 9, Parameters: []uint32{10, 11}, Labels: []uint32{12, 13}, Country: 14, Asn: 64500,
			},
			{},
		}
		b.Ledger = &clickv1.Ledger{Answered: 50, Recorded: 42, Final: true, Dropped: []*clickv1.Drop{{Reason: 1, Clicks: 7}, {Reason: 99, Clicks: 1}}}
	})
	b, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	want := &Batch{
		Node: "node-1", Region: "eu", Boot: 0xab, First: 41,
		Ledger: Ledger{Answered: 50, Recorded: 42, Final: true, Dropped: map[string]uint64{"spool_full": 7, "reason_99": 1}},
		Clicks: []Click{
			{
				Node: "node-1", Region: "eu", Boot: 0xab, Sequence: 41, Time: time.UnixMicro(1_699_999_999_999_995).UTC(), Epoch: 0xfeed, Revision: 103,
				Link: "go.example/a", Affiliate: "aff", Campaign: "camp", Variant: "v1", Rule: 2, Destination: "https://s.example/", Status: 301,
				Method: "HEAD", Outcome: 4, Address: Address{"\xcb\x00\x71\x00", AddressTruncated}, UserAgent: "ua\xff", Referrer: "ref", Languages: "de",
				Host: "GO.example", Path: "/a", Parameters: []Parameter{{"sub1", "x"}}, Labels: []Label{{"bot", "list"}}, Country: "DE", ASN: 64500,
			},
			{Node: "node-1", Region: "eu", Boot: 0xab, Sequence: 42, Time: time.UnixMicro(1_700_000_000_000_000).UTC(), Epoch: 0xfeed, Revision: 100, Status: 302, Method: "GET"},
		},
	}
	if diff := cmp.Diff(want, b, cmp.AllowUnexported(Address{})); diff != "" {
		t.Fatal(diff)
	}
	text, err := json.Marshal(b.Clicks[0])
	if err != nil {
		t.Fatal(err)
	}
	const json1 = `{"node":"node-1","boot":"00000000000000ab","sequence":41,"region":"eu","time":"2023-11-14T22:13:19.999995Z","epoch":"000000000000feed","revision":103,` +
		`"link":"go.example/a","affiliate":"aff","campaign":"camp","variant":"v1","rule":2,"destination":"https://s.example/","status":301,"method":"HEAD","outcome":"expired",` +
		`"address":"203.0.113.0/24","user_agent":"ua\ufffd","referrer":"ref","languages":"de","host":"GO.example","path":"/a",` +
		`"parameters":[{"name":"sub1","value":"x"}],"labels":[{"name":"bot","reason":"list"}],"country":"DE","asn":64500}`
	if string(text) != json1 {
		t.Fatalf("%s", text)
	}
	if id := b.Clicks[0].ID(); id != "node-1-00000000000000ab-41" {
		t.Fatal(id)
	}
}

func TestAddressesPrintAsWhatTheyAre(t *testing.T) {
	v6 := "\x20\x01\x0d\xb8\x00\x01" + strings.Repeat("\x00", 10)
	for want, a := range map[string]Address{
		"203.0.113.9":      {"\xcb\x00\x71\x09", AddressFull},
		"203.0.113.0/24":   {"\xcb\x00\x71\x00", AddressTruncated},
		"2001:db8:1::/48":  {v6, AddressTruncated},
		"2001:db8:1::":     {v6, AddressFull},
		"0102030405060708": {"\x01\x02\x03\x04\x05\x06\x07\x08", AddressHashed},
		"":                 {},
	} {
		if got := a.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTheTextOfOutcomesAndHexComesBack(t *testing.T) {
	for o := range 256 {
		text, _ := Outcome(o).MarshalText()
		var back Outcome
		if err := back.UnmarshalText(text); err != nil || back != Outcome(o) {
			t.Fatalf("%s: %v", text, err)
		}
	}
	var h Hex
	if err := h.UnmarshalText([]byte("00000000000000ab")); err != nil || h != 0xab {
		t.Fatal(h, err)
	}
	if h.UnmarshalText([]byte("x")) == nil || new(Outcome).UnmarshalText([]byte("no")) == nil {
		t.Fatal("nonsense is taken")
	}
}

func TestDecodeSkipsUnknownFieldsAndTakesAnyOrder(t *testing.T) {
	var click []byte
	click = protowire.AppendTag(click, 3, protowire.VarintType)
	click = protowire.AppendVarint(click, 1)
	click = protowire.AppendTag(click, 99, protowire.Fixed32Type)
	click = protowire.AppendFixed32(click, 7)
	var data []byte
	data = protowire.AppendTag(data, 9, protowire.BytesType)
	data = protowire.AppendBytes(data, click)
	data = protowire.AppendTag(data, 99, protowire.BytesType)
	data = protowire.AppendBytes(data, []byte("later"))
	for _, s := range []string{"ignored", "a/b"} {
		data = protowire.AppendTag(data, 8, protowire.BytesType)
		data = protowire.AppendString(data, s)
	}
	b, err := Decode(data)
	if err != nil || len(b.Clicks) != 1 || b.Clicks[0].Link != "a/b" || b.Clicks[0].Affiliate != "" {
		t.Fatalf("%+v, %v", b, err)
	}
}

func TestDecodeRefusesWhatIsNoBatch(t *testing.T) {
	whole := message(t, "n", 1, 1, 2)
	for i, data := range [][]byte{
		[]byte("hello"), whole[:len(whole)-1], {0x0a}, {0x08, 1}, {0x4a, 2, 0x18, 9}, {0x4a, 2, 0x1a, 0}, {0x4a, 3, 0x92, 1, 1}, {0x5a, 2, 0x0a, 0}, {0xff},
	} {
		if _, err := Decode(data); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(message(f, "n", 1, 1, 3))
	f.Add(message(f, "n", 1, 1, 1, func(b *clickv1.Batch) {
		b.Strings = append(b.Strings, []byte("a/b"))
		b.Clicks[0].Link, b.Clicks[0].Labels = 1, []uint32{1, 1}
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decode(data)
		if err != nil {
			return
		}
		var want clickv1.Batch
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, &want); err != nil {
			return // protobuf is stricter about UTF-8 in names and about overflow
		}
		if got.Node != want.Node || got.First != want.FirstSequence || uint64(got.Boot) != want.Boot || len(got.Clicks) != len(want.Clicks) {
			t.Fatalf("%+v, want %v", got, &want)
		}
		for i, c := range want.Clicks {
			text := ""
			if c.UserAgent > 0 {
				text = string(want.Strings[c.UserAgent])
			}
			if got.Clicks[i].UserAgent != text || got.Clicks[i].Revision != want.BaseRevision+c.Revision {
				t.Fatalf("click %d: %+v, want %v", i, got.Clicks[i], c)
			}
		}
	})
}

func TestSubjectsOfAnyNamesAreOneTokenEach(t *testing.T) {
	for want, names := range map[string][2]string{
		"aff.clicks.v1.eu-west_1.node-1": {"eu-west_1", "node-1"},
		"aff.clicks.v1.=.a=2Eb=20=2A":    {"", "a.b *"},
		"aff.clicks.v1.a=3D.b":           {"a=", "b"},
	} {
		if got := Subject(names[0], names[1]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func batch(first uint64, n int) *Batch {
	return &Batch{Node: "n", Boot: 1, First: first, Clicks: make([]Click, n)}
}

func TestMarksKnowWhatIsNewWhateverTheOrder(t *testing.T) {
	m := NewMarks()
	steps := []struct {
		first  uint64
		n      int
		news   []Range
		opened *Range
		filled []Range
	}{
		{1, 10, []Range{{1, 10}}, nil, nil},
		{1, 10, nil, nil, nil},
		{5, 10, []Range{{11, 14}}, nil, nil},
		{20, 5, []Range{{20, 24}}, &Range{15, 19}, nil},
		{16, 2, []Range{{16, 17}}, nil, []Range{{16, 17}}},
		{14, 12, []Range{{15, 15}, {18, 19}, {25, 25}}, nil, []Range{{15, 15}, {18, 19}}},
		{30, 0, nil, &Range{26, 29}, nil},
		{26, 4, []Range{{26, 29}}, nil, []Range{{26, 29}}},
	}
	for i, s := range steps {
		b := batch(s.first, s.n)
		if got := m.news(b); !slices.Equal(got, s.news) {
			t.Fatalf("step %d: news %v, want %v", i, got, s.news)
		}
		opened, filled := m.handled(b)
		if !cmp.Equal(opened, s.opened) || !slices.Equal(filled, s.filled) {
			t.Fatalf("step %d: opened %v, filled %v", i, opened, filled)
		}
		m = NewMarks(m.All()...) // a consumer may stop at any time
	}
	if got := m.All(); len(got) != 1 || got[0].High != 29 || len(got[0].Missing) != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestMarksAgreeWithASetUnderRandomBatches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		var m Marks
		seen := map[uint64]bool{}
		for range 60 {
			b := batch(uint64(1+rnd.IntN(100)), rnd.IntN(12))
			fresh := map[uint64]bool{}
			for _, r := range m.news(b) {
				for s := r.From; s <= r.To; s++ {
					fresh[s] = true
				}
			}
			for i := range b.Clicks {
				if s := b.First + uint64(i); fresh[s] == seen[s] {
					t.Fatalf("sequence %d: new %t, seen %t; %+v", s, fresh[s], seen[s], m.All())
				} else {
					seen[s] = true
				}
			}
			m.handled(b)
		}
	}
}

// stream makes the stream and gives a function that publishes to it.
func stream(t testing.TB, js jetstream.JetStream) func(subject string, data []byte) {
	t.Helper()
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: StreamName, Subjects: []string{Subjects}}); err != nil {
		t.Fatal(err)
	}
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
		b.Ledger.Dropped = []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: 3}}
	}))
	publish(subject, message(t, "n", 1, 16, 0, func(b *clickv1.Batch) { b.Ledger.Final = true }))
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
	time.Sleep(20 * time.Millisecond)
	between := time.Now()
	time.Sleep(20 * time.Millisecond)
	publish(Subject("eu", "n"), message(t, "n", 1, 2, 1))
	publish(Subject("us", "m"), message(t, "m", 1, 1, 1))
	first := func(o Options) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		o.Log = quiet()
		var id string
		done := errors.New("done")
		var later sync.WaitGroup
		defer later.Wait()
		if o.Start.now {
			later.Go(func() {
				time.Sleep(300 * time.Millisecond)
				publish(Subject("eu", "n"), message(t, "n", 1, 3, 1))
			})
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
	marks := NewMarks()
	var got []uint64
	consume := func(until uint64, failAt uint64) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		err := Consume(ctx, js, Options{Durable: "sink", Marks: marks, Log: quiet(), AckWait: time.Second}, func(_ context.Context, b *Batch) error {
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
	marks = NewMarks(marks.All()...)
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

func BenchmarkDecode(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const n = 600
	data := message(b, "node-1", 1, 1, n, func(m *clickv1.Batch) {
		for i := range 1000 {
			m.Strings = append(m.Strings, fmt.Appendf(nil, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) %d", i))
		}
		for _, c := range m.Clicks {
			c.Link, c.Affiliate, c.Campaign, c.Destination = 1+rnd.Uint32N(400), 1+rnd.Uint32N(50), 1+rnd.Uint32N(7), 1+rnd.Uint32N(400)
			c.UserAgent, c.Referrer, c.Languages, c.Host = 1+rnd.Uint32N(100), 1+rnd.Uint32N(20), 1+rnd.Uint32N(3), 7
			c.TimeUs, c.Address = int64(rnd.IntN(40000)), []byte{1, 2, 3, 0}
		}
	})
	b.ReportAllocs()
	clicks := 0
	for b.Loop() {
		batch, err := Decode(data)
		if err != nil {
			b.Fatal(err)
		}
		clicks += len(batch.Clicks)
	}
	b.ReportMetric(float64(clicks)/b.Elapsed().Seconds(), "clicks/s")
}
