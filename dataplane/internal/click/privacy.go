package click

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
)

// Fields is a set of what a click need not hold. What the ledger and the fraud
// detector cannot do without is not among them.
type Fields uint16

// The fields.
const (
	FieldAddress Fields = 1 << iota
	FieldUserAgent
	FieldReferrer
	FieldLanguages
	FieldHost
	FieldPath
	FieldDestination
	FieldParameters
	FieldCountry
	FieldASN
)

var fieldNames = []string{
	"address", "user-agent", "referrer", "languages", "host", "path", "destination", "parameters", "country", "asn",
}

// ParseFields reads a set: names of FieldNames, separated by commas.
func ParseFields(s string) (f Fields, err error) {
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		i := slices.Index(fieldNames, name)
		if i < 0 {
			return 0, fmt.Errorf("field %q: there are %s", name, FieldNames())
		}
		f |= 1 << i
	}
	return f, nil
}

// FieldNames are the names that ParseFields knows, for people.
func FieldNames() string { return strings.Join(fieldNames, ", ") }

// policy is what of an event is recorded, and how. It is shared by all that
// record; only the key changes.
type policy struct {
	form AddressForm

	// The most bytes of each field, and of all parameters together.
	destination, userAgent, referrer, languages, host, path, parameters int
	omitAddress, omitCountry, omitASN                                   bool

	key atomic.Pointer[dayKey] // for AddressHashed
}

func newPolicy(form AddressForm, omit Fields) *policy {
	p := &policy{
		form: form, omitAddress: omit&FieldAddress != 0, omitCountry: omit&FieldCountry != 0, omitASN: omit&FieldASN != 0,
		destination: MaxRecord, userAgent: MaxUserAgent, referrer: MaxReferrer, languages: MaxLanguages,
		host: MaxHost, path: MaxPath, parameters: MaxParameters,
	}
	for field, most := range map[Fields]*int{
		FieldDestination: &p.destination, FieldUserAgent: &p.userAgent, FieldReferrer: &p.referrer,
		FieldLanguages: &p.languages, FieldHost: &p.host, FieldPath: &p.path, FieldParameters: &p.parameters,
	} {
		if omit&field != 0 {
			*most = 0
		}
	}
	return p
}

// addressBytes is how much of the record the event's address takes.
func (p *policy) addressBytes(e *Event) int {
	switch {
	case !e.Address.IsValid() || p.omitAddress:
		return 0
	case p.form == AddressHashed && !e.GPC:
		return 8
	case e.Address.Is4() || e.Address.Is4In6():
		return 4
	}
	return 16
}

// writeAddress applies the policy. b has the size that addressBytes gave.
func (p *policy) writeAddress(b []byte, e *Event) {
	truncate := p.form == AddressTruncated || e.GPC
	switch len(b) {
	case 4:
		v4 := e.Address.As4()
		if truncate {
			v4[3] = 0
		}
		copy(b, v4[:])
	case 8:
		binary.LittleEndian.PutUint64(b, p.today(e.Time).hash(e.Address.As16()))
	case 16:
		v6 := e.Address.As16()
		if truncate {
			clear(v6[6:])
		}
		copy(b, v6[:])
	}
}

// dayKey is the key of one day (UTC). It is only ever in memory: what was hashed
// under it cannot be tied to an address, nor to another day's hashes, once it is
// gone. Each node and each start has its own.
type dayKey struct {
	day    int64
	k0, k1 uint64
}

const dayMicros = 24 * 60 * 60 * 1_000_000

// today is the key for a time. A time before the newest key's day is a request
// that took its time around midnight.
func (p *policy) today(micros int64) *dayKey {
	day := micros / dayMicros
	for {
		key := p.key.Load()
		if key != nil && key.day >= day {
			return key
		}
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		p.key.CompareAndSwap(key, &dayKey{day, binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])})
	}
}

// hash is SipHash-2-4 of an address.
func (k *dayKey) hash(address [16]byte) uint64 {
	v0, v1 := k.k0^0x736f6d6570736575, k.k1^0x646f72616e646f6d
	v2, v3 := k.k0^0x6c7967656e657261, k.k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	for _, m := range [3]uint64{
		binary.LittleEndian.Uint64(address[:8]), binary.LittleEndian.Uint64(address[8:]), uint64(len(address)) << 56,
	} {
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
