package table

import (
	"testing"
	"unsafe"

	"github.com/affleet/affleet/proto/link"
)

func TestMemoryIsWhereTheLinksAre(t *testing.T) {
	table := benchTable(t, 5000)
	var total uintptr
	blocks := map[uintptr]uintptr{}
	for at, size := range table.Memory() {
		if _, ok := blocks[at]; ok && size > 0 {
			t.Fatalf("the block at %#x is given twice", at)
		}
		blocks[at] = size
		total += size
	}
	for key, value := range table.All() {
		at, inside := uintptr(unsafe.Pointer(unsafe.SliceData(value))), false
		for first, size := range blocks {
			inside = inside || first <= at && at+uintptr(len(value)) <= first+size
		}
		if kind, _ := cutKind(key); kind == link.Links && !inside {
			t.Fatalf("%s is in none of the %d blocks", key, len(blocks))
		}
	}
	if most := uintptr(table.Size() * 2); total < uintptr(table.Size())/2 || total > most {
		t.Errorf("the blocks have %d bytes, the entries %d", total, table.Size())
	}
}
