// Package clickstream is what a consumer of clicks imports: where they are,
// how a message is decoded, and Consume, which delivers each click once and
// tells of every gap. README.md of proto/aff/click/v1 says the same for other
// languages.
//
// Decode is for single messages, for example to look into a stream; it drops
// no duplicates. Take Consume for everything that counts clicks.
//
// # Concurrency
//
// Decode may be called by any number of goroutines. Consume calls its
// functions from one goroutine, one after the other. What is decoded shares
// memory among the clicks of a batch: keeping one click's strings keeps the
// message's 256 KiB; strings.Clone what is to stay for long.
package clickstream

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Click is one answered redirect. Strings that a client sent are its bytes,
// not necessarily UTF-8.
type Click struct {
	// The identity: unique with all three.
	Node     string `json:"node"`
	Boot     Hex    `json:"boot"`
	Sequence uint64 `json:"sequence"` // from 1, without holes

	Region   string    `json:"region,omitempty"`
	Time     time.Time `json:"time"`  // UTC, to the microsecond
	Epoch    Hex       `json:"epoch"` // with Revision: the version of the links that decided
	Revision int64     `json:"revision"`

	Link        string  `json:"link,omitempty"` // "<domain><path>"; empty when no link decided
	Affiliate   string  `json:"affiliate,omitempty"`
	Campaign    string  `json:"campaign,omitempty"`
	Variant     string  `json:"variant,omitempty"`
	Rule        uint32  `json:"rule,omitempty"` // 1 for the first; 0 when none decided
	Destination string  `json:"destination,omitempty"`
	Status      int     `json:"status"`
	Method      string  `json:"method"` // GET or HEAD
	Outcome     Outcome `json:"outcome"`

	Address   Address `json:"address,omitzero"`
	UserAgent string  `json:"user_agent,omitempty"`
	Referrer  string  `json:"referrer,omitempty"`
	Languages string  `json:"languages,omitempty"`
	Host      string  `json:"host,omitempty"` // as asked for
	Path      string  `json:"path,omitempty"` // as asked for

	Parameters []Parameter `json:"parameters,omitempty"`
	Labels     []Label     `json:"labels,omitempty"`
	Country    string      `json:"country,omitempty"` // ISO 3166-1
	ASN        uint32      `json:"asn,omitempty"`
}

// ID is the click's identity as one string: "<node>-<boot>-<sequence>".
func (c *Click) ID() string {
	return c.Node + "-" + c.Boot.String() + "-" + strconv.FormatUint(c.Sequence, 10)
}

// Parameter is a parameter of the request that was recorded.
type Parameter struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Label is what the node thought of the request, and why.
type Label struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
}

// Hex is a number that people know by its 16 hex digits.
type Hex uint64

// String is the 16 digits.
func (h Hex) String() string { return fmt.Sprintf("%016x", uint64(h)) }

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil {
		return fmt.Errorf("%q is no hex number", text)
	}
	*h = Hex(v)
	return nil
}

// Outcome is why a request got its answer: a number of aff.click.v1.Outcome.
type Outcome uint8

var outcomes = [...]string{
	"destination", "not_found", "disabled", "not_yet", "expired", "suspended", "capped", "rule", "blocked", "root",
}

// String is the outcome for people: "expired".
func (o Outcome) String() string {
	if int(o) < len(outcomes) {
		return outcomes[o]
	}
	return "outcome_" + strconv.Itoa(int(o))
}

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Outcome) UnmarshalText(text []byte) error {
	for i, name := range outcomes {
		if name == string(text) {
			*o = Outcome(i)
			return nil
		}
	}
	var n uint8
	if _, err := fmt.Sscanf(string(text), "outcome_%d", &n); err != nil {
		return fmt.Errorf("%q is no outcome", text)
	}
	*o = Outcome(n)
	return nil
}

// AddressForm is what the node's privacy policy made of the client's address:
// a number of aff.click.v1.AddressForm.
type AddressForm uint8

// The forms.
const (
	AddressNone      AddressForm = 0
	AddressFull      AddressForm = 1
	AddressTruncated AddressForm = 2 // zero behind /24 or /48
	AddressHashed    AddressForm = 3 // 8 bytes; the key changes daily (UTC), and with the boot unless nodes share a secret
)

// Address is the client's, as far as it was recorded. The zero value is none.
type Address struct {
	bytes string
	form  AddressForm
}

// Form says what the address is. Clicks of one batch may differ: who sends
// "Sec-GPC: 1" is truncated whatever the node's policy.
func (a Address) Form() AddressForm { return a.form }

// tell sets the form that the message names. Nodes of earlier releases did not
// name that of a single click; among hashes, the length tells what is none.
func (a *Address) tell(form AddressForm) {
	switch n := len(a.bytes); {
	case n == 0:
		a.form = AddressNone
	case form == AddressHashed && n != 8:
		a.form = AddressTruncated
	default:
		a.form = form
	}
}

// Prefix is the address, or the network in which it lies; false when there is
// none, or a hash.
func (a Address) Prefix() (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice([]byte(a.bytes))
	switch {
	case !ok:
		return netip.Prefix{}, false
	case a.form == AddressFull:
		return netip.PrefixFrom(addr, addr.BitLen()), true
	case a.form != AddressTruncated: // of a newer node
		return netip.Prefix{}, false
	case addr.Is4():
		return netip.PrefixFrom(addr, 24), true
	}
	return netip.PrefixFrom(addr, 48), true
}

// String is "203.0.113.9", "203.0.113.0/24", or a hash in hex: it tells the form.
func (a Address) String() string {
	prefix, ok := a.Prefix()
	switch {
	case !ok:
		return hex.EncodeToString([]byte(a.bytes))
	case prefix.IsSingleIP():
		return prefix.Addr().String()
	}
	return prefix.String()
}

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }
