package visitor

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"
)

func TestNothingIsAllocatedForWhatIsKnown(t *testing.T) {
	cities, systems := testDatabases(t)
	s := open(t, Config{Geo: []string{cities, systems}})
	addr := netip.MustParseAddr("192.0.2.1")
	agent, languages, referrer := []byte(safariPhone), []byte("de-AT,de;q=0.9"), []byte("https://www.Example.com/a?b")
	hints := Hints{[]byte(`"Chromium";v="124", "Google Chrome";v="124"`), []byte("?1"), []byte(`"Android"`)}
	said := GeoValues{Country: []byte("US")}
	var n int
	if got := testing.AllocsPerRun(1000, func() {
		n += len(s.Place(addr).City) + len(s.PlaceFrom(&said, addr).Country) + len(s.Agent(agent, &hints).OS) +
			len(s.Languages(languages)) + len(s.ReferrerDomain(referrer))
		if IsPreview(agent, agent, agent) {
			n++
		}
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkAgent(b *testing.B) {
	s := open(b, Config{})
	agent := []byte(safariPhone)
	var hints Hints
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Agent(agent, &hints)
		}
	})
	b.Run("hints", func(b *testing.B) {
		hints := Hints{[]byte(`"Chromium";v="124", "Google Chrome";v="124", "Not-A.Brand";v="99"`), []byte("?1"), []byte(`"Android"`)}
		b.ReportAllocs()
		for b.Loop() {
			s.Agent(agent, &hints)
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		buf := append([]byte(nil), agent...)
		for b.Loop() {
			i++
			s.Agent(strconv.AppendInt(buf, int64(i), 10), &hints)
		}
	})
}

func BenchmarkPlace(b *testing.B) {
	records := map[string]mmdbtype.Map{}
	for i := range 200_000 {
		records[fmt.Sprintf("%d.%d.%d.0/24", 20+i>>16, i>>8&255, i&255)] = city([]string{"DE", "US", "FR"}[i%3], "BY", "City "+strconv.Itoa(i%5000))
	}
	path := filepath.Join(b.TempDir(), "city.mmdb")
	data := writeDatabase(b, records)
	writeFile(b, path, data)
	s := open(b, Config{Geo: []string{path}})
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		addr := netip.MustParseAddr("20.1.1.1")
		for b.Loop() {
			s.Place(addr)
		}
	})
	b.Run("random", func(b *testing.B) {
		b.ReportAllocs()
		x := uint32(1)
		for b.Loop() {
			x = x*1664525 + 1013904223
			s.Place(netip.AddrFrom4([4]byte{20 + byte(x>>30), byte(x >> 22), byte(x >> 14), 1}))
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			open(b, Config{Geo: []string{path}})
		}
	})
}

func BenchmarkBots(b *testing.B) {
	list := loadBuiltinBots()
	for b.Loop() {
		list.match(safariPhone)
	}
}
