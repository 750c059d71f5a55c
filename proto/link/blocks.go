package link

import (
	"math"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Block is the runtime form of a block. What it matches is one of Prefix,
// UserAgent and Affiliate.
type Block struct {
	ID        string
	Prefix    netip.Prefix // of client addresses; not valid if it matches something else
	UserAgent string
	Affiliate string
	Only      string // the affiliate whose links it is about; empty: any

	treatment Treatment
	label     Label
	until     int64 // µs since 1970
	reason    string
	why       []byte // the reason of its label
}

// Matches says what the block matches, for people: "prefix 203.0.113.0/24".
func (b *Block) Matches() string {
	text := "affiliate " + b.Affiliate
	switch {
	case b.Prefix.IsValid():
		text = "prefix " + FormatPrefix(b.Prefix)
	case b.UserAgent != "":
		text = "user agent " + b.UserAgent
	}
	if b.Only != "" {
		text += ", on links of affiliate " + b.Only
	}
	return text
}

// Reason is why, as it was written.
func (b *Block) Reason() string { return b.reason }

// Bits of a client address that a click has where addresses are truncated.
const (
	truncatedBits4 = 24
	truncatedBits6 = 48
)

// labelReason is what the block's label says: its id and its reason. Where it
// matches less than a truncated address, neither may tell the click what its
// address must not: "address" stands for the id, from which an address can be
// guessed even if it is a hash, and "it" for the address in the reason.
func (b *Block) labelReason() string {
	bits := truncatedBits6
	if b.Prefix.Addr().Is4() {
		bits = truncatedBits4
	}
	if b.Prefix.Bits() <= bits { // also what is no prefix
		return b.ID + ": " + b.reason
	}
	return "address: " + strings.NewReplacer(b.Prefix.String(), "it", b.Prefix.Addr().String(), "it").Replace(b.reason)
}

// CompileBlock makes the runtime form of a stored block.
func CompileBlock(value []byte) (*Block, error) {
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, invalid("", "", "is damaged: %v", err)
	}
	if r.GetBlock() == nil {
		return nil, invalid("", "", "is not a block")
	}
	if err := Validate(r); err != nil {
		return nil, err
	}
	from := r.GetBlock()
	b := &Block{
		ID: from.GetId(), UserAgent: from.GetUserAgent(), Affiliate: from.GetAffiliate(), Only: from.GetOnlyAffiliate(),
		treatment: treatmentOf(from.GetAction()), label: LabelBlocked, until: math.MaxInt64, reason: from.GetReason(),
	}
	if text := from.GetPrefix(); text != "" {
		b.Prefix, _ = ParsePrefix(text) // Validate has read it
	}
	b.why = []byte(b.labelReason())
	if name := from.GetLabel(); name != "" {
		b.label, _, _ = ParseLabel(name) // likewise
	}
	if end := from.GetExpireTime(); end != nil {
		b.until = end.AsTime().UnixMicro()
	}
	return b, nil
}

// Ends is when the block counts no more; the zero time is never.
func (b *Block) Ends() time.Time {
	if b.until == math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(b.until).UTC()
}

// LabelPolicies is the runtime form of a policy: what it says about labels.
type LabelPolicies struct {
	Scope      string
	says       LabelSet
	treatments [NumLabels]Treatment
	off        bool
}

// CompilePolicy makes the runtime form of a stored policy.
func CompilePolicy(value []byte) (*LabelPolicies, error) {
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, invalid("", "", "is damaged: %v", err)
	}
	if r.GetPolicy() == nil {
		return nil, invalid("", "", "is not a policy")
	}
	if err := Validate(r); err != nil {
		return nil, err
	}
	p := &LabelPolicies{Scope: r.GetPolicy().GetScope(), off: r.GetPolicy().GetOff()}
	for _, l := range r.GetPolicy().GetLabels() {
		label, _, _ := ParseLabel(l.GetLabel()) // Validate has seen it
		p.says |= 1 << label
		p.treatments[label] = treatmentOf(l.GetAction())
	}
	return p, nil
}
