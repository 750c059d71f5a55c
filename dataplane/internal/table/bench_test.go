package table

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// The benchmark set: a host of 14 bytes, a path of 20, a destination of 45 and
// an affiliate of 8, one of a thousand.
const (
	benchHost       = "go.example.com"
	benchAffiliates = 1000
)

// benchSet makes the links of the benchmark set one after the other, from a
// template, so that making them costs next to nothing.
type benchSet struct {
	value, key          []byte
	path, dest, aff, in int
}

func newBenchSet(tb testing.TB) *benchSet {
	tb.Helper()
	const path, dest, aff = "/go/0000000000000000", "https://store.example.com/p/00000000000000000", "aff_0000"
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: benchHost, Path: path, Destination: dest, Affiliate: aff,
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	s := &benchSet{value: value, key: []byte(link.LinkName(benchHost, path))}
	at := func(where []byte, what string) int {
		loc := regexp.MustCompile(regexp.QuoteMeta(what)).FindIndex(where)
		if len(path) != 20 || len(dest) != 45 || len(aff) != 8 || loc == nil {
			tb.Fatalf("%q is not in %q, or is too long", what, where)
		}
		return loc[1]
	}
	s.path, s.dest, s.aff, s.in = at(value, path), at(value, dest), at(value, aff), len(s.key)
	return s
}

// set gives key and value of link i, until the next call.
func (s *benchSet) set(i int) (key, value []byte) {
	putHex(s.key[s.in-16:], i)
	putHex(s.value[s.path-16:], i)
	putHex(s.value[s.dest-16:], i)
	for n, at := i%benchAffiliates, s.aff-1; at >= s.aff-4; at, n = at-1, n/10 {
		s.value[at] = '0' + byte(n%10)
	}
	return s.key, s.value
}

// putHex writes a number that looks random and is different for each i.
func putHex(b []byte, i int) {
	const digits = "0123456789abcdef"
	x := uint64(i+1) * 0x9e3779b97f4a7c15
	for j := range 16 {
		b[j] = digits[x>>(60-4*j)&15]
	}
}

func (s *benchSet) affiliates(tb testing.TB, b *Builder) {
	for i := range benchAffiliates {
		id := fmt.Sprintf("aff_%04d", i)
		value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id}}})
		if err == nil {
			err = b.Put([]byte("affiliates/"+id), value)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// build makes a table of the first n links.
func (s *benchSet) build(tb testing.TB, n int) *Table {
	b := NewBuilder(n)
	s.affiliates(tb, b)
	for i := range n {
		if err := b.Put(s.set(i)); err != nil {
			tb.Fatal(err)
		}
	}
	return b.Build(Version{1, 1})
}

// kept is the table of the last benchmark: one at a time, because they are
// large.
var kept *Table

func benchTable(tb testing.TB, n int) *Table {
	if kept == nil || kept.Links() != n {
		kept = nil
		kept = newBenchSet(tb).build(tb, n)
		debug.FreeOSMemory()
	}
	return kept
}

// BenchmarkLookup looks up links in random order, so that a large table costs
// its cache misses; "1k" is all cached.
func BenchmarkLookup(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"1k", 1000}, {"1M", 1e6}, {"10M", 1e7}} {
		t := benchTable(b, size.n)
		host := []byte(benchHost)
		paths := make([]byte, 0, 20<<16)
		set := newBenchSet(b)
		for i := range 1 << 16 {
			key, _ := set.set(int(uint64(i) * 2654435761 % uint64(size.n)))
			paths = append(paths, key[len(key)-20:]...)
		}
		run := func(name string, host []byte, change byte, found bool) {
			for i := range 1 << 16 {
				paths[i*20+1] = change
			}
			b.Run(size.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				var m link.Match
				i := 0
				for b.Loop() {
					t.Lookup(host, paths[i*20:i*20+20], &m)
					if (m.Value != nil) != found {
						b.Fatal("wrong answer")
					}
					i = (i + 1) & (1<<16 - 1)
				}
			})
		}
		run("hit", host, 'g', true)
		run("miss", host, 'x', false)
		run("other_host", []byte("www.example.org"), 'g', false)
	}
}

// BenchmarkLookupByPolicy is a lookup of a link under each policy, and of prefix
// links: one segment deep, and at every depth there may be, where the path has
// more slashes than that and only the shortest matches.
func BenchmarkLookupByPolicy(b *testing.B) {
	t := benchTable(b, 1000)
	put := func(r *linkv1.Resource) {
		e := t.Edit()
		if err := e.Put(bytesOf(marshal(b, r))); err != nil {
			b.Fatal(err)
		}
		t = e.Build(Version{})
	}
	key, _ := newBenchSet(b).set(7)
	path := strings.TrimPrefix(string(key), "links/"+benchHost)
	host := []byte(benchHost)
	run := func(name, path string) {
		asked := []byte(path)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var m link.Match
			for b.Loop() {
				if t.Lookup(host, asked, &m); m.Value == nil {
					b.Fatal("not found")
				}
			}
		})
	}
	run("exact", path)
	put(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: benchHost, Path: "/shop/*", Destination: "https://shop.example/"}}})
	run("exact_beside_prefix", path)
	run("prefix", "/shop/summer/shoes-2026")
	put(&linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: benchHost, CasePolicy: 2, TrailingSlash: 2}}})
	run("ignored", strings.ToUpper(path)+"/")
	run("prefix_ignored", "/SHOP/summer/shoes-2026")
	for depth := range link.MaxPrefixDepth {
		put(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: benchHost, Path: strings.Repeat("/b", 1+depth) + "/*", Destination: "https://shop.example/",
		}}})
	}
	run("hostile", "/shop"+strings.Repeat("/a", 8000))
}

// BenchmarkBuild1M builds a table of a million links from their stored bytes;
// run it with -cpu 1,2.
func BenchmarkBuild1M(b *testing.B) {
	set := newBenchSet(b)
	b.Run("making_the_input", func(b *testing.B) {
		for b.Loop() {
			for i := range 1_000_000 {
				set.set(i)
			}
		}
	})
	b.Run("Put", func(b *testing.B) {
		for b.Loop() {
			if t := set.build(b, 1e6); t.Links() != 1e6 {
				b.Fatal(t.Links())
			}
		}
	})
	b.Run("PutAll", func(b *testing.B) {
		keys, values := make([][]byte, blockEntries), make([][]byte, blockEntries)
		for b.Loop() {
			e := NewBuilder(1e6)
			set.affiliates(b, e)
			for first := 0; first < 1e6; first += blockEntries {
				n := min(blockEntries, 1e6-first)
				for i := range n {
					key, value := set.set(first + i)
					keys[i], values[i] = append(keys[i][:0], key...), append(values[i][:0], value...)
				}
				e.PutAll(n, func(i int) ([]byte, []byte) { return keys[i], values[i] }, func(_ int, err error) { b.Fatal(err) })
			}
			if t := e.Build(Version{}); t.Links() != 1e6 {
				b.Fatal(t.Links())
			}
		}
	})
	b.Run("Put_without_hint", func(b *testing.B) {
		for b.Loop() {
			e := NewBuilder(0)
			for i := range 1_000_000 {
				if err := e.Put(set.set(i)); err != nil {
					b.Fatal(err)
				}
			}
			e.Build(Version{})
		}
	})
}

// BenchmarkEdit1 is a delta of one link from Edit to Build: a link that is new,
// one that is replaced; and a delta of a thousand.
func BenchmarkEdit1(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"1M", 1e6}, {"10M", 1e7}} {
		t := benchTable(b, size.n)
		set := newBenchSet(b)
		b.Run(size.name+"/new", func(b *testing.B) {
			b.ReportAllocs()
			t, i := t, size.n
			for b.Loop() {
				e := t.Edit()
				if err := e.Put(set.set(i)); err != nil {
					b.Fatal(err)
				}
				t = e.Build(Version{})
				i++
			}
		})
		b.Run(size.name+"/replace", func(b *testing.B) {
			b.ReportAllocs()
			t, i := t, 0
			for b.Loop() {
				key, value := set.set(i % size.n)
				value[set.dest-20] = 'a' + byte(i/size.n%26)
				e := t.Edit()
				if err := e.Put(key, value); err != nil {
					b.Fatal(err)
				}
				t = e.Build(Version{})
				i++
			}
		})
		b.Run(size.name+"/1000_replaced", func(b *testing.B) {
			b.ReportAllocs()
			t, i := t, 0
			for b.Loop() {
				e := t.Edit()
				for range 1000 {
					key, value := set.set(i % size.n)
					value[set.dest-20] = 'a' + byte(i/size.n%26)
					if err := e.Put(key, value); err != nil {
						b.Fatal(err)
					}
					i++
				}
				t = e.Build(Version{})
			}
		})
		b.Run(size.name+"/1000_links", func(b *testing.B) {
			b.ReportAllocs()
			t, i := t, size.n
			for b.Loop() {
				e := t.Edit()
				for range 1000 {
					if err := e.Put(set.set(i)); err != nil {
						b.Fatal(err)
					}
					i++
				}
				t = e.Build(Version{})
			}
		})
	}
}

// BenchmarkResident reports what a table takes, all included: bytes of resident
// memory per link, at the end and at the peak of loading, what a garbage
// collection costs with it, and the memory after a million links were replaced,
// a thousand at a time.
func BenchmarkResident(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"1M", 1e6}, {"10M", 1e7}} {
		b.Run(size.name, func(b *testing.B) {
			kept = nil
			set := newBenchSet(b)
			for b.Loop() {
				debug.FreeOSMemory()
				if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
					b.Skip(err)
				}
				before := procStatus(b, "VmRSS")
				t := set.build(b, size.n)
				peak := procStatus(b, "VmHWM")
				debug.FreeOSMemory()
				after := procStatus(b, "VmRSS")
				const rounds = 5
				start := time.Now()
				for range rounds {
					runtime.GC()
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/rounds/1000, "ms/GC")
				for first := 0; first < 1e6; first += 1000 {
					e := t.Edit()
					for i := first; i < first+1000; i++ {
						key, value := set.set(i)
						value[set.dest-17] = 'x'
						if err := e.Put(key, value); err != nil {
							b.Fatal(err)
						}
						value[set.dest-17] = '0'
					}
					t = e.Build(Version{})
				}
				debug.FreeOSMemory()
				b.ReportMetric(float64(procStatus(b, "VmRSS")-before)/float64(size.n), "edited-B/link")
				b.ReportMetric(float64(after-before)/float64(size.n), "B/link")
				b.ReportMetric(float64(peak-before)/float64(size.n), "peak-B/link")
				b.ReportMetric(float64(after)/1e6, "MB-resident")
				b.ReportMetric(float64(pointers(t)), "pointers")
				runtime.KeepAlive(t)
			}
		})
	}
}

// pointers counts the objects that a garbage collector follows.
func pointers(t *Table) (n int) {
	c := &t.contents
	for i := 0; i < len(c.shards); n += 2 {
		i += 1 << (c.bits - c.shards[i].depth)
	}
	return n + len(c.shards) + 4*(c.hosts.n+c.affiliates.n+c.others.n)
}

// procStatus reads a line of /proc/self/status, in bytes.
func procStatus(tb testing.TB, name string) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Skip(err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		tb.Skip("no " + name)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		tb.Fatal(err)
	}
	return kb << 10
}
