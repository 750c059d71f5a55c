package label

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"time"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// Judge gives labels. Make one with New.
type Judge struct {
	cfg  Config
	seed uint64

	window             window
	addresses, perLink counter
	clicks             marks // by address, user agent and link; extra: of the whole request
	ids                marks // by click id and link

	// The reasons.
	rate, ratePerLink, duplicate, retry []byte
	replays                             [numIDs][]byte
}

// New allocates the memory. Nothing runs.
func New(cfg Config) (*Judge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	j := &Judge{cfg: cfg, seed: rand.Uint64()}
	tables := newLines(4, cfg.Memory/4)
	j.addresses, j.perLink, j.window = counter{tables[0]}, counter{tables[1]}, window(cfg.RateWindow)
	j.clicks = marks{tables[2], 10}
	j.ids = marks{tables[3], 0}
	j.rate = fmt.Appendf(nil, "rate-address 1: over %d in %v", cfg.Rate, cfg.RateWindow)
	j.ratePerLink = fmt.Appendf(nil, "rate-address-link 1: over %d in %v", cfg.RatePerLink, cfg.RateWindow)
	j.duplicate = fmt.Appendf(nil, "address-agent-link 1: within %v", cfg.Duplicate)
	j.retry = fmt.Appendf(nil, "same-request 1: within %v", retryWindow)
	for i, name := range idNames {
		j.replays[i] = fmt.Appendf(nil, "click-id 1: %s within %v", name, cfg.Replay)
	}
	return j, nil
}

// Memory is the number of bytes that all counts and marks take.
func (j *Judge) Memory() int64 {
	lines := len(j.addresses.lines) + len(j.perLink.lines) + len(j.clicks.lines) + len(j.ids.lines)
	return int64(lines) * int64(unsafe.Sizeof(line{}))
}

// Off are the labels that are never given.
func (j *Judge) Off() link.LabelSet { return j.cfg.Off }

// retryWindow is how soon a client that tries again does so.
const retryWindow = 2 * time.Second

// Request is what is judged beside what decides about it.
type Request struct {
	Visitor *visitor.Visitor
	Head    bool  // the method is HEAD
	Secure  bool  // it came over TLS to this very process
	Mono    int64 // the time, in ns of a clock that never goes back, from 0
}

// Judge fills the verdict about a request whose link has been looked up: its
// labels, with reasons that stay valid as long as the Judge and the book, and its
// treatment. It counts the request, and does not allocate.
//
// What is remembered is in memory that no cache holds. So it is asked for first,
// and looked at last.
func (j *Judge) Judge(v *link.Verdict, r *Request, m *link.Match, req *link.Request, book link.Rulebook) {
	v.Reset()
	v.Off = j.cfg.Off
	var k keys
	j.fetch(&k, r, m, req)
	r.Visitor.Label(&v.Labels, r.Head, r.Secure)
	v.Find(book, m, req)
	if !v.Off.Has(link.LabelRate) && req.Address.IsValid() {
		j.rates(&v.Labels, &k, r, m)
	}
	if m.Value != nil && v.Set()&noClick == 0 {
		j.compare(&v.Labels, &k, r)
	}
	v.Decide(book, m, req)
}

// noClick are the labels of what is no click.
var noClick = link.Of(link.LabelBot, link.LabelPrefetch, link.LabelPreview, link.LabelHead)

// keys are the hashes under which a request is counted. Without a link, only
// from is set.
type keys struct {
	from, to    uint64 // the address, the link
	pair, click uint64 // both of them; and the user agent
	whole       uint64 // all of that; and path and query
	id          uint64 // the click id and the link
	network     int    // whose id it is; negative: there is none
}

// fetch finds the keys, and asks for the line of each as soon as it is known.
func (j *Judge) fetch(k *keys, r *Request, m *link.Match, req *link.Request) {
	k.from = j.client(req.Address)
	j.addresses.fetch(k.from)
	if m.Value == nil {
		return
	}
	k.to = xxh3.HashSeed(m.Link.Path(m.Value), xxh3.HashSeed(m.Link.Domain(m.Value), j.seed))
	k.pair = mix(k.from, k.to)
	j.perLink.fetch(k.pair)
	k.click = mix(r.Visitor.AgentID(), k.pair)
	j.clicks.fetch(k.click)
	if k.network = -1; len(req.Query) > minID {
		if network, value := clickID(req.Query); value != nil {
			k.network, k.id = network, xxh3.HashSeed(value, k.to+uint64(network)+1) //nolint:gosec // 0 to 5
			j.ids.fetch(k.id)
		}
	}
	k.whole = xxh3.HashSeed(req.Path, k.click)
	if len(req.Query) > 0 {
		k.whole = xxh3.HashSeed(req.Query, k.whole)
	}
}

// rates counts a request.
func (j *Judge) rates(labels *link.Labels, k *keys, r *Request, m *link.Match) {
	at := j.window.at(r.Mono)
	if j.addresses.count(k.from, at) > j.cfg.Rate {
		labels.Add(link.LabelRate, j.rate)
	}
	if m.Value != nil && j.perLink.count(k.pair, at) > j.cfg.RatePerLink {
		labels.Add(link.LabelRate, j.ratePerLink)
	}
}

// compare compares a click with those before it.
func (j *Judge) compare(labels *link.Labels, k *keys, r *Request) {
	age, was := j.clicks.touch(k.click, k.whole, r.Mono)
	if age <= int64(j.cfg.Duplicate) {
		labels.Add(link.LabelDuplicate, j.duplicate)
	}
	if age <= int64(retryWindow) && was == j.clicks.extra(k.whole) {
		labels.Add(link.LabelReplay, j.retry)
	}
	if k.network >= 0 && !j.cfg.Off.Has(link.LabelReplay) {
		if age, _ := j.ids.touch(k.id, 0, r.Mono); age <= int64(j.cfg.Replay) {
			labels.Add(link.LabelReplay, j.replays[k.network])
		}
	}
}

// client is the hash of an address, of IPv6 of its first 64 bits.
func (j *Judge) client(addr netip.Addr) uint64 {
	a := addr.As16()
	high, low := binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:])
	if !addr.Is4() && !addr.Is4In6() {
		low = 0
	}
	return mix(high^j.seed, low^bits.RotateLeft64(j.seed, 32))
}

// mix makes one hash of two.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0xa0761d6478bd642f, b^0xe7037ed1a0b428db)
	h := hi ^ lo
	hi, lo = bits.Mul64(h^0x8ebc6af09c88c6e3, a^b^0x589965cc75374cc3)
	return hi ^ lo
}

// The click ids of networks.
const numIDs = 6

var idNames = [numIDs]string{"gclid", "fbclid", "ttclid", "msclkid", "wbraid", "gbraid"}

// What an id has, in bytes.
const (
	minID = 16
	maxID = 512
)

// clickID finds the first click id among the first parameters of a query.
func clickID(query []byte) (id int, value []byte) {
	for range link.MaxQuery {
		if len(query) == 0 {
			break
		}
		param := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			param, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		if len(param) <= 6+minID {
			continue
		}
		if id = whichID(param); id >= 0 {
			value = param[len(idNames[id])+1:]
			if isID(value) {
				return id, value
			}
		}
	}
	return 0, nil
}

// whichID gives the number of the id that a parameter is named, -1 if it is none.
func whichID(param []byte) int {
	for i, name := range idNames {
		if param[len(name)] == '=' && string(param[:len(name)]) == name {
			return i
		}
	}
	return -1
}

// isID says whether a value may be an id that a network gave.
func isID(value []byte) bool {
	if len(value) < minID || len(value) > maxID {
		return false
	}
	for _, c := range value {
		if !idByte[c] {
			return false
		}
	}
	return true
}

var idByte = func() (t [256]bool) {
	for _, c := range "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~" {
		t[c] = true
	}
	return t
}()
