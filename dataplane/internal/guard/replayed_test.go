package guard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// attacks are people and one of each attack, for what must be the same twice.
func attacks(r *rand.Rand) []hit {
	hits := people(r, 0, day, 0.4)
	for i := range 300 {
		hits = append(hits, hit{at: 3*time.Hour + time.Duration(i)*300*time.Millisecond, address: bad, agent: "x", affiliate: 3})
	}
	for at := time.Duration(0); at < day; at += time.Duration(r.ExpFloat64() * float64(100*time.Second)) {
		h := person(r, at)
		h.address, h.referrer, h.asn, h.affiliate, h.link = fmt.Sprintf("160.1.2.%d", r.IntN(100)), "", 64500, r.IntN(40), r.IntN(20)
		hits = append(hits, h)
	}
	for range 200 {
		h := person(r, time.Duration(r.Int64N(int64(20*time.Hour))))
		h.agent, h.affiliate = "Mozilla/5.0 cut", 9
		hits = append(hits, h)
	}
	for i := range 300 {
		hits = append(hits, hit{at: 5*time.Hour + time.Duration(i)*time.Minute, address: "198.51.100.3", agent: "clock", affiliate: 5})
	}
	return hits
}

func texts(t *testing.T, found []*clickv1.Finding) (all []string) {
	t.Helper()
	for _, f := range found {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(data))
	}
	return all
}

func TestTheSameClicksGiveTheSameFindingsHoweverTheyAreCut(t *testing.T) {
	hits := attacks(random(t))
	var want []string
	for _, size := range []int{200, 200, 1, 977} {
		var found []*clickv1.Finding
		e, err := NewEngine(small(), func(f *clickv1.Finding) { found = append(found, f) })
		if err != nil {
			t.Fatal(err)
		}
		feed(t, e, hits, size)
		ids := map[string]bool{}
		for _, f := range found {
			if ids[f.GetId()] {
				t.Errorf("the id %s is there twice", f.GetId())
			}
			ids[f.GetId()] = true
		}
		got := texts(t, found)
		if want == nil {
			want = got
		}
		if len(got) < 20 || !slices.Equal(got, want) {
			t.Fatalf("in batches of %d: %d findings, not the same as %d", size, len(got), len(want))
		}
	}
}

func TestWhatIsFoundBehindACheckpointIsWhatWouldHaveBeenFound(t *testing.T) {
	hits := attacks(random(t))
	slices.SortStableFunc(hits, func(a, b hit) int { return int(a.at - b.at) })
	want := texts(t, find(t, hits))
	for _, part := range []float64{0, 0.1, 0.37, 0.8, 1} {
		cut := int(part * float64(len(hits)))
		var found []*clickv1.Finding
		note := func(f *clickv1.Finding) { found = append(found, f) }
		first, err := NewEngine(small(), note)
		if err != nil {
			t.Fatal(err)
		}
		sequence := uint64(1)
		add := func(e *Engine, hits []hit) {
			for ; len(hits) > 0; hits = hits[min(200, len(hits)):] {
				n := min(200, len(hits))
				b, err := clickstream.Decode(message(t, sequence, hits[:n]))
				if err != nil {
					t.Fatal(err)
				}
				e.Add(b)
				sequence += uint64(n)
			}
		}
		add(first, hits[:cut])
		var saved bytes.Buffer
		if err := first.Save(&saved); err != nil {
			t.Fatal(err)
		}
		second, err := NewEngine(small(), note)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Load(bytes.NewReader(saved.Bytes())); err != nil {
			t.Fatal(err)
		}
		add(second, hits[cut:])
		if got := texts(t, found); !slices.Equal(got, want) {
			t.Fatalf("cut at %d of %d: %d findings, not the same as %d", cut, len(hits), len(got), len(want))
		}
		if a, b := first.Stats(), second.Stats(); part == 1 && (a.Clicks != b.Clicks || a.Bytes != b.Bytes || a.Evicted != b.Evicted) {
			t.Fatalf("%+v, %+v", a, b)
		}
	}
}

func TestACheckpointThatIsNotWholeOrNotOursIsRefused(t *testing.T) {
	e, err := NewEngine(small(), nil)
	if err != nil {
		t.Fatal(err)
	}
	feed(t, e, attacks(random(t))[:2000], 200)
	var saved bytes.Buffer
	if err := e.Save(&saved); err != nil {
		t.Fatal(err)
	}
	load := func(settings Settings, data []byte) error {
		e, err := NewEngine(settings, nil)
		if err != nil {
			t.Fatal(err)
		}
		return e.Load(bytes.NewReader(data))
	}
	data := saved.Bytes()
	if err := load(small(), data); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, 100, len(data) / 2, len(data) - 20} {
		if err := load(small(), data[:cut]); !errors.Is(err, ErrDamagedCheckpoint) {
			t.Errorf("%d of %d bytes: %v", cut, len(data), err)
		}
	}
	for _, at := range []int{50, len(data) / 3, len(data) - 30} {
		bad := slices.Clone(data)
		bad[at] ^= 0x55
		if err := load(small(), bad); !errors.Is(err, ErrDamagedCheckpoint) && !errors.Is(err, ErrOtherCheckpoint) {
			t.Errorf("a byte at %d of %d: %v", at, len(data), err)
		}
	}
	other := small()
	other.Flood.Clicks = 13
	if err := load(other, data); !errors.Is(err, ErrOtherCheckpoint) {
		t.Errorf("of other settings: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	tiny := Settings{Addresses: 8, Networks: 8, Agents: 8, ASNs: 8, Affiliates: 8}
	e, err := NewEngine(tiny, nil)
	if err != nil {
		f.Fatal(err)
	}
	feed(f, e, attacks(rand.New(rand.NewPCG(1, 1)))[:300], 100)
	var saved bytes.Buffer
	if err := e.Save(&saved); err != nil {
		f.Fatal(err)
	}
	f.Add(saved.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := NewEngine(tiny, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e.Load(bytes.NewReader(data)) == nil {
			feed(t, e, []hit{{at: day, address: bad, agent: "x"}}, 1)
		}
	})
}

func TestMadeUpKeysChangeNoMemoryAndPushOutNobodyWhoIsBusy(t *testing.T) {
	var found []*clickv1.Finding
	e, err := NewEngine(small(), func(f *clickv1.Finding) { found = append(found, f) })
	if err != nil {
		t.Fatal(err)
	}
	r := random(t)
	const n = 300_000
	before := e.Stats().Bytes
	batch := make([]hit, 0, 500)
	for i := range n {
		at := time.Duration(i) * 10 * time.Millisecond
		batch = append(batch, hit{at: at, address: fmt.Sprintf("%d.%d.%d.%d", 1+r.IntN(200), r.IntN(256), r.IntN(256), r.IntN(256)), agent: fmt.Sprint("agent-", i), referrer: fmt.Sprint("r", i), affiliate: r.IntN(1 << 20), asn: r.Uint32()})
		if i%1000 == 0 { // a clock among them, every ten seconds
			batch = append(batch, hit{at: at, address: bad, agent: "clock", affiliate: 1})
		}
		if len(batch) >= 499 {
			feed(t, e, batch, 500)
			batch = batch[:0]
		}
	}
	after := e.Stats()
	if grown := after.Bytes - before; grown > 1<<20 {
		t.Errorf("the state has grown by %d bytes", grown)
	}
	if len(e.affiliates.byHash) > len(e.affiliates.all) || after.Evicted == 0 {
		t.Errorf("%d names of %d affiliates, %d sources went", len(e.affiliates.byHash), len(e.affiliates.all), after.Evicted)
	}
	guilty(t, found, "timing", band)
}
