package feed

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// origin is where something comes from that the process may end over.
type origin uint8

const (
	originSent     origin = iota // a state of a control plane, or of the place of --bootstrap
	originFile                   // a state of the node's own files
	originTakeDown               // what is taken down ahead of its version
	origins                      // how many there are
)

// mark is what the process was at when it ended, and how often. A version stands
// for the digest of its state: a revision of an epoch is one state, be it a delta, a
// snapshot or a file that leads to it. The set hash would say no more: a frame that
// is spoilt names that of a good one.
type mark struct {
	origin  origin
	version table.Version
	crashes int       // in a row
	at      time.Time // of the last of them
}

func (m mark) String() string {
	if m.origin != originTakeDown {
		return fmt.Sprint("revision ", m.version.Revision)
	}
	return fmt.Sprint("what revision ", m.version.Revision, " takes down")
}

// goesOn says whether a row of crashes goes on with m: over the same, or over a
// state that is sent behind another one, since it has what that one had. A file, and
// what is taken down, is the same at each start, and counts by itself.
func (m mark) goesOn(before mark) bool {
	return m.isSame(before) || m.origin == originSent && before.origin == originSent && !later(before.version, m.version)
}

// isSame says whether two are about the same, also where one is of a file.
func (m mark) isSame(other mark) bool {
	return m.version == other.version && (m.origin == originTakeDown) == (other.origin == originTakeDown)
}

// clears says whether m, which has held, ends the row of another mark. What is
// read from a file says nothing about what came after it, nor about what is sent
// of another epoch.
func (m mark) clears(other mark) bool {
	switch {
	case m.origin == originSent:
		return !later(other.version, m.version)
	case m.origin == originTakeDown || other.origin == originTakeDown:
		return m.isSame(other)
	}
	return m.version == other.version || later(m.version, other.version)
}

// isTooOften says whether what the mark is about is not tried again for now.
func (m mark) isTooOften() bool {
	return m.crashes >= maxCrashes && time.Since(m.at) < crashMemory
}

// A mark on disk: magic, version, crashes, time, checksum. The release before
// knows the first kind, and one of them alone; it takes others for no note.
const noteSize = 48

var noteMagics = [origins]string{originSent: "AFFTRY01", originFile: "AFFTRYF1", originTakeDown: "AFFTRYD1"}

// appendTo appends the mark as it is on disk.
func (m mark) appendTo(b []byte) []byte {
	from := len(b)
	b = append(b, noteMagics[m.origin]...)
	b = binary.LittleEndian.AppendUint64(b, m.version.Epoch)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.version.Revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.crashes))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.at.Unix()))
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b[from:]))
}

// readMarks gives the marks of a note that still count. What is wiped, torn or
// damaged is none.
func readMarks(b []byte, now time.Time) (marks []mark) {
	if len(b)%noteSize != 0 {
		return nil
	}
	for ; len(b) > 0; b = b[noteSize:] {
		if m, ok := readMark(b[:noteSize]); ok && now.Sub(m.at).Abs() <= crashMemory {
			marks = append(marks, m)
		}
	}
	return marks
}

func readMark(b []byte) (m mark, ok bool) {
	number := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	if xxh3.Hash(b[:noteSize-8]) != number(noteSize-8) {
		return m, false
	}
	for m.origin = range origins {
		if string(b[:8]) == noteMagics[m.origin] {
			m.version = table.Version{Epoch: number(8), Revision: int64(number(16))}
			m.crashes = int(min(number(24), 1000))
			m.at = time.Unix(int64(number(32)), 0)
			return m, true
		}
	}
	return m, false
}
