package click

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

// Recorder takes the clicks of a running node.
type Recorder struct {
	config Config
	policy *policy
	log    *Log

	current atomic.Pointer[segment] // nil: the spool is full, or the boot has ended
	spares  chan *segment
	reserve chan *segment // see reserve.go
	taken   chan struct{} // out of the reserve
	wake    chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup

	sent     *sentLog      // nil without retention
	first    atomic.Uint64 // sequence behind the last segment that was sealed
	degraded atomic.Pointer[error]

	syncFailed atomic.Pointer[error] // the sync that failed, until one works; degraded may be it
	none       atomic.Bool           // the last try to make a spare segment gave none
	used       uint64                // how many segments came into use; of whoever goes on with another

	yield     func()    // lets redirects go first; maintain's, once that runs
	removedAt time.Time // when files were last; maintain's

	missed counts // of earlier boots' clicks, those that were found missing

	mu       sync.Mutex // guards what follows, and that a full spool is opened again
	earlier  []*Log
	warnings []error
	ended    bool
	closed   bool
	number   uint64 // of the newest segment that was made
	metrics  *metrics
}

// Open makes a recorder for a new boot, and recovers what earlier boots have
// left in the folder. It fails when the configuration is wrong or the folder cannot
// be used. Where only its disk is full, read-only or broken, the recorder opens
// degraded: see heal.go. Close ends it.
func Open(config Config) (*Recorder, error) {
	if err := config.setDefaults(); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	r := &Recorder{
		config:  config,
		policy:  newPolicy(config.Address, config.Omit, config.HashKey),
		spares:  make(chan *segment, spareCount),
		reserve: make(chan *segment, spareCount),
		taken:   make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		yield:   runtime.Gosched,
	}
	if config.Retention > 0 && config.Level != Memory {
		r.sent = newSentLog("", config.MaxBytes, config.Retention)
	}
	if config.Dir != "" {
		r.earlier, r.warnings = recoverBoots(config.Dir, config.Level == Fsync, r.wakeUp, &r.missed)
		r.recoverSent()
	}
	id := Identity{Node: config.Node, Region: config.Region, Boot: config.Boot, Address: config.Address}
	b, err := newBoot(config.Dir, id, config.Level)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open spool: %w", err), r.release())
	}
	if cause := b.unmade; cause != nil {
		r.degraded.Store(&cause)
	}
	r.log = &Log{boot: b, wake: r.wakeUp, hurt: r.hurt, strays: make(chan *segment, spareCount+1)}
	if r.sent != nil {
		r.sent.dir = b.dir
	}
	r.first.Store(1)
	// The first segment is made here, so that a folder that cannot be used is
	// an error and not a surprise. When recovered clicks fill the spool, the
	// recorder opens full.
	for range spareCount {
		if err := r.prepare(); err != nil && !errors.Is(err, errFull) {
			return nil, errors.Join(fmt.Errorf("open spool: %w", err), r.log.discard(), r.release())
		}
	}
	r.reopen()
	if config.Registerer != nil {
		r.metrics = newMetrics(r)
		if err := config.Registerer.Register(r.metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("open spool: %w", err), r.log.discard(), r.release())
		}
	}
	r.stopped.Go(r.maintain)
	if config.Level != Memory {
		r.stopped.Go(r.keepReserve)
	}
	if config.Level == Fsync {
		r.stopped.Go(func() { r.syncEvery(config.Sync) })
	}
	r.wakeUp()
	return r, nil
}

// Record keeps a click. It copies what it keeps, never waits for a disk or a
// lock, and does not allocate. A click that cannot be kept is counted.
func (r *Recorder) Record(e *Event) {
	var l layout
	if !l.plan(e, r.policy) {
		r.log.boot.drop(TooLarge, 1)
		return
	}
	for {
		s := r.current.Load()
		if s == nil {
			r.drop()
			return
		}
		pos, index, p := s.place(l.length)
		switch p {
		case placed:
			if err := s.put(pos, index, &l, e, r.policy); err != nil {
				r.lose(s, index, err)
			}
			return
		case last:
			r.rotate(s, index)
		case closed:
			runtime.Gosched() // a few instructions of another goroutine
		}
	}
}

// drop counts a click that came while there was no segment.
func (r *Recorder) drop() {
	if r.log.boot.ended.Load() != 0 {
		r.log.boot.drop(LostMemory, 1)
	} else {
		r.log.boot.drop(SpoolFull, 1)
	}
}

// rotate seals the current segment, of which the caller took the place that
// did not fit, and goes on with a spare one.
func (r *Recorder) rotate(s *segment, count uint32) {
	first := s.first.Load() + uint64(count)
	r.first.Store(first)
	stepped("rotate: over")
	next := r.next(first) // nil: full, and maintain opens it again
	stepped("rotate: next in use")
	s.sealed.Store(int64(count) + 1)
	stepped("rotate: sealed")
	r.goOn(next)
	stepped("rotate: done")
	r.wakeUp()
}

// goOn makes a segment that is ready the current one.
func (r *Recorder) goOn(next *segment) {
	if r.current.Store(next); next != nil {
		next.open()
	}
}

func (r *Recorder) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // it is about to run
	}
}

// maintain prepares and removes segments until Close.
func (r *Recorder) maintain() {
	r.yield = aside.NewYield()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-r.wake:
		case <-tick.C:
			r.heal()
		}
		r.refill() // redirects may wait for it
		r.trim()
		r.refill() // in the room that there is now
	}
}

// refill makes the spare segments that are lacking.
func (r *Recorder) refill() {
	for r.lacksSpare() {
		if err := r.prepare(); err != nil {
			break // as full; it is tried again at the next tick
		}
	}
	r.reopen()
}

// lacksSpare says whether a segment should and can be made spare.
func (r *Recorder) lacksSpare() bool { return len(r.spares) < cap(r.spares) }

// Short says that none but the reserve is behind the segment in use, and that another is
// being made: who goes on without a pause may be quicker, and lose clicks.
func (r *Recorder) Short() bool { return len(r.spares) == 0 && !r.none.Load() }

// room says whether there is room for one more segment beside the reserve.
func (r *Recorder) room() bool {
	reserve := int64(len(r.reserve)) // first: what comes into use meanwhile counts twice, rather than not
	return r.Bytes()+(reserve+1)*r.config.SegmentBytes <= r.config.MaxBytes
}

// errFull is why there is no spare segment when the spool has reached its limit.
var errFull = errors.New("the spool is full")

// prepare makes one spare segment: of one that is over where there is one, else
// a new one, when there is room. When the folder fails, it is one of plain
// memory: clicks go on, at a lower level.
func (r *Recorder) prepare() error {
	r.mu.Lock()
	number := r.number + 1
	opened := number > spareCount
	r.mu.Unlock()
	s, err := r.spare(number, opened)
	r.none.Store(err != nil)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.number = number
	r.mu.Unlock()
	r.spares <- s // has room: only this goroutine fills it
	return nil
}

// spare gives a segment of which nothing is in use. opened says that the spool
// has worked before.
func (r *Recorder) spare(number uint64, opened bool) (*segment, error) {
	b := r.log.boot
	recycle := func() *segment {
		s := r.log.reuse(r.config.Level == Memory)
		if s == nil {
			return nil
		}
		if r.config.Level == Fsync {
			// What is wiped has been acknowledged for a recovery, too.
			_ = syncMemory(b.mem) // if this fails, so does what follows
			s.durable.Store(segmentHead)
		}
		if err := s.recycle(b.Boot, r.pause); err != nil {
			s.hurt(err)
			r.degraded.Store(&s.damage.Load().err)
			r.log.drop(s)
			return nil
		}
		return s
	}
	// While the folder fails, only a new file shows that it works again.
	if r.degraded.Load() == nil && !b.apart() {
		if s := recycle(); s != nil {
			return s, nil
		}
	}
	var s *segment
	var err error
	if !r.room() && !r.makeRoom() {
		err = errFull
	} else if s, err = r.newFile(number); err == nil {
		r.degraded.Store(nil)
	} else if !opened && !ofDisk(err) {
		return nil, err
	} else {
		cause := err
		r.degraded.Store(&cause)
	}
	if err != nil && r.degraded.Load() != nil {
		if s := recycle(); s != nil {
			return s, nil
		}
	}
	if errors.Is(err, errFull) {
		return nil, err
	}
	if err != nil {
		if s, err = newSegment("", b.Boot, number, r.config.SegmentBytes, r.pause); err != nil {
			return nil, err
		}
	}
	r.log.mu.Lock()
	r.log.segments = append(r.log.segments, s)
	r.log.size += s.size
	r.log.mu.Unlock()
	return s, nil
}

// newFile makes a segment at the recorder's level.
func (r *Recorder) newFile(number uint64) (*segment, error) {
	b := r.log.boot
	if err := cmp.Or(b.unmade, b.unsynced); err != nil {
		return nil, err
	}
	s, err := newSegment(b.dir, b.Boot, number, r.config.SegmentBytes, r.pause)
	if err != nil || r.config.Level != Fsync {
		return s, err
	}
	s.durable.Store(segmentHead)
	if err := syncNew(s.path); err != nil {
		return nil, errors.Join(fmt.Errorf("sync new segment: %w", err), s.remove(r.pause))
	}
	r.syncFailed.Store(nil) // the disk takes what it is given again
	return s, nil
}

// pause lets redirects go first while there is a segment to go on with.
func (r *Recorder) pause() {
	select {
	case <-r.stop: // Close waits for it
		return
	default:
	}
	if len(r.spares) > 0 && r.current.Load() != nil {
		r.yield()
	} else {
		runtime.Gosched()
	}
}

// reopen makes a spare segment current when there is none.
func (r *Recorder) reopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.current.Load() != nil {
		return
	}
	r.goOn(r.next(r.first.Load()))
}

// makeRoom gives up the reserve, and the oldest of what was sent.
func (r *Recorder) makeRoom() bool {
	for !r.room() {
		if !r.giveUpReserve() && (r.sent == nil || !r.sent.trim(time.Now(), true)) {
			return false
		}
	}
	return true
}

// Keep holds on to a batch that JetStream has acknowledged, for the retention
// and as far as MaxBytes allows. It writes in pieces and calls yield behind each.
// Only one goroutine may call it.
func (r *Recorder) Keep(b *Sent, data []byte, yield func()) error {
	if r.sent == nil {
		return nil
	}
	return r.sent.append(b, data, yield, r)
}

// hasRoom says whether what was sent may take so many bytes more: clicks go first.
func (r *Recorder) hasRoom(bytes int64) bool {
	return r.Bytes()+bytes+(spareCount+2)*r.config.SegmentBytes <= r.config.MaxBytes
}

// handOver gives a file away that trim would remove by and by. At level fsync none
// is: a crash of the machine could leave it what it was, in parts.
func (r *Recorder) handOver(path string, least int64) int64 {
	if r.config.Level != Process {
		return 0
	}
	for _, l := range append(r.Earlier(), r.log) {
		if s := l.takeLeaving(least); s != nil {
			if os.Rename(s.path, path) != nil { // trim was faster, or there is no such folder
				l.putBack(s)
				return 0
			}
			return s.size
		}
	}
	return 0
}

// Sent lists what is kept, of this boot and of earlier ones, in the order in
// which it was acknowledged.
func (r *Recorder) Sent() []Sent {
	if r.sent == nil {
		return nil
	}
	return r.sent.list()
}

// recoverSent takes over what earlier boots have sent.
func (r *Recorder) recoverSent() {
	for _, l := range r.earlier {
		if r.sent == nil {
			removeSent(l.boot.dir)
		} else if err := r.sent.recover(l.boot.dir); err != nil {
			r.warnings = append(r.warnings, err)
		}
	}
}

// Bytes is what the spool takes: files and memory, of this boot and of
// earlier ones.
func (r *Recorder) Bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.log.bytes()
	for _, l := range r.earlier {
		n += l.bytes()
	}
	if r.sent != nil {
		n += r.sent.bytes()
	}
	return n
}

// Log is the running boot's.
func (r *Recorder) Log() *Log { return r.log }

// Earlier are the logs that earlier boots have left, oldest first.
func (r *Recorder) Earlier() []*Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.earlier)
}

// Warnings are what Open found wrong in the spool and went on without.
func (r *Recorder) Warnings() []error { return slices.Clone(r.warnings) }

// Last is the highest sequence that was given out.
func (r *Recorder) Last() uint64 {
	for {
		s := r.current.Load()
		if s == nil {
			return r.first.Load() - 1
		}
		// A segment may have been used again since it was loaded.
		first := s.first.Load()
		if count, _, ok := s.begun(); ok && s.first.Load() == first {
			return first + count - 1
		}
		runtime.Gosched() // it is being sealed
	}
}

// Ledger is the running boot's account.
func (r *Recorder) Ledger() Ledger {
	last := r.Last()
	lost, dropped := r.log.account(last + 1)
	account := Ledger{Recorded: last - lost, Dropped: dropped}
	account.Answered = account.Recorded + account.Lost()
	return account
}
