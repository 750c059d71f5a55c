package click

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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
	ended        atomic.Uint64          // the sequence that it ended cleanly before, 1 where only that is known
	lost         atomic.Uint64          // clicks among dropped that had got a sequence
	dropped      [reasons]atomic.Uint64 // clicks, by reason
	position     atomic.Uint64          // in the stream: what is not acknowledged can only be there or behind
	memory       [spanCount]span        // what was in plain memory alone
	told         atomic.Uint64          // lost clicks in the last account that the stream has
	toldEnd      atomic.Uint64          // 1: and that was the final one
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
	dir     string   // empty: plain memory
	durable bool     // level fsync: what has to be on the disk is brought there
	unmade  error    // why there is no folder yet; heal makes it
	file    *os.File // holds the lock; nil while the folder is unmade
	mem     []byte   // the page with the marks: of the file, or of what has taken its place

	unsynced error // why the disk may lack the folder, or a file in it; heal tries again

	moving sync.Mutex // guards what follows
	page   *os.File   // what mem is mapped from
}

// memoryBoot is a boot that leaves nothing behind.
func memoryBoot(id Identity) *boot { return &boot{Identity: id, marks: new(marks)} }

// newBoot makes what a level keeps of a boot.
func newBoot(spool string, id Identity, level Level) (*boot, error) {
	if level == Memory {
		return memoryBoot(id), nil
	}
	b, err := createBoot(spool, id, level == Fsync)
	if err == nil || !ofDisk(err) {
		return b, err
	}
	return unmadeBoot(spool, id, level == Fsync, fmt.Errorf("create boot: %w", err))
}

// createBoot makes the folder of a new boot in the spool, and brings it to the
// disk if it is to be durable.
func createBoot(spool string, id Identity, durable bool) (*boot, error) {
	b := &boot{Identity: id, dir: folderOfBoot(spool, id.Boot), durable: durable}
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, err
	}
	// The folder gets its name when it is whole and locked, so that no other
	// process takes it for an earlier boot's.
	unnamed := filepath.Join(spool, "."+filepath.Base(b.dir))
	if err := os.Mkdir(unnamed, 0o700); err != nil {
		return nil, err
	}
	f, err := createBootFile(unnamed, id, durable)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(unnamed))
	}
	if err := os.Rename(unnamed, b.dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.RemoveAll(unnamed))
	}
	if durable {
		if err := syncNew(b.dir); err != nil {
			return nil, errors.Join(err, f.Close(), os.RemoveAll(b.dir))
		}
	}
	if err := b.mapMarks(f); err != nil {
		return nil, err
	}
	b.file = f
	return b, nil
}

// createBootFile makes the file of a new boot, and locks it.
func createBootFile(dir string, id Identity, durable bool) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, bootFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = lock(f)
	if err == nil {
		_, err = f.WriteAt(bootPage(id), 0)
	}
	if err == nil && durable {
		err = syncNew(f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// bootPage is the content of a new boot's file.
func bootPage(id Identity) []byte {
	page := make([]byte, pageSize)
	copy(page, bootMagic)
	binary.LittleEndian.PutUint64(page[8:], id.Boot)
	page[16] = byte(id.Address)
	names := append(page[17:17], byte(len(id.Node)))
	names = append(append(append(names, id.Node...), byte(len(id.Region))), id.Region...)
	_ = names // lies in page
	binary.LittleEndian.PutUint32(page[marksAt-4:], crc32.Checksum(page[:marksAt-4], castagnoli))
	return page
}

// unmadeBoot is a new boot whose folder the disk does not take now. Its marks are in
// memory until heal makes the folder.
func unmadeBoot(spool string, id Identity, durable bool, cause error) (*boot, error) {
	f, err := memoryFile()
	if err != nil {
		return nil, errors.Join(cause, err)
	}
	if _, err := f.WriteAt(bootPage(id), 0); err != nil {
		return nil, errors.Join(cause, err, f.Close())
	}
	b := &boot{Identity: id, dir: folderOfBoot(spool, id.Boot), durable: durable, unmade: cause}
	return b, b.mapMarks(f)
}

var (
	errBusy  = errors.New("in use by another process")
	errEmpty = errors.New("nothing was written to it") // before a power cut
)

// openBoot takes over the folder of an earlier boot. It gives errBusy while
// its process lives.
func openBoot(dir string) (*boot, error) {
	f, err := os.OpenFile(filepath.Join(dir, bootFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	b := &boot{dir: dir, file: f}
	err = func() error {
		stepped("open boot: not locked")
		if err := lock(f); err != nil {
			return err
		}
		if !b.present() { // its process lives, and has given it another file, or has removed it
			return fmt.Errorf("%s: %w", f.Name(), errBusy)
		}
		head := make([]byte, pageSize)
		if _, err := f.ReadAt(head, 0); errors.Is(err, io.EOF) || err == nil && len(bytes.Trim(head[:marksAt], "\x00")) == 0 {
			return fmt.Errorf("%s: %w", f.Name(), errEmpty)
		} else if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
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

// mapMarks puts the marks where a file has them, and closes it when that fails.
func (b *boot) mapMarks(f *os.File) error {
	mem, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return errors.Join(fmt.Errorf("map boot file: %w", err), f.Close())
	}
	_ = unix.Mlock(mem) // best effort: what is in memory can be read whatever becomes of the disk
	b.page, b.mem = f, mem
	b.marks = (*marks)(unsafe.Pointer(&mem[marksAt]))
	return nil
}

// close gives the folder free, and deletes it when nothing in it is wanted.
// The page with the marks stays mapped: whoever holds the boot may still count.
func (b *boot) close(remove bool) error {
	if b.dir == "" {
		return nil
	}
	if b.unmade != nil {
		return b.page.Close()
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

// folderOfBoot is where a boot has its files.
func folderOfBoot(spool string, boot uint64) string {
	return filepath.Join(spool, fmt.Sprintf("%016x", boot))
}

// isBoot says whether a name is that of a boot's folder.
func isBoot(name string) bool {
	_, err := strconv.ParseUint(name, 16, 64)
	return err == nil && len(name) == 16
}
