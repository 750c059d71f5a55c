package cli

import (
	"strings"

	"github.com/zeebo/xxh3"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// keyIndex finds rows with the key of an earlier one. It keeps 128-bit hashes,
// not keys: 1M rows take some 60 MB.
type keyIndex struct {
	first  map[xxh3.Uint128]seenKey // by the key in lower case
	others map[xxh3.Uint128]place   // by the key as it is, of those with another case than the first
	buf    []byte
}

type seenKey struct {
	exact uint64 // a hash of the key as it is
	at    place
}

func newKeyIndex() *keyIndex {
	return &keyIndex{first: map[xxh3.Uint128]seenKey{}, others: map[xxh3.Uint128]place{}}
}

// find gives the earlier row with the same key, or with one that differs only
// in case; the zero place when there is none. It keeps this one in mind.
func (k *keyIndex) find(r *linkv1.Resource, at place) (twin place, same bool) {
	k.buf = appendKey(k.buf[:0], r)
	exact := xxh3.Hash(k.buf)
	exact128 := xxh3.Hash128(k.buf)
	for i, c := range k.buf {
		if 'A' <= c && c <= 'Z' {
			k.buf[i] = c | 0x20
		}
	}
	lower := xxh3.Hash128(k.buf)
	first, ok := k.first[lower]
	switch {
	case !ok:
		k.first[lower] = seenKey{exact: exact, at: at}
		return place{}, false
	case first.exact == exact:
		return first.at, true
	}
	if twin, ok := k.others[exact128]; ok {
		return twin, true
	}
	k.others[exact128] = at
	return first.at, false
}

// appendKey appends what tells resources apart. It is not validated here.
func appendKey(dst []byte, r *linkv1.Resource) []byte {
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		return append(append(append(dst, "links/"...), k.Link.GetDomain()...), k.Link.GetPath()...)
	case *linkv1.Resource_Domain:
		return append(append(dst, "domains/"...), k.Domain.GetHost()...)
	case *linkv1.Resource_Affiliate:
		return append(append(dst, "affiliates/"...), k.Affiliate.GetId()...)
	case *linkv1.Resource_Block:
		return append(append(dst, "blocks/"...), k.Block.GetId()...)
	case *linkv1.Resource_Policy:
		return append(append(dst, "policies/"...), k.Policy.GetScope()...)
	}
	return dst
}

// keyOf is the key for people: "go.example.com/summer".
func keyOf(r *linkv1.Resource) string {
	key := string(appendKey(nil, r))
	return key[strings.IndexByte(key, '/')+1:]
}
