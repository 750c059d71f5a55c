package feed

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

const (
	// maxCrashes is after how many ends of the process in a row a state is not
	// tried again. It is more than one because a process also ends for other
	// reasons.
	maxCrashes = 5
	// settleAfter is how long a state is served until it is not what ends the
	// process.
	settleAfter = 5 * time.Second
	// A row of crashes is over after this time: the state is tried once more,
	// also by the process that has refused it.
	crashMemory = time.Hour
	// How long a node that comes up after maxCrashes follows no control plane;
	// doubled with each further one, up to the second.
	minQuarantine, maxQuarantine = time.Minute, 10 * time.Minute
	// maxMarks bounds a note. There is one for each of the node's files that has
	// ended the process, and one for what is sent; the oldest goes.
	maxMarks = 8
)

// tripwire ends a crash loop. Before a state is taken in, from the network or
// from a file, its version is noted in a small file, and so is what is taken down
// ahead of its version; once it was served for some time, or the process ends in
// order, the note is wiped. So a note that is there at the start says what the
// process was at when it ended, and how many times in a row.
//
// A process that ends over one thing is not held against another: a state that is
// not tried again stays in the note beside what is being taken in. So a node that
// is killed just after its start does not forget it, and does not take the state
// that it began with for it.
//
// A note is one write of some bytes into the page cache: it survives the end of
// the process, and is not meant to survive a loss of power. The zero value keeps
// no notes. It may be used from any goroutine.
type tripwire struct {
	path string

	mu    sync.Mutex
	file  *os.File // nil: not opened yet
	size  int      // of the note in it
	marks []mark   // of the processes before, but for what has held since

	armed   mark // what was taken in last; its time is zero: nothing is noted
	busy    bool // it is being taken in
	proving []mark
	since   []mark // taken in behind those that settled waits for; of each origin the last
	pending bool   // settled is to fire
	settled *time.Timer
}

// openTripwire reads the note of the process before.
func openTripwire(path string, now time.Time) *tripwire {
	b, _ := os.ReadFile(path) // there is none most of the time
	return &tripwire{path: path, marks: readMarks(b, now)}
}

// quarantine is how long the node is not to follow a control plane, and over
// which state the process has ended. What is taken down is no reason for that: it
// is refused sooner when a control plane is followed.
func (w *tripwire) quarantine() (time.Duration, table.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var worst mark
	for _, m := range w.marks {
		if m.origin != originTakeDown && m.crashes > worst.crashes {
			worst = m
		}
	}
	if worst.crashes < maxCrashes {
		return 0, worst.version
	}
	return min(minQuarantine<<min(worst.crashes-maxCrashes, 10), maxQuarantine), worst.version
}

// arm notes that a state is being taken in that was sent. It is an error if the
// process has ended over that state too often.
func (w *tripwire) arm(v table.Version) error { return w.take(originSent, v) }

// armFile is arm for a state of the node's own files.
func (w *tripwire) armFile(v table.Version) error { return w.take(originFile, v) }

// armTakeDown is arm for what is taken down ahead of a version.
func (w *tripwire) armTakeDown(v table.Version) error { return w.take(originTakeDown, v) }

// armTakenDown is arm for all that was taken down before the process began, if a
// process has ended as it took in some of it, or just after. It is tried as a whole
// then, as what the process has ended over most. What has held says nothing: the
// state of the file stays what the process is at.
func (w *tripwire) armTakenDown() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var worst mark
	for _, m := range w.marks {
		if m.origin == originTakeDown && m.crashes > worst.crashes {
			worst = m
		}
	}
	if worst.version == (table.Version{}) {
		return nil
	}
	return w.takeIn(mark{origin: originTakeDown, version: worst.version})
}

func (w *tripwire) take(from origin, v table.Version) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.takeIn(mark{origin: from, version: v})
}

// takeIn notes that something is being taken in. mu is held.
func (w *tripwire) takeIn(m mark) error {
	if w.path == "" {
		return nil
	}
	for _, before := range w.marks {
		if !m.isSame(before) {
			continue
		}
		if before.isTooOften() {
			return fmt.Errorf("the process has ended %d times while it took in %s, or just after: it is not tried again", before.crashes, before)
		}
		m.origin = min(m.origin, before.origin) // a file may have what was sent
	}
	m.at = time.Now()
	w.busy, w.armed = true, m
	w.note()
	return nil
}

// note writes what is known of the processes before, and of this one what it is
// at: if it ends, that is one more.
func (w *tripwire) note() {
	all := slices.Clone(w.marks)
	if m := w.armed; !m.at.IsZero() {
		for _, before := range w.marks {
			if m.goesOn(before) {
				m.crashes = max(m.crashes, before.crashes)
			}
		}
		m.crashes++
		all = append(slices.DeleteFunc(all, m.goesOn), m)
	}
	b := make([]byte, 0, len(all)*noteSize)
	for _, m := range all[max(len(all)-maxMarks, 0):] {
		b = m.appendTo(b)
	}
	if len(b) == 0 {
		b = wiped[:]
	}
	w.write(b)
}

var wiped [noteSize]byte

// done notes that it was taken in, or was not. What it does to the process shows
// in the time after that.
func (w *tripwire) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.busy {
		return
	}
	w.busy = false
	w.since = append(slices.DeleteFunc(w.since, func(m mark) bool { return m.origin == w.armed.origin }), w.armed)
	if w.pending && len(w.marks) > 0 {
		return // what comes all the time must not keep a row of crashes from its end
	}
	w.prove()
}

// prove waits for what was taken in to hold.
func (w *tripwire) prove() {
	w.proving, w.since = w.since, w.proving[:0]
	w.pending = true
	if w.settled == nil {
		w.settled = time.AfterFunc(settleAfter, w.settle)
	} else {
		w.settled.Reset(settleAfter)
	}
}

// settle wipes what is noted about that which has held: the process goes on.
func (w *tripwire) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = false
	if w.path == "" {
		return
	}
	for _, held := range w.proving {
		w.marks = slices.DeleteFunc(w.marks, held.clears)
	}
	if len(w.since) > 0 {
		w.prove()
	} else if !w.busy {
		w.armed = mark{}
	}
	w.note()
}

// close wipes the note, because the process ends in order, and gives the file
// back. Nothing is noted from then on.
func (w *tripwire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.settled != nil {
		w.settled.Stop()
	}
	if w.path == "" {
		return
	}
	w.write(wiped[:])
	if w.file != nil {
		_ = w.file.Close()
	}
	w.file, w.path = nil, ""
}

// write overwrites the note. A disk that does not take it costs the protection
// and nothing else: that the folder cannot be written is said by the keeper.
func (w *tripwire) write(note []byte) {
	if w.file == nil {
		_ = os.MkdirAll(filepath.Dir(w.path), 0o700)
		f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return
		}
		w.file = f
	}
	_, _ = w.file.WriteAt(note, 0)
	if len(note) != w.size {
		_ = w.file.Truncate(int64(len(note)))
		w.size = len(note)
	}
}
