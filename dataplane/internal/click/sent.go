package click

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The log of what was sent holds the batches that JetStream has acknowledged,
// byte for byte, for the retention: so that what a stream loses can be published
// again, by this boot or by the next. It lies in files beside the segments. It
// is a copy for bad days, and gives way to clicks that are not published yet.
//
// A file begins with 24 bytes, little-endian:
//
//	 0  8 bytes  magic and version of the format
//	 8  u64  number in its boot, a new one each time the file is used again
//	16  u32  salt of the checksums
//	20  u32  CRC-32C of the bytes before
//
// and records follow, and zeros up to the end of a page:
//
//	 0  u32  checksum of what follows up to the data
//	 4  u32  checksum of the data
//	 8  u64  first sequence
//	16  u64  last sequence
//	24  u64  sequence of the message in its stream
//	32  i64  time of the acknowledgement, µs since 1970
//	40  u16  bytes of the subject
//	42  u16  bytes of the message id
//	44  u32  bytes of the data
//	48       the subject, the message id, the data
const (
	sentMagic    = "AFFSNT\x00\x01"
	sentFileHead = 24
	sentHead     = 48
	sentPattern  = "*.sent"

	maxSentFile = 16 << 20
	maxSentData = 16 << 20 // more than NATS is ever set to take
)

// Sent is a batch that JetStream has acknowledged.
type Sent struct {
	Subject, ID string
	First, Last uint64 // of its clicks' sequences; First is above Last when it has none
	Position    uint64 // in the stream
	At          int64  // µs since 1970

	file         *sentFile
	number       uint64 // of the file when this was read
	salt, check  uint32
	offset, size int64 // of the data
}

// sentLog is the log of what was sent, of this boot and of earlier ones.
type sentLog struct {
	dir       string
	fileBytes int64
	retention time.Duration

	// Of the goroutine that appends.
	gone   atomic.Bool // the folder was removed: go on with a new file
	file   *os.File    // the newest in files; nil when there is none to append to
	number uint64
	tail   []byte // of the file, from the page on in which it ends

	mu    sync.Mutex
	files []*sentFile // oldest first; there may be thousands
	size  int64       // what all of them take
}

type sentFile struct {
	path     string
	capacity int64 // what it counts for in the spool

	// Under the log's mutex.
	number uint64
	salt   uint32
	used   int64
	newest time.Time // monotonic: no clock that is set keeps a file
	open   bool      // for appending
}

func newSentLog(dir string, maxBytes int64, retention time.Duration) *sentLog {
	return &sentLog{dir: dir, retention: retention, fileBytes: min(maxSentFile, max(minSegment, maxBytes/16&^(pageSize-1)))}
}

// sentStep is how much is written in one go: while the kernel copies it, for some 15 µs,
// a processor that redirects need may be held.
const sentStep = 32 << 10

// append keeps a batch. It writes whole pages, with zeros behind the last record, so
// that the kernel need not fill up any: for new ones that is a third of the time, and
// what is written next begins at a page of which there is a copy here.
func (s *sentLog) append(b *Sent, data []byte, yield func(), disk spoolRoom) error {
	size := int64(sentHead + len(b.Subject) + len(b.ID) + len(data))
	if size > s.fileBytes-sentFileHead {
		return nil // no message is so large, but in a spool of a few MiB
	}
	if s.gone.Swap(false) {
		s.close()
		s.forget()
	}
	current := s.current()
	if current == nil || current.used+size > current.capacity {
		if err := s.roll(size, disk); err != nil {
			return fmt.Errorf("keep what was sent: %w", err)
		}
		if current = s.current(); current == nil {
			return nil // no room
		}
	}
	offset := current.used - int64(len(s.tail))
	s.encode(b, data, current.salt)
	if err := s.write(offset, data, yield); err != nil {
		s.close()
		return fmt.Errorf("keep what was sent: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	current.used, current.newest = current.used+size, time.Now()
	return nil
}

// write writes the tail, at its offset, and data behind it, and keeps of that what lies in
// the page that the next record begins in. Of data it copies what shares pages with others.
func (s *sentLog) write(offset int64, data []byte, yield func()) error {
	shared := min(len(data), -len(s.tail)&(pageSize-1))
	s.tail, data = append(s.tail, data[:shared]...), data[shared:]
	if len(data) > 0 {
		own := data[:len(data)&^(pageSize-1)]
		if err := s.writePages(&offset, s.tail, yield); err != nil {
			return err
		}
		if err := s.writePages(&offset, own, yield); err != nil {
			return err
		}
		s.tail = append(s.tail[:0], data[len(own):]...)
	}
	end := len(s.tail)
	s.tail = append(s.tail, zeros[:-end&(pageSize-1)]...)
	if err := s.writePages(&offset, s.tail, yield); err != nil {
		return err
	}
	s.tail = append(s.tail[:0], s.tail[end&^(pageSize-1):end]...)
	return nil
}

// writePages writes whole pages at an offset, and moves that behind them.
func (s *sentLog) writePages(offset *int64, pages []byte, yield func()) error {
	for part := range slices.Chunk(pages, sentStep) {
		if _, err := s.file.WriteAt(part, *offset); err != nil {
			return err
		}
		*offset += int64(len(part))
		yield()
	}
	return nil
}

// encode appends a record but for its data to the tail.
func (s *sentLog) encode(b *Sent, data []byte, salt uint32) {
	var head [sentHead]byte
	le := binary.LittleEndian
	le.PutUint64(head[8:], b.First)
	le.PutUint64(head[16:], b.Last)
	le.PutUint64(head[24:], b.Position)
	le.PutUint64(head[32:], uint64(b.At))
	le.PutUint16(head[40:], uint16(len(b.Subject)))
	le.PutUint16(head[42:], uint16(len(b.ID)))
	le.PutUint32(head[44:], uint32(len(data)))
	le.PutUint32(head[4:], checksum(salt, data))
	at := len(s.tail)
	s.tail = append(append(append(s.tail, head[:]...), b.Subject...), b.ID...)
	le.PutUint32(s.tail[at:], checksum(salt, s.tail[at+4:]))
}

// current is the file that is open for appending.
func (s *sentLog) current() *sentFile {
	if s.file == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[len(s.files)-1]
}

// spoolRoom is where a new file gets its room from.
type spoolRoom interface {
	// hasRoom says whether the spool may take so many bytes more.
	hasRoom(bytes int64) bool
	// handOver moves the file of a segment that is of no more use, and has so many
	// bytes at least, to a path, and gives its size; 0 when there is none.
	handOver(path string, least int64) (bytes int64)
}

// roll goes on with a file that has room for size: the oldest one when its time has
// come or there is no room for another, else a new one. While a backlog drains, that
// is a segment's: to write over its pages takes half the time of new ones, and it
// need not be removed.
func (s *sentLog) roll(size int64, disk spoolRoom) error {
	s.close()
	next := s.again(size, false)
	for next == nil && !disk.hasRoom(s.fileBytes) {
		if next = s.again(size, true); next == nil && !s.trim(time.Now(), true) {
			return nil
		}
	}
	s.number++
	if next == nil {
		next = &sentFile{path: filepath.Join(s.dir, fmt.Sprintf("%012d.sent", s.number)), capacity: s.fileBytes}
		if taken := disk.handOver(next.path, handOverLeast*(sentFileHead+size)); taken > 0 {
			next.capacity = taken
		}
	}
	var head [sentFileHead]byte
	salt := rand.Uint32()
	copy(head[:], sentMagic)
	binary.LittleEndian.PutUint64(head[8:], s.number)
	binary.LittleEndian.PutUint32(head[16:], salt)
	binary.LittleEndian.PutUint32(head[20:], checksum(0, head[:20]))
	f, err := os.OpenFile(next.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.file, s.tail = f, append(s.tail[:0], head[:]...)
	if err := s.write(0, nil, func() {}); err != nil {
		s.file = nil
		return errors.Join(err, f.Close(), os.Remove(next.path))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next.number, next.salt, next.used, next.newest, next.open = s.number, salt, sentFileHead, time.Now(), true
	s.files = append(s.files, next)
	s.size += next.capacity
	return nil
}

// handOverLeast is how many batches like the one that is to be kept have to fit in a
// segment that becomes a file of the log.
const handOverLeast = 4

// again takes the oldest file off the list, if it can be written from its beginning
// again: when its time has come, or it has to go.
func (s *sentLog) again(size int64, now bool) *sentFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return nil
	}
	oldest := s.files[0]
	if filepath.Dir(oldest.path) != s.dir || oldest.capacity < sentFileHead+size || !now && time.Since(oldest.newest) <= s.retention {
		return nil
	}
	s.files = s.files[1:]
	s.size -= oldest.capacity
	return oldest
}

// close ends the file that is appended to, if there is one.
func (s *sentLog) close() {
	if s.file == nil {
		return
	}
	s.mu.Lock()
	s.files[len(s.files)-1].open = false
	s.mu.Unlock()
	_ = s.file.Close() // nothing was promised of it
	s.file = nil
}

// lose is called when the folder was removed.
func (s *sentLog) lose() { s.gone.Store(true) }

// forget drops the files of the folder from the list.
func (s *sentLog) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = slices.DeleteFunc(s.files, func(f *sentFile) bool {
		if filepath.Dir(f.path) != s.dir {
			return false
		}
		s.size -= f.capacity
		return true
	})
}

// bytes is what the log takes of the spool.
func (s *sentLog) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// trim removes the oldest file when its time is over, unless it is the only such one and
// to be used again, or when room is needed. It says whether it has removed one.
func (s *sentLog) trim(now time.Time, needRoom bool) bool {
	s.mu.Lock()
	if !s.oldestGoes(now, needRoom) {
		s.mu.Unlock()
		return false
	}
	oldest := s.files[0]
	s.files = s.files[1:]
	s.size -= oldest.capacity
	s.mu.Unlock()
	_ = os.Remove(oldest.path) // what stays goes with its folder
	return true
}

// oldestGoes says whether trim is to remove a file. The caller holds the mutex.
func (s *sentLog) oldestGoes(now time.Time, needRoom bool) bool {
	over := func(i int) bool {
		return i < len(s.files) && !s.files[i].open && now.Sub(s.files[i].newest) > s.retention
	}
	switch {
	case len(s.files) == 0 || s.files[0].open:
		return false
	case needRoom:
		return true
	}
	return over(0) && (over(1) || filepath.Dir(s.files[0].path) != s.dir)
}

// holds says whether a folder has files of the log.
func (s *sentLog) holds(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.files, func(f *sentFile) bool { return filepath.Dir(f.path) == dir })
}

// recover takes over what an earlier boot has left in its folder. Boots come in
// the order of their age.
func (s *sentLog) recover(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, sentPattern))
	if err != nil {
		return fmt.Errorf("list what was sent: %w", err)
	}
	var found []*sentFile
	var errs []error
	for _, path := range paths {
		f, err := openSentFile(path)
		if errors.Is(err, errHandedOver) {
			_ = os.Remove(path) // what stays goes with its folder
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("recover what was sent: %w", errors.Join(err, os.Remove(path))))
			continue
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b *sentFile) int { return cmp.Compare(a.number, b.number) })
	s.files = append(s.files, found...)
	for _, f := range found {
		s.size += f.capacity
	}
	return errors.Join(errs...)
}

// removeSent removes what an earlier boot has sent, which nobody wants any more.
func removeSent(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, sentPattern)) // the pattern is right
	for _, path := range paths {
		_ = os.Remove(path) // what stays goes with its folder
	}
}

// errHandedOver is what a file is that was a segment, and has not become one of the
// log. All that it held had been acknowledged.
var errHandedOver = errors.New("a segment that was handed over")

func openSentFile(path string) (*sentFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var head [sentFileHead]byte
	if _, err := f.ReadAt(head[:], 0); err == nil && string(head[:8]) == segmentMagic {
		return nil, errHandedOver
	} else if err != nil || string(head[:8]) != sentMagic || binary.LittleEndian.Uint32(head[20:]) != checksum(0, head[:20]) {
		return nil, fmt.Errorf("%s: not of this format", path)
	}
	now := time.Now()
	return &sentFile{
		path: path, capacity: max(info.Size(), sentFileHead), used: info.Size(), newest: now.Add(-max(0, now.Sub(info.ModTime()))),
		number: binary.LittleEndian.Uint64(head[8:]), salt: binary.LittleEndian.Uint32(head[16:]),
	}, nil
}

// listStep is how many batches are listed in one go.
const listStep = 128

// list reads what the log holds, oldest first, without the data.
func (s *sentLog) list() (all []Sent) {
	s.mu.Lock()
	files := make([]sentFile, len(s.files))
	origin := slices.Clone(s.files)
	for i, f := range s.files {
		files[i] = *f
	}
	s.mu.Unlock()
	for i := range files {
		all = files[i].list(origin[i], all)
	}
	return all
}

// list appends what a file holds up to the first record that is not whole. The
// receiver is a copy that does not change.
func (f *sentFile) list(origin *sentFile, all []Sent) []Sent {
	file, err := os.Open(f.path)
	if err != nil {
		return all // removed meanwhile, or lost: what was sent is only a copy
	}
	defer file.Close()
	for offset := int64(sentFileHead); ; {
		if len(all)%listStep == listStep-1 {
			time.Sleep(100 * time.Microsecond) // redirects go first
		}
		var head [sentHead]byte
		if _, err := file.ReadAt(head[:], offset); err != nil || offset >= f.used {
			return all
		}
		le := binary.LittleEndian
		subject, id, size := int(le.Uint16(head[40:])), int(le.Uint16(head[42:])), int64(le.Uint32(head[44:]))
		whole := make([]byte, sentHead+subject+id)
		if _, err := file.ReadAt(whole, offset); err != nil || checksum(f.salt, whole[4:]) != le.Uint32(whole) || size > maxSentData {
			return all
		}
		offset += int64(len(whole))
		all = append(all, Sent{
			Subject: string(whole[sentHead : sentHead+subject]), ID: string(whole[sentHead+subject:]),
			First: le.Uint64(whole[8:]), Last: le.Uint64(whole[16:]), Position: le.Uint64(whole[24:]), At: int64(le.Uint64(whole[32:])),
			file: origin, number: f.number, salt: f.salt, check: le.Uint32(whole[4:]), offset: offset, size: size,
		})
		offset += size
	}
}

// Data reads the batch's bytes, in the storage of buf where they fit. It fails
// when the log has given them up meanwhile.
func (b *Sent) Data(buf []byte) ([]byte, error) {
	f, err := os.Open(b.file.path)
	if err != nil {
		return nil, fmt.Errorf("read what was sent: %w", err)
	}
	defer f.Close()
	data := slices.Grow(buf[:0], int(b.size))[:b.size]
	for at := int64(0); at < b.size; at += stepBytes {
		if _, err := f.ReadAt(data[at:min(b.size, at+stepBytes)], b.offset+at); err != nil {
			return nil, fmt.Errorf("read what was sent: %w", err)
		}
		runtime.Gosched()
	}
	if checksum(b.salt, data) != b.check {
		return nil, fmt.Errorf("read what was sent: %s is damaged, or was used again", f.Name())
	}
	return data, nil
}
