package click

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// seek finds the first whole record at or behind pos. Whatever lies between is
// a place that was never filled, or damage: the checksum, salted anew for each
// segment, tells a record from anything that a client has sent.
func seek(mem []byte, pos int, salt uint32) (at, length int, ok bool) {
	for ; pos+fixedBytes <= len(mem); pos += 8 {
		if length, ok := verify(mem, pos, salt); ok {
			return pos, length, true
		}
	}
	return len(mem), 0, false
}

// mostAccounts is how many boots one start takes of which only an account is left. A node
// that ends again and again while NATS is away leaves one each time, and a process may
// have so many files open, and mapped, only. The others wait for the next start.
const mostAccounts = 4096

// recoverBoots opens what earlier boots left in the spool, oldest first.
// Folders that another process holds are passed over; those that cannot be
// read are reported and, when there are clicks in them, left alone.
func recoverBoots(spool string, durable bool, wake func(), missed *counts) (logs []*Log, warnings []error) {
	folders, err := bootFolders(spool)
	if err != nil {
		return nil, []error{fmt.Errorf("read spool: %w", err)}
	}
	accounts := 0
	for _, dir := range folders {
		if !holdsClicks(dir) {
			if accounts++; accounts > mostAccounts {
				continue
			}
		}
		b, err := openBoot(dir)
		if errors.Is(err, errBusy) {
			continue
		}
		if err != nil {
			warnings = append(warnings, giveUp(dir, err))
			continue
		}
		b.durable = durable
		l := &Log{boot: b, wake: wake, missed: missed, recovered: true}
		warnings = append(warnings, l.recover()...)
		logs = append(logs, l)
	}
	if accounts > mostAccounts {
		warnings = append(warnings, fmt.Errorf("the accounts of %d boots wait for the next start: one takes %d", accounts-mostAccounts, mostAccounts))
	}
	return logs, warnings
}

// bootFolders lists the folders of boots in a spool, oldest first, and removes what is
// left of one that was never made.
func bootFolders(spool string) (dirs []string, err error) {
	entries, err := os.ReadDir(spool)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	ages := make(map[string]time.Time)
	for _, entry := range entries {
		dir := filepath.Join(spool, entry.Name())
		info, err := entry.Info()
		if err != nil || !entry.IsDir() {
			continue // gone meanwhile
		}
		if isBoot(entry.Name()) {
			dirs, ages[dir] = append(dirs, dir), info.ModTime()
		} else if isBoot(strings.TrimPrefix(entry.Name(), ".")) && abandoned(dir) {
			_ = os.RemoveAll(dir) // what stays is tried again by the next start
		}
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return ages[a].Compare(ages[b]) })
	return dirs, err
}

// abandoned says whether nobody is about to make a folder: that takes milliseconds.
func abandoned(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && time.Since(info.ModTime()) > time.Minute
}

// holdsClicks says whether a folder has files of clicks.
func holdsClicks(dir string) bool {
	for _, pattern := range []string{segmentPattern, sentPattern} {
		if paths, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(paths) > 0 {
			return true
		}
	}
	return false
}

// giveUp is for a folder whose file cannot be read, so that nobody knows what its clicks
// are to be published under. It is removed where nothing was ever written to that file,
// and there are no clicks.
func giveUp(dir string, err error) error {
	never := errors.Is(err, errEmpty) || errors.Is(err, os.ErrNotExist)
	switch {
	case holdsClicks(dir) && !ofDisk(err):
		return fmt.Errorf("recover boot: %w: its clicks are not published, and take room beside the spool until somebody removes %s", err, dir)
	case never && abandoned(dir):
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return fmt.Errorf("recover boot: %w", err)
}

// recover reads the segments of an earlier boot and numbers their clicks.
func (l *Log) recover() (warnings []error) {
	paths, err := filepath.Glob(filepath.Join(l.boot.dir, segmentPattern))
	if err != nil {
		return []error{fmt.Errorf("list segments: %w", err)}
	}
	for _, path := range paths {
		s, err := openSegment(path, l.boot.Boot)
		switch {
		case err != nil:
			warnings = append(warnings, fmt.Errorf("recover segment: %w", err))
		case s == nil:
			if err := os.Remove(path); err != nil {
				warnings = append(warnings, fmt.Errorf("remove spare segment: %w", err))
			}
		default:
			l.segments = append(l.segments, s)
			l.size += s.size
		}
	}
	slices.SortFunc(l.segments, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	l.last = l.boot.acknowledged.Load()
	var shift uint64
	for i, s := range l.segments {
		if s.shift == 0 && shift > 0 {
			s.shift = shift
			if err := s.keepShift(l.boot.durable); err != nil {
				warnings = append(warnings, fmt.Errorf("number the clicks of %s for later starts: %w", s.path, err))
			}
		}
		end := uint64(0) // raw sequence behind the segment, 0 when unknown
		if i+1 < len(l.segments) && l.segments[i+1].number == s.number+1 {
			end = s.endsAt(l.segments[i+1].first.Load())
		}
		damaged, err := l.scan(s, end)
		if err != nil {
			warnings = append(warnings, err) // clicks that cannot be read are passed over
		}
		shift = s.shift + uint64(len(s.holes))
		if i+1 == len(l.segments) {
			l.tail = damaged
			l.last = max(l.last, s.sequence(uint32(s.sealed.Load()-1))-1)
		}
	}
	least := l.boot.cut.Load() // a reader had seen these
	switch end := l.boot.ended.Load(); {
	case end > 1 && shift > 0: // a request came too late to fill its place: what closed up ends sooner
		l.boot.end(1)
	case end > 1:
		least, l.tail = max(least, end-1), 0
	}
	if least > l.last {
		l.last, l.tail = least, 0 // clicks are gone
	}
	return warnings
}

// endsAt gives a sequence as the one behind a segment, and 0 where it cannot be: the disk
// may have changed either, for which there is no checksum.
func (s *segment) endsAt(next uint64) uint64 {
	if first := s.first.Load(); next < first || next-first > uint64(s.size)/fixedBytes {
		return 0
	}
	return next
}

// scan finds out how many clicks a segment holds, and which places were never
// filled. It gives the number of damaged clicks behind the last whole one
// where the end is not known otherwise.
func (l *Log) scan(s *segment, end uint64) (damaged uint64, err error) {
	first, cut := s.first.Load(), l.boot.cut.Load()
	if end != 0 && end <= min(cut, l.boot.acknowledged.Load()) {
		s.sealed.Store(int64(end-first) + 1)
		return 0, nil // acknowledged, and read by the boot itself: without holes
	}
	if err := s.mapIn(); err != nil {
		s.sealed.Store(1)
		return 0, err
	}
	defer s.mapOut(runtime.Gosched)
	for pages := 1; ; pages *= 2 { // a disk may give no page at all
		s.holes = nil
		fault := guarded(s.bytes(), func() { damaged = l.readThrough(s, end) })
		if fault == nil {
			return damaged, err
		}
		if err == nil { // the first says it
			err = fmt.Errorf("read segment %s: %w", s.path, fault)
		}
		if failed := blot(s.bytes(), fault, pages); failed != nil {
			s.sealed.Store(1)
			return 0, errors.Join(err, failed)
		}
	}
}

// readThrough is scan in a segment that is mapped.
func (l *Log) readThrough(s *segment, end uint64) (damaged uint64) {
	first, cut := s.first.Load(), l.boot.cut.Load()
	mem := s.bytes()
	index, pos := uint64(0), segmentHead
	for {
		expected := pos
		at, length, ok := seek(mem, pos, s.salt)
		unfilled := expected+8 > len(mem) || loadHead(mem, expected) == 0
		next := index
		switch {
		case ok:
			var c Click
			i, whole := c.read(mem[at : at+length])
			if pos = at + length; !whole || uint64(i) < index {
				continue
			}
			next = uint64(i)
		case end != 0:
			next = max(index, end-first)
		case !unfilled:
			damaged = 1
		}
		// What the boot itself had given to a reader was filled, whatever it
		// looks like now: its sequence stays taken.
		for ; index < next; index++ {
			if unfilled && first+index > cut {
				s.holes = append(s.holes, uint32(index))
			}
		}
		if !ok {
			s.sealed.Store(int64(index) + 1)
			return damaged
		}
		index++
	}
}
