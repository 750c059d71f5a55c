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
	// Earlier is how many clicks the node counted as dropped from First to Last that
	// are from before: they are not in Dropped. Unsure is how many of them are not
	// known as missing there, since nothing was read from so long before: they may
	// be in the stream as well. Only Accounts fills these.
	Earlier uint64 `json:"earlier,omitempty"`
	Unsure  uint64 `json:"unsure,omitempty"`

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
	// Missing is how many clicks up to High are missing, of those behind the first
	// that was read of the boot, and Lost how many of these the node counted as
	// lost by then. Unread is how many before that one it may still count.
	Missing uint64 `json:"missing,omitempty"`
	Lost    uint64 `json:"lost,omitempty"`
	Unread  uint64 `json:"unread,omitempty"`
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

// Undecided says that clicks are missing, that the node counts as many as dropped, and
// that others are missing outside of what is asked for. No ledger says which it counts.
func (a *Account) Undecided() bool { return len(a.Missing) > 0 && !a.Explained && a.Difference() <= 0 }

// Accounts are those of all boots of which something was read, by node and in
// the order of their boots' ids.
func (a *Audit) Accounts() []Account {
	all := slices.DeleteFunc(a.State(), func(account Account) bool { return !account.Seen })
	for i := range all {
		all[i].settle()
	}
	return all
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
			account.Base = Base{High: b.First - 1, Answered: b.Ledger.Answered - min(b.Ledger.Answered, b.Count), Dropped: b.Ledger.Dropped}
		}
		a.boots[key] = account
	}
	if part == lead {
		account.Base.High, account.Base.Lost = mark.High, mark.Lost
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
	if possible := account.gaps(mark, a.Whole, part); possible && part == trail {
		account.explain(&b.Ledger)
	}
}

// gaps takes what is missing, and whether the node accounts for it. possible says that it
// may, though it may as well account for others that are missing.
func (a *Account) gaps(mark *Mark, whole bool, part part) (possible bool) {
	gaps, missing := mark.gaps()
	lost := mark.Lost
	if whole {
		gaps, missing, lost = mark.Missing, 0, lost+uint64(max(0, mark.Base))
		for _, gap := range gaps {
			missing += gap.Len()
		}
	} else {
		a.Base.Unread = mark.unread()
	}
	a.Missing, a.Base.Missing = nil, 0
	var within uint64
	for _, gap := range gaps {
		if due, ok := gap.overlap(Range{a.Base.High + 1, a.Last}); ok {
			a.Missing = append(a.Missing, due)
			within += due.Len()
		}
		if before, ok := gap.overlap(Range{1, a.Base.High}); ok {
			a.Base.Missing += before.Len()
		}
	}
	// Once all that is missing is explained, what is missing behind that changes nothing.
	a.Explained = a.Explained && part == trail || missing > 0 && missing <= lost
	return a.Explained || within <= lost-a.Base.Lost
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
		if reason == spoolFull {
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

// settle takes out of Dropped what is from before what is asked for. No ledger says which
// clicks it counts; but what is more than what is missing can only be one of these, as
// long as there are any, or is in the stream.
func (a *Account) settle() {
	due := uint64(max(0, -a.Difference()))
	known := a.Base.Missing - min(a.Base.Missing, a.Base.Lost)
	due = min(due, known+a.Base.Unread)
	a.Dropped = maps.Clone(a.Dropped)
	for _, reason := range slices.Sorted(maps.Keys(a.Dropped)) {
		if reason == spoolFull {
			continue
		}
		n := min(due-a.Earlier, a.Dropped[reason])
		a.Earlier += n
		if a.Dropped[reason] -= n; a.Dropped[reason] == 0 {
			delete(a.Dropped, reason)
		}
	}
	a.Unsure = a.Earlier - min(a.Earlier, known)
}

// older says that a message with this ledger was published again, behind another
// one's answered and dropped: neither ever gets less.
func older(l *Ledger, answered uint64, dropped map[string]uint64) bool {
	return l.Answered < answered || l.Answered == answered && sum(l.Dropped) < sum(dropped)
}
