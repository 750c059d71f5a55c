package click

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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

// recoverBoots opens what earlier boots left in the spool, oldest first.
// Folders that another process holds are passed over; those that cannot be
// read are reported and left alone.
func recoverBoots(spool string, wake func(), missed *counts) (logs []*Log, warnings []error) {
	entries, err := os.ReadDir(spool)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			warnings = append(warnings, fmt.Errorf("read spool: %w", err))
		}
		return nil, warnings
	}
	type found struct {
		log *Log
		age int64
	}
	var all []found
	for _, entry := range entries {
		if _, ok := bootOfFolder(entry.Name()); !ok || !entry.IsDir() {
			continue
		}
		dir := filepath.Join(spool, entry.Name())
		b, err := openBoot(dir)
		if errors.Is(err, errBusy) {
			continue
		}
		if err != nil {
			warnings = append(warnings, fmt.Errorf("recover boot: %w", err))
			continue
		}
		l := &Log{boot: b, wake: wake, missed: missed, recovered: true}
		warnings = append(warnings, l.recover()...)
		var age int64
		if info, err := os.Stat(dir); err == nil {
			age = info.ModTime().UnixNano()
		}
		all = append(all, found{l, age})
	}
	slices.SortStableFunc(all, func(a, b found) int { return int(min(1, max(-1, a.age-b.age))) })
	for _, f := range all {
		logs = append(logs, f.log)
	}
	return logs, warnings
}

// recover reads the segments of an earlier boot and numbers their clicks.
func (l *Log) recover() (warnings []error) {
	paths, err := filepath.Glob(filepath.Join(l.boot.dir, "*.seg"))
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
		}
	}
	slices.SortFunc(l.segments, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	l.last = l.boot.acknowledged.Load()
	var shift uint64
	for i, s := range l.segments {
		s.shift = shift
		end := uint64(0) // raw sequence behind the segment, 0 when unknown
		if i+1 < len(l.segments) && l.segments[i+1].number == s.number+1 {
			end = l.segments[i+1].first.Load()
		}
		damaged, err := l.scan(s, end)
		if err != nil {
			warnings = append(warnings, err) // clicks that cannot be read are passed over
		}
		shift += uint64(len(s.holes))
		if i+1 == len(l.segments) {
			l.tail = damaged
			l.last = max(l.last, s.sequence(uint32(s.sealed.Load()-1))-1)
		}
	}
	if cut := l.boot.cut.Load(); cut > l.last {
		l.last, l.tail = cut, 0 // clicks that a reader had seen are gone
	}
	return warnings
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
