package clickstream

import (
	"cmp"
	"slices"
	"sync"
)

// Marks remember which clicks have been handled: for each boot of each node
// the highest sequence, and what is missing below it. They make a consumer
// exact: a click is handled when it is neither missing nor above the highest.
//
// A batch can come late, behind its successors, when the stream has refused
// it for a while; that is why the highest sequence alone is not enough.
//
// All methods are safe for concurrent use. The zero value is ready.
type Marks struct {
	mu    sync.Mutex
	boots map[bootKey]*Mark
}

type bootKey struct {
	node string
	boot Hex
}

// Mark is what is known about one boot of one node.
type Mark struct {
	Node    string  `json:"node"`
	Boot    Hex     `json:"boot"`
	High    uint64  `json:"high"`              // highest sequence handled
	Missing []Range `json:"missing,omitempty"` // below it, in order
}

// Range is sequences, both ends included.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// NewMarks begins with marks that All gave before.
func NewMarks(saved ...Mark) *Marks {
	m := &Marks{boots: make(map[bootKey]*Mark, len(saved))}
	for _, mark := range saved {
		mark.Missing = slices.Clone(mark.Missing)
		m.boots[bootKey{mark.Node, mark.Boot}] = &mark
	}
	return m
}

// All are the marks, ordered by node and boot.
func (m *Marks) All() []Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Mark, 0, len(m.boots))
	for _, mark := range m.boots {
		c := *mark
		c.Missing = slices.Clone(c.Missing)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Mark) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Boot, b.Boot)) })
	return all
}

// news says which parts of a batch have not been handled, in order.
func (m *Marks) news(b *Batch) []Range {
	n := uint64(len(b.Clicks))
	if n == 0 {
		return nil
	}
	whole := Range{b.First, b.First + n - 1}
	m.mu.Lock()
	defer m.mu.Unlock()
	mark := m.boots[bootKey{b.Node, b.Boot}]
	if mark == nil {
		return []Range{whole}
	}
	var news []Range
	for _, gap := range mark.Missing {
		if part := (Range{max(gap.From, whole.From), min(gap.To, whole.To)}); part.From <= part.To {
			news = append(news, part)
		}
	}
	if above := (Range{max(mark.High+1, whole.From), whole.To}); above.From <= above.To {
		news = append(news, above)
	}
	return news
}

// handled notes a batch, and gives the gap that it has opened and the parts of
// earlier gaps that it has filled. What comes before the first batch of a boot
// is no gap: the consumer may have begun in the middle.
func (m *Marks) handled(b *Batch) (opened *Range, filled []Range) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boots == nil {
		m.boots = make(map[bootKey]*Mark)
	}
	end := b.First + uint64(len(b.Clicks)) // behind the last
	if b.First == 0 || end < b.First {
		return nil, nil // no sequences that a node would give
	}
	key := bootKey{b.Node, b.Boot}
	mark := m.boots[key]
	if mark == nil {
		mark = &Mark{Node: b.Node, Boot: b.Boot}
		if b.First > 1 {
			mark.Missing = []Range{{1, b.First - 1}}
		}
		mark.High = end - 1
		m.boots[key] = mark
		return nil, nil
	}
	var left []Range
	for _, gap := range mark.Missing {
		part := Range{max(gap.From, b.First), min(gap.To, end-1)}
		if part.From > part.To {
			left = append(left, gap)
			continue
		}
		filled = append(filled, part)
		if gap.From < part.From {
			left = append(left, Range{gap.From, part.From - 1})
		}
		if part.To < gap.To {
			left = append(left, Range{part.To + 1, gap.To})
		}
	}
	if b.First > mark.High+1 {
		opened = &Range{mark.High + 1, b.First - 1}
		left = append(left, *opened)
	}
	mark.Missing = left
	mark.High = max(mark.High, end-1)
	return opened, filled
}
