package link

import (
	"math"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// variant is one destination of a split.
type variant struct {
	name, destination span
	weight            float64
}

// choose chooses the variant of a visitor by weighted rendezvous: each variant
// draws a number from its name and the key, and the one whose number is best for
// its weight wins. So a visitor keeps a variant for as long as its weight does
// not fall and that of no other rises, and when one comes or goes only those
// move who go to it or come from it.
func choose(variants []variant, p *Plan, key uint64) *variant {
	best, least := &variants[0], math.Inf(1)
	if len(variants) == 1 {
		return best
	}
	for i := range variants {
		v := &variants[i]
		u := (float64(xxh3.HashSeed(v.name.in(p.bytes), key)>>11) + 0.5) / (1 << 53)
		if score := -math.Log(u) / v.weight; score < least {
			best, least = v, score
		}
	}
	return best
}

// stickyKey is what a split of the link draws a request's variant from.
func (f *facts) stickyKey() uint64 {
	c, value := &f.match.Link, f.match.Value
	by, parameter := linkv1.StickyKey_STICKY_KEY_CLIENT, []byte(nil)
	if c.flags&flagSticky != 0 {
		by, parameter = c.sticky(value)
	}
	seed := xxh3.HashSeed(c.Path(value), xxh3.Hash(c.Domain(value)))
	switch by {
	case linkv1.StickyKey_STICKY_KEY_NONE:
		return f.req.Random
	case linkv1.StickyKey_STICKY_KEY_QUERY:
		if v := f.parameterNamed(parameter); len(v) > 0 {
			return xxh3.HashSeed(v, seed)
		}
	}
	a := f.addr().As16()
	return xxh3.HashSeed(f.req.UserAgent, xxh3.HashSeed(a[:], seed))
}

// parameterNamed gives the first parameter of a plain name, as it is written.
func (f *facts) parameterNamed(name []byte) []byte {
	rest := f.req.Query
	for range MaxQuery {
		var p param
		if p, rest = nextParam(rest); p.text == nil {
			break
		}
		if isNamed(p.name(), name) {
			return p.value()
		}
	}
	return nil
}

// sticky reads what splits are sticky by.
func (c *Compiled) sticky(value []byte) (by linkv1.StickyKey, parameter []byte) {
	by = linkv1.StickyKey_STICKY_KEY_CLIENT
	c.fields(value, func(num protowire.Number, _ protowire.Type, at span, n uint64) *Error {
		switch {
		case num == linkSticky && n != 0:
			by = linkv1.StickyKey(n)
		case num == linkStickyParameter:
			parameter = at.in(value)
		}
		return nil
	})
	return by, parameter
}
