package link

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// A link whose plan is kept elsewhere is stored bare: its value without the
// plan, then bareTail bytes: a key of the keeper's by which it finds the plan,
// where the plan stood, and how long it was.
const bareTail = 8 + 2 + 2

// HasPlan says whether the link has a query policy, rules or splits: a Match of
// it needs a Plan.
func (c *Compiled) HasPlan() bool { return c.flags&flagPlan != 0 }

// Plan gives the part of a value that NewPlan takes, nil if there is none. The
// Compiled is as Compile has given it.
func (c *Compiled) Plan(value []byte) []byte {
	if c.plan.len == 0 {
		return nil
	}
	return c.plan.in(value)
}

// AppendBare appends a value without its plan, and makes c, which is as Compile
// has given it, an index into that. The plan is found again by the key.
func (c *Compiled) AppendBare(dst, value []byte, key uint64) []byte {
	at, end := c.plan.off, c.plan.off+c.plan.len
	dst = append(append(dst, value[:at]...), value[end:]...)
	dst = binary.LittleEndian.AppendUint64(dst, key)
	dst = binary.LittleEndian.AppendUint16(dst, at)
	dst = binary.LittleEndian.AppendUint16(dst, c.plan.len)
	for _, s := range [...]*span{&c.domain, &c.path, &c.destination, &c.affiliate, &c.campaign, &c.fallback} {
		if s.off >= end {
			s.off -= c.plan.len
		}
	}
	c.plan, c.mark = span{}, 0
	c.flags |= flagBare
	return dst
}

// IsBare says whether the link is an index into a value that AppendBare made.
func (c *Compiled) IsBare() bool { return c.flags&flagBare != 0 }

// PlanKey is the key of a bare value.
func (c *Compiled) PlanKey(bare []byte) uint64 {
	return binary.LittleEndian.Uint64(bare[len(bare)-bareTail:])
}

// AppendValue appends the whole value, of a bare one and its plan.
func (c *Compiled) AppendValue(dst, bare, plan []byte) []byte {
	at := binary.LittleEndian.Uint16(bare[len(bare)-4:])
	dst = append(append(dst, bare[:at]...), plan...)
	return append(dst, bare[at:len(bare)-bareTail]...)
}

// fields calls f for every field of the link in a value that has compiled,
// whole or bare. What a later release says beside the link is passed over.
func (c *Compiled) fields(value []byte, f func(protowire.Number, protowire.Type, span, uint64) *Error) {
	at := 0
	for {
		num, typ, n := protowire.ConsumeTag(value[at:])
		at += n
		if num == resourceLink {
			break
		}
		at += protowire.ConsumeFieldValue(num, typ, value[at:])
	}
	length, n := protowire.ConsumeVarint(value[at:])
	at += n
	end := at + int(length) //nolint:gosec // at most MaxValue
	if c.IsBare() {
		end -= int(binary.LittleEndian.Uint16(value[len(value)-2:]))
	}
	_ = fields(value[at:end], uint16(at), f)
}

// Load makes the match one of the link with a stored value, for those who have
// no table. It leaves Domain and Affiliate alone.
func (m *Match) Load(value []byte) error {
	c, err := Compile(value)
	if err != nil {
		return err
	}
	m.Link, m.Value, m.Plan = c, value, nil
	if c.HasPlan() {
		m.Plan, err = NewPlan(c.Plan(value))
	}
	return err
}
