package click

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A page of a mapped file that the disk cannot give, or whose store it cannot take, is a
// fault of whoever touches it, at which a process ends. Here it is an error. A segment
// that has such a page is damaged:
//
//   - Nothing is recorded in it any more. Clicks go on in the next segment, and as with
//     any folder that fails, in plain memory where no new file can be made: see heal.go.
//   - Cursors look for whole records in what can be read of it, as in what an earlier
//     boot has left. What they do not find is missing, and counted as corrupt. A click
//     that is being written at that moment may be among that.
//   - It is not used again.
//
// The page with a boot's marks goes on in memory: see detach.

// ErrDamaged is what Cursor.Next gives once for each segment that is damaged.
var ErrDamaged = errors.New("a page of the spool cannot be read or written")

// fault is an access to a page that is not to be had.
type fault struct {
	offset int // in what was mapped
	cause  error
}

func (f *fault) Error() string { return f.cause.Error() }

// guarded runs f, which uses what is mapped at mem, and gives the fault that it met
// there. A fault anywhere else is a mistake of the program, and goes on as the panic
// that it is.
func guarded(mem []byte, f func()) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			err = faultIn(mem, p)
		}
	}()
	f()
	return nil
}

func faultIn(mem []byte, p any) error {
	at, is := p.(interface {
		runtime.Error
		Addr() uintptr
	})
	start := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if !is || at.Addr() < start || at.Addr() >= start+uintptr(len(mem)) {
		panic(p)
	}
	return &fault{int(at.Addr() - start), at}
}

// damage is what is wrong with a segment.
type damage struct {
	err error
	at  time.Time
}

// hurt notes that a segment is damaged; the first word stays.
func (s *segment) hurt(err error) {
	s.damage.CompareAndSwap(nil, &damage{fmt.Errorf("%w: segment %s: %w", ErrDamaged, s.path, err), time.Now()})
}

// lastWriters is how long a damaged segment stays mapped. Cursors pass it without
// waiting for those who still write to it, as they do elsewhere.
const lastWriters = 10 * time.Second

// lingers says whether somebody may still be writing to a segment that all readers
// have passed.
func (s *segment) lingers() bool {
	d := s.damage.Load()
	return d != nil && time.Since(d.at) < lastWriters
}

// hurt takes a segment of the running boot out of use.
func (r *Recorder) hurt(s *segment, err error) {
	s.hurt(err)
	r.degraded.Store(&s.damage.Load().err)
	if r.current.Load() == s {
		r.leave(s)
	}
	r.wakeUp()
}

// lose counts a click that was answered, and whose place cannot be written. A cursor
// will find its sequence missing, also in the next boot.
func (r *Recorder) lose(s *segment, index uint32, err error) {
	r.log.boot.give(s.first.Load() + uint64(index))
	r.hurt(s, err)
}

// leave goes on with another segment than this one. Taking more than there is seals a
// segment like any click that does not fit.
func (r *Recorder) leave(s *segment) {
	if _, index, p := s.place(int(s.size) + 1); p == last {
		r.rotate(s, index)
	}
}

// next takes a spare segment, or one of the reserve, and makes it ready to go on with;
// nil when there is none.
func (r *Recorder) next(first uint64) *segment {
	for {
		select {
		case s := <-r.spares:
			err := r.use(s, first)
			if err == nil {
				return s
			}
			s.hurt(err)
			r.degraded.Store(&s.damage.Load().err)
			r.log.drop(s)
		default:
			return r.fromReserve(first)
		}
	}
}

// use makes a segment ready to be current from sequence first on.
func (r *Recorder) use(s *segment, first uint64) error {
	r.used++
	r.log.boot.mark(func() { r.log.boot.noteUse(s.plain(), first) })
	return s.use(r.log.boot.Boot, r.used, first)
}

// drop gives up a segment that has not come to be used.
func (l *Log) drop(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leave(s)
}

// blot puts memory in the place of pages that cannot be read, from the one on that was
// the fault. What stands there is no record, nor a place that was never filled.
func blot(mem []byte, err error, pages int) error {
	f := new(fault)
	if !errors.As(err, &f) {
		return err
	}
	from := f.offset &^ (pageSize - 1)
	part := mem[from:min(from+pages*pageSize, len(mem))]
	if _, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&part[0]), uintptr(len(part)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED); err != nil {
		return fmt.Errorf("pass pages: %w", err)
	}
	for i := range part {
		part[i] = 0xff
	}
	return nil
}

// avoid takes the cursor past a page that cannot be read.
func (c *Cursor) avoid(err error) {
	page := 0
	if f := new(fault); errors.As(err, &f) {
		page = f.offset &^ (pageSize - 1)
	}
	if c.searching = true; c.pos < page {
		c.limit = page // what reaches into it is not whole
	} else {
		c.pos, c.limit = page+pageSize, len(c.mem)
	}
	if c.log.hurt != nil {
		c.log.hurt(c.segment, err)
	} else {
		c.segment.hurt(err)
	}
}

// search finds the next record that is whole, in what can be read.
func (c *Cursor) search() (length int, ok bool) {
	for {
		at, length, ok := seek(c.mem[:c.limit], c.pos, c.segment.salt)
		if ok {
			c.pos = at
			return length, true
		}
		if c.limit == len(c.mem) {
			return 0, false
		}
		c.pos, c.limit = c.limit+pageSize, len(c.mem)
	}
}
