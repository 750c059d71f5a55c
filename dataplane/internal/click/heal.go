package click

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heal is called every second. It notices that the folder is gone, makes it anew
// where it can, and leaves plain memory as soon as files can be made again.
func (r *Recorder) heal() {
	b := r.log.boot
	if b.dir == "" {
		return
	}
	if !b.present() {
		err := fmt.Errorf("%s: the folder was removed", b.dir)
		r.degraded.Store(&err)
		r.log.orphan()
		if b.restore() != nil {
			return // tried again
		}
		if r.sent != nil {
			r.sent.lose()
		}
	}
	if r.syncFailed.Load() {
		return
	}
	if r.Degraded() == nil {
		r.leaveMemory()
		return
	}
	// One after the other, so that there is always one to go on with.
	for range cap(r.spares) {
		if !r.room() && !r.makeRoom() {
			return
		}
		s, err := r.newFile(r.number + 1)
		if err != nil {
			return
		}
		r.replaceSpare(s)
	}
	r.leaveMemory()
	r.degraded.Store(nil)
}

// replaceSpare puts a segment in the place of the spare one that is next.
func (r *Recorder) replaceSpare(s *segment) {
	r.log.mu.Lock()
	select {
	case old := <-r.spares:
		old.leaving = true
	default:
	}
	r.log.segments = append(r.log.segments, s)
	r.log.mu.Unlock()
	r.mu.Lock()
	r.number = s.number
	r.mu.Unlock()
	r.spares <- s // has room: only this goroutine fills it
}

// leaveMemory goes on with a spare segment when the current one would not
// survive the process.
func (r *Recorder) leaveMemory() {
	s := r.current.Load()
	if s == nil || s.path != "" && !s.orphaned.Load() {
		return
	}
	r.leave(s)
}

// orphan notes that the files of all segments are gone. What they hold is as in
// plain memory.
func (l *Log) orphan() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		s.orphaned.Store(true)
		s.durable.Store(allDurable)
	}
}

// plain says whether the segment does not survive the process.
func (s *segment) plain() bool { return s.path == "" || s.orphaned.Load() }

// present says whether the boot's file is where it was made.
func (b *boot) present() bool {
	there, err := os.Stat(filepath.Join(b.dir, bootFile))
	if err != nil {
		// A folder that cannot be looked at is not one that was removed.
		return !errors.Is(err, os.ErrNotExist)
	}
	mine, err := b.file.Stat()
	return err == nil && os.SameFile(there, mine)
}

// restore makes the folder and its file anew, with the marks as they are. The
// page with the marks stays where it is in memory: whoever counts in it goes on.
func (b *boot) restore() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(b.dir, ".boot")
	if err != nil {
		return err
	}
	var page [pageSize]byte
	copy(page[:], b.mem)
	if _, err := f.WriteAt(page[:], 0); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err := lock(f); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), filepath.Join(b.dir, bootFile)); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if _, err := unix.MmapPtr(int(f.Fd()), 0, unsafe.Pointer(&b.mem[0]), pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return errors.Join(err, f.Close(), os.Remove(filepath.Join(b.dir, bootFile)))
	}
	// What was counted in between went to the old file.
	var last [pageSize]byte
	if _, err := b.file.ReadAt(last[:], 0); err == nil {
		b.catchUp(page[:], last[:])
	}
	old := b.file
	b.file = f
	return old.Close()
}

// catchUp adds what an old page of marks got behind its copy.
func (b *boot) catchUp(copied, last []byte) {
	word := func(page []byte, at uintptr) uint64 { return binary.NativeEndian.Uint64(page[marksAt+at:]) }
	m := b.marks
	for i := range m.dropped {
		at := unsafe.Offsetof(m.dropped) + uintptr(i)*8
		m.dropped[i].Add(word(last, at) - word(copied, at))
	}
	at := unsafe.Offsetof(m.lost)
	m.lost.Add(word(last, at) - word(copied, at))
	m.raiseCut(word(last, unsafe.Offsetof(m.cut)))
	at = unsafe.Offsetof(m.acknowledged)
	for acknowledged := m.acknowledged.Load(); acknowledged < word(last, at); acknowledged = m.acknowledged.Load() {
		m.acknowledged.CompareAndSwap(acknowledged, word(last, at))
	}
	m.position.Store(max(m.position.Load(), word(last, unsafe.Offsetof(m.position))))
	for i := range m.memory {
		s := &m.memory[i]
		at := unsafe.Offsetof(m.memory) + uintptr(i)*unsafe.Sizeof(*s)
		for part, v := range []*atomic.Uint64{&s.from, &s.to} {
			if is := word(last, at+uintptr(part)*8); is != word(copied, at+uintptr(part)*8) {
				v.Store(is)
			}
		}
	}
	if word(last, unsafe.Offsetof(m.ended)) != 0 {
		m.ended.Store(1)
	}
}
