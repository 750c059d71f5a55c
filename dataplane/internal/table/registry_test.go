package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

func TestRegistryIsWhatAMapWouldBeOverManyVersions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	type state struct {
		registry registry[int]
		model    map[string]int
	}
	versions := []state{{model: map[string]int{}}}
	for owner := uint64(1); owner < 60; owner++ {
		from := versions[len(versions)-1]
		if owner%7 == 0 {
			from = versions[r.IntN(len(versions))]
		}
		reg, model := from.registry, maps.Clone(from.model)
		removes := 20 + 60*int(owner/10%2)
		for range 1000 {
			name := fmt.Sprintf("name-%d", r.IntN(8000))
			key := []byte(name)
			if r.IntN(100) < removes {
				reg.remove(owner, nameHash(key), key)
				delete(model, name)
				continue
			}
			reg.edit(owner, nameHash(key), key).v = int(owner)
			model[name] = int(owner)
		}
		versions = append(versions, state{reg, model})
	}
	for i, v := range versions {
		if v.registry.n != len(v.model) {
			t.Fatalf("version %d has %d items, want %d", i, v.registry.n, len(v.model))
		}
		for n := range 8000 {
			name := fmt.Sprintf("name-%d", n)
			it := v.registry.get(nameHash([]byte(name)), []byte(name))
			want, ok := v.model[name]
			if (it != nil) != ok || ok && it.v != want {
				t.Fatalf("version %d has %+v for %s, want %d, %v", i, it, name, want, ok)
			}
		}
		seen := 0
		v.registry.each(func(it *item[int]) bool {
			seen++
			return true
		})
		if seen != len(v.model) {
			t.Fatalf("version %d gives %d items, want %d", i, seen, len(v.model))
		}
	}
}

// BenchmarkAffiliate finds one of many affiliates by its id, in an order that
// looks random, and writes one in an edit.
func BenchmarkAffiliate(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000, 100_000} {
		build := NewBuilder(0)
		ids := make([][]byte, n)
		for i := range ids {
			ids[i] = fmt.Appendf(nil, "aff_%06d", i)
			if err := build.Put(bytesOf(anAffiliate(b, string(ids[i]), ""))); err != nil {
				b.Fatal(err)
			}
		}
		t := build.Build(Version{})
		b.Run(fmt.Sprintf("find/%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				id := ids[i%n]
				if t.contents.affiliates.get(nameHash(id), id) == nil {
					b.Fatal("not found")
				}
				i += 7919
			}
		})
		b.Run(fmt.Sprintf("edit/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			key, value := bytesOf(anAffiliate(b, string(ids[n/2]), "Other"))
			for b.Loop() {
				e := t.Edit()
				if err := e.Put(key, value); err != nil {
					b.Fatal(err)
				}
				t = e.Build(Version{})
			}
		})
	}
}
