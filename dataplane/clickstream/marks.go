package clickstream

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// marks remember which clicks have been handled: for each boot of each node
// the highest sequence, and what is missing below it. They make a consumer
// exact: a click is handled when it is neither missing nor above the highest.
//
// A batch can come late, behind its successors, when the stream has refused
// it for a while; that is why the highest sequence alone is not enough.
//
// They belong to one goroutine.
type marks map[bootKey]*Mark

type bootKey struct {
	node string
	boot Hex
}

// Mark is what is known about one boot of one node.
type Mark struct {
	Node string `json:"node"`
	Boot Hex    `json:"boot"`
	// Begin is the first sequence of the first message that came. What is
	// missing below it is no gap: the consumer began in the middle.
	Begin   uint64  `json:"begin"`
	High    uint64  `json:"high"`              // highest sequence handled
	Missing []Range `json:"missing,omitempty"` // below it, in order
	// Lost is how many clicks from Begin to High the node itself counts as
	// lost after they had got a sequence.
	Lost  uint64    `json:"lost,omitempty"`
	Base  int64     `json:"base,omitempty"`  // the same below Begin
	Ended bool      `json:"ended,omitempty"` // the last batch of the boot has come
	Seen  time.Time `json:"seen"`            // when the stream took its latest message
}

// Range is sequences, both ends included.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Len is how many sequences there are.
func (r Range) Len() uint64 { return r.To - r.From + 1 }

// overlap gives what two ranges have in common, if there is anything.
func (r Range) overlap(o Range) (Range, bool) {
	both := Range{max(r.From, o.From), min(r.To, o.To)}
	return both, both.From <= both.To
}

const (
	// maxMissing bounds the holes of one boot. The stream has them when it
	// refuses batches one by one; more than these are given up, oldest first.
	maxMissing = 1024

	// A mark is kept for so long behind the latest message of its boot, in the
	// stream's time: nodes publish again what is ten minutes old, or what a node
	// that was off finds on its disk.
	keepEnded  = 24 * time.Hour
	keepOthers = 30 * 24 * time.Hour
)

// newMarks begins with marks that all gave before.
func newMarks(saved []Mark) marks {
	m := make(marks, len(saved))
	for _, mark := range saved {
		mark.Missing = slices.Clone(mark.Missing)
		m[bootKey{mark.Node, mark.Boot}] = &mark
	}
	return m
}

// all are copies of the marks, ordered by node and boot.
func (m marks) all() []Mark {
	all := make([]Mark, 0, len(m))
	for mark := range maps.Values(m) {
		c := *mark
		c.Missing = slices.Clone(c.Missing)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Mark) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Boot, b.Boot)) })
	return all
}

// forget drops the marks of boots from which nothing comes any more.
func (m marks) forget(now time.Time) {
	maps.DeleteFunc(m, func(_ bootKey, mark *Mark) bool {
		keep := keepOthers
		if mark.Ended {
			keep = keepEnded
		}
		return now.Sub(mark.Seen) > keep
	})
}

// news says which parts of a batch have not been handled, in order.
func (m marks) news(b *Batch) []Range {
	if b.Count == 0 {
		return nil
	}
	whole := Range{b.First, b.First + b.Count - 1}
	mark := m[bootKey{b.Node, b.Boot}]
	if mark == nil {
		return []Range{whole}
	}
	var news []Range
	for _, hole := range mark.Missing {
		if part, ok := hole.overlap(whole); ok {
			news = append(news, part)
		}
	}
	if above, ok := whole.overlap(Range{mark.High + 1, whole.To}); ok {
		news = append(news, above)
	}
	return news
}

// change is what a batch has changed about the gaps of its boot.
type change struct {
	opened    *Range  // a gap
	explained bool    // the node accounts for it, and for all others
	filled    []Range // parts of earlier gaps, whose clicks have come now
	settled   []Range // earlier gaps for which the node accounts now
	givenUp   []Range // too many: what comes late is taken for a duplicate
}

// handled notes a batch. What comes before the first batch of a boot is no
// gap: the consumer may have begun in the middle.
func (m marks) handled(b *Batch) (c change) {
	end := b.First + b.Count // behind the last
	key := bootKey{b.Node, b.Boot}
	mark := m[key]
	if mark == nil {
		key.node = strings.Clone(b.Node) // which is a part of the message
		mark = &Mark{Node: key.node, Boot: b.Boot, Begin: b.First, High: b.First - 1, Base: b.lost(int64(b.First)-1, -int64(b.Count))}
		if b.First > 1 {
			mark.Missing = []Range{{1, b.First - 1}}
		}
		m[key] = mark
	}
	mark.Ended = mark.Ended || b.Ledger.Final
	if b.Stored.After(mark.Seen) {
		mark.Seen = b.Stored
	}
	_, missing := mark.gaps()
	wasExplained := missing <= mark.Lost

	if b.Count > 0 {
		c.filled = mark.fill(Range{b.First, end - 1})
	}
	if b.First > mark.High+1 {
		c.opened = &Range{mark.High + 1, b.First - 1}
		mark.Missing = append(mark.Missing, *c.opened)
	}
	mark.High = max(mark.High, end-1)
	if lost := b.lost(int64(end)-1, 0) - mark.Base; lost > int64(mark.Lost) {
		mark.Lost = uint64(lost)
	}
	gaps, missing := mark.gaps()
	c.explained = missing <= mark.Lost
	if c.explained && !wasExplained {
		c.settled = slices.DeleteFunc(gaps, func(r Range) bool { return c.opened != nil && r == *c.opened })
	}
	c.givenUp = mark.bound()
	return c
}

// lost is how many of the clicks up to a sequence the node counts as lost after
// they had got one: those that its ledger, corrected by some clicks, does not
// have as recorded. Without a ledger: 0.
func (b *Batch) lost(upTo, correction int64) int64 {
	if b.Ledger.Recorded == 0 && b.Ledger.Answered == 0 {
		return 0
	}
	return upTo - (int64(b.Ledger.Recorded) + correction)
}

// gaps are the missing ranges that are gaps, and how many clicks they hold.
func (m *Mark) gaps() (ranges []Range, clicks uint64) {
	ranges = m.Missing
	for len(ranges) > 0 && ranges[0].From < m.Begin { // more than one where some of it has come
		ranges = ranges[1:]
	}
	for _, r := range ranges {
		clicks += r.Len()
	}
	return slices.Clone(ranges), clicks
}

// unread is how many clicks below Begin may be missing that the node had not counted as
// lost by then.
func (m *Mark) unread() (clicks uint64) {
	for _, r := range m.Missing {
		if r.From < m.Begin {
			clicks += r.Len()
		}
	}
	return clicks - min(clicks, uint64(max(0, m.Base)))
}

// fill takes a range out of what is missing, and gives the parts that were in
// gaps.
func (m *Mark) fill(whole Range) (filled []Range) {
	if len(m.Missing) == 0 {
		return nil
	}
	var left []Range
	for _, hole := range m.Missing {
		part, ok := hole.overlap(whole)
		if !ok {
			left = append(left, hole)
			continue
		}
		if part.From >= m.Begin {
			filled = append(filled, part)
		}
		if hole.From < part.From {
			left = append(left, Range{hole.From, part.From - 1})
		}
		if part.To < hole.To {
			left = append(left, Range{part.To + 1, hole.To})
		}
	}
	m.Missing = left
	return filled
}

// bound gives up the oldest ranges when they are too many.
func (m *Mark) bound() (givenUp []Range) {
	if n := len(m.Missing) - maxMissing; n > 0 {
		givenUp = slices.Clone(m.Missing[:n])
		m.Missing = slices.Delete(m.Missing, 0, n)
	}
	return givenUp
}
