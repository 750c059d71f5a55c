package click

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A segment begins with 64 bytes, native byte order where atomics are used
// and little-endian elsewhere:
//
//	 0  8 bytes  magic and version of the format
//	 8  u64  boot
//	16  u64  number in its boot, from 1, in the order of use; 0 while the segment is spare
//	24  u32  salt of the checksums
//	28  u32  CRC-32C of the bytes before
//	32  u64  sequence of the record with index 0; 0 while the segment is spare
//	40  u64  places of segments before it that were never filled, as recovery found
//	         them; 0 when there were none, and until then
//	48  u32  checksum of these 8 bytes, salted as those of the records
//	52       zeros
const (
	segmentMagic   = "AFFSEG\x00\x01"
	segmentPattern = "*.seg"
	segmentHead    = 64
	pageSize       = 4096

	// Segments are made, and their memory is given back, in steps of some 10 to
	// 150 µs each, so that on a busy core no redirect waits for the 5 ms that a whole
	// one takes.
	stepBytes = 16 << 10
	giveBytes = 512 << 10

	// The state of a segment is one word: how many records were begun
	// (above) and the offset behind the last of them (below).
	offsetBits = 40
	offsetMask = 1<<offsetBits - 1
)

// segment is a piece of a spool. While it is current, any goroutine may take
// a place in it; once it is sealed, its count of records is final.
type segment struct {
	number   uint64
	salt     uint32
	size     int64
	path     string                 // empty: plain memory
	mem      atomic.Pointer[[]byte] // nil while it is not mapped; set under the log's mutex
	pins     int                    // cursors in it, under the log's mutex
	released bool                   // its pages were given back, under the log's mutex

	// Set when the segment becomes current or is recovered, and zero again when
	// it becomes spare, under the log's mutex.
	first  atomic.Uint64 // sequence of index 0 as it was recorded
	sealed atomic.Int64  // count of records plus one; 0 until it is known

	orphaned atomic.Bool            // its file was removed by someone else
	damage   atomic.Pointer[damage] // not nil: a page of it is not to be had; see fault.go

	durable atomic.Int64 // offset up to which readers may read; see sync.go

	// What recovery found; see recover.go.
	shift uint64   // holes in earlier segments, also in those that are gone by now
	holes []uint32 // indexes that were never answered

	recovered bool // of an earlier boot: damage is possible
	leaving   bool // it is being removed, under the log's mutex

	_     [64]byte // state has a cache line of its own
	state atomic.Uint64
	_     [56]byte
}

// newSegment makes a spare segment: a file in dir with a number in its name, whose
// every page is there and writable, or plain memory when dir is empty. It calls pause
// after each step.
func newSegment(dir string, boot, number uint64, size int64, pause func()) (*segment, error) {
	s := &segment{salt: rand.Uint32(), size: size}
	var mem []byte
	var err error
	if dir == "" {
		// Not of the heap: while clicks wait there, it would grow, and garbage be
		// collected again and again, which takes the core from redirects.
		mem, err = unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	} else {
		s.path = filepath.Join(dir, fmt.Sprintf("%012d.seg", number))
		mem, err = createMapped(s.path, size, pause)
	}
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	err = guarded(mem, func() {
		for part := range slices.Chunk(mem, pageSize) {
			populate(part) // so that no writer meets a page for the first time
			pause()
		}
		s.writeHead(mem, boot)
	})
	if err != nil {
		s.mem.Store(&mem)
		return nil, errors.Join(fmt.Errorf("create segment: %w", err), s.remove(pause))
	}
	stepped("create: done")
	s.durable.Store(allDurable)
	s.state.Store(uint64(size) + 1) // as if it were over, until it is used
	s.mem.Store(&mem)
	return s, nil
}

func (s *segment) writeHead(mem []byte, boot uint64) {
	copy(mem, segmentMagic)
	binary.LittleEndian.PutUint64(mem[8:], boot)
	binary.LittleEndian.PutUint64(mem[16:], s.number)
	binary.LittleEndian.PutUint32(mem[24:], s.salt)
	binary.LittleEndian.PutUint32(mem[28:], crc32.Checksum(mem[:28], castagnoli))
}

// recycle makes a spare segment of one that was taken out of use: no file is
// made or removed, and no page is new. The first store makes the file a spare
// one, so that a process that dies on the way leaves nothing to be recovered;
// the new salt makes sure that nothing old is ever taken for a click.
//
// A goroutine that was held up for long may still take this segment for the
// current one. It finds it over, as it was, until it is current again.
func (s *segment) recycle(boot uint64, yield func()) error {
	mem := s.bytes()
	return guarded(mem, func() {
		s.markSpare(mem)
		stepped("reuse: marked")
		for part := range slices.Chunk(mem[segmentHead:], pageSize) {
			clear(part) // a page that was written back meanwhile is a fault, of up to 50 µs
			stepped("reuse: wiping")
			yield()
		}
		s.number, s.salt, s.released = 0, rand.Uint32(), false
		s.writeHead(mem, boot)
		stepped("reuse: done")
	})
}

// markSpare says in the segment's own head that it holds no click.
func (s *segment) markSpare(mem []byte) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&mem[32:40][0])), 0)
}

// bytes is the whole segment, or nil while it is not mapped.
func (s *segment) bytes() []byte {
	if mem := s.mem.Load(); mem != nil {
		return *mem
	}
	return nil
}

// use makes a spare segment ready to be current. It is over until it is opened.
func (s *segment) use(boot, number, first uint64) error {
	mem := s.bytes()
	s.number = number
	if err := guarded(mem, func() {
		s.writeHead(mem, boot)
		stepped("use: head")
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&mem[32])), first) // spare until then
		stepped("use: done")
	}); err != nil {
		return err
	}
	s.first.Store(first)
	return nil
}

// open lets a segment take clicks, once it is the current one: nobody who took it for that
// before, and was held up since, can seal it sooner.
func (s *segment) open() { s.state.Store(segmentHead) }

// put fills a place.
func (s *segment) put(pos int, index uint32, l *layout, e *Event, p *policy) error {
	mem := s.bytes()
	return guarded(mem, func() {
		record := mem[pos : pos+l.length : pos+l.length]
		l.write(record, index, e, p)
		storeHead(record, 0, uint64(l.length)|uint64(checksum(s.salt, record[8:]))<<32)
	})
}

// placing is what came of an attempt to take a place.
type placing uint8

const (
	placed placing = iota // the place is the caller's, who must fill it
	last                  // did not fit; index is the final count, and the caller must rotate
	closed                // did not fit, and someone else rotates
)

// place takes size bytes.
func (s *segment) place(size int) (pos int, index uint32, p placing) {
	if int64(s.state.Load()&offsetMask) > s.size {
		return 0, 0, closed // keeps the count of begun records small while waiting
	}
	state := s.state.Add(1<<offsetBits | uint64(size))
	end := int64(state & offsetMask)
	pos, index = int(end)-size, uint32(state>>offsetBits)-1
	switch {
	case end <= s.size:
		return pos, index, placed
	case int64(pos) <= s.size:
		return pos, index, last // only one addition crosses the end
	}
	return pos, index, closed
}

// begun says how many records were begun; false when the segment is over and
// its count is to be had from sealed.
func (s *segment) begun() (count uint64, offset int64, ok bool) {
	state := s.state.Load()
	offset = int64(state & offsetMask)
	return state >> offsetBits, offset, offset <= s.size
}

// openSegment reads the head of a segment of an earlier boot. It gives nil
// when the segment was never used.
func openSegment(path string, boot uint64) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var head [segmentHead]byte
	_, err = f.ReadAt(head[:], 0)
	le := binary.LittleEndian
	if err == nil && string(head[:8]) == segmentMagic && le.Uint64(head[32:]) == 0 {
		return nil, nil // spare, or was being made so
	}
	if err != nil || string(head[:8]) != segmentMagic || le.Uint32(head[28:]) != crc32.Checksum(head[:28], castagnoli) {
		// The process may have died while it made the segment.
		if b, err := os.ReadFile(path); err == nil && len(bytes.Trim(b[min(32, len(b)):], "\x00")) == 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("%s: no segment of this format", path)
	}
	if le.Uint64(head[8:]) != boot {
		return nil, fmt.Errorf("%s: belongs to another boot", path)
	}
	s := &segment{
		number:    le.Uint64(head[16:]),
		salt:      le.Uint32(head[24:]),
		size:      info.Size(),
		path:      path,
		recovered: true,
	}
	s.first.Store(binary.NativeEndian.Uint64(head[32:]))
	if le.Uint32(head[48:]) == checksum(s.salt, head[40:48]) {
		s.shift = le.Uint64(head[40:])
	}
	return s, nil
}

// keepShift writes the shift into the file of a recovered segment, for starts that do not
// find the segments before it any more.
func (s *segment) keepShift(durable bool) error {
	f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint64(nil, s.shift)
	_, err = f.WriteAt(binary.LittleEndian.AppendUint32(b, checksum(s.salt, b)), 40)
	if err == nil && durable {
		err = syncFile(f)
	}
	return errors.Join(err, f.Close())
}

// mapIn maps a recovered segment, for reading.
func (s *segment) mapIn() error {
	if s.mem.Load() != nil {
		return nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(s.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map segment: %w", err)
	}
	s.mem.Store(&mem)
	return nil
}

// mapOut gives back the memory of a segment whose bytes stay in its file.
func (s *segment) mapOut(pause func()) {
	if s.path != "" {
		s.unmap(pause)
	}
}

func (s *segment) unmap(pause func()) {
	if mem := s.bytes(); mem != nil {
		giveBack(mem, pause)
		s.mem.Store(nil)
		_ = unix.Munmap(mem) // fails only for what was never mapped
	}
}

// release gives the pages of a file's segment back to the kernel, which has
// their bytes, while it waits to be read. It stays mapped: a writer may still
// be filling its place.
func (s *segment) release(pause func()) {
	if mem := s.bytes(); mem != nil && s.path != "" && !s.released {
		s.released = true
		giveBack(mem, pause)
	}
}

// giveBack gives pages back to the kernel: of a file, which has their bytes, or of
// plain memory that nobody needs any more. Each call lets all cores forget them,
// which takes longer than the pages themselves: in steps of 16 KiB it was 30% of
// what publishing a backlog takes.
func giveBack(mem []byte, pause func()) {
	for part := range slices.Chunk(mem, giveBytes) {
		_ = unix.Madvise(part, unix.MADV_DONTNEED) // advice
		pause()
	}
}

// remove deletes the segment for good.
func (s *segment) remove(pause func()) error {
	s.unmap(pause)
	if s.path == "" {
		return nil
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove segment: %w", err)
	}
	return nil
}

// createMapped creates a file whose blocks are all there, so that no store can
// fail for want of space, and maps it.
func createMapped(path string, size int64, pause func()) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem, err := func() ([]byte, error) {
		if err := allocate(f, size); err != nil {
			return nil, err
		}
		// Pages that were written are mapped at half the cost of those that a
		// page fault has to make.
		if err := writeZeros(f, size, pause); err != nil {
			return nil, err
		}
		return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}()
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return mem, nil
}

var zeros [stepBytes]byte

func writeZeros(f *os.File, size int64, pause func()) error {
	for size > 0 {
		n, err := f.Write(zeros[:min(size, stepBytes)])
		if err != nil {
			return err
		}
		size -= int64(n)
		stepped("create: on the way")
		pause()
	}
	return nil
}

// touch writes to every page.
func touch(mem []byte) {
	for i := 0; i < len(mem); i += pageSize {
		mem[i] = 0
	}
}
