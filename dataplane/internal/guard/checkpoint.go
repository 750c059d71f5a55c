package guard

import (
	"bufio"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"runtime"
	"unsafe"

	"github.com/klauspost/compress/s2"
)

// A checkpoint is everything that an engine knows: what it finds after Load is
// what it would have found had it gone on. It is for the same program on the same
// kind of machine: another one says ErrOtherCheckpoint, and begins anew from the
// stream. The tables are written as they are in memory, compressed with S2, with a
// checksum at the end.

// checkpointMagic changes with what a checkpoint means.
const checkpointMagic = "affguard checkpoint 1"

var (
	// ErrOtherCheckpoint is said of one by another program or settings.
	ErrOtherCheckpoint = errors.New("the checkpoint is by another version of the detector, or other settings")
	// ErrDamagedCheckpoint is said of one that is not whole.
	ErrDamagedCheckpoint = errors.New("the checkpoint is damaged")
)

// header says what a checkpoint is of.
type header struct {
	Magic, Arch string
	Version     int
	Layout      uint64
	Settings    string
}

// counters are the engine's own numbers.
type counters struct {
	Clicks, Robots uint64
	Watermark      int64
	Findings       [numDetectors]uint64
	Boots          boots
	HalveAt        int64
	Bits           float64
	Totals         [4]uint64
	Evicted        [kinds + 1]uint64
	Agents         []string
	Affiliates     []string
}

func (e *Engine) header() header {
	sizes := []uint64{uint64(unsafe.Sizeof(source{})), uint64(unsafe.Sizeof(affiliate{})), uint64(unsafe.Sizeof(features{})), uint64(unsafe.Sizeof(meta{})), sketchWidth}
	h := uint64(0)
	for _, s := range sizes {
		h = mix(h ^ s)
	}
	return header{checkpointMagic, runtime.GOARCH, detectorVersion, h, fmt.Sprintf("%+v", e.settings)}
}

// blocks are the engine's tables as bytes.
func (e *Engine) blocks() (all [][]byte) {
	for k := range e.sources {
		t := &e.sources[k]
		all = append(all, raw(t.keys), raw(t.meta), raw(t.slots))
	}
	all = append(all, raw(e.affiliates.table.keys), raw(e.affiliates.table.meta), raw(e.affiliates.all))
	for i := range e.fleet.words {
		for _, row := range e.fleet.words[i].rows {
			all = append(all, raw(row))
		}
	}
	return all
}

// raw is the memory of a slice whose elements have no pointers.
func raw[T any](s []T) []byte {
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(zero)))
}

// Save writes a checkpoint.
func (e *Engine) Save(w io.Writer) error {
	z := s2.NewWriter(w, s2.WriterConcurrency(1), s2.WriterBlockSize(1<<18))
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(io.MultiWriter(z, sum), 1<<18)
	c := counters{
		Clicks: e.clicks, Robots: e.robots, Watermark: e.watermark, Findings: e.findings, Boots: e.boots,
		HalveAt: e.fleet.halveAt, Bits: e.fleet.bits, Agents: e.sources[kindAgent].names, Affiliates: e.affiliates.table.names,
	}
	for i := range e.fleet.words {
		c.Totals[i] = e.fleet.words[i].total
	}
	for k := range e.sources {
		c.Evicted[k] = e.sources[k].evicted
	}
	c.Evicted[kinds] = e.affiliates.table.evicted
	encoder := gob.NewEncoder(out)
	if err := errors.Join(encoder.Encode(e.header()), encoder.Encode(c)); err != nil {
		return err
	}
	for _, block := range e.blocks() {
		if _, err := out.Write(block); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := binary.Write(z, binary.LittleEndian, sum.Sum32()); err != nil {
		return err
	}
	return z.Close()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Load reads a checkpoint into a new engine. After an error the engine is of no
// use.
func (e *Engine) Load(r io.Reader) error {
	z := s2.NewReader(r)
	sum := crc32.New(castagnoli)
	// gob reads no further than its message from what can be read byte by byte.
	in := &summed{bufio.NewReaderSize(z, 1<<18), sum}
	decoder := gob.NewDecoder(in)
	var h header
	if err := decoder.Decode(&h); err != nil {
		return fmt.Errorf("%w: %w", ErrDamagedCheckpoint, err)
	}
	if h != e.header() {
		return ErrOtherCheckpoint
	}
	var c counters
	if err := decoder.Decode(&c); err != nil {
		return fmt.Errorf("%w: %w", ErrDamagedCheckpoint, err)
	}
	if len(c.Agents) != len(e.sources[kindAgent].keys) || len(c.Affiliates) != len(e.affiliates.table.keys) || len(c.Boots.Names) > maxBoots || math.IsNaN(c.Bits) {
		return fmt.Errorf("%w: its numbers do not fit", ErrDamagedCheckpoint)
	}
	for _, block := range e.blocks() {
		if _, err := io.ReadFull(in, block); err != nil {
			return fmt.Errorf("%w: %w", ErrDamagedCheckpoint, err)
		}
	}
	want := sum.Sum32()
	var got uint32
	if err := binary.Read(in.Reader, binary.LittleEndian, &got); err != nil || got != want {
		return fmt.Errorf("%w: its checksum is wrong", ErrDamagedCheckpoint)
	}
	e.restore(&c)
	return nil
}

func (e *Engine) restore(c *counters) {
	e.clicks, e.robots, e.watermark, e.findings = c.Clicks, c.Robots, c.Watermark, c.Findings
	e.boots = boots{Names: c.Boots.Names, Next: c.Boots.Next, numbers: make(map[bootName]uint32)}
	for i, name := range e.boots.Names {
		e.boots.numbers[name] = uint32(i)
	}
	e.fleet.halveAt, e.fleet.bits = c.HalveAt, c.Bits
	for i := range e.fleet.words {
		e.fleet.words[i].total = c.Totals[i]
	}
	for k := range e.sources {
		e.sources[k].evicted = c.Evicted[k]
	}
	e.affiliates.table.evicted = c.Evicted[kinds]
	e.sources[kindAgent].names, e.affiliates.table.names = c.Agents, c.Affiliates
	for i, key := range e.affiliates.table.keys {
		if key != 0 {
			w := word{key: key}
			e.affiliates.byHash[w.small()] = int32(i)
		}
	}
}

// summed adds what is read to a checksum.
type summed struct {
	*bufio.Reader
	sum io.Writer
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	_, _ = s.sum.Write(b[:n]) // a checksum takes all
	return n, err
}

func (s *summed) ReadByte() (byte, error) {
	b, err := s.Reader.ReadByte()
	if err == nil {
		_, _ = s.sum.Write([]byte{b})
	}
	return b, err
}
