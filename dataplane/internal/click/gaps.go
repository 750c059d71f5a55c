package click

import "sync/atomic"

// gap is a run of sequences whose clicks are gone for one reason.
type gap struct {
	from, to uint64 // to is the one behind
	reason   DropReason
}

// counts are clicks, by DropReason.
type counts [reasons]atomic.Uint64

// miss notes that the clicks from one sequence up to another, which is not among
// them, cannot be read. Each counts once, however many cursors pass it; what was
// acknowledged before is not missing. The caller holds the mutex.
//
// Cursors start at what is acknowledged, so that none is the first behind a gap
// that another will be the first to pass.
func (l *Log) miss(from, to uint64) {
	from = max(from, l.passed, l.Acknowledged()+1)
	if from >= to {
		return
	}
	l.passed = to
	for from < to {
		end, memory := l.boot.inMemory(from, to)
		reason := Corrupt
		if memory {
			reason = LostMemory
		}
		l.gaps = append(l.gaps, gap{from, end, reason})
		l.found(reason, end-from)
		from = end
	}
}

// missTail counts the damaged clicks behind the last whole one, which may never
// have got a sequence. The caller holds the mutex.
func (l *Log) missTail() {
	if !l.tailCounted {
		l.tailCounted = true
		l.found(Corrupt, l.tail)
	}
}

// found counts what this process has found missing of an earlier boot. The running
// one's ledger has its own.
func (l *Log) found(reason DropReason, clicks uint64) {
	if l.missed != nil {
		l.missed[reason].Add(clicks)
	}
}

// settle moves what is missing up to a sequence, which is about to be acknowledged,
// to the boot's own account: cursors that start behind it will not pass it, in this
// process and in the next. A process that dies before the acknowledgement counts it
// again.
func (l *Log) settle(sequence uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.gaps) > 0 && l.gaps[0].from <= sequence {
		g := &l.gaps[0]
		to := min(g.to, sequence+1)
		l.Lose(g.reason, to-g.from)
		if g.from = to; g.from < g.to {
			return
		}
		l.gaps = l.gaps[1:]
	}
}

// account is what the boot has lost: of the sequences that lie before one, those
// without a click, and all that was dropped, by reason.
func (l *Log) account(before uint64) (lost uint64, dropped [reasons]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, dropped = l.boot.lost.Load(), l.dropped()
	for _, g := range l.gaps {
		if to := min(g.to, before); to > g.from {
			lost += to - g.from
			dropped[g.reason] += to - g.from
		}
	}
	return lost, dropped
}
