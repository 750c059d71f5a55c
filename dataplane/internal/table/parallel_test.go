package table

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestPutAllLeavesOutWhatIsWrongAndNamesIt(t *testing.T) {
	for _, n := range []int{30, 3 * serialEntries} {
		const wrong = 20
		b := NewBuilder(n)
		var left []int
		b.PutAll(n, func(i int) ([]byte, []byte) {
			key, value := bytesOf(aLink(t, "a.example", fmt.Sprintf("/%d", i), "https://shop.example/", ""))
			if i < wrong {
				value = value[:len(value)-1]
			}
			return key, value
		}, func(i int, err error) {
			if !strings.Contains(err.Error(), fmt.Sprintf("%q", fmt.Sprintf("links/a.example/%d", i))) {
				t.Errorf("entry %d: %v", i, err)
			}
			left = append(left, i)
		})
		if b.Len() != n-wrong || len(left) != wrong || !slices.IsSorted(left) || left[0] != 0 {
			t.Errorf("%d entries, want %d; left out were %v", b.Len(), n-wrong, left)
		}
	}
}

// lastOf is the last value of a key among entries.
func lastOf(keys, values [][]byte, key string) (value string) {
	for i := range keys {
		if string(keys[i]) == key {
			value = string(values[i])
		}
	}
	return value
}

func TestPutAllIsPuttingOneByOne(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{0, 1, serialEntries, 3 * serialEntries, 2*blockEntries + 17} {
		for _, table := range []*Table{nil, NewBuilder(n).Build(Version{}), nil} {
			one, all := NewBuilder(n), NewBuilder(n)
			if table != nil {
				one, all = table.Edit(), table.Edit()
			}
			m := model{}
			keys, values := make([][]byte, n), make([][]byte, n)
			for i := range n {
				key, value := random(t, r, n/2+1)
				keys[i], values[i], m[key] = []byte(key), []byte(value), value
				if strings.HasPrefix(value, broken) {
					// Held entries come last, so a key is not both.
					keys[i] = fmt.Appendf(nil, "links/held.example/%d", i)
					delete(m, key)
					m[string(keys[i])] = value
					if v := lastOf(keys[:i], values[:i], key); v != "" {
						m[key] = v
					}
				}
				m.put(t, one, keys[i], values[i])
			}
			all.PutAll(n, func(i int) ([]byte, []byte) { return keys[i], values[i] }, func(i int, _ error) {
				if err := all.Hold(keys[i], values[i]); err != nil {
					t.Fatal(err)
				}
			})
			if one.Hash() != all.Hash() || one.Len() != all.Len() {
				t.Fatalf("%d entries: hash %x, want %x", n, all.Hash(), one.Hash())
			}
			m.check(t, all.Build(Version{}))
		}
	}
}

func TestLinksOfAShardAreInsertedByOneGoroutine(t *testing.T) {
	for _, links := range []int{0, 500, 20_000} { // in one shard and in several, before
		b := NewBuilder(0)
		for i := range links {
			key, value := aLink(t, "a.test", fmt.Sprint("/", i), "https://x.test/", "")
			(model{}).put(t, b, []byte(key), []byte(value))
		}
		block := make([]pending, 3000)
		for i := range block {
			_, value := aLink(t, "a.test", fmt.Sprint("/new/", i%2500), "https://x.test/", "")
			id := fmt.Sprint("a.test/new/", i%2500)
			block[i].isLink = i%7 != 0
			if err := b.prepare(&block[i], []byte(id), []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		order := inOrder(block)
		if want := len(block) - (len(block)+6)/7; len(order) != want {
			t.Fatalf("%d links are in order, not %d", len(order), want)
		}
		seen := map[uint64]uint16{} // the last entry with a hash
		for _, i := range order {
			if at := block[i].at; seen[at] > i {
				t.Fatalf("entry %d comes behind %d, which has the same key", i, seen[at])
			}
			seen[block[i].at] = i
		}
		for _, n := range []int{1, 2, 3, 5, 7, partsEach * maxWorkers} {
			parts := b.parts(block, order, n)
			if parts[0] != 0 || parts[n] != len(order) || !slices.IsSorted(parts) {
				t.Fatalf("%d parts are %v of %d", n, parts, len(order))
			}
			whose := map[*shard]int{}
			for w := range n {
				for _, i := range order[parts[w]:parts[w+1]] {
					s := b.shard(block[i].at)
					if other, ok := whose[s]; ok && other != w {
						t.Fatalf("of %d parts, %d and %d have links of one shard", n, other, w)
					}
					whose[s] = w
				}
			}
			if links == 20_000 && n == 2 && (parts[1] < len(order)/4 || parts[1] > len(order)*3/4) {
				t.Errorf("two parts are %v of %d", parts, len(order))
			}
		}
	}
}
