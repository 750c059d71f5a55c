package feed

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/statefile"
)

// The journal holds the deltas that came after the state in the file, so that a
// node that is killed comes back with the version that it has served, and a
// change of one link does not write all of them to disk. A record is
//
//	length (4), 0 (4), XXH3-64 of the delta, seeded with the length (8), Delta
//
// with numbers in little endian. It is written before its state is live, into
// the page cache: it survives the end of the process, and after a loss of power
// the file alone counts.
const (
	recordHead = 16
	// Beyond these a new file is written soon; in bytes, also not before the
	// journal is as large as the file.
	journalRecords = 5000
	journalBytes   = 32 << 20
	// Beyond these nothing is added until that is done.
	maxRecords = 50_000
	maxJournal = 128 << 20
)

// journal is the end of the state on disk. The zero value keeps none. It may be
// used from any goroutine.
type journal struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	file    *os.File
	records []record
	size    int64
	whole   int64 // bytes of the file that it follows
	broken  bool  // nothing is added until the next file is there
	told    pace
}

// record is a delta in the journal.
type record struct {
	to  table.Version
	end int64 // where it ends
}

// read applies what the journal has to the state of the file, and says why not
// all of it. What does not follow, or is torn, is cut off.
func (j *journal) read(t *table.Table, guard Guard) (*table.Table, error) {
	f, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	defer f.Close()
	return j.replay(bufio.NewReaderSize(f, 1<<20), t, guard)
}

// forget drops all records.
func (j *journal) forget() { j.records, j.size = nil, 0 }

// readRecord gives the next delta, which is valid until the next call; io.EOF at
// the end.
func readRecord(r io.Reader, buf *[]byte) ([]byte, error) {
	var head [recordHead]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
		return nil, io.EOF
	} else if err != nil {
		return nil, statefile.Torn("record", err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxMessage || binary.LittleEndian.Uint32(head[4:]) != 0 {
		return nil, errors.New("a record is damaged")
	}
	if cap(*buf) < int(n) {
		*buf = make([]byte, n)
	}
	b := (*buf)[:n]
	if m, err := io.ReadFull(r, b); m < int(n) {
		return nil, statefile.Torn("record", err)
	}
	if xxh3.HashSeed(b, uint64(n)) != binary.LittleEndian.Uint64(head[8:]) {
		return nil, errors.New("a record is damaged")
	}
	return b, nil
}

// add adds a delta that is about to be live, and says whether it is time for a
// new file.
func (j *journal) add(to table.Version, delta []byte) (full bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.path == "" || j.broken {
		return false
	}
	if len(j.records) >= maxRecords || len(delta) > maxMessage || j.size+int64(len(delta)) > maxJournal {
		j.broken = true
		return true
	}
	err := j.open()
	if err == nil {
		_, err = j.file.WriteAt(sealed(delta), j.size)
	}
	if err != nil {
		j.fail(err)
		return true
	}
	j.size += int64(recordHead + len(delta))
	j.records = append(j.records, record{to, j.size})
	return len(j.records) >= journalRecords || j.size >= max(journalBytes, min(j.whole, maxJournal/2))
}

// sealed gives a message as a record.
func sealed(message []byte) []byte {
	b := make([]byte, recordHead, recordHead+len(message))
	binary.LittleEndian.PutUint32(b, uint32(len(message)))
	binary.LittleEndian.PutUint64(b[8:], xxh3.HashSeed(message, uint64(len(message))))
	return append(b, message...)
}

// follows notes how large the file is that the journal follows.
func (j *journal) follows(file string) {
	info, err := os.Stat(file)
	if err != nil {
		return // it is written sooner than it has to be
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.whole = info.Size()
}

// fail gives the journal up until the next file is there.
func (j *journal) fail(err error) {
	j.broken = true
	if _, ok := j.told.due(tellEvery); ok {
		j.log.Error("journal of the last known good state is not written: if the node is killed, it comes back with an older one", "file", j.path, "err", err)
	}
}

// open opens the file for writing, and cuts off what is behind the last record.
func (j *journal) open() error {
	if j.file != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(j.size); err != nil {
		_ = f.Close()
		return err
	}
	j.file = f
	return nil
}

// saved drops what a new file holds, and everything if the file is of another
// epoch or what follows it is not there. It says whether that may be so: another
// file is to come soon, which the journal follows.
func (j *journal) saved(v table.Version) (lacks bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.path == "" {
		return false
	}
	keep := 0 // how many of the last records
	for keep < len(j.records) && later(j.records[len(j.records)-1-keep].to, v) {
		keep++
	}
	if lacks = j.broken; lacks {
		keep = 0 // some are missing
	}
	if err := j.cut(len(j.records) - keep); err != nil {
		j.fail(err)
		return lacks
	}
	j.broken = false
	if j.size == 0 && j.file != nil { // the next record opens what is there then: somebody may have removed it
		_ = j.file.Close()
		j.file = nil
	}
	return lacks
}

// cut drops the first n records.
func (j *journal) cut(n int) error {
	if n == 0 && !j.broken {
		return j.trim()
	}
	if err := j.open(); err != nil {
		return err
	}
	from := int64(0)
	if n > 0 {
		from = j.records[n-1].end
	}
	tail := make([]byte, j.size-from)
	if _, err := j.file.ReadAt(tail, from); err != nil && len(tail) > 0 {
		return fmt.Errorf("read: %w", err)
	}
	if len(tail) == 0 {
		if err := j.file.Truncate(0); err != nil {
			return err
		}
	} else {
		// Not made to last through a loss of power: whoever waits for the lock
		// waits for the disk then.
		if err := os.WriteFile(j.path+".tmp", tail, 0o600); err != nil {
			return err
		}
		if err := os.Rename(j.path+".tmp", j.path); err != nil {
			return err
		}
		_ = j.file.Close()
		j.file = nil
	}
	rest := make([]record, 0, len(j.records)-n)
	for _, r := range j.records[n:] {
		rest = append(rest, record{r.to, r.end - from})
	}
	j.records, j.size = rest, int64(len(tail))
	return nil
}

// trim cuts off what is on disk and was not read: it followed a file that is no
// more.
func (j *journal) trim() error {
	if info, err := os.Stat(j.path); err != nil || info.Size() <= j.size {
		return nil //nolint:nilerr // there is nothing
	}
	return os.Truncate(j.path, j.size)
}

// close gives the file back. Nothing is added from then on.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.path = nil, ""
}
