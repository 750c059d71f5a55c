package click

import "sync/atomic"

// While the folder fails, clicks go on in plain memory (see heal.go), and are gone
// with the process that does not publish them. A boot notes in its own file which
// sequences those are, as soon as there are any, so that the next one tells what was
// lost with the memory from what is damaged, however the process ended. The note is in
// the kernel's hands, as the other marks are, also when the disk takes no new file. Where
// the machine restarted too, and its disk had not taken the note, nobody knows better,
// and what is known to be missing counts as damaged.

// span is a run of sequences that were in plain memory alone.
type span struct {
	from, to atomic.Uint64 // to is the one behind, 0 while it grows; from is 0 while it is free
}

// spanCount is how many there is room for; those of which all is acknowledged do not
// count. The last of noteUse is not ended, so that it holds what would have come in
// others. The one behind is for what was in a folder that was removed.
const spanCount = 64

// noteUse is called before the first click is recorded in a segment that is about to be
// the current one: sequences from first on are in plain memory, or in files again.
func (m *marks) noteUse(plain bool, first uint64) {
	var growing, free *span
	for i := range m.memory[:spanCount-1] {
		switch s := &m.memory[i]; {
		case s.from.Load() == 0:
			free = s
		case s.to.Load() == 0:
			growing = s
		case s.to.Load() <= m.acknowledged.Load()+1:
			s.from.Store(0)
			s.to.Store(0)
			free = s
		}
	}
	switch {
	case free == nil: // the last one goes on
	case plain && growing == nil:
		free.from.Store(first)
	case !plain && growing != nil:
		growing.to.Store(first)
	}
}

// noteRemoved notes that nothing of what is not acknowledged is in files any more. What
// lies in the segments that were in use counts as in plain memory until noteFiles.
func (m *marks) noteRemoved() {
	s := &m.memory[spanCount-1]
	s.to.Store(0)
	s.from.Store(m.acknowledged.Load() + 1)
}

// noteFiles ends what noteRemoved has begun: sequences from first on are in files again.
func (m *marks) noteFiles(first uint64) {
	if s := &m.memory[spanCount-1]; s.from.Load() != 0 && s.to.Load() == 0 {
		s.to.Store(first)
	}
}

// inMemory cuts a run of sequences where it enters or leaves plain memory. It gives
// where the first piece ends, and whether that was in memory.
func (m *marks) inMemory(from, to uint64) (end uint64, memory bool) {
	for i := range m.memory {
		low, high := m.memory[i].from.Load(), m.memory[i].to.Load()
		if low == 0 {
			continue
		}
		if high == 0 {
			high = to
		}
		switch {
		case low <= from && from < high:
			return min(to, high), true
		case from < low && low < high:
			to = min(to, low)
		}
	}
	return to, false
}
