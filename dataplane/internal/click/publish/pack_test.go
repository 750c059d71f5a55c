package publish

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/snappy"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/affleet/affleet/dataplane/internal/click"
)

// packed is what becomes of strings, and of clicks behind them.
func packed(p *packer, strings [][]byte, clicks []byte) (block, plain []byte) {
	p.begin(nil)
	for _, s := range strings {
		from := len(plain)
		plain = append(plain, s...)
		p.add(plain, from)
	}
	p.text(plain[p.from:])
	p.text(clicks)
	plain = append(plain, clicks...)
	return append(protowire.AppendVarint(nil, uint64(len(plain))), p.block...), plain
}

func wantPacked(t *testing.T, p *packer, strings [][]byte, clicks []byte) (block []byte) {
	t.Helper()
	block, plain := packed(p, strings, clicks)
	got, err := snappy.Decode(nil, block)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%d strings and %d bytes of clicks: %v, %d bytes, want %d", len(strings), len(clicks), err, len(got), len(plain))
	}
	return block
}

func TestWhatIsPackedIsOneBlockOfSnappy(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	noise := func(n int) []byte {
		b := make([]byte, n)
		_, _ = random.Read(b)
		return b
	}
	var kinds [][]byte
	for i := range 3000 {
		kinds = append(kinds, fmt.Appendf(nil, "https://store-%d.example/p/%09d?ref=aff_%04d", i%7, i*7919, i%700),
			fmt.Appendf(nil, "go.example/go/%s-%06d", []string{"summer", "cozy-bike", "x"}[i%3], i))
	}
	page := bytes.Repeat([]byte("page"), 1<<15)
	for name, c := range map[string]struct {
		strings [][]byte
		most    int // bytes for 100
	}{
		"none":                  {},
		"empty":                 {strings: [][]byte{{}, {}}},
		"short":                 {strings: [][]byte{[]byte("a"), []byte("1234567"), []byte("1234567")}},
		"alike":                 {kinds, 50},
		"the same":              {slices.Repeat([][]byte{[]byte("https://store.example/p/1")}, 1000), 16},
		"of one byte":           {[][]byte{bytes.Repeat([]byte("a"), 1000)}, 10},
		"long":                  {[][]byte{page, page[1:], page}, 6},
		"random":                {[][]byte{noise(10), noise(100), noise(1 << 17)}, 101},
		"too far away":          {[][]byte{kinds[0], noise(1 << 16), kinds[0]}, 101},
		"as far as can be":      {[][]byte{kinds[0], noise(1<<16 - 1 - len(kinds[0])), kinds[0]}, 100},
		"long behind the other": {[][]byte{noise(1 << 16), page}, 70},
	} {
		for _, clicks := range []int{0, 1, 60, 61, 1 << 8, 1<<8 + 1, 1 << 16, 1<<16 + 1} {
			t.Run(fmt.Sprintf("%s, %d", name, clicks), func(t *testing.T) {
				block := wantPacked(t, new(packer), c.strings, noise(clicks))
				strings := 0
				for _, s := range c.strings {
					strings += len(s)
				}
				if n := len(block) - clicks - 20; c.most > 0 && n > strings*c.most/100 {
					t.Errorf("%d bytes of strings take %d", strings, n)
				}
			})
		}
	}
}

// All lengths of what is the same, at distances near and far.
func TestWhatIsTheSameIsReferredToWhateverItsLength(t *testing.T) {
	noise := make([]byte, 1<<12)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(noise)
	var p packer
	for n := range 300 {
		for _, between := range []int{0, 100, 1<<11 - 1 - n, 1<<11 - n, 1 << 12} {
			same := noise[:n]
			block := wantPacked(t, &p, [][]byte{same, noise[len(noise)-max(between, 0):], append(slices.Clone(same), "end of it"...)}, nil)
			if plain := 2*n + max(between, 0); n >= 2*least && between < len(noise) && len(block) > plain-n+40 {
				t.Errorf("%d bytes again, %d behind: %d bytes", n, between, len(block))
			}
		}
	}
}

// A batch that is cut again has the same bytes.
func TestWhatIsPackedDependsOnTheBatchAlone(t *testing.T) {
	var used packer
	packed(&used, [][]byte{[]byte("https://other.example/p/3"), []byte("https://store.example/p/2")}, nil)
	strings := [][]byte{[]byte("https://store.example/p/1"), []byte("https://store.example/p/22")}
	again, _ := packed(&used, strings, nil)
	if first, _ := packed(new(packer), strings, nil); !bytes.Equal(first, again) {
		t.Errorf("%q first, and then %q", first, again)
	}
}

func TestABatchIsAsItWasWhereThatTakesLess(t *testing.T) {
	e := newEncoder(click.Identity{Node: "n", Boot: 1})
	looks := 0
	e.yield = func() { looks++ }
	for _, alike := range []bool{false, true} {
		e.begin(nil, 1)
		e.buf = append(e.buf[:0], "no field of a batch"...)
		if alike {
			for range 10 {
				e.write([]byte("https://store.example/p/1"))
			}
		}
		e.records = append(e.records[:0], "clicks"...)
		want := slices.Concat(e.buf, e.records)
		out := e.pack()[e.head:]
		if !alike {
			if !bytes.Equal(out, want) {
				t.Errorf("%q, want %q", out, want)
			}
			continue
		}
		number, kind, tagged := protowire.ConsumeTag(out)
		block, _ := protowire.ConsumeBytes(out[tagged:])
		got, err := snappy.Decode(nil, block)
		if number != 12 || kind != protowire.BytesType || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if looks < 2 {
		t.Errorf("redirects went first %d times", looks)
	}
}

func FuzzPack(f *testing.F) {
	f.Add([]byte("https://store.example/p/1|https://store.example/p/2|https://store.example/p/1"), byte('|'))
	f.Add(bytes.Repeat([]byte("ab"), 100), byte('b'))
	var p packer
	f.Fuzz(func(t *testing.T, b []byte, end byte) {
		wantPacked(t, &p, bytes.SplitAfter(b, []byte{end}), b)
	})
}
