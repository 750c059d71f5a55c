package table

import "slices"

// A registry is a map from names to the few resources that are no links, with
// versions: copying it is copying a slice header, and a change after that
// copies one page and the list of pages. A page is a hash table of pointers
// with open addressing. Names are found by their bytes, without an allocation.
type registry[V any] struct {
	pages []*page[V] // none, or a power of two
	n     int
	owner uint64 // the builder that may change the list of pages in place
}

// pageSlots is chosen so that pages are half full when there get more of them.
const pageSlots = 64

type page[V any] struct {
	owner uint64 // the builder that may change it in place
	n     int
	slots [pageSlots]*item[V]
}

// item is one named thing. It is changed only by the builder that owns it.
type item[V any] struct {
	hash  uint64
	owner uint64
	name  string
	v     V
}

// get finds an item, nil if there is none.
func (r *registry[V]) get(hash uint64, name []byte) *item[V] {
	if len(r.pages) == 0 {
		return nil
	}
	p := r.pages[int(hash>>32)&(len(r.pages)-1)]
	for i := hash; ; i++ {
		it := p.slots[i%pageSlots]
		if it == nil || it.hash == hash && it.name == string(name) {
			return it
		}
	}
}

// edit gives an item that the owner may change, made if there is none.
func (r *registry[V]) edit(owner uint64, hash uint64, name []byte) *item[V] {
	if len(r.pages) == 0 {
		r.pages, r.owner = []*page[V]{{owner: owner}}, owner
	}
	p, i := r.own(owner, hash), hash
	for ; p.slots[i%pageSlots] != nil; i++ {
		it := p.slots[i%pageSlots]
		if it.hash == hash && it.name == string(name) {
			if it.owner != owner {
				mine := *it
				mine.owner = owner
				it = &mine
				p.slots[i%pageSlots] = it
			}
			return it
		}
	}
	it := &item[V]{hash: hash, owner: owner, name: string(name)}
	p.slots[i%pageSlots] = it
	p.n++
	r.n++
	if p.n > pageSlots*3/4 {
		r.grow(owner)
	}
	return it
}

// remove takes an item away, if it is there.
func (r *registry[V]) remove(owner uint64, hash uint64, name []byte) {
	if r.get(hash, name) == nil {
		return
	}
	p, i := r.own(owner, hash), hash
	for p.slots[i%pageSlots].hash != hash || p.slots[i%pageSlots].name != string(name) {
		i++
	}
	p.n--
	r.n--
	p.slots[i%pageSlots] = nil
	// What stands behind the hole is put in anew.
	for i++; p.slots[i%pageSlots] != nil; i++ {
		it := p.slots[i%pageSlots]
		p.slots[i%pageSlots] = nil
		p.put(it)
	}
}

// own gives the page of a hash, copied if it is not the owner's yet.
func (r *registry[V]) own(owner, hash uint64) *page[V] {
	if r.owner != owner {
		r.pages, r.owner = slices.Clone(r.pages), owner
	}
	i := int(hash>>32) & (len(r.pages) - 1)
	if p := r.pages[i]; p.owner != owner {
		mine := *p
		mine.owner = owner
		r.pages[i] = &mine
	}
	return r.pages[i]
}

// grow doubles the pages until none is more than three quarters full.
func (r *registry[V]) grow(owner uint64) {
	for old, ok := r.pages, false; !ok; {
		r.pages, r.owner = make([]*page[V], 2*len(r.pages)), owner
		for i := range r.pages {
			r.pages[i] = &page[V]{owner: owner}
		}
		ok = r.fill(old)
	}
}

// fill puts the items of other pages into empty ones, until one is too full.
func (r *registry[V]) fill(from []*page[V]) bool {
	for _, p := range from {
		for _, it := range p.slots {
			if it == nil {
				continue
			}
			into := r.pages[int(it.hash>>32)&(len(r.pages)-1)]
			if into.n++; into.n > pageSlots*3/4 {
				return false
			}
			into.put(it)
		}
	}
	return true
}

// put puts an item into its first free slot.
func (p *page[V]) put(it *item[V]) {
	i := it.hash
	for p.slots[i%pageSlots] != nil {
		i++
	}
	p.slots[i%pageSlots] = it
}

// each calls f for every item until f gives false.
func (r *registry[V]) each(f func(*item[V]) bool) bool {
	for _, p := range r.pages {
		for _, it := range p.slots {
			if it != nil && !f(it) {
				return false
			}
		}
	}
	return true
}
