package dataplane

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestATableInHugePagesIsStillTheSame(t *testing.T) {
	const n = 100_000
	b := table.NewBuilder(n)
	for i := range n {
		l := &linkv1.Link{Domain: "go.example.com", Path: fmt.Sprintf("/p/%08d", i), Destination: fmt.Sprintf("https://shop.example.com/products/%020d", i)}
		value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put([]byte(link.Links.Prefix()+l.GetDomain()+l.GetPath()), value); err != nil {
			t.Fatal(err)
		}
	}
	all := func(tab *table.Table) (sum link.SetHash) {
		for key, value := range tab.All() {
			sum = sum.Add(link.HashEntry(key, value))
		}
		return sum
	}
	tab := b.Build(table.Version{Epoch: 1, Revision: 1})
	useHugePages(t.Context(), tab)
	if all(tab) != tab.Hash() {
		t.Error("the links have changed")
	}
}

// In the heap of a test, which others have used, a table fills no huge page, as it
// does in a node that has just started; one large piece does.
func TestMemoryThatFillsHugePagesIsInThem(t *testing.T) {
	block := bytes.Repeat([]byte("content "), 2<<20)
	before := hugeBytes(t)
	collapse(t.Context(), func(yield func(at, n uintptr) bool) {
		yield(uintptr(unsafe.Pointer(&block[0])), uintptr(len(block)))
	})
	if !bytes.Equal(block, bytes.Repeat([]byte("content "), 2<<20)) {
		t.Error("the memory has changed")
	}
	mode, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil || bytes.Contains(mode, []byte("[never]")) {
		return // a system without them
	}
	if after := hugeBytes(t); after <= before {
		t.Errorf("%d bytes are in huge pages, before there were %d", after, before)
	}
}

// hugeBytes is how much of this process is in huge pages.
func hugeBytes(t *testing.T) (kb int) {
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if n, _ := fmt.Sscanf(string(line), "AnonHugePages: %d kB", &kb); n == 1 {
			break
		}
	}
	return kb << 10
}
