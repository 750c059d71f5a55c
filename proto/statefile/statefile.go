// Package statefile is the file that holds a whole state of the fleet: what a node
// keeps as its last known good, gives to others at /state, and what affctl
// explains with when neither answers.
//
// All numbers are little endian:
//
//	header   magic (8 bytes), format (4), time (4), epoch (8), revision (8),
//	         entries (8), set hash (8 upper, 8 lower), XXH3-64 of all that (8)
//	block    length (4), compressed length (4), XXH3-64 of these and the
//	         compressed bytes (8), compressed bytes (S2); any number
//	end      a block of length 0
//
// A block is a serialized aff.feed.v1.SnapshotChunk of entries that are not
// compressed by themselves.
//
// The time is in seconds since 1970, without sign. Files of older programs have 0
// there, which is none, and older programs do not look at it.
//
// A Writer or Reader belongs to one goroutine.
package statefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/affleet/affleet/proto/link"
)

const (
	// Magic is what a file begins with.
	Magic = "AFFSTATE"

	format = 1

	headerSize    = 64
	blockHeadSize = 16
	blockSize     = 64 << 10 // about: it is compressed in one go
	maxBlock      = 4 << 20

	// Numbers of fields in feed.proto.
	fieldChunkEntries = 1
	fieldEntryKey     = 1
	fieldEntryValue   = 2
)

// ErrNewer says that a file is of a later release.
var ErrNewer = errors.New("its format is newer than this program knows")

// Header says which state a file holds.
type Header struct {
	Epoch    uint64
	Revision int64
	Entries  int64
	Hash     link.SetHash
	// When the state was last known to be the newest, as of when the file was
	// written; in whole seconds, zero if that is not known. A file's own time says
	// it later, as long as nobody copies the file.
	Confirmed time.Time
}

// seconds are a time as the header has it.
func seconds(t time.Time) uint32 {
	if s := t.Unix(); !t.IsZero() && s > 0 && s <= math.MaxUint32 {
		return uint32(s)
	}
	return 0
}

func (h *Header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, Magic...)
	b = binary.LittleEndian.AppendUint32(b, format)
	b = binary.LittleEndian.AppendUint32(b, seconds(h.Confirmed))
	b = binary.LittleEndian.AppendUint64(b, h.Epoch)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Entries))
	b = binary.LittleEndian.AppendUint64(b, h.Hash.Hi)
	b = binary.LittleEndian.AppendUint64(b, h.Hash.Lo)
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b))
}

func decodeHeader(b []byte) (h Header, err error) {
	if string(b[:len(Magic)]) != Magic {
		return h, errors.New("it is not a state file")
	}
	if f := binary.LittleEndian.Uint32(b[8:]); f > format {
		return h, fmt.Errorf("%w: %d, not %d", ErrNewer, f, format)
	}
	if xxh3.Hash(b[:headerSize-8]) != binary.LittleEndian.Uint64(b[headerSize-8:]) {
		return h, errors.New("its header is damaged")
	}
	if s := binary.LittleEndian.Uint32(b[12:]); s != 0 {
		h.Confirmed = time.Unix(int64(s), 0)
	}
	h.Epoch = binary.LittleEndian.Uint64(b[16:])
	h.Revision = int64(binary.LittleEndian.Uint64(b[24:]))
	h.Entries = int64(binary.LittleEndian.Uint64(b[32:]))
	h.Hash.Hi = binary.LittleEndian.Uint64(b[40:])
	h.Hash.Lo = binary.LittleEndian.Uint64(b[48:])
	if h.Epoch == 0 || h.Revision <= 0 || h.Entries < 0 {
		return h, errors.New("its header makes no sense")
	}
	return h, nil
}

// Writer writes a file.
type Writer struct {
	// Between is called before and behind each block that is compressed and
	// written, for other work of the process. Default: nothing.
	Between func()

	w          io.Writer
	raw, block []byte
}

// NewWriter begins a file.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	if _, err := w.Write(h.encode()); err != nil {
		return nil, err
	}
	return &Writer{w: w, raw: make([]byte, 0, blockSize+16<<10)}, nil
}

// Add adds an entry. The bytes are copied.
func (w *Writer) Add(key, value []byte) error {
	size := 1 + protowire.SizeBytes(len(key)) + 1 + protowire.SizeBytes(len(value))
	w.raw = protowire.AppendTag(w.raw, fieldChunkEntries, protowire.BytesType)
	w.raw = protowire.AppendVarint(w.raw, uint64(size))
	w.raw = protowire.AppendTag(w.raw, fieldEntryKey, protowire.BytesType)
	w.raw = protowire.AppendBytes(w.raw, key)
	w.raw = protowire.AppendTag(w.raw, fieldEntryValue, protowire.BytesType)
	w.raw = protowire.AppendBytes(w.raw, value)
	if len(w.raw) >= blockSize {
		return w.flush()
	}
	return nil
}

// Close writes what is left, and the end. It does not close what is below.
func (w *Writer) Close() error {
	if len(w.raw) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	return w.flush()
}

func (w *Writer) flush() error {
	if w.Between != nil {
		w.Between()
		defer w.Between()
	}
	if n := blockHeadSize + s2.MaxEncodedLen(len(w.raw)); cap(w.block) < n {
		w.block = make([]byte, n)
	}
	block := w.block[:cap(w.block)]
	var compressed []byte
	if len(w.raw) > 0 {
		compressed = s2.Encode(block[blockHeadSize:], w.raw)
	}
	binary.LittleEndian.PutUint32(block, uint32(len(w.raw)))
	binary.LittleEndian.PutUint32(block[4:], uint32(len(compressed)))
	binary.LittleEndian.PutUint64(block[8:], xxh3.HashSeed(compressed, binary.LittleEndian.Uint64(block)))
	w.raw = w.raw[:0]
	_, err := w.w.Write(block[:blockHeadSize+len(compressed)])
	return err
}

// Reader reads a file. It verifies each block; whether the entries are those of
// the header, only who puts them together can say: see All.
type Reader struct {
	r               io.Reader
	header          Header
	compressed, raw []byte
}

// NewReader reads the header of a file.
func NewReader(r io.Reader) (*Reader, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, Torn("header", err)
	}
	h, err := decodeHeader(head)
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, header: h}, nil
}

// Header gives what the header says.
func (r *Reader) Header() Header { return r.header }

// Block gives the next block, a serialized SnapshotChunk, valid until the next
// call; nil at the end of the file.
func (r *Reader) Block() ([]byte, error) {
	block, err := r.AppendBlock(r.raw[:0])
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r.raw = block
	return block, nil
}

// AppendBlock appends the next block to dst, which the caller keeps; io.EOF, and
// dst as it was, at the end of the file. Blocks behind each other are one
// serialized SnapshotChunk.
func (r *Reader) AppendBlock(dst []byte) ([]byte, error) {
	var head [blockHeadSize]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return dst, Torn("block", err)
	}
	n, size := int(binary.LittleEndian.Uint32(head[:])), int(binary.LittleEndian.Uint32(head[4:]))
	if n > maxBlock || size > s2.MaxEncodedLen(maxBlock) || (n == 0) != (size == 0) {
		return dst, errDamaged
	}
	if cap(r.compressed) < size {
		r.compressed = make([]byte, size)
	}
	r.compressed = r.compressed[:size]
	if _, err := io.ReadFull(r.r, r.compressed); err != nil {
		return dst, Torn("block", err)
	}
	if xxh3.HashSeed(r.compressed, binary.LittleEndian.Uint64(head[:])) != binary.LittleEndian.Uint64(head[8:]) {
		return dst, errDamaged
	}
	if n == 0 {
		return dst, r.end()
	}
	if length, err := s2.DecodedLen(r.compressed); err != nil || length != n {
		return dst, errDamaged
	}
	grown := slices.Grow(dst, n)[:len(dst)+n]
	if _, err := s2.Decode(grown[len(dst):], r.compressed); err != nil {
		return dst, errDamaged
	}
	return grown, nil
}

// end gives io.EOF, unless something follows.
func (r *Reader) end() error {
	var more [1]byte
	if n, _ := io.ReadFull(r.r, more[:]); n > 0 {
		return errors.New("something follows its end")
	}
	return io.EOF
}

var errDamaged = errors.New("a block is damaged")

// Torn makes the error for a file that ends too early, inside a part of it.
func Torn(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ends inside a %s", what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// Check says whether the entries that were read are those of the header.
func (h *Header) Check(entries int64, hash link.SetHash) error {
	if entries == h.Entries && hash == h.Hash {
		return nil
	}
	return fmt.Errorf("its %d entries with set hash %016x%016x are not the %d with %016x%016x of its header",
		entries, hash.Hi, hash.Lo, h.Entries, h.Hash.Hi, h.Hash.Lo)
}
