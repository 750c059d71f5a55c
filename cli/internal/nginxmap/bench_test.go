package nginxmap

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
)

// largeMap is a map of n lines such as exports have: about 20-byte paths and
// 45-byte destinations.
func largeMap(n int) []byte {
	var b bytes.Buffer
	b.WriteString("map $uri $target {\n    default \"\";\n")
	for i := range n {
		fmt.Fprintf(&b, "    /go/summer-deal-%06x  https://store.example.com/products/p/%06d?ref=aff_%02d;\n", i, i, i%100)
	}
	b.WriteString("}\nserver { return 301 $target; }\n")
	return b.Bytes()
}

func benchmark(b *testing.B, n int) {
	data := largeMap(n)
	opts := Options{Domain: "go.example.com", Read: func(string) ([]byte, error) { return data, nil }}
	defer runtime.KeepAlive(data)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	var before, after runtime.MemStats
	var result *Result
	for b.Loop() {
		runtime.ReadMemStats(&before)
		var err error
		if result, err = Parse("redirects.conf", opts); err != nil || len(result.Entries) != n {
			b.Fatal(err)
		}
		runtime.ReadMemStats(&after)
	}
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(n), "B/entry")
	// What stays while the result is in use, without the text of the file.
	runtime.GC()
	runtime.ReadMemStats(&after)
	live := after.HeapAlloc
	runtime.KeepAlive(result)
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(live-after.HeapAlloc)/float64(n), "live-B/entry")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
}

func BenchmarkParse1K(b *testing.B) { benchmark(b, 1_000) }
func BenchmarkParse1M(b *testing.B) { benchmark(b, 1_000_000) }
