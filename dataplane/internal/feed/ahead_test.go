package feed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/statefile"
)

// bigState gives a state file of several batches, and the number of its entries.
func bigState(t *testing.T) (file []byte, entries int) {
	t.Helper()
	entries = 3*batchBytes/200 + 7
	key := func(i int) []byte { return fmt.Appendf(nil, "others/%d", i) }
	value := bytes.Repeat([]byte("v"), 200)
	var hash link.SetHash
	for i := range entries {
		hash = hash.Add(link.HashEntry(key(i), value))
	}
	var b bytes.Buffer
	w, err := statefile.NewWriter(&b, statefile.Header{Epoch: 1, Revision: 1, Entries: int64(entries), Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := w.Add(key(i), value); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), entries
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *int
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += n
	return n, err
}

func TestBatchesAreTheEntriesOfTheFileInOrder(t *testing.T) {
	file, entries := bigState(t)
	read := func(file []byte) (n, batchesSeen int, err error) {
		r, err := statefile.NewReader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		for list, err := range batches(r) {
			if err != nil {
				return n, batchesSeen, err
			}
			batchesSeen++
			for _, e := range list {
				if want := fmt.Sprint("others/", n); string(e.key) != want || len(e.value) != 200 {
					t.Fatalf("entry %d is %s", n, e.key)
				}
				n++
			}
		}
		return n, batchesSeen, nil
	}
	if n, seen, err := read(file); n != entries || seen < 3 || err != nil {
		t.Errorf("%d of %d entries in %d batches, %v", n, entries, seen, err)
	}
	// What is torn gives an error, and nothing of the batch that it is in.
	if n, _, err := read(file[:len(file)-1]); err == nil || n == entries {
		t.Errorf("of a torn file, %d of %d entries and %v", n, entries, err)
	}
	damaged := bytes.Clone(file)
	damaged[len(file)/2] ^= 0x40
	if n, _, err := read(damaged); err == nil || n >= entries {
		t.Errorf("of a damaged file, %d of %d entries and %v", n, entries, err)
	}
}

func TestWhoStopsReadingAStateFileLeavesNobodyBehind(t *testing.T) {
	file, _ := bigState(t)
	n := 0
	r, err := statefile.NewReader(counted{bytes.NewReader(file), &n})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range batches(r) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	was := n // under the race detector: whoever is left would be seen
	if _, err := r.AppendBlock(nil); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if n < was || was == 0 {
		t.Errorf("%d bytes, then %d", was, n)
	}
}
