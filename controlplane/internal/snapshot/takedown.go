package snapshot

import (
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// TakeDown is what one revision takes down, for nodes that cannot be sent the
// revision itself at once. It is shared by streams and never changes.
type TakeDown struct {
	Revision int64
	// A serialized feedv1.SubscribeResponse.
	Message []byte

	names   []string
	entries int
}

// Wholly says whether a revision did nothing but take down.
func (d *TakeDown) wholly(changes int) bool { return d.entries == changes }

const (
	// maxDowns is how many resources the take-downs in a view name: the oldest
	// are forgotten, none of which a version that is served does not have. Nodes
	// that connect are told no more than these.
	maxDowns = 10_000
	// downsPerSecond is how fast the lane is filled again, up to maxDowns. What
	// does not fit waits for its version as all else does: a lane that held
	// everything would overtake nothing.
	downsPerSecond = 1000
	// fewDowns is what a person, and not a program that tidies up, takes down
	// at once: the half of the lane is kept for them.
	fewDowns = 8
	// maxHeldDeletes is how many links may be deleted by the lane while a
	// version is held back, perhaps because somebody deletes by mistake.
	maxHeldDeletes = 1000
)

// lane decides what is a take-down. It belongs to the log's writer.
type lane struct {
	room   float64
	filled time.Time
	// Since a version is held back: what nodes that connect have to be told, and how
	// many links of it are deleted.
	waiting, deletes int
}

// admit says whether a revision that takes down n resources, and deletes some
// of them, goes by the lane.
func (l *lane) admit(n, deletes int, held bool, now time.Time) bool {
	l.room = min(l.room+downsPerSecond*now.Sub(l.filled).Seconds(), maxDowns)
	if l.filled.IsZero() {
		l.room = maxDowns
	}
	l.filled = now
	if !held {
		l.waiting, l.deletes = 0, 0
	}
	least := 0
	if n > fewDowns {
		least = maxDowns / 2
	}
	switch {
	case float64(n) > l.room-float64(least), l.waiting+n > maxDowns-least:
		return false
	case held && deletes > 0 && (deletes > fewDowns || l.deletes+deletes > maxHeldDeletes):
		return false
	}
	l.room -= float64(n)
	if held {
		l.waiting += n
		l.deletes += deletes
	}
	return true
}

// takenDown finds what changes take down: links that are deleted or become
// disabled, affiliates that become suspended. Blocks and policies go with them,
// whatever was done to them: what is blocked by mistake must be free as soon as
// what is sold by mistake is gone. It gives their indexes, and how many are
// deletions of links.
func takenDown(changes []change, olds []entry, now time.Time) (down []int, deletes int) {
	for i := range changes {
		c := &changes[i]
		switch {
		case strings.HasPrefix(c.key, linkPrefix):
			switch {
			case olds[i] == "":
			case c.entry == "":
				down = append(down, i)
				deletes++
			case disabled(c.entry) && !disabled(olds[i]):
				down = append(down, i)
			}
		case strings.HasPrefix(c.key, affiliatePrefix):
			if c.entry != "" && suspended(c.entry) && (olds[i] == "" || !suspended(olds[i])) {
				down = append(down, i)
			}
		case strings.HasPrefix(c.key, policyPrefix),
			strings.HasPrefix(c.key, blockPrefix) && (c.entry != "" || !ended(olds[i], now)):
			down = append(down, i)
		}
	}
	return down, deletes
}

var (
	linkPrefix      = link.Links.Prefix()
	affiliatePrefix = link.Affiliates.Prefix()
	blockPrefix     = link.Blocks.Prefix()
	policyPrefix    = link.Policies.Prefix()
)

// Field numbers of aff.link.v1 that are read by hand, of entries that need not
// be decoded otherwise.
const (
	fieldResourceLink      = 1
	fieldResourceAffiliate = 3
	fieldResourceBlock     = 4
	fieldLinkDisabled      = 15
	fieldAffiliateState    = 2
	fieldBlockExpireTime   = 9
	fieldSeconds           = 1 // of a google.protobuf.Timestamp
)

// endSlack is how far the clocks of this replica and of whoever wrote a block may
// be apart.
const endSlack = 5 * time.Second

// ended says whether a block that is deleted had come to its end. Nodes have let
// go of it by themselves, so that its deletion, which may be one of many
// thousands of a list, need not overtake anything.
func ended(e entry, now time.Time) bool {
	if e == "" {
		return true // there was none
	}
	_, value := e.split()
	end := bytesField(bytesField(bytesOf(value), fieldResourceBlock), fieldBlockExpireTime)
	if len(end) == 0 {
		return false
	}
	seconds := int64(varint(end, fieldSeconds)) //nolint:gosec // as protobuf writes negative ones
	return time.Unix(seconds, 0).Before(now.Add(endSlack))
}

func disabled(e entry) bool {
	_, value := e.split()
	return varint(bytesField(bytesOf(value), fieldResourceLink), fieldLinkDisabled) != 0
}

func suspended(e entry) bool {
	_, value := e.split()
	state := varint(bytesField(bytesOf(value), fieldResourceAffiliate), fieldAffiliateState)
	return state == uint64(linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED)
}

// bytesField and varint give the last occurrence of a field in a message, or
// nothing if there is none or the message is damaged.
func bytesField(message []byte, number protowire.Number) (value []byte) {
	eachField(message, func(num protowire.Number, typ protowire.Type, b []byte) {
		if num == number && typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b)
		}
	})
	return value
}

func varint(message []byte, number protowire.Number) (value uint64) {
	eachField(message, func(num protowire.Number, typ protowire.Type, b []byte) {
		if num == number && typ == protowire.VarintType {
			value, _ = protowire.ConsumeVarint(b)
		}
	})
	return value
}

func eachField(message []byte, f func(protowire.Number, protowire.Type, []byte)) {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(num, typ, message[n:])
		if size < 0 {
			return
		}
		f(num, typ, message[n:n+size])
		message = message[n+size:]
	}
}

// newTakeDown encodes a take-down of some of the changes of a revision.
func newTakeDown(epoch uint64, revision int64, changes []change, down []int) *TakeDown {
	at := encodeVersion(epoch, revision)
	body := appendBytes(nil, fieldTakeDownVersion, at)
	d := &TakeDown{Revision: revision, entries: len(down)}
	for _, i := range down {
		c := &changes[i]
		e := c.entry.wire()
		if e == "" {
			e = string(appendBytes(nil, fieldEntryKey, bytesOf(c.key)))
		}
		body = appendBytes(body, fieldTakeDownEntries, bytesOf(e))
		d.names = append(d.names, c.key)
	}
	d.Message = appendBytes(make([]byte, 0, len(body)+8), fieldTakeDown, body)
	return d
}

// withDown gives take-downs with one more, and without the oldest where there
// would be too many. downs is not changed.
func withDown(downs []*TakeDown, d *TakeDown) []*TakeDown {
	total := d.entries
	from := len(downs)
	for from > 0 && total+downs[from-1].entries <= maxDowns {
		from--
		total += downs[from].entries
	}
	if from == 0 {
		return append(downs, d) // older views end before it
	}
	return append(append(make([]*TakeDown, 0, 2*(len(downs)-from+1)), downs[from:]...), d)
}
