package click

import "golang.org/x/sys/unix"

const (
	// windowBytes is how much of a segment is read at once, some 20 clicks: the kernel
	// copies it within 1 or 2 µs, and there is room for it in the first caches.
	windowBytes = 4 << 10
	// loadBytes is how much is read at once of what is not in memory.
	loadBytes = 64 << 10
)

// window reads the records of a segment without waiting for a disk, and tells where they
// are not in memory. A page of what is mapped may be gone at any time, and to map one that
// is read a single time takes longer than to copy it.
type window struct {
	segment *segment // that it is open for; nil: none
	fd      int      // of its file, if it has one
	tmpfs   bool     // that is in memory always
	mem     []byte   // what was read of it last; all of plain memory
	at      int      // where in the segment that begins
	missed  bool     // what was asked for last is not in memory
	failed  bool     // it cannot be read, or not without waiting
	buf     []byte
}

// open makes it a segment's, and says whether that can be read.
func (w *window) open(s *segment) bool {
	if w.segment == s {
		return !w.failed
	}
	w.close()
	w.segment = s
	if s.path == "" {
		w.mem = s.bytes()
		return true
	}
	var err error
	w.fd, err = openToRead(s.path)
	w.failed = err != nil // somebody has removed it; it is mapped still
	if !w.failed {
		w.tmpfs = inMemory(w.fd)
		readAlone(w.fd)
	}
	if w.buf == nil {
		w.buf = make([]byte, max(MaxRecord, loadBytes))
	}
	return !w.failed
}

func (w *window) close() {
	if w.segment != nil && w.segment.path != "" && w.fd >= 0 {
		_ = unix.Close(w.fd) // only read
	}
	*w = window{buf: w.buf}
}

// record is the one at a position of the segment, until the next call; nil when it is not
// whole: since it is not in memory, say, or still being written.
func (w *window) record(pos int) []byte {
	for _, bytes := range [...]int{0, windowBytes, MaxRecord} {
		if bytes > 0 && !w.read(pos, bytes) {
			return nil
		}
		if at := pos - w.at; at+8 <= len(w.mem) {
			if length, ok := verify(w.mem, at, w.segment.salt); ok {
				return w.mem[at : at+length]
			}
		}
		if bytes > 0 && w.missed {
			break // more of it is not there, either
		}
	}
	return nil
}

// read reads so many bytes from a position on, or what there is of them in memory.
func (w *window) read(pos, bytes int) bool {
	if w.segment.path == "" || w.failed {
		return false
	}
	bytes = min(bytes, int(w.segment.size)-pos)
	n, err := readNow(w.fd, w.buf[:bytes], pos, w.tmpfs)
	w.mem, w.at = w.buf[:n], pos
	w.failed = err != nil && err != unix.EAGAIN
	w.missed = n < bytes && !w.failed
	return n > 0
}

// load gets so many bytes into memory, and says whether there were any.
func (w *window) load(pos, bytes int) bool {
	w.mem, w.missed = nil, false
	end := min(pos+bytes, int(w.segment.size))
	ask(w.fd, pos, end-pos)
	for pos < end {
		n, err := unix.Pread(w.fd, w.buf[:min(loadBytes, end-pos)], int64(pos))
		if w.failed = err != nil && err != unix.EINTR || n == 0; w.failed {
			return false
		}
		pos += max(n, 0)
	}
	return true
}
