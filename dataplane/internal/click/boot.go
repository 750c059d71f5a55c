package click

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A boot has a folder of its own in the spool, named by the boot in hex, with
// its segments and the file "boot": who it is, and marks that change, mapped
// into memory like the segments:
//
//	   0  8 bytes  magic and version of the format
//	   8  u64  boot
//	  16  u8   address form
//	  17  u8   bytes of the node's name, then the name
//	   .  u8   bytes of the region's name, then the name
//	1020  u32  CRC-32C of the 1020 bytes before
//	1024  the marks, native byte order
const (
	bootMagic = "AFFBOO\x00\x01"
	bootFile  = "boot"
	marksAt   = 1024
)

// marks are the part of a boot that changes. They lie in the boot file, so
// that they survive the process.
type marks struct {
	cut          atomic.Uint64          // highest sequence that the boot itself gave to a reader
	acknowledged atomic.Uint64          // highest sequence that need not be published again
	ended        atomic.Uint64          // 1: ended cleanly
	lost         atomic.Uint64          // clicks among dropped that had got a sequence
	dropped      [reasons]atomic.Uint64 // clicks, by reason
	position     atomic.Uint64          // in the stream: what is not acknowledged can only be there or behind
	memory       [spanCount]span        // what was in plain memory alone
}

// The marks have room in the boot file.
const _ = uint(pageSize - marksAt - unsafe.Sizeof(marks{}))

// raiseCut notes that a click was given to a reader.
func (m *marks) raiseCut(sequence uint64) {
	for {
		old := m.cut.Load()
		if sequence <= old || m.cut.CompareAndSwap(old, sequence) {
			return
		}
	}
}

// boot is one boot's folder, held by a lock for as long as it is open.
type boot struct {
	Identity
	*marks
	dir  string   // empty: plain memory
	file *os.File // holds the lock
	mem  []byte   // the page with the marks: of the file, or of what has taken its place

	moving sync.Mutex // guards what follows
	page   *os.File   // what mem is mapped from
}

// memoryBoot is a boot that leaves nothing behind.
func memoryBoot(id Identity) *boot { return &boot{Identity: id, marks: new(marks)} }

// createBoot makes the folder of a new boot in the spool, and brings it to the
// disk if it is to be durable.
func createBoot(spool string, id Identity, durable bool) (*boot, error) {
	name := fmt.Sprintf("%016x", id.Boot)
	b := &boot{Identity: id, dir: filepath.Join(spool, name)}
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, err
	}
	// The folder gets its name when it is whole and locked, so that no other
	// process takes it for an earlier boot's.
	unnamed := filepath.Join(spool, "."+name)
	if err := os.Mkdir(unnamed, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(unnamed, bootFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	head := make([]byte, pageSize)
	copy(head, bootMagic)
	binary.LittleEndian.PutUint64(head[8:], id.Boot)
	head[16] = byte(id.Address)
	names := append(head[17:17], byte(len(id.Node)))
	names = append(append(append(names, id.Node...), byte(len(id.Region))), id.Region...)
	_ = names // lies in head
	binary.LittleEndian.PutUint32(head[marksAt-4:], crc32.Checksum(head[:marksAt-4], castagnoli))
	if err := lock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if durable {
		if err := syncNew(f.Name()); err != nil {
			return nil, errors.Join(err, f.Close(), os.RemoveAll(unnamed))
		}
	}
	if err := os.Rename(unnamed, b.dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.RemoveAll(unnamed))
	}
	if durable {
		if err := syncNew(b.dir); err != nil {
			return nil, errors.Join(err, f.Close(), os.RemoveAll(b.dir))
		}
	}
	return b, b.mapMarks(f)
}

var errBusy = errors.New("in use by another process")

// openBoot takes over the folder of an earlier boot. It gives errBusy while
// its process lives.
func openBoot(dir string) (*boot, error) {
	f, err := os.OpenFile(filepath.Join(dir, bootFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	b := &boot{dir: dir}
	err = func() error {
		if err := lock(f); err != nil {
			return err
		}
		head := make([]byte, pageSize)
		if _, err := f.ReadAt(head, 0); err != nil {
			return fmt.Errorf("%s: no boot file: %w", f.Name(), err)
		}
		if string(head[:8]) != bootMagic || binary.LittleEndian.Uint32(head[marksAt-4:]) != crc32.Checksum(head[:marksAt-4], castagnoli) {
			return fmt.Errorf("%s: no boot file of this format", f.Name())
		}
		b.Boot = binary.LittleEndian.Uint64(head[8:])
		b.Address = AddressForm(head[16])
		node := head[18 : 18+int(head[17])]
		region := head[18+len(node):]
		b.Node, b.Region = string(node), string(region[1:1+int(region[0])])
		return nil
	}()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return b, b.mapMarks(f)
}

func (b *boot) mapMarks(f *os.File) error {
	mem, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return errors.Join(fmt.Errorf("map boot file: %w", err), f.Close())
	}
	_ = unix.Mlock(mem) // best effort: what is in memory can be read whatever becomes of the disk
	b.file, b.page, b.mem = f, f, mem
	b.marks = (*marks)(unsafe.Pointer(&mem[marksAt]))
	return nil
}

// close gives the folder free, and deletes it when nothing in it is wanted.
// The page with the marks stays mapped: whoever holds the boot may still count.
func (b *boot) close(remove bool) error {
	if b.dir == "" {
		return nil
	}
	var err error
	if remove {
		err = os.RemoveAll(b.dir)
	}
	// The mapping would hold the lock as well as the file does.
	err = errors.Join(err, unix.Flock(int(b.file.Fd()), unix.LOCK_UN), b.file.Close())
	if b.apart() {
		err = errors.Join(err, b.page.Close())
	}
	return err
}

// lock takes a file for this process, without waiting.
func lock(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%s: %w", f.Name(), errBusy)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// bootOfFolder reads a folder's name.
func bootOfFolder(name string) (uint64, bool) {
	if len(name) != 16 {
		return 0, false
	}
	boot, err := strconv.ParseUint(name, 16, 64)
	return boot, err == nil
}
