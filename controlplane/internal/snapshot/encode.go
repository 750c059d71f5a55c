package snapshot

import (
	"encoding/binary"
	"math/bits"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/store"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Field numbers of aff.feed.v1 that are written by hand, because an entry is
// encoded once in its life. Every test decodes them with protobuf alone.
const (
	fieldChunk    = 2 // SubscribeResponse.snapshot_chunk
	fieldDelta    = 4 // SubscribeResponse.delta
	fieldTakeDown = 7 // SubscribeResponse.take_down

	fieldEntryKey   = 1
	fieldEntryValue = 2

	fieldDeltaFrom     = 1
	fieldDeltaTo       = 2
	fieldDeltaPuts     = 3
	fieldDeltaDeletes  = 4
	fieldDeltaHash     = 5
	fieldDeltaEntries  = 6
	fieldDeltaReleased = 7

	fieldTakeDownVersion = 1
	fieldTakeDownEntries = 2

	fieldChunkEntries     = 1
	fieldChunkCompressed  = 2
	fieldChunkCompression = 3
)

// entry is the wire form of a feedv1.Entry, which a delta and a snapshot are
// made of, behind entryHead bytes of what writes need to know. "" is no entry.
type entry string

// entryHead has the revision of the resource's last write, and its time of
// creation in nanoseconds since 1970, 0 for none, as big-endian numbers.
const entryHead = 16

// makeEntry copies an object into one allocation.
func makeEntry(o *store.Object) entry {
	key, value := o.Name, o.Value
	n := entryHead + 1 + sizeBytes(len(key)) + 1 + sizeBytes(len(value))
	b := make([]byte, entryHead, n)
	binary.BigEndian.PutUint64(b, uint64(o.Revision)) //nolint:gosec // as it is read
	if created := o.Created(); !created.IsZero() {
		binary.BigEndian.PutUint64(b[8:], uint64(created.UnixNano())) //nolint:gosec // as it is read
	}
	b = protowire.AppendTag(b, fieldEntryKey, protowire.BytesType)
	b = protowire.AppendString(b, key)
	b = protowire.AppendTag(b, fieldEntryValue, protowire.BytesType)
	b = protowire.AppendBytes(b, value)
	return entry(stringOf(b))
}

// wire is a part of the entry's own bytes.
func (e entry) wire() string {
	if e == "" {
		return ""
	}
	return string(e[entryHead:])
}

// same says whether nodes hold the same of both.
func (e entry) same(other entry) bool { return e.wire() == other.wire() }

// known is what a write needs to know of what is there.
func (e entry) known() store.Known {
	if e == "" {
		return store.Known{}
	}
	_, value := e.split()
	b := bytesOf(string(e))
	k := store.Known{Value: bytesOf(value), Revision: int64(binary.BigEndian.Uint64(b))} //nolint:gosec // as it was written
	if created := int64(binary.BigEndian.Uint64(b[8:])); created != 0 {                  //nolint:gosec // as it was written
		k.Created = time.Unix(0, created)
	}
	return k
}

// key is a part of the entry's own bytes.
func (e entry) key() string {
	key, _ := e.split()
	return key
}

// split gives key and value, both parts of the entry's own bytes.
func (e entry) split() (key, value string) {
	wire := e.wire()
	b := bytesOf(wire)
	n, size := binary.Uvarint(b[1:])
	start := 1 + size
	end := start + int(n)
	_, size = binary.Uvarint(b[end+1:])
	return wire[start:end], wire[end+1+size:]
}

// size is how many bytes key and value have.
func (e entry) size() int64 {
	key, value := e.split()
	return int64(len(key) + len(value))
}

// hash is the entry's share of the set hash.
func (e entry) hash() link.SetHash {
	key, value := e.split()
	return link.HashEntry(bytesOf(key), bytesOf(value))
}

// sizeBytes is the size of n bytes with their length before them.
func sizeBytes(n int) int { return sizeVarint(uint64(n)) + n }

func sizeVarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// encodeDelta gives a whole SubscribeResponse. Changes without an entry are
// deletes.
func encodeDelta(epoch uint64, from int64, to mark, changes []change, released bool) []byte {
	vFrom, vTo := encodeVersion(epoch, from), encodeVersion(epoch, to.revision)
	vHash := encodeHash(to.hash)
	n := 1 + sizeBytes(len(vFrom)) + 1 + sizeBytes(len(vTo)) + 1 + sizeBytes(len(vHash)) + 1 + sizeVarint(uint64(to.entries))
	for i := range changes {
		n += 1 + sizeBytes(len(changes[i].payload()))
	}
	if released {
		n += 2
	}
	b := make([]byte, 0, 1+sizeBytes(n))
	b = protowire.AppendTag(b, fieldDelta, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	b = appendBytes(b, fieldDeltaFrom, vFrom)
	b = appendBytes(b, fieldDeltaTo, vTo)
	for i := range changes {
		field := protowire.Number(fieldDeltaPuts)
		if changes[i].entry == "" {
			field = fieldDeltaDeletes
		}
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendString(b, changes[i].payload())
	}
	b = appendBytes(b, fieldDeltaHash, vHash)
	b = protowire.AppendTag(b, fieldDeltaEntries, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(to.entries))
	if released {
		b = protowire.AppendTag(b, fieldDeltaReleased, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	return b
}

// encodeChunk gives a whole SubscribeResponse with S2-compressed entries.
func encodeChunk(compressed []byte) []byte {
	n := 1 + sizeBytes(len(compressed)) + 2
	b := make([]byte, 0, 1+sizeBytes(n))
	b = protowire.AppendTag(b, fieldChunk, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	b = appendBytes(b, fieldChunkCompressed, compressed)
	b = protowire.AppendTag(b, fieldChunkCompression, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(feedv1.Compression_COMPRESSION_S2))
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func encodeVersion(epoch uint64, revision int64) []byte {
	return mustMarshal(&linkv1.Version{Epoch: epoch, Revision: revision})
}

func encodeHash(h link.SetHash) []byte {
	return mustMarshal(&feedv1.SetHash{Hi: h.Hi, Lo: h.Lo})
}

// mustMarshal is for messages without strings, which always marshal.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic("BUG: marshal " + string(m.ProtoReflect().Descriptor().Name()) + ": " + err.Error())
	}
	return b
}
