package table

import (
	"runtime"
	"testing"
	"unsafe"
	"weak"

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

// What a garbage collector follows are some pointers for each shard, not for each
// link.
func TestPointersAreForShardsAndNotForLinks(t *testing.T) {
	for links := 1_000_000; links <= 10_000_000; links += 500_000 {
		// A list of a power of two is up to twice as long as it had to be.
		n, each := pointers(NewBuilder(links).Build(Version{})), shardLinks(links)
		if most := 3 * 2 * links / (each * 3 / 4); n > min(most, 6200) || n < 3*links/each {
			t.Errorf("a table that is made for %d links has %d pointers, and should have %d at most", links, n, most)
		}
	}
	const links = 200_000
	b := NewBuilder(0)
	set := newBenchSet(t)
	for i := range links {
		if err := b.Put(set.set(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n, most := pointers(b.Build(Version{})), 3*2*links/maxLinks; n > most {
		t.Errorf("a table that has grown to %d links has %d pointers, and should have %d at most", links, n, most)
	}
}

func TestATableSharesItsBaseWithItsEditsAlone(t *testing.T) {
	first, _ := small(t)
	other, _ := small(t)
	edited, aside := first.Edit().Build(Version{}), first.EditAside().BuildOver(first)
	if first.Base() == 0 || edited.Base() != first.Base() || aside.Base() != first.Base() || other.Base() == first.Base() {
		t.Errorf("the bases are %d, of edits %d and %d, of another table %d", first.Base(), edited.Base(), aside.Base(), other.Base())
	}
}

func TestLinkTakesAtMost145Bytes(t *testing.T) {
	const n = 100_000
	set := newBenchSet(t)
	table := set.build(t, n)
	check := func(when string) {
		size := 8 * len(table.contents.shards)
		for i := 0; i < len(table.contents.shards); {
			s := table.contents.shards[i]
			size += 80 + cap(s.arena) + 4*cap(s.index)
			i += 1 << (table.contents.bits - s.depth)
		}
		if size > 145*n {
			t.Errorf("%s: %.1f bytes per link", when, float64(size)/n)
		}
	}
	check("built")
	for first := 0; first < n; first += 100 {
		b := table.Edit()
		for i := first; i < first+100; i++ {
			key, value := set.set(i)
			value[set.dest-17] = 'x'
			if err := b.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		table = b.Build(Version{})
	}
	check("every link replaced")
}

// TestAShardThatWasReplacedIsGivenBack: nobody but a table that has a shard keeps its
// memory, whatever other shards were made together with it.
func TestAShardThatWasReplacedIsGivenBack(t *testing.T) {
	const links = 20_000
	set := newBenchSet(t)
	table := set.build(t, links)
	stays := table.contents.shards[0]
	var arenas []weak.Pointer[byte] // of all others
	for _, s := range table.contents.shards {
		if s != stays {
			arenas = append(arenas, weak.Make(unsafe.SliceData(s.arena)))
		}
	}
	b := table.EditAside() // which copies what it touches
	for i := range links {
		key, value := set.set(i)
		value[set.dest-17] = 'x'
		_, id := cutKind(key)
		if b.shard(link.HashKey(nameHash(id[:len(benchHost)]), id[len(benchHost):])) != stays {
			if err := b.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	table = b.Build(Version{})
	if table.contents.shards[0] != stays || len(arenas) < 8 {
		t.Fatalf("of %d shards that were to be replaced, or one that was not, another one is there", len(arenas))
	}
	runtime.GC()
	kept := 0
	for _, arena := range arenas {
		if arena.Value() != nil {
			kept++
		}
	}
	if kept > 0 {
		t.Errorf("%d of %d arenas are kept that no table has", kept, len(arenas))
	}
	runtime.KeepAlive(table)
}
