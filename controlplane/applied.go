package controlplane

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Tags of aff.feed.v1 and aff.link.v1 that are read by hand, because nearly all
// that nodes say is Applied, once for each write and node.
const (
	tagRequestApplied = 2<<3 | byte(protowire.BytesType)

	tagAppliedVersion = 1<<3 | byte(protowire.BytesType)
	tagAppliedHash    = 2<<3 | byte(protowire.BytesType)
	tagAppliedLinks   = 3<<3 | byte(protowire.VarintType)

	tagVersionEpoch    = 1<<3 | byte(protowire.Fixed64Type)
	tagVersionRevision = 2<<3 | byte(protowire.VarintType)

	tagHashHi = 1<<3 | byte(protowire.Fixed64Type)
	tagHashLo = 2<<3 | byte(protowire.Fixed64Type)
)

// applied is an Applied with all that it is made of, in one piece.
type applied struct {
	request feedv1.SubscribeRequest_Applied
	applied feedv1.Applied
	version linkv1.Version
	hash    feedv1.SetHash
}

// readApplied reads a message that is an Applied as this release writes it: its
// fields in order, each at most once, and no others. It says whether it is one;
// anything else is protobuf's to read.
func readApplied(b []byte, m *feedv1.SubscribeRequest) bool {
	whole := wire{b}
	part, ok := whole.bytes(tagRequestApplied)
	if !ok || len(whole.rest) > 0 {
		return false
	}
	a := new(applied)
	in := wire{part}
	if v, ok := in.bytes(tagAppliedVersion); ok {
		of := wire{v}
		a.version.Epoch = of.fixed64(tagVersionEpoch)
		a.version.Revision = int64(of.varint(tagVersionRevision))
		a.applied.Version = &a.version
		if len(of.rest) > 0 {
			return false
		}
	}
	if h, ok := in.bytes(tagAppliedHash); ok {
		of := wire{h}
		a.hash.Hi, a.hash.Lo = of.fixed64(tagHashHi), of.fixed64(tagHashLo)
		a.applied.SetHash = &a.hash
		if len(of.rest) > 0 {
			return false
		}
	}
	a.applied.Links = int64(in.varint(tagAppliedLinks))
	if len(in.rest) > 0 {
		return false
	}
	a.request.Applied = &a.applied
	m.Message = &a.request
	return true
}

// wire is what is left of a message. Each method takes the next field if that
// has a tag, and is whole; otherwise it gives zero and takes nothing.
type wire struct{ rest []byte }

func (w *wire) next(tag byte) bool { return len(w.rest) > 0 && w.rest[0] == tag }

func (w *wire) bytes(tag byte) ([]byte, bool) {
	if !w.next(tag) {
		return nil, false
	}
	b, n := protowire.ConsumeBytes(w.rest[1:])
	if n < 0 {
		return nil, false
	}
	w.rest = w.rest[1+n:]
	return b, true
}

func (w *wire) varint(tag byte) uint64 {
	if !w.next(tag) {
		return 0
	}
	v, n := protowire.ConsumeVarint(w.rest[1:])
	if n < 0 {
		return 0
	}
	w.rest = w.rest[1+n:]
	return v
}

func (w *wire) fixed64(tag byte) uint64 {
	if !w.next(tag) || len(w.rest) < 9 {
		return 0
	}
	v := binary.LittleEndian.Uint64(w.rest[1:])
	w.rest = w.rest[9:]
	return v
}
