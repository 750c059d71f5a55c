package clickstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

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

// packed compresses the strings and clicks of a message, as nodes do.
func packed(t testing.TB, data []byte) []byte {
	t.Helper()
	b := new(clickv1.Batch)
	if err := proto.Unmarshal(data, b); err != nil {
		t.Fatal(err)
	}
	inner, err := proto.Marshal(&clickv1.Batch{BaseTimeUs: b.BaseTimeUs, Epoch: b.Epoch, BaseRevision: b.BaseRevision, Strings: b.Strings, Clicks: b.Clicks})
	if err != nil {
		t.Fatal(err)
	}
	b.BaseTimeUs, b.Epoch, b.BaseRevision, b.Strings, b.Clicks = 0, 0, 0, nil, nil
	b.Snappy = snappy.Encode(nil, inner)
	out, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestACompressedBatchIsTheSameBatch(t *testing.T) {
	for _, n := range []int{0, 1, 600} {
		data := browserBatch(t, 5, 77, n)
		want, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		small := packed(t, data)
		got, err := Decode(small)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Address{})); diff != "" || n > 0 && len(small) >= len(data) {
			t.Fatalf("%d clicks, %d and %d bytes: %s", n, len(data), len(small), diff)
		}
	}
}

// Nothing of one batch is left in the next that uses its storage.
func TestStorageThatIsUsedAgainHoldsNothingOld(t *testing.T) {
	var d decoder
	d.reuse = true
	for _, n := range []int{600, 3, 40} {
		data := packed(t, browserBatch(t, 5, uint64(n), n))
		if n == 3 {
			data = message(t, "n", 1, 1, n)
		}
		want, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.head(data)
		if err == nil {
			err = d.clicks(nil, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Address{})); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestDecodeRefusesWhatIsCompressedWrongly(t *testing.T) {
	whole := message(t, "n", 1, 1, 2)
	with := func(b *clickv1.Batch) []byte {
		data, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	inner := with(&clickv1.Batch{Clicks: []*clickv1.Click{{}}})
	small := snappy.Encode(nil, inner)
	for name, data := range map[string][]byte{
		"nonsense":              with(&clickv1.Batch{Snappy: []byte("nonsense")}),
		"cut":                   with(&clickv1.Batch{Snappy: small[:len(small)-1]}),
		"a size beyond all":     with(&clickv1.Batch{Snappy: []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}}),
		"clicks beside":         append(bytes.Clone(whole), with(&clickv1.Batch{Snappy: small})...),
		"compressed twice":      with(&clickv1.Batch{Snappy: snappy.Encode(nil, with(&clickv1.Batch{Snappy: small}))}),
		"two of them":           append(with(&clickv1.Batch{Snappy: small}), with(&clickv1.Batch{Snappy: small})...),
		"a wrong field in it":   with(&clickv1.Batch{Snappy: snappy.Encode(nil, []byte{0x08, 1})}),
		"an index out of range": with(&clickv1.Batch{Snappy: snappy.Encode(nil, with(&clickv1.Batch{Clicks: []*clickv1.Click{{Link: 1}}}))}),
	} {
		if b, err := Decode(data); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
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
		Node: "node-1", Region: "eu", Boot: 0xab, First: 41, Count: 2,
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

func TestAnAddressHasTheFormOfItsClickAndElseOfItsBatch(t *testing.T) {
	const full, truncated, hashed = clickv1.AddressForm_ADDRESS_FORM_FULL, clickv1.AddressForm_ADDRESS_FORM_TRUNCATED, clickv1.AddressForm_ADDRESS_FORM_HASHED
	v4, v6, hash := []byte{203, 0, 113, 0}, netip.MustParseAddr("2001:db8:1::").AsSlice(), []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct {
		batch, click clickv1.AddressForm
		address      []byte
		want         string
		form         AddressForm
	}{
		{full, 0, v4, "203.0.113.0", AddressFull},
		{full, truncated, v4, "203.0.113.0/24", AddressTruncated},
		{full, truncated, v6, "2001:db8:1::/48", AddressTruncated},
		{truncated, 0, v4, "203.0.113.0/24", AddressTruncated},
		{truncated, full, v4, "203.0.113.0", AddressFull},
		{hashed, 0, hash, "0102030405060708", AddressHashed},
		{hashed, truncated, v4, "203.0.113.0/24", AddressTruncated},
		{hashed, 0, v4, "203.0.113.0/24", AddressTruncated}, // of a node that does not tell the form of a click
		{hashed, 0, v6, "2001:db8:1::/48", AddressTruncated},
		{full, 77, v4, "cb007100", 77},
		{full, truncated, nil, "", AddressNone},
	} {
		b, err := Decode(message(t, "n", 1, 1, 2, func(b *clickv1.Batch) {
			b.AddressForm = c.batch
			b.Clicks[0].Address, b.Clicks[0].AddressForm = c.address, c.click
			b.Clicks[1].Address = v4
		}))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Clicks[0].Address; got.String() != c.want || got.Form() != c.form {
			t.Errorf("%v in a batch of %v: %s, form %d, want %s, form %d", c.click, c.batch, got, got.Form(), c.want, c.form)
		}
		if got, want := b.Clicks[1].Address.Form() == AddressFull, c.batch == full; got != want { // the next one has its own
			t.Errorf("the click behind %v in a batch of %v has form %d", c.click, c.batch, b.Clicks[1].Address.Form())
		}
	}
}

// The order of fields means nothing.
func TestTheFormOfAClickMayComeBeforeItsAddress(t *testing.T) {
	c := protowire.AppendVarint(protowire.AppendTag(nil, 22, protowire.VarintType), 2)
	c = protowire.AppendBytes(protowire.AppendTag(c, 12, protowire.BytesType), []byte{203, 0, 113, 0})
	data := message(t, "n", 1, 1, 0, func(b *clickv1.Batch) { b.AddressForm = clickv1.AddressForm_ADDRESS_FORM_FULL })
	b, err := Decode(protowire.AppendBytes(protowire.AppendTag(data, 9, protowire.BytesType), c))
	if err != nil {
		t.Fatal(err)
	}
	if got := b.Clicks[0].Address.String(); got != "203.0.113.0/24" {
		t.Fatal(got)
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

// A small message can hold millions of empty clicks and strings, each of which takes
// hundreds of bytes in memory.
func TestDecodeRefusesMoreThanANodePutsIntoABatch(t *testing.T) {
	for _, entry := range [][]byte{{tagClick, 0}, {tagString, 0}, {tagClick | 0x80, 0, 0}} {
		for n, refused := range map[int]bool{maxEntries: false, maxEntries + 1: true} {
			entries := bytes.Repeat(entry, n)
			for _, data := range [][]byte{
				message(t, "n", 1, 1, 0, func(b *clickv1.Batch) { b.Snappy, b.Strings = snappy.Encode(nil, entries), nil }),
				append(message(t, "n", 1, 1, 0, func(b *clickv1.Batch) { b.Strings = nil }), entries...),
			} {
				if _, err := Decode(data); errors.Is(err, errMany) != refused || err != nil && !refused {
					t.Errorf("%d times %x: %v", n, entry, err)
				}
			}
		}
	}
}

// JSON, PostgreSQL and the names of Parquet files have years of four digits: such a
// click would hold up a sink for good.
func TestDecodeRefusesTimesThatNoClockShows(t *testing.T) {
	for at, refused := range map[int64]bool{
		minTime: false, minTime - 1: true, maxTime - 1: false, maxTime: true, 1 << 62: true, -1 << 63: true, 0: false,
	} {
		b, err := Decode(message(t, "n", 1, 1, 1, func(b *clickv1.Batch) { b.BaseTimeUs = at }))
		if errors.Is(err, errTime) != refused || errors.Is(err, ErrMalformed) != refused {
			t.Errorf("%d: %v", at, err)
		}
		if err != nil {
			continue
		}
		if _, err := json.Marshal(b.Clicks[0]); err != nil {
			t.Error(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(message(f, "n", 1, 1, 3))
	f.Add(message(f, "n", 1, 1, 1, func(b *clickv1.Batch) {
		b.Strings = append(b.Strings, []byte("a/b"))
		b.Clicks[0].Link, b.Clicks[0].Labels = 1, []uint32{1, 1}
	}))
	f.Add(packed(f, message(f, "n", 1, 1, 3)))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decode(data)
		if err != nil {
			return
		}
		var want clickv1.Batch
		options := proto.UnmarshalOptions{DiscardUnknown: true, Merge: true}
		if err := options.Unmarshal(data, &want); err != nil {
			return // protobuf is stricter about UTF-8 in names and about overflow
		}
		if len(want.Snappy) > 0 {
			more, err := snappy.Decode(nil, want.Snappy)
			if err != nil {
				t.Fatal(err)
			}
			if options.Unmarshal(more, &want) != nil {
				return
			}
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
