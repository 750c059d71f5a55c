package feed

import (
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Field numbers of aff.feed.v1 that are read by hand, because what they hold is
// large. Every test encodes them with protobuf alone.
const (
	fieldFrameChunk = 2 // SubscribeResponse.snapshot_chunk
	fieldFrameDelta = 4 // SubscribeResponse.delta

	fieldEntryKey   = 1
	fieldEntryValue = 2

	fieldDeltaFrom     = 1
	fieldDeltaTo       = 2
	fieldDeltaPuts     = 3
	fieldDeltaDeletes  = 4
	fieldDeltaHash     = 5
	fieldDeltaEntries  = 6
	fieldDeltaReleased = 7

	fieldChunkEntries     = 1
	fieldChunkCompressed  = 2
	fieldChunkCompression = 3
)

// maxDecompressed bounds what one chunk may become, in bytes.
const maxDecompressed = 64 << 20

var errWire = errors.New("not a protobuf message")

// eachField calls f for every field of a message. v is the value of a varint
// field, b the bytes of a length-delimited one, aliasing the message; other
// wire types are passed over.
func eachField(message []byte, f func(num protowire.Number, v uint64, b []byte) error) error {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return errWire
		}
		message = message[n:]
		var v uint64
		var b []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(message)
		default:
			if n = protowire.ConsumeFieldValue(num, typ, message); n >= 0 {
				message = message[n:]
				continue
			}
		}
		if n < 0 {
			return errWire
		}
		message = message[n:]
		if err := f(num, v, b); err != nil {
			return err
		}
	}
	return nil
}

// decodeEntry splits an Entry. Both parts alias it.
func decodeEntry(b []byte) (key, value []byte, err error) {
	err = eachField(b, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case fieldEntryKey:
			key = b
		case fieldEntryValue:
			value = b
		}
		return nil
	})
	return key, value, err
}

// pair is an entry; both parts alias what it was decoded from.
type pair struct{ key, value []byte }

func (e *pair) size() int { return len(e.key) + len(e.value) }

// appendEntries appends the entries of an uncompressed SnapshotChunk.
func appendEntries(list []pair, chunk []byte) ([]pair, error) {
	err := eachField(chunk, func(num protowire.Number, _ uint64, b []byte) error {
		if num != fieldChunkEntries {
			return nil
		}
		key, value, err := decodeEntry(b)
		list = append(list, pair{key, value})
		return err
	})
	return list, err
}

// unserved are entries that do not compile or are too large: they are held and not
// served.
type unserved struct {
	n     int
	first []error // some, each with the name and the reason
}

// maxNamed is how many of them are named.
const maxNamed = 3

// putAll puts entries, and holds those that cannot be served, or are larger than
// most bytes. The error names the first that cannot even be held.
func putAll(b *table.Builder, list []pair, most int, left *unserved) (err error) {
	hold := func(e pair, why error) {
		if held := b.Hold(e.key, e.value); held != nil {
			if err == nil {
				err = held
			}
			return
		}
		if left.n++; len(left.first) < maxNamed {
			left.first = append(left.first, why)
		}
	}
	list, large := split(list, most)
	b.PutAll(len(list), func(i int) (key, value []byte) { return list[i].key, list[i].value }, func(i int, why error) { hold(list[i], why) })
	for _, e := range large {
		hold(e, fmt.Errorf("%.300q takes %d bytes, and at most %d are served; see --max-entry-bytes", e.key, e.size(), most))
	}
	return err
}

// split takes out the links that are larger than most bytes. Nearly always there are
// none. What else there is has at most link.MaxValue bytes and is little, and without
// it others would be served that are not to be: an affiliate may be suspended.
func split(list []pair, most int) (rest, large []pair) {
	isLarge := func(e pair) bool { return e.size() > most && isLink(e.key) }
	if !slices.ContainsFunc(list, isLarge) {
		return list, nil
	}
	for _, e := range list {
		if isLarge(e) {
			large = append(large, e)
		} else {
			rest = append(rest, e)
		}
	}
	return rest, large
}

// decodeChunk gives the uncompressed form of a SnapshotChunk: itself, or what
// it holds compressed, in buf or a larger buffer.
func decodeChunk(chunk, buf []byte) (plain, used []byte, err error) {
	var compressed []byte
	var compression uint64
	err = eachField(chunk, func(num protowire.Number, v uint64, b []byte) error {
		switch num {
		case fieldChunkCompressed:
			compressed = b
		case fieldChunkCompression:
			compression = v
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, buf, err
	case feedv1.Compression(compression) == feedv1.Compression_COMPRESSION_UNSPECIFIED && len(compressed) == 0:
		return chunk, buf, nil
	case feedv1.Compression(compression) == feedv1.Compression_COMPRESSION_ZSTD:
		plain, err = unzstd(compressed, buf)
	case feedv1.Compression(compression) != feedv1.Compression_COMPRESSION_S2:
		return nil, buf, fmt.Errorf("compression %d is not known", compression)
	default:
		plain, err = decompress(compressed, buf)
	}
	if plain != nil {
		buf = plain
	}
	return plain, buf, err
}

// decompress uses buf where it is large enough.
func decompress(compressed, buf []byte) ([]byte, error) {
	n, err := s2.DecodedLen(compressed)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if n > maxDecompressed {
		return nil, fmt.Errorf("decompress: %d bytes are more than %d", n, maxDecompressed)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	plain, err := s2.Decode(buf[:n], compressed)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return plain, nil
}

// unzstd is decompress for Zstandard, which no control plane of this release
// sends.
func unzstd(compressed, buf []byte) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDecompressed))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(compressed, buf[:0])
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return plain, nil
}

// delta is what a Delta says beside its entries.
type delta struct {
	from, to table.Version
	hash     link.SetHash
	entries  int64
	released bool
}

// decodeDelta reads all but the entries. On error it holds what came before.
func decodeDelta(b []byte) (d delta, err error) {
	err = eachField(b, func(num protowire.Number, v uint64, b []byte) error {
		var err error
		switch num {
		case fieldDeltaFrom:
			d.from, err = decodeVersion(b)
		case fieldDeltaTo:
			d.to, err = decodeVersion(b)
		case fieldDeltaHash:
			var h feedv1.SetHash
			err = proto.Unmarshal(b, &h)
			d.hash = hashOf(&h)
		case fieldDeltaEntries:
			d.entries = int64(v)
		case fieldDeltaReleased:
			d.released = v != 0
		}
		return err
	})
	return d, err
}

func decodeVersion(b []byte) (table.Version, error) {
	var v linkv1.Version
	if err := proto.Unmarshal(b, &v); err != nil {
		return table.Version{}, err
	}
	return versionOf(&v), nil
}

func versionOf(v *linkv1.Version) table.Version {
	return table.Version{Epoch: v.GetEpoch(), Revision: v.GetRevision()}
}

func hashOf(h *feedv1.SetHash) link.SetHash { return link.SetHash{Hi: h.GetHi(), Lo: h.GetLo()} }

func hashProto(h link.SetHash) *feedv1.SetHash { return &feedv1.SetHash{Hi: h.Hi, Lo: h.Lo} }
