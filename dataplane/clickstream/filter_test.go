package clickstream

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func TestAFilterChoosesWhatDecodingAllWouldChoose(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	words := []string{"", "a/b", "b/c", "x", "y", "bot", "preview"}
	for range 300 {
		data := message(t, "n", 1, 1+rnd.Uint64N(100), rnd.IntN(30), func(b *clickv1.Batch) {
			b.Strings = nil
			for range 1 + rnd.IntN(8) {
				b.Strings = append(b.Strings, []byte(words[rnd.IntN(len(words))]))
			}
			index := func() uint32 { return rnd.Uint32N(uint32(len(b.Strings))) }
			for _, c := range b.Clicks {
				c.Link, c.Affiliate = index(), index()
				for range rnd.IntN(3) {
					c.Labels = append(c.Labels, index(), index())
				}
			}
		})
		some := func() (s []string) {
			for range rnd.IntN(3) {
				s = append(s, words[1+rnd.IntN(len(words)-1)])
			}
			return s
		}
		f := Filter{Links: some(), Affiliates: some(), Labels: some()}
		all, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		var ranges []Range
		if n := all.Count; n > 4 && rnd.IntN(2) == 0 {
			ranges = []Range{{all.First + 1, all.First + 1}, {all.First + 3, all.First + n - 2}}
		}
		var want []Click
		for _, c := range all.Clicks {
			in := ranges == nil || slices.ContainsFunc(ranges, func(r Range) bool { return r.From <= c.Sequence && c.Sequence <= r.To })
			label := slices.ContainsFunc(c.Labels, func(l Label) bool { return slices.Contains(f.Labels, l.Name) })
			if in && (len(f.Links) == 0 || slices.Contains(f.Links, c.Link)) && (len(f.Affiliates) == 0 || slices.Contains(f.Affiliates, c.Affiliate)) &&
				(len(f.Labels) == 0 || label) {
				want = append(want, c)
			}
		}
		var d decoder
		b, err := d.head(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.clicks(ranges, &f); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, b.Clicks, cmp.AllowUnexported(Address{})); diff != "" {
			t.Fatalf("%+v: %s", f, diff)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(message(f, "n", 1, 1, 2, func(b *clickv1.Batch) {
		b.Strings = append(b.Strings, []byte("a/b"))
		b.Clicks[1].Link, b.Clicks[1].Labels = 1, []uint32{1, 1}
	}))
	filter := &Filter{Links: []string{"a/b"}, Labels: []string{"a/b"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d decoder
		b, err := d.head(data)
		if err != nil || d.clicks(nil, filter) != nil {
			return
		}
		for _, c := range b.Clicks {
			if c.Link != "a/b" {
				t.Fatalf("%+v", c)
			}
		}
	})
}
