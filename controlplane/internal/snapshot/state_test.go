package snapshot

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/affleet/affleet/controlplane/internal/store"
	"github.com/affleet/affleet/proto/link"
)

// contents gives what a frozen state holds.
func (f frozen) contents() map[string]string {
	all := map[string]string{}
	for _, sh := range f.shards {
		if sh == nil {
			continue
		}
		for key, e := range sh.m {
			k, v := e.split()
			if k != key {
				panic("an entry is under another key")
			}
			all[k] = v
		}
	}
	return all
}

func TestFrozenStateNeverChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s, model := newState(), map[string]string{}
	type moment struct {
		frozen
		want map[string]string
	}
	var moments []moment
	for i := range 20_000 {
		key, value := fmt.Sprintf("links/a/%d", r.IntN(9000)), fmt.Sprint(i)
		if r.IntN(3) == 0 {
			s.set(key, "")
			delete(model, key)
		} else {
			s.set(key, makeEntry(&store.Object{Name: key, Value: []byte(value), Revision: int64(i)}))
			model[key] = value
		}
		if i%1000 == 999 {
			moments = append(moments, moment{s.freeze(), maps.Clone(model)})
		}
	}
	for _, m := range moments {
		var hash link.SetHash
		var size int64
		for k, v := range m.want {
			hash = hash.Add(link.HashEntry([]byte(k), []byte(v)))
			size += int64(len(k) + len(v))
		}
		if !maps.Equal(m.contents(), m.want) || m.hash != hash || m.entries != int64(len(m.want)) || m.bytes != size {
			t.Fatalf("a frozen state changed: %d entries, %d bytes; it had %d, %d", len(m.contents()), m.bytes, len(m.want), size)
		}
	}
}
