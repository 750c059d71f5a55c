package clickparquet

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/affleet/affleet/dataplane/clickstream"
)

func click(sequence uint64) clickstream.Click {
	return clickstream.Click{
		Node: "node-1", Boot: 0xab, Sequence: sequence, Region: "eu", Time: time.UnixMicro(1_700_000_000_000_000 + int64(sequence)).UTC(), Epoch: 1, Revision: 7,
		Link: "go.example.com/a", Affiliate: "aff_01", Rule: 2, Destination: "https://store.com/", Status: 302, Method: "GET", Outcome: 4,
		UserAgent: "browser\xff", Parameters: []clickstream.Parameter{{Name: "sub1", Value: "x"}},
		Labels: []clickstream.Label{{Name: "bot", Reason: "list"}, {Name: "preview"}}, Country: "DE", ASN: 64500,
	}
}

func TestRowsThatAreWrittenInPartsAreOneFile(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	sequence := uint64(0)
	for _, n := range []int{3, 0, 2} {
		var b bytes.Buffer
		w := NewWriter(&b)
		var clicks []clickstream.Click
		for range n {
			sequence++
			clicks = append(clicks, click(sequence))
		}
		if err := w.Write(clicks); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, time.Now().Format("150405.000000000"))
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	var joined bytes.Buffer
	if err := Join(&joined, paths); err != nil {
		t.Fatal(err)
	}
	rows, err := parquet.Read[Row](bytes.NewReader(joined.Bytes()), int64(joined.Len()))
	if err != nil || len(rows) != 5 {
		t.Fatal(len(rows), err)
	}
	want := Row{
		Node: "node-1", Boot: "00000000000000ab", Sequence: 5, Region: "eu", Time: 1_700_000_000_000_005, Epoch: "0000000000000001", Revision: 7,
		Link: "go.example.com/a", Affiliate: "aff_01", Rule: 2, Destination: "https://store.com/", Status: 302, Method: "GET", Outcome: "expired",
		UserAgent: "browser\uFFFD", Parameters: []Parameter{{"sub1", "x"}}, Labels: []Label{{"bot", "list"}, {"preview", ""}}, Country: "DE", ASN: 64500,
	}
	if diff := cmp.Diff(want, rows[4]); diff != "" {
		t.Fatal(diff)
	}
	if err := Join(&joined, []string{filepath.Join(dir, "none")}); err == nil {
		t.Fatal("a part that is not there is joined")
	}
}

func BenchmarkWrite(b *testing.B) {
	clicks := make([]clickstream.Click, 600)
	for i := range clicks {
		clicks[i] = click(uint64(i))
	}
	w := NewWriter(discard{})
	n := 0
	for b.Loop() {
		if err := w.Write(clicks); err != nil {
			b.Fatal(err)
		}
		n += len(clicks)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "clicks/s")
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
