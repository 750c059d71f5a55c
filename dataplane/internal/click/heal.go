package click

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Degraded is why clicks are held in plain memory although the level is
// process or fsync; nil when they are not.
func (r *Recorder) Degraded() error {
	if err := r.degraded.Load(); err != nil {
		return *err
	}
	if s := r.current.Load(); s != nil && s.plain() && r.config.Level != Memory {
		return errHeldUp
	}
	return nil
}

// InMemory says whether clicks that come do not survive the process: at level memory, or
// while they are held there.
func (r *Recorder) InMemory() bool { return r.config.Level == Memory || r.Degraded() != nil }

// heal is called every second. It makes the folder that could not be made at the start,
// notices that one is gone, makes it anew where it can, and leaves plain memory as soon
// as files can be made again.
func (r *Recorder) heal() {
	b := r.log.boot
	if b.dir == "" {
		return
	}
	switch {
	case b.unmade != nil:
		if b.restore() != nil {
			return // tried again
		}
	case !b.present():
		err := fmt.Errorf("%s: the folder was removed", b.dir)
		r.degraded.Store(&err)
		r.log.orphan()
		if b.restore() != nil {
			return // tried again
		}
		if r.sent != nil {
			r.sent.lose()
		}
	case b.apart():
		r.degraded.Store(&errApart)
		if b.restore() != nil {
			return
		}
	case b.unsynced != nil:
		b.unsynced = syncNew(b.dir)
	}
	if b.unsynced != nil {
		return // tried again
	}
	if s := r.current.Load(); r.syncFailed.Load() != nil && s != nil && !s.plain() {
		return // its next sync tells
	}
	cause := r.degraded.Load()
	if cause == nil {
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
	r.degraded.CompareAndSwap(cause, nil) // another may have come meanwhile
}

// replaceSpare puts a segment in the place of the spare one that is next.
func (r *Recorder) replaceSpare(s *segment) {
	r.log.mu.Lock()
	select {
	case old := <-r.spares:
		r.log.leave(old)
	default:
	}
	r.log.segments = append(r.log.segments, s)
	r.log.size += s.size
	r.log.mu.Unlock()
	r.mu.Lock()
	r.number++
	r.mu.Unlock()
	r.spares <- s // has room: only this goroutine fills it
}

// leaveMemory goes on with a spare segment when the current one would not
// survive the process.
func (r *Recorder) leaveMemory() {
	if s := r.current.Load(); s != nil && s.plain() && len(r.spares) > 0 {
		r.leave(s)
	}
	if s := r.current.Load(); s != nil && !s.plain() {
		r.log.boot.mark(func() { r.log.boot.noteFiles(s.first.Load()) })
	}
}

// orphan notes that the files of all segments are gone. What they hold is as in
// plain memory.
func (l *Log) orphan() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Concat(l.segments, l.gone) {
		s.orphaned.Store(true)
		s.durable.Store(allDurable)
	}
	l.boot.mark(l.boot.noteRemoved)
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
	b.moving.Lock()
	file := b.file
	b.moving.Unlock()
	mine, err := file.Stat()
	return err == nil && os.SameFile(there, mine)
}

// restore makes the folder and its file, with the marks as they are. The page with the
// marks stays where it is in memory: whoever counts in it goes on. A file that is there
// is replaced by one that is on the disk, and never missing.
func (b *boot) restore() error {
	b.moving.Lock()
	defer b.moving.Unlock()
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
	if b.durable {
		if err := syncFile(f); err != nil {
			return errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}
	if err := os.Rename(f.Name(), filepath.Join(b.dir, bootFile)); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	// The file before is gone: whatever fails now, the boot's is this one.
	if b.file != nil && b.file != b.page {
		_ = b.file.Close() // else move closes it
	}
	b.file, b.unmade = f, nil
	if err := b.move(f, page[:]); err != nil {
		return err
	}
	if b.durable {
		b.unsynced = syncNew(b.dir)
	}
	return nil
}

// ofDisk says whether a folder fails because of the disk that it is on, which may pass:
// it is full, read-only or broken, or its file system has found damage. What else is
// wrong with it, somebody has to put right.
func ofDisk(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EBADMSG, errUnclean},
		func(cause error) bool { return errors.Is(err, cause) })
}
