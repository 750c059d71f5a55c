// Package linkset makes the link set that every benchmark of this repository
// runs on, so that their figures can be compared: paths of about 20 bytes,
// destinations of about 45, one host of 14, affiliates of 8. It is for
// benchmarks and load tests, not for samples that people are to read.
//
// The links of a Set depend on its seed alone: link i is the same however many
// are asked for, in every run and on every machine. A Set is a value and may
// be used by any number of goroutines at once.
package linkset

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"strconv"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

const (
	// Domain is the host of every link.
	Domain = "go.example.com"
	// Affiliates is how many there are.
	Affiliates = 1000
	// MaxLinks is how many links a set has before paths repeat.
	MaxLinks = 1 << codeBits
)

// codeBits are the bits of the code that makes a path unique: up to six
// characters.
const codeBits = 30

// Set is a link set.
type Set struct {
	// Seed says which one.
	Seed uint64
}

// Links gives the first n links, at most MaxLinks, each in a message of its
// own.
func (s Set) Links(n int) iter.Seq[*linkv1.Link] {
	return func(yield func(*linkv1.Link) bool) {
		for i := range min(n, MaxLinks) {
			if !yield(s.Link(i)) {
				return
			}
		}
	}
}

// Link gives link i, from 0 up to MaxLinks.
func (s Set) Link(i int) *linkv1.Link {
	r := s.row(i)
	return &linkv1.Link{
		Domain:      Domain,
		Path:        string(r.appendPath(nil)),
		Destination: string(r.appendDestination(nil)),
		Affiliate:   affiliateID(r.affiliate),
	}
}

// Paths gives the paths of the first n links, for load generators.
func (s Set) Paths(n int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range min(n, MaxLinks) {
			if !yield(string(s.row(i).appendPath(nil))) {
				return
			}
		}
	}
}

// WriteNginxMap writes the first n links as an nginx map block on $uri that
// sets $target, with nothing for what has no link.
func (s Set) WriteNginxMap(w io.Writer, n int) error {
	return s.write(w, n, "map $uri $target {\n    default \"\";\n", "}\n", func(line []byte, r row) []byte {
		line = append(line, "    "...)
		line = append(r.appendPath(line), ' ')
		line = r.appendDestination(line)
		return append(line, ";\n"...)
	})
}

// WriteNDJSON writes the first n links, one on each line, as affctl import
// reads them. Their affiliates must exist: WriteAffiliates.
func (s Set) WriteNDJSON(w io.Writer, n int) error {
	return s.write(w, n, "", "", func(line []byte, r row) []byte {
		line = append(line, `{"kind":"Link","domain":"`+Domain+`","path":"`...)
		line = append(r.appendPath(line), `","destination":"`...)
		line = append(r.appendDestination(line), `","affiliate":"`...)
		line = append(line, affiliateID(r.affiliate)...)
		return append(line, "\"}\n"...)
	})
}

// WriteAffiliates writes all affiliates, one on each line, as affctl import
// reads them.
func WriteAffiliates(w io.Writer) error {
	for i := range Affiliates {
		if _, err := fmt.Fprintf(w, `{"kind":"Affiliate","id":"%s"}`+"\n", affiliateID(i)); err != nil {
			return fmt.Errorf("write affiliates: %w", err)
		}
	}
	return nil
}

func (s Set) write(w io.Writer, n int, head, tail string, line func([]byte, row) []byte) error {
	out := bufio.NewWriterSize(w, 1<<16)
	_, _ = out.WriteString(head) // the writer keeps its first error until Flush
	var buf []byte
	for i := range min(n, MaxLinks) {
		buf = line(buf[:0], s.row(i))
		if _, err := out.Write(buf); err != nil {
			return fmt.Errorf("write links: %w", err)
		}
	}
	_, _ = out.WriteString(tail)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write links: %w", err)
	}
	return nil
}

// row is what a link is made of.
type row struct {
	adjective, noun, shop string
	code                  uint64 // unique in the set
	product               uint64
	affiliate             int
}

var (
	adjectives = [...]string{"big", "hot", "new", "top", "best", "cool", "cozy", "fast", "free", "good", "home", "last", "mega", "mini", "next", "warm"}
	nouns      = [...]string{"bag", "bed", "car", "app", "bike", "book", "deal", "desk", "gear", "gift", "lamp", "oven", "sale", "shoe", "tool", "trip"}
	shops      = [...]string{"store.com", "shop.example", "www.gadgets.io", "outlet.net", "buy.example.org", "deals.shop", "market.co.uk", "fashion.eu"}
)

func (s Set) row(i int) row {
	h := mix(s.Seed + uint64(i)*0x9e3779b97f4a7c15)
	// An affiliate's share falls with its number, as it does in life: of two
	// draws the smaller counts.
	first, second := int(h>>20%Affiliates), int(h>>40%Affiliates)
	return row{
		adjective: adjectives[h%16], noun: nouns[h>>4%16], shop: shops[h>>8%8],
		code:      s.code(uint64(i)),
		product:   100_000_000 + h>>12%900_000_000,
		affiliate: min(first, second),
	}
}

// code turns i into another number below MaxLinks, so that neighbours do not
// look alike, and no two numbers into the same one: adding, multiplying by an
// odd number and folding the upper half into the lower can all be undone.
func (s Set) code(i uint64) uint64 {
	const mask = 1<<codeBits - 1
	x := (i + mix(s.Seed)) & mask
	for range 2 {
		x = x * 0x2545f491 & mask
		x ^= x >> (codeBits / 2)
	}
	return x
}

// mix scrambles 64 bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (r row) appendPath(dst []byte) []byte {
	dst = append(dst, "/go/"...)
	dst = append(dst, r.adjective...)
	dst = append(dst, '-')
	dst = append(dst, r.noun...)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, r.code, 36)
}

func (r row) appendDestination(dst []byte) []byte {
	dst = append(dst, "https://"...)
	dst = append(dst, r.shop...)
	dst = append(dst, "/p/"...)
	dst = strconv.AppendUint(dst, r.product, 10)
	dst = append(dst, "?ref="...)
	return append(dst, affiliateID(r.affiliate)...)
}

// affiliateID is "aff_" and four digits.
func affiliateID(i int) string {
	return string([]byte{'a', 'f', 'f', '_', '0' + byte(i/1000%10), '0' + byte(i/100%10), '0' + byte(i/10%10), '0' + byte(i%10)})
}
