package feed

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/affleet/affleet/dataplane/internal/aside"
	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/link"
)

// The last-known-good file, all numbers little endian:
//
//	header   magic (8 bytes), format (4), 0 (4), epoch (8), revision (8),
//	         entries (8), set hash (8 upper, 8 lower), XXH3-64 of all that (8)
//	block    length (4), compressed length (4), XXH3-64 of these and the
//	         compressed bytes (8), compressed bytes (S2); any number
//	end      a block of length 0
//
// A block holds entries as an uncompressed SnapshotChunk does.
const (
	fileMagic  = "AFFSTATE"
	fileFormat = 1

	headerSize    = 64
	blockHeadSize = 16
	blockSize     = 64 << 10 // about: it is compressed without a yield in between
	yieldEvery    = 32       // entries that are copied between two yields
	maxBlock      = 4 << 20
)

// errNewer says that a file is of a later release.
var errNewer = errors.New("its format is newer than this program knows")

// fileHeader is what the header says.
type fileHeader struct {
	version table.Version
	entries int64
	hash    link.SetHash
}

func (h *fileHeader) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, fileMagic...)
	b = binary.LittleEndian.AppendUint32(b, fileFormat)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.version.Epoch)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.version.Revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.entries))
	b = binary.LittleEndian.AppendUint64(b, h.hash.Hi)
	b = binary.LittleEndian.AppendUint64(b, h.hash.Lo)
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b))
}

func decodeHeader(b []byte) (h fileHeader, err error) {
	if string(b[:8]) != fileMagic {
		return h, errors.New("it is not a state file")
	}
	if format := binary.LittleEndian.Uint32(b[8:]); format > fileFormat {
		return h, fmt.Errorf("%w: %d, not %d", errNewer, format, fileFormat)
	}
	if xxh3.Hash(b[:headerSize-8]) != binary.LittleEndian.Uint64(b[headerSize-8:]) {
		return h, errors.New("its header is damaged")
	}
	h.version.Epoch = binary.LittleEndian.Uint64(b[16:])
	h.version.Revision = int64(binary.LittleEndian.Uint64(b[24:]))
	h.entries = int64(binary.LittleEndian.Uint64(b[32:]))
	h.hash.Hi = binary.LittleEndian.Uint64(b[40:])
	h.hash.Lo = binary.LittleEndian.Uint64(b[48:])
	if h.version.Epoch == 0 || h.version.Revision <= 0 || h.entries < 0 {
		return h, errors.New("its header makes no sense")
	}
	return h, nil
}

// writeState writes a table, in pieces between which it yields.
func writeState(w io.Writer, t *table.Table, yield func()) error {
	h := fileHeader{version: t.Version(), entries: int64(t.Len()), hash: t.Hash()}
	if _, err := w.Write(h.encode()); err != nil {
		return err
	}
	raw := make([]byte, 0, blockSize+16<<10)
	var block []byte
	flush := func() error {
		if n := blockHeadSize + s2.MaxEncodedLen(len(raw)); cap(block) < n {
			block = make([]byte, n)
		}
		block = block[:cap(block)]
		var compressed []byte
		if len(raw) > 0 {
			compressed = s2.Encode(block[blockHeadSize:], raw)
		}
		binary.LittleEndian.PutUint32(block, uint32(len(raw)))
		binary.LittleEndian.PutUint32(block[4:], uint32(len(compressed)))
		binary.LittleEndian.PutUint64(block[8:], xxh3.HashSeed(compressed, binary.LittleEndian.Uint64(block)))
		raw = raw[:0]
		_, err := w.Write(block[:blockHeadSize+len(compressed)])
		return err
	}
	n := 0
	for key, value := range t.All() {
		if n++; n%yieldEvery == 0 {
			yield()
		}
		size := 1 + protowire.SizeBytes(len(key)) + 1 + protowire.SizeBytes(len(value))
		raw = protowire.AppendTag(raw, fieldChunkEntries, protowire.BytesType)
		raw = protowire.AppendVarint(raw, uint64(size))
		raw = protowire.AppendTag(raw, fieldEntryKey, protowire.BytesType)
		raw = protowire.AppendBytes(raw, key)
		raw = protowire.AppendTag(raw, fieldEntryValue, protowire.BytesType)
		raw = protowire.AppendBytes(raw, value)
		if len(raw) >= blockSize {
			yield()
			if err := flush(); err != nil {
				return err
			}
			yield()
		}
	}
	if len(raw) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	return flush() // the end
}

// readState reads a table and verifies it whole. What cannot be served is held,
// as it is when it comes in a frame. Admit may refuse it, when the header is
// read.
func readState(r io.Reader, guard *Guard, admit func(fileHeader) error) (*table.Table, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, torn("header", err)
	}
	h, err := decodeHeader(head)
	if err != nil {
		return nil, err
	}
	if err = guard.size(h.entries, 0); err == nil {
		err = admit(h)
	}
	if err != nil {
		return nil, err
	}
	builder := table.NewBuilder(int(min(h.entries, maxHint)))
	var left unserved
	var list []pair
	var compressed, buf []byte
	for {
		plain, err := readBlock(r, &compressed, &buf)
		if err != nil {
			return nil, err
		}
		if len(plain) == 0 {
			break
		}
		if list, err = appendEntries(list[:0], plain); err != nil {
			return nil, err
		}
		if err := putAll(builder, list, &left); err != nil {
			return nil, err
		}
		if int64(builder.Len()) > h.entries {
			return nil, errors.New("it has more entries than its header says")
		}
		if err := guard.size(0, int64(builder.Size())); err != nil {
			return nil, err
		}
	}
	if n, _ := io.ReadFull(r, head[:1]); n > 0 {
		return nil, errors.New("something follows its end")
	}
	if int64(builder.Len()) != h.entries || builder.Hash() != h.hash {
		return nil, fmt.Errorf("its %d entries with set hash %016x%016x are not the %d with %016x%016x of its header",
			builder.Len(), builder.Hash().Hi, builder.Hash().Lo, h.entries, h.hash.Hi, h.hash.Lo)
	}
	return builder.Build(h.version), nil
}

// readBlock gives the entries of the next block, which are valid until the next
// call; none at the end.
func readBlock(r io.Reader, compressed, buf *[]byte) ([]byte, error) {
	var head [blockHeadSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, torn("block", err)
	}
	n, size := int(binary.LittleEndian.Uint32(head[:])), int(binary.LittleEndian.Uint32(head[4:]))
	if n > maxBlock || size > s2.MaxEncodedLen(maxBlock) || (n == 0) != (size == 0) {
		return nil, errors.New("a block is damaged")
	}
	if cap(*compressed) < size {
		*compressed = make([]byte, size)
	}
	*compressed = (*compressed)[:size]
	if _, err := io.ReadFull(r, *compressed); err != nil {
		return nil, torn("block", err)
	}
	if xxh3.HashSeed(*compressed, binary.LittleEndian.Uint64(head[:])) != binary.LittleEndian.Uint64(head[8:]) {
		return nil, errors.New("a block is damaged")
	}
	if n == 0 {
		return nil, nil
	}
	plain, err := decompress(*compressed, *buf)
	if err != nil {
		return nil, err
	}
	if len(plain) != n {
		return nil, errors.New("a block is damaged")
	}
	*buf = plain
	return plain, nil
}

// torn makes the error for a file that ends too early.
func torn(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ends inside a %s", what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// readStateFile reads the table of a file.
func readStateFile(path string, guard *Guard, admit func(fileHeader) error) (*table.Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readState(bufio.NewReaderSize(f, 1<<20), guard, admit)
}

// writeStateFile writes a table to path. What path was becomes previous, if that
// is not empty. At every moment, also of a power loss, one of the two is whole.
func writeStateFile(path, previous string, t *table.Table) error {
	return writeFile(path, previous, func(f *os.File) error {
		yield, end := aside.NewYield()
		defer end()
		w := bufio.NewWriterSize(f, aside.Piece)
		if err := writeState(w, t, yield); err != nil {
			return err
		}
		return w.Flush()
	})
}

// writeFile is writeStateFile for any content.
func writeFile(path, previous string, write func(*os.File) error) (err error) {
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temporary)
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := aside.Sync(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if previous != "" {
		if err := os.Rename(path, previous); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes renames in a folder last.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return aside.Sync(d)
}
