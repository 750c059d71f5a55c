package table

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestATableIsBuiltInTheHugePagesThatWereReserved(t *testing.T) {
	const n = 400_000
	if !hugePages(t) {
		t.Skip("the kernel makes no huge pages")
	}
	keys, values := make([][]byte, n), make([][]byte, n)
	for i := range n {
		l := &linkv1.Link{Domain: "go.example.com", Path: fmt.Sprintf("/p/%08d", i), Destination: fmt.Sprintf("https://shop.example.com/products/%020d", i)}
		value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}})
		if err != nil {
			t.Fatal(err)
		}
		keys[i], values[i] = []byte(link.Links.Prefix()+l.GetDomain()+l.GetPath()), value
	}
	reserved.Store(false)
	before := hugeBytes(t)
	Reserve(n)
	b := NewBuilder(n)
	b.PutAll(n, func(i int) (key, value []byte) { return keys[i], values[i] }, func(_ int, err error) { t.Error(err) })
	var sum link.SetHash
	tab := b.Build(Version{Epoch: 1, Revision: 1})
	var bytes uintptr
	for _, size := range tab.Memory() {
		bytes += size
	}
	for key, value := range tab.All() {
		sum = sum.Add(link.HashEntry(key, value))
	}
	if tab.Len() != n || sum != tab.Hash() {
		t.Errorf("the table has %d links", tab.Len())
	}
	if after := hugeBytes(t); after-before < int(bytes)/2 {
		t.Errorf("%d bytes more are in huge pages, and the table has %d", after-before, bytes)
	}
}

func TestReserveBelievesNoMoreThanItMay(t *testing.T) {
	if got := roomFor(1 << 40); got > maxReserve || got < maxReserve-linkRoom {
		t.Errorf("%d bytes for more links than there are, at most %d are believed", got, maxReserve)
	}
	if got := roomFor(1000); got != 1000*linkRoom {
		t.Errorf("%d bytes for 1000 links", got)
	}
	if mappable(1 << 47) {
		t.Error("more than any process may have")
	}
}

// hugePages says whether the kernel makes some where it is asked to.
func hugePages(t *testing.T) bool {
	before := hugeBytes(t)
	mem, err := unix.Mmap(-1, 0, 4*hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	begin := int(-uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % hugePage)
	mem[begin] = 1
	_ = unix.Madvise(mem[begin:begin+hugePage], unix.MADV_COLLAPSE)
	return hugeBytes(t) > before
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
