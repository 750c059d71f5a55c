package click

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mark runs f, which stores marks. Where the disk cannot take their page, they are
// stored in memory.
func (b *boot) mark(f func()) {
	if b.mem == nil {
		f()
		return
	}
	for {
		fault := guarded(b.mem, f)
		if fault == nil {
			return
		}
		if err := b.detach(); err != nil {
			panic(fmt.Errorf("%w, and its place cannot be taken: %w", fault, err))
		}
	}
}

// give notes that a click was given to a reader, with all before it.
func (b *boot) give(sequence uint64) {
	if sequence > b.cut.Load() {
		b.mark(func() { b.raiseCut(sequence) })
	}
}

// acknowledge raises what is acknowledged, and says whether it was less.
func (b *boot) acknowledge(sequence uint64) (raised bool) {
	for old := b.acknowledged.Load(); sequence > old && !raised; old = b.acknowledged.Load() {
		b.mark(func() { raised = b.acknowledged.CompareAndSwap(old, sequence) })
	}
	return raised
}

// end notes that the boot ends cleanly, before a sequence: 1 while that is not known.
func (b *boot) end(before uint64) {
	b.mark(func() { b.ended.Store(before) })
}

// drop counts clicks that are lost.
func (b *boot) drop(reason DropReason, clicks uint64) {
	b.mark(func() { b.dropped[reason].Add(clicks) })
}

var errApart = errors.New("the marks of what is acknowledged cannot be written")

// apart says that the marks are in memory, and not in the boot's file: they would not
// survive the process.
func (b *boot) apart() bool {
	b.moving.Lock()
	defer b.moving.Unlock()
	return b.page != b.file
}

// detach moves the marks to memory that no disk can fail, where they stay until heal
// has a new file for them. They can be read all the time.
func (b *boot) detach() error {
	b.moving.Lock()
	defer b.moving.Unlock()
	if b.page != b.file {
		return nil // somebody else has met the same fault
	}
	f, err := memoryFile()
	if err != nil {
		return err
	}
	page := bytes.Clone(b.mem)
	if _, err = f.WriteAt(page, 0); err == nil {
		err = b.move(f, page)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// move puts a file that begins with a copy of the marks in their place. The address of
// the page stays: whoever counts in it goes on. The caller holds the mutex.
func (b *boot) move(f *os.File, copied []byte) error {
	if _, err := unix.MmapPtr(int(f.Fd()), 0, unsafe.Pointer(&b.mem[0]), pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return err
	}
	_ = unix.Mlock(b.mem)
	// What was counted in between went to the old file.
	var last [pageSize]byte
	if _, err := b.page.ReadAt(last[:], 0); err == nil {
		b.catchUp(copied, last[:])
	}
	if b.page != b.file {
		_ = b.page.Close() // memory, or a file that another has taken the place of
	}
	b.page = f
	return nil
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
	m.told.Store(max(m.told.Load(), word(last, unsafe.Offsetof(m.told))))
	m.ended.Store(max(m.ended.Load(), word(last, unsafe.Offsetof(m.ended))))
	if word(last, unsafe.Offsetof(m.toldEnd)) != 0 {
		m.toldEnd.Store(1)
	}
}
