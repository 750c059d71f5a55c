package feed

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

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
)

// tripwire ends a crash loop. Before a state is taken in, from the network or
// from a file, its version is noted in a small file; once it was served for some
// time, or the process ends in order, the note is wiped. So a note that is there
// at the start says what the process was at when it ended, and how many times in
// a row.
//
// A note is one write of some bytes into the page cache: it survives the end of
// the process, and is not meant to survive a loss of power. The zero value keeps
// no notes. It may be used from any goroutine.
type tripwire struct {
	path string

	mu      sync.Mutex
	file    *os.File // nil: not opened yet
	crashed table.Version
	crashes int       // in a row
	at      time.Time // of the last of them
	armed   table.Version
	noted   bool
	busy    bool // a state is being taken in
	pending bool // settled is to fire
	settled *time.Timer
}

// The note: magic, version, crashes, time, checksum.
const (
	noteMagic = "AFFTRY01"
	noteSize  = 48
)

// openTripwire reads the note of the process before.
func openTripwire(path string, now time.Time) *tripwire {
	w := &tripwire{path: path}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != noteSize || string(b[:8]) != noteMagic || xxh3.Hash(b[:noteSize-8]) != binary.LittleEndian.Uint64(b[noteSize-8:]) {
		return w // wiped, torn, or there is none
	}
	at := time.Unix(int64(binary.LittleEndian.Uint64(b[32:])), 0)
	if now.Sub(at) > crashMemory || at.Sub(now) > crashMemory {
		return w
	}
	w.crashed = table.Version{Epoch: binary.LittleEndian.Uint64(b[8:]), Revision: int64(binary.LittleEndian.Uint64(b[16:]))}
	w.at = at
	w.crashes = int(min(binary.LittleEndian.Uint64(b[24:]), 1000))
	return w
}

// quarantine is how long the node is not to follow a control plane, and over
// which state the process has ended.
func (w *tripwire) quarantine() (time.Duration, table.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crashes < maxCrashes {
		return 0, w.crashed
	}
	return min(minQuarantine<<min(w.crashes-maxCrashes, 10), maxQuarantine), w.crashed
}

// arm notes that a state is being taken in. It is an error if the process has
// ended over that state too often.
func (w *tripwire) arm(v table.Version) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.path == "" {
		return nil
	}
	if w.crashes >= maxCrashes && v == w.crashed && time.Since(w.at) < crashMemory {
		return fmt.Errorf("the process has ended %d times while it took in revision %d, or just after: it is not tried again", w.crashes, v.Revision)
	}
	w.busy, w.armed = true, v
	w.note(v, w.crashes+1, time.Now())
	return nil
}

// note writes a note.
func (w *tripwire) note(v table.Version, crashes int, at time.Time) {
	b := make([]byte, noteSize)
	copy(b, noteMagic)
	binary.LittleEndian.PutUint64(b[8:], v.Epoch)
	binary.LittleEndian.PutUint64(b[16:], uint64(v.Revision))
	binary.LittleEndian.PutUint64(b[24:], uint64(crashes))
	binary.LittleEndian.PutUint64(b[32:], uint64(at.Unix()))
	binary.LittleEndian.PutUint64(b[noteSize-8:], xxh3.Hash(b[:noteSize-8]))
	w.write(b)
	w.noted = true
}

// done notes that the state was taken in, or was not. What it does to the
// process shows in the time after that.
func (w *tripwire) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.busy {
		return
	}
	w.busy = false
	switch {
	case w.settled == nil:
		w.settled = time.AfterFunc(settleAfter, w.settle)
	case w.crashes == 0 || !w.pending: // the first one that holds ends a row of crashes
		w.settled.Reset(settleAfter)
	}
	w.pending = true
}

// settle wipes the note: the process goes on. A state from before the one that
// the process has ended over says nothing about that one.
func (w *tripwire) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = false
	if w.crashes > 0 && later(w.crashed, w.armed) {
		if w.path != "" && !w.busy {
			w.note(w.crashed, w.crashes, w.at)
		}
		return
	}
	w.crashes, w.crashed = 0, table.Version{}
	if !w.busy && w.noted {
		w.write(make([]byte, noteSize))
		w.noted = false
	}
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
	w.write(make([]byte, noteSize))
	if w.file != nil {
		_ = w.file.Close()
	}
	w.file, w.path, w.noted = nil, "", false
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
}
