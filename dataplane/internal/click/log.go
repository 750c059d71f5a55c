package click

import (
	"errors"
	"os"
	"runtime"
	"sort"
	"sync"
	"unsafe"

	"github.com/affleet/affleet/dataplane/internal/prefetch"
)

// Log is the clicks of one boot in order: the running one's, or what an
// earlier one has left.
type Log struct {
	boot   *boot
	wake   func()  // there may be something to remove
	missed *counts // of earlier boots, what this process found missing; nil for the running one

	// Of the running boot: takes a segment out of use that is damaged.
	hurt func(*segment, error)

	// What recovery found; constant afterwards.
	recovered bool
	tail      uint64 // damaged clicks behind the last whole one

	strays   chan *segment // that came into use out of the reserve; see adopt
	mu       sync.Mutex
	segments []*segment // oldest first; of the running boot, the spare ones too
	leavers  int        // those of them that are to be removed
	gone     []*segment // that wait to be removed
	size     int64      // bytes of all of them
	last     uint64     // of an earlier boot: its highest sequence

	gaps        []gap  // that cursors have passed and that are not settled, in order
	passed      uint64 // behind the last gap
	tailCounted bool
}

// Identity is what the clicks are to be published under.
func (l *Log) Identity() Identity { return l.boot.Identity }

// Recovered is true for the log of an earlier boot, which grows no more.
func (l *Log) Recovered() bool { return l.recovered }

// Ended is true when the boot ended cleanly: no click was answered behind the
// last one of the log.
func (l *Log) Ended() bool { return l.boot.ended.Load() != 0 }

// Acknowledged is the highest sequence that need not be published again.
func (l *Log) Acknowledged() uint64 { return l.boot.acknowledged.Load() }

// Acknowledge says that all clicks up to the sequence are where they belong.
// Their segments are used again.
func (l *Log) Acknowledge(sequence uint64) {
	l.settle(sequence)
	if l.boot.acknowledge(sequence) {
		stepped("acknowledge: done")
		l.wake()
	}
}

// Position is where in the stream to look for batches whose acknowledgement was
// lost: from this sequence on. 0: none was ever sent.
func (l *Log) Position() uint64 { return l.boot.position.Load() }

// SetPosition is called before the first batch is sent, and when one is
// acknowledged. Only one goroutine may call it.
func (l *Log) SetPosition(sequence uint64) {
	l.boot.mark(func() { l.boot.position.Store(sequence) })
}

// Lose counts clicks that were recorded, and then could not be published for
// a reason that will not go away.
func (l *Log) Lose(reason DropReason, clicks uint64) {
	l.boot.mark(func() { l.boot.lost.Add(clicks) })
	l.boot.drop(reason, clicks)
}

// dropped is the boot's account of what it lost.
func (l *Log) dropped() (d [reasons]uint64) {
	for i := range d {
		d[i] = l.boot.dropped[i].Load()
	}
	return d
}

// bytes is what the log takes of the spool.
func (l *Log) bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adopt()
	return l.size
}

// end is the sequence behind the segment's last click; false while that may
// still grow.
func (s *segment) end() (uint64, bool) {
	sealed := s.sealed.Load()
	if sealed == 0 {
		return 0, false
	}
	return s.sequence(uint32(sealed - 1)), true
}

// sequence is the published sequence of an index: places that were never
// filled do not count.
func (s *segment) sequence(index uint32) uint64 {
	holes := sort.Search(len(s.holes), func(i int) bool { return s.holes[i] >= index })
	return s.first.Load() + uint64(index) - s.shift - uint64(holes)
}

// Cursor steps through a log. It belongs to one goroutine.
type Cursor struct {
	log     *Log
	segment *segment // pinned; nil before the first and behind the last
	mem     []byte
	pos     int
	length  int    // of the record at pos, once try has read it
	at      uint32 // its index
	index   uint32 // of the next record, at least
	next    uint64 // sequence of the next click
	given   uint64 // the last one's
	ended   bool
	copied  []byte // the click that Next gave last; its page may go at any time
	window  window // for Within

	// In a segment that is damaged; see fault.go.
	searching bool     // for records: there need not be one at pos
	limit     int      // of what can be read
	told      *segment // whose damage Next has told of
}

// Cursor starts behind a sequence: 0 and Acknowledged() are the usual ones.
// What has been removed already is passed over.
func (l *Log) Cursor(after uint64) *Cursor { return &Cursor{log: l, next: after + 1} }

// Next gives the next click, and false when there is none now. Errors are those of
// mapping a segment, where trying again later is all that helps, and ErrDamaged, behind
// which Next goes on with what can be read.
func (c *Cursor) Next(click *Click) (bool, error) {
	return c.walk(func() bool {
		if !c.step(click) {
			return false
		}
		c.copied = append(c.copied[:0], c.mem[c.pos:c.pos+c.length]...)
		click.read(c.copied)
		c.goOn(click.Sequence)
		return true
	})
}

// Each gives each click that there is now to take, until that gives false: the click
// stays the next one then. Its slices are valid during the call alone. Errors are those
// of Next. A call of take may end with a page that cannot be read, and so with nothing
// taken; take is to be ready for the next one then.
func (c *Cursor) Each(click *Click, take func() bool) error {
	_, err := c.walk(func() bool {
		for c.step(click) {
			if !take() {
				return true
			}
			c.goOn(click.Sequence)
		}
		return false
	})
	return err
}

// Ahead says whether Within has clicks to give, which it has of a backlog of the running
// boot, unless part of that is damaged, or the cursor has yet to find where in a segment it
// starts; for the rest there is Each. What is not in memory it gets there, so many bytes
// at a time.
func (c *Cursor) Ahead(bytes int) bool {
	for c.segment == nil || c.whole() && c.through() {
		if c.segment != nil {
			c.pass()
		}
		if ok, err := c.enter(); !ok || err != nil {
			return false // Each meets with it, too
		}
	}
	if !c.whole() || c.segment.sealed.Load() == 0 || int64(c.pos) >= c.segment.durable.Load() || c.segment.sequence(c.index) < c.next {
		return false
	}
	if !c.window.open(c.segment) {
		return false
	}
	if c.window.record(c.pos) != nil {
		return true
	}
	return c.window.missed && c.window.load(c.pos, bytes) && c.window.record(c.pos) != nil
}

// whole says whether all of the segment is as it was recorded, as far as is known.
func (c *Cursor) whole() bool { return !c.segment.recovered && !c.searching }

// Within is Each for the rest of the segment that Ahead has found, as far as that is in
// memory. It waits neither for a disk nor, but where clicks are missing, for the log. The
// slices of a click are valid until the next one.
func (c *Cursor) Within(click *Click, take func() bool) {
	for int64(c.pos) < c.segment.durable.Load() && !c.through() {
		record := c.window.record(c.pos)
		if record == nil {
			break
		}
		if !c.try(click, record) {
			continue
		}
		if !take() {
			break
		}
		c.goOn(click.Sequence)
	}
	c.log.boot.give(c.given)
}

// walk calls f, which may use what is mapped of the cursor's segment, in one segment
// after the other until f gives true, which walk gives then, or there is nothing now.
func (c *Cursor) walk(f func() bool) (done bool, err error) {
	for {
		if c.segment == nil {
			if ok, err := c.enter(); !ok {
				return false, err
			}
		}
		s := c.segment
		fault := guarded(c.mem, func() { done = f() })
		if fault != nil {
			c.avoid(fault)
		}
		if !s.recovered {
			c.log.boot.give(c.given)
		}
		switch {
		case done:
			return true, nil
		case c.searching && c.told != s:
			c.told = s
			return false, s.damage.Load().err
		case fault != nil:
		case c.through(), s.recovered, c.searching && s.sealed.Load() != 0:
			c.pass()
		default:
			return false, nil
		}
	}
}

// through says whether all that the segment ever got is behind the cursor.
func (c *Cursor) through() bool {
	sealed := c.segment.sealed.Load()
	return sealed != 0 && int64(c.index) >= sealed-1
}

// step finds the next click in the segment, where the cursor stays, and gives false
// when there is none now, or damage that is to be told of first.
func (c *Cursor) step(click *Click) bool {
	for !c.through() {
		length, ok := c.find()
		if !ok || c.searching && c.told != c.segment {
			return false
		}
		c.fetch(length)
		if c.try(click, c.mem[c.pos:c.pos+length]) {
			return true
		}
	}
	return false
}

// try reads the record at pos. It gives false, and passes it, where that is not the next
// click or a later one.
func (c *Cursor) try(click *Click, record []byte) bool {
	index, ok := click.read(record)
	if !ok { // damaged, and yet with the right checksum: another version's
		index = c.index
	}
	sequence := c.segment.sequence(index)
	if ok && index >= c.index && sequence >= c.next {
		click.Sequence, c.length, c.at = sequence, len(record), index
		return true
	}
	c.pos += len(record)
	c.index = max(c.index, index+1)
	return false
}

// goOn goes behind the click that try has read.
func (c *Cursor) goOn(sequence uint64) {
	c.pos += c.length
	c.index = c.at + 1
	c.goTo(sequence)
}

// goTo goes behind a click that is given.
func (c *Cursor) goTo(sequence uint64) {
	if sequence > c.next {
		c.log.mu.Lock()
		c.passTo(sequence)
		c.log.mu.Unlock()
	}
	c.next = sequence + 1
	c.given = sequence
}

// ahead is how far before it is read the memory of a record is asked for: two or three
// records.
const ahead = 1 << 10

// fetch asks for as many bytes as are about to be read. A backlog is in no cache, and
// redirects on the same core use what is fetched unasked for something else.
func (c *Cursor) fetch(bytes int) {
	from := (c.pos + ahead + prefetch.LineBytes - 1) &^ (prefetch.LineBytes - 1)
	for at := from; at < min(c.pos+ahead+bytes, len(c.mem)); at += prefetch.LineBytes {
		prefetch.Line(unsafe.Pointer(&c.mem[at]))
	}
}

// find places the cursor on a whole record: the next one, or, where there can
// be damage, the next that is whole.
func (c *Cursor) find() (length int, ok bool) {
	s := c.segment
	if s.recovered || c.searching {
		return c.search()
	}
	if c.pos+8 > len(c.mem) {
		return 0, false
	}
	if int64(c.pos) < s.durable.Load() {
		if length = int(uint32(loadHead(c.mem, c.pos))); length != 0 {
			return length, true
		}
	}
	c.searching = s.damage.Load() != nil // nobody may ever fill the place
	return 0, false
}

// enter goes to the segment that holds the next click.
func (c *Cursor) enter() (bool, error) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.adopt()
	return c.enterFirst()
}

// enterFirst is enter but for the log's mutex, which the caller holds.
func (c *Cursor) enterFirst() (bool, error) {
	l := c.log
	for _, s := range l.segments {
		if s.leaving {
			continue
		}
		if s.first.Load() == 0 {
			break // spare
		}
		if end, known := s.end(); known && end <= c.next {
			continue
		}
		if s.sequence(0) > c.next && l.adopt() {
			return c.enterFirst() // one that came into use just now is before it
		}
		if err := s.mapIn(); err != nil {
			if s.recovered && errors.Is(err, os.ErrNotExist) {
				l.leave(s) // somebody has removed it: its clicks count as damaged
				continue
			}
			return false, err
		}
		s.pins++
		c.segment, c.mem, c.pos, c.index = s, s.bytes(), segmentHead, 0
		c.searching, c.limit = false, len(c.mem)
		if start := s.sequence(0); start > c.next {
			c.passTo(start)
		}
		return true, nil
	}
	if l.recovered && !c.ended {
		c.ended = true
		c.passTo(l.last + 1)
		l.missTail()
	}
	return false, nil
}

// passTo counts what lies before a sequence as missing, unless it had been
// acknowledged and was removed. The caller holds the log's mutex.
func (c *Cursor) passTo(sequence uint64) {
	c.log.miss(c.next, sequence)
	c.next = max(c.next, sequence)
}

// pass leaves a segment in which there is nothing more. What is missing at its end will
// not come.
func (c *Cursor) pass() {
	if end, known := c.segment.end(); known {
		c.log.mu.Lock()
		c.passTo(end)
		c.log.mu.Unlock()
	}
	c.leave()
}

// leave lets go of a segment. One of the running boot stays mapped.
func (c *Cursor) leave() {
	l := c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	s := c.segment
	if s.pins--; s.pins == 0 && s.recovered {
		s.mapOut(runtime.Gosched)
	}
	c.segment, c.mem = nil, nil
	c.window.close()
}

// Close lets go of the segment that the cursor is in.
func (c *Cursor) Close() {
	if c.segment != nil {
		c.leave()
	}
}

// Position is the sequence of the click that Next gives, if nothing in
// between is damaged.
func (c *Cursor) Position() uint64 { return c.next }

// Ledger is the boot's account up to the cursor.
func (c *Cursor) Ledger() Ledger {
	lost, dropped := c.log.account(c.next)
	last := c.next - 1
	account := Ledger{Recorded: last - min(lost, last), Dropped: dropped}
	if c.ended {
		account.Dropped[Corrupt] += c.log.tail // not of the sequences that were given out
	}
	account.Answered = account.Recorded + account.Lost()
	return account
}
