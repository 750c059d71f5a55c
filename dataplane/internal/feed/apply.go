package feed

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// kind is what a message was, as a metric label.
type kind uint8

const (
	kindOther kind = iota // of a newer release
	kindDelta
	kindSnapshot // from Begin to End
	kindHeartbeat
	kindBehind
	kindTakeDown
	kindRetryLater
	kinds
)

func (k kind) String() string {
	return [kinds]string{"other", "delta", "snapshot", "heartbeat", "behind", "take_down", "retry_later"}[k]
}

// outcome is what became of a message. At most one of the pointers is set; none
// is when a snapshot is still under way.
type outcome struct {
	kind       kind
	applied    *table.Table // what is verified now
	unserved   unserved     // of that, what came with the frame
	write      urgency      // of the file
	rejection  *rejection
	heartbeat  *feedv1.Heartbeat
	behind     *feedv1.Behind
	takenDown  *linkv1.Version // what is to be acknowledged
	guarded    error           // why a part of a take-down waits for its version
	retryLater *feedv1.RetryLater
	err        error // the message cannot even be answered
}

// rejection is why a frame was not applied. The live table is as before.
type rejection struct {
	version table.Version // that it would have led to
	code    feedv1.RejectCode
	reason  string
}

// applier turns messages into tables. It is used by one goroutine.
type applier struct {
	live   *table.Live
	guard  Guard
	down   overlay
	kept   *downLog // of down, and of what a start may lack
	past   *epochs
	wire   *tripwire
	tail   *journal
	keeper *keeper // nil: no folder
	snap   *incoming
	next   *candidate // nil: none waits
	buf    []byte     // what chunks are decompressed into
	list   []pair     // what they hold
	last   changes
}

// newApplier makes an applier that remembers nothing beyond its process. The
// guard has its defaults.
func newApplier(live *table.Live, guard Guard) applier {
	guard.setDefaults()
	return applier{live: live, guard: guard, past: &epochs{}, wire: &tripwire{}, tail: &journal{}, kept: &downLog{}}
}

// reset forgets a snapshot under way: a new stream begins, or it has ended. As a
// candidate, it is still what the process is at.
func (a *applier) reset() {
	a.snap = nil
	if a.next == nil {
		a.wire.done()
	}
}

// take takes in one message. It keeps nothing of it.
func (a *applier) take(message []byte) outcome {
	var delta, chunk []byte
	small := true
	err := eachField(message, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case fieldFrameDelta:
			delta, small = b, false
		case fieldFrameChunk:
			chunk, small = b, false
		}
		return nil
	})
	switch {
	case err != nil:
		return outcome{err: fmt.Errorf("frame: %w", err)}
	case delta != nil && a.next != nil:
		return outcome{err: errUnanswered}
	case delta != nil:
		return a.delta(delta)
	case chunk != nil:
		return a.chunk(chunk)
	case !small:
		return outcome{err: fmt.Errorf("frame: %w", errWire)}
	}
	var m feedv1.SubscribeResponse
	if err := proto.Unmarshal(message, &m); err != nil {
		return outcome{err: fmt.Errorf("frame: %w", err)}
	}
	switch f := m.GetFrame().(type) {
	case *feedv1.SubscribeResponse_SnapshotBegin:
		if a.next != nil {
			return outcome{err: errUnanswered}
		}
		return a.begin(f.SnapshotBegin)
	case *feedv1.SubscribeResponse_SnapshotEnd:
		return a.end(f.SnapshotEnd)
	case *feedv1.SubscribeResponse_Heartbeat:
		return outcome{kind: kindHeartbeat, heartbeat: f.Heartbeat}
	case *feedv1.SubscribeResponse_Behind:
		return outcome{kind: kindBehind, behind: f.Behind}
	case *feedv1.SubscribeResponse_TakeDown:
		return a.takeDown(f.TakeDown, message)
	case *feedv1.SubscribeResponse_RetryLater:
		return outcome{kind: kindRetryLater, retryLater: f.RetryLater}
	}
	return outcome{kind: kindOther}
}

// errUnanswered ends a stream on which a frame comes before the one before it was
// answered.
var errUnanswered = errors.New("frame: the snapshot before it has no answer yet")

// reject makes the outcome of a frame that is not taken.
func reject(k kind, v table.Version, code feedv1.RejectCode, format string, args ...any) outcome {
	return outcome{kind: k, rejection: &rejection{version: v, code: code, reason: fmt.Sprintf(format, args...)}}
}

// delta applies a Delta.
func (a *applier) delta(b []byte) outcome {
	defer a.wire.done()
	a.snap = nil
	d, err := decodeDelta(b)
	no := func(code feedv1.RejectCode, format string, args ...any) outcome {
		return reject(kindDelta, d.to, code, format, args...)
	}
	if err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	held := verified(a.live)
	switch {
	case held == nil:
		return no(feedv1.RejectCode_REJECT_CODE_WRONG_BASE, "delta from revision %d, the node holds nothing", d.from.Revision)
	case d.from != held.Version():
		return no(feedv1.RejectCode_REJECT_CODE_WRONG_BASE, "delta from epoch %016x revision %d, the node holds epoch %016x revision %d",
			d.from.Epoch, d.from.Revision, held.Version().Epoch, held.Version().Revision)
	case d.to.Epoch != d.from.Epoch || d.to.Revision <= d.from.Revision:
		return no(feedv1.RejectCode_REJECT_CODE_OLDER, "delta from epoch %016x revision %d to epoch %016x revision %d",
			d.from.Epoch, d.from.Revision, d.to.Epoch, d.to.Revision)
	}
	if err := a.wire.arm(d.to); err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	defer a.last.forget()
	if err := a.last.read(b); err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	puts, deletes := a.last.puts, a.last.deletes
	err = holdable(puts)
	if err == nil {
		err = a.last.unique()
	}
	if err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	builder := held.Edit()
	removed := 0
	for _, key := range deletes {
		if !builder.Delete(key) {
			return no(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, "delta deletes %.300q, which the node does not hold", key)
		}
		if isLink(key) {
			removed++
		}
	}
	var left unserved
	if err := putAll(builder, puts, a.guard.MaxEntryBytes, &left); err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, "delta: %v", err)
	}
	if int64(builder.Len()) != d.entries || builder.Hash() != d.hash {
		return no(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, "after the delta there are %d entries with set hash %016x%016x, not %d with %016x%016x",
			builder.Len(), builder.Hash().Hi, builder.Hash().Lo, d.entries, d.hash.Hi, d.hash.Lo)
	}
	if err := a.guard.size(int64(builder.Len()), int64(builder.Size())); err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "after the delta there are %v", err)
	}
	if !d.released {
		if err := a.guard.change(held, builder, removed); err != nil {
			return guarded(kindDelta, d.to, err)
		}
	}
	write := inTime
	if a.tail.add(d.to, b) {
		write = soon
	}
	return outcome{kind: kindDelta, applied: a.publish(builder.Build(d.to)), unserved: left, write: write}
}

// publish makes a verified table live, but for what was taken down.
func (a *applier) publish(t *table.Table) *table.Table {
	a.leave(t.Version())
	a.down.drop(t.Version())
	a.live.Store(a.down.over(t))
	return t
}

// leave notes that the epoch of the live state is left, if it is not that of the next
// one.
func (a *applier) leave(next table.Version) {
	if held := heldVersion(a.live); held.Epoch != 0 && held.Epoch != next.Epoch && !a.past.has(held.Epoch) {
		a.past.add(held.Epoch)
	}
}
