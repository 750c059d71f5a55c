package clickstream

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Audit keeps the account of what Consume reads, to prove that nothing is
// missing: for each boot, what the node says it has answered equals the clicks
// that are in the stream and those that the node dropped, by reason. Filters
// of clicks do not matter to it; one by region does.
//
// The zero value is ready. It belongs to Consume until that returns.
type Audit struct {
	// Whole: the stream is read from its beginning and forgets nothing, so that
	// what a boot had before its first message is missing.
	Whole bool

	boots map[bootKey]*Account
}

// Account is the account of one boot of one node, within what was read.
type Account struct {
	Node   string `json:"node"`
	Region string `json:"region"`
	Boot   Hex    `json:"boot"`
	// Answered is the node's own count of redirects, from the first message that
	// was read to the last. For a boot that had begun before, what it had
	// dropped until its first message that was read is not in it.
	Answered uint64            `json:"answered"`
	Dropped  map[string]uint64 `json:"dropped,omitempty"` // the node's own count, by reason
	// Clicks is how many different clicks of it are in the stream.
	Clicks     uint64  `json:"clicks"`
	Duplicates uint64  `json:"duplicates"` // stored once more
	First      uint64  `json:"first"`      // sequences that were read
	Last       uint64  `json:"last"`
	Missing    []Range `json:"missing,omitempty"` // between First and Last
	// Explained: the node counts what is missing as lost after it was recorded.
	Explained bool `json:"explained"`
	// Ended: the boot's last message has come.
	Ended bool `json:"ended"`
	// Open: the ledgers of its messages do not close by themselves.
	Open bool `json:"open,omitempty"`

	// Late is how many clicks from before First have come among the others.
	Late uint64 `json:"late,omitempty"`

	// Base is the account before what is asked for, and Seen says that
	// anything of it was read.
	Base Base `json:"base"`
	Seen bool `json:"seen"`
}

// Base is where an account begins.
type Base struct {
	High     uint64            `json:"high"` // sequence
	Answered uint64            `json:"answered"`
	Dropped  map[string]uint64 `json:"dropped,omitempty"`
}

// Lost is how many clicks the node counts as dropped.
func (a *Account) Lost() uint64 { return sum(a.Dropped) }

func sum(dropped map[string]uint64) (n uint64) {
	for _, clicks := range dropped {
		n += clicks
	}
	return n
}

// Difference is what is answered and neither in the stream nor counted as
// dropped; below zero, what is counted twice. 0: the account closes.
func (a *Account) Difference() int64 { return int64(a.Answered) - int64(a.Clicks) - int64(a.Lost()) }

// Closes says that the account is proven.
func (a *Account) Closes() bool {
	return a.Difference() == 0 && !a.Open && (len(a.Missing) == 0 || a.Explained)
}

// Accounts are those of all boots of which something was read, by node and in
// the order of their boots' ids.
func (a *Audit) Accounts() []Account {
	return slices.DeleteFunc(a.State(), func(account Account) bool { return !account.Seen })
}

// State is all that there is to be kept for Resume: accounts of boots, too, of which
// only what lies before was met.
func (a *Audit) State() []Account {
	var all []Account
	for _, account := range a.boots {
		all = append(all, *account)
	}
	slices.SortFunc(all, func(a, b Account) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.First, b.First), cmp.Compare(a.Boot, b.Boot))
	})
	return all
}

// Resume goes on with what State gave before.
func (a *Audit) Resume(accounts []Account) {
	a.boots = make(map[bootKey]*Account, len(accounts))
	for _, account := range accounts {
		a.boots[bootKey{account.Node, account.Boot}] = &account
	}
}

// note takes a message into account, with what is new of it, after its marks
// have changed.
func (a *Audit) note(b *Batch, news []Range, mark *Mark, part part) {
	if a.boots == nil {
		a.boots = make(map[bootKey]*Account)
	}
	key := bootKey{mark.Node, b.Boot} // b's strings are parts of the message
	account := a.boots[key]
	if account == nil {
		if part == trail {
			return
		}
		account = &Account{Node: mark.Node, Region: strings.Clone(b.Region), Boot: b.Boot}
		if b.First > 1 && part == middle && !a.Whole { // the boot began before
			account.Base = Base{b.First - 1, b.Ledger.Answered - min(b.Ledger.Answered, b.Count), b.Ledger.Dropped}
		}
		a.boots[key] = account
	}
	if part == lead {
		account.Base.High = mark.High
		if !older(&b.Ledger, account.Base.Answered, account.Base.Dropped) {
			account.Base.Answered, account.Base.Dropped = b.Ledger.Answered, b.Ledger.Dropped
		}
		return
	}
	if part == middle {
		account.middle(b, mark)
	}
	for _, r := range news {
		if late, ok := r.overlap(Range{1, account.Base.High}); ok && part == middle {
			account.Late += late.Len()
		}
		if due, ok := r.overlap(Range{account.Base.High + 1, account.Last}); ok {
			account.Clicks += due.Len()
		}
		if part == middle {
			account.Duplicates -= r.Len()
		}
	}
	gaps, missing := mark.gaps()
	lost := mark.Lost
	if a.Whole {
		gaps, missing, lost = mark.Missing, 0, lost+uint64(max(0, mark.Base))
		for _, gap := range gaps {
			missing += gap.Len()
		}
	}
	account.Missing = nil
	for _, gap := range gaps {
		if due, ok := gap.overlap(Range{account.Base.High + 1, account.Last}); ok {
			account.Missing = append(account.Missing, due)
		}
	}
	account.Explained = missing > 0 && missing <= lost
	if account.Explained && part == trail {
		account.explain(&b.Ledger)
	}
}

// middle takes what a message says itself.
func (a *Account) middle(b *Batch, mark *Mark) {
	if !a.Seen {
		a.Seen, a.First = true, b.First
	}
	a.Duplicates += b.Count
	a.Last = max(a.Last, mark.High)
	a.Ended = mark.Ended
	a.ledger(&b.Ledger)
}

// ledger takes the node's own count.
func (a *Account) ledger(l *Ledger) {
	a.Open = a.Open || l.Recorded+sum(l.Dropped) != l.Answered
	next := Ledger{Answered: l.Answered - min(l.Answered, a.Base.Answered), Dropped: maps.Clone(l.Dropped)}
	for reason, before := range a.Base.Dropped {
		if now, ok := next.Dropped[reason]; ok && now > before {
			next.Dropped[reason] = now - before
		} else if ok {
			delete(next.Dropped, reason)
		}
	}
	if !older(&next, a.Answered, a.Dropped) {
		a.Answered, a.Dropped = next.Answered, next.Dropped
	}
}

// explain takes from a ledger behind what is asked for what the node has counted as
// dropped since of the clicks that are missing.
func (a *Account) explain(l *Ledger) {
	var missing uint64
	for _, r := range a.Missing {
		missing += r.Len()
	}
	due := min(missing, uint64(max(0, a.Difference())))
	for _, reason := range slices.Sorted(maps.Keys(l.Dropped)) {
		if reason == "spool_full" { // of clicks that never had a sequence
			continue
		}
		known := a.Base.Dropped[reason] + a.Dropped[reason]
		if since := min(due, l.Dropped[reason]-min(l.Dropped[reason], known)); since > 0 {
			if a.Dropped == nil {
				a.Dropped = make(map[string]uint64)
			}
			a.Dropped[reason] += since
			due -= since
		}
	}
}

// older says that a message with this ledger was published again, behind another
// one's answered and dropped: neither ever gets less.
func older(l *Ledger, answered uint64, dropped map[string]uint64) bool {
	return l.Answered < answered || l.Answered == answered && sum(l.Dropped) < sum(dropped)
}
