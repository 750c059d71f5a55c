package feed

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// kind is what a message was, as a metric label.
type kind uint8

const (
	kindOther kind = iota // of a newer release
	kindDelta
	kindSnapshot // from Begin to End
	kindHeartbeat
	kindBehind
	kinds
)

func (k kind) String() string {
	return [kinds]string{"other", "delta", "snapshot", "heartbeat", "behind"}[k]
}

// outcome is what became of a message. At most one of the pointers is set; none
// is when a snapshot is still under way.
type outcome struct {
	kind      kind
	applied   *table.Table // what is live now
	rejection *rejection
	heartbeat *feedv1.Heartbeat
	behind    *feedv1.Behind
	err       error // the message cannot even be answered
}

// rejection is why a frame was not applied. The live table is as before.
type rejection struct {
	version table.Version // that it would have led to
	code    feedv1.RejectCode
	reason  string
}

// applier turns messages into tables. It is used by one goroutine.
type applier struct {
	live *table.Live
	snap *incoming
	buf  []byte // what chunks are decompressed into
	list []pair // what they hold
}

// incoming is a snapshot under way.
type incoming struct {
	version  table.Version
	builder  *table.Builder // nil: rejected, the rest is passed over
	entries  int64          // that were announced
	bytes    int64
	gotBytes int64
}

// reset forgets a snapshot under way: a new stream begins.
func (a *applier) reset() { a.snap = nil }

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
		return a.begin(f.SnapshotBegin)
	case *feedv1.SubscribeResponse_SnapshotEnd:
		return a.end(f.SnapshotEnd)
	case *feedv1.SubscribeResponse_Heartbeat:
		return outcome{kind: kindHeartbeat, heartbeat: f.Heartbeat}
	case *feedv1.SubscribeResponse_Behind:
		return outcome{kind: kindBehind, behind: f.Behind}
	}
	return outcome{kind: kindOther}
}

// reject makes the outcome of a frame that is not taken.
func reject(k kind, v table.Version, code feedv1.RejectCode, format string, args ...any) outcome {
	return outcome{kind: k, rejection: &rejection{version: v, code: code, reason: fmt.Sprintf(format, args...)}}
}

// delta applies a Delta.
func (a *applier) delta(b []byte) outcome {
	a.snap = nil
	d, err := decodeDelta(b)
	no := func(code feedv1.RejectCode, format string, args ...any) outcome {
		return reject(kindDelta, d.to, code, format, args...)
	}
	if err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	held := a.live.Load()
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
	var puts []pair
	var deletes [][]byte
	err = eachField(b, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case fieldDeltaPuts:
			key, value, err := decodeEntry(b)
			puts = append(puts, pair{key, value})
			return err
		case fieldDeltaDeletes:
			deletes = append(deletes, b)
		}
		return nil
	})
	if err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "delta: %v", err)
	}
	builder := held.Edit()
	for _, key := range deletes {
		if !builder.Delete(key) {
			return no(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, "delta deletes %.300q, which the node does not hold", key)
		}
	}
	if err := putAll(builder, puts); err != nil {
		return no(feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, "delta: %v", err)
	}
	if int64(builder.Len()) != d.entries || builder.Hash() != d.hash {
		return no(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, "after the delta there are %d entries with set hash %016x%016x, not %d with %016x%016x",
			builder.Len(), builder.Hash().Hi, builder.Hash().Lo, d.entries, d.hash.Hi, d.hash.Lo)
	}
	return a.swap(kindDelta, builder, d.to)
}

// swap makes what was built live.
func (a *applier) swap(k kind, builder *table.Builder, v table.Version) outcome {
	t := builder.Build(v)
	a.live.Store(t)
	return outcome{kind: k, applied: t}
}

const (
	// maxEntries and maxBytes bound what a snapshot may announce.
	maxEntries = 1 << 28
	maxBytes   = 32 << 30
	// maxHint bounds what is made room for before anything has come.
	maxHint = 4 << 20
)

// begin begins a snapshot. One that was under way is forgotten.
func (a *applier) begin(m *feedv1.SnapshotBegin) outcome {
	v := versionOf(m.GetVersion())
	a.snap = &incoming{version: v, entries: m.GetEntries(), bytes: m.GetBytes()}
	held := heldVersion(a.live)
	switch {
	case v.Epoch == 0 || v.Revision <= 0:
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot without a version")
	case held.Epoch != 0 && (v.Epoch != held.Epoch || v.Revision < held.Revision):
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_OLDER, "snapshot of epoch %016x revision %d, the node holds epoch %016x revision %d",
			v.Epoch, v.Revision, held.Epoch, held.Revision)
	case m.GetEntries() < 0 || m.GetEntries() > maxEntries || m.GetBytes() < 0 || m.GetBytes() > maxBytes:
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot of %d entries and %d bytes: at most %d and %d are taken",
			m.GetEntries(), m.GetBytes(), maxEntries, maxBytes)
	}
	a.snap.builder = table.NewBuilder(int(min(m.GetEntries(), maxHint)))
	return outcome{kind: kindSnapshot}
}

// fail rejects the snapshot under way.
func (a *applier) fail(code feedv1.RejectCode, format string, args ...any) outcome {
	a.snap.builder = nil
	return reject(kindSnapshot, a.snap.version, code, format, args...)
}

// chunk puts a part of a snapshot beside the live table.
func (a *applier) chunk(b []byte) outcome {
	if a.snap == nil {
		return outcome{kind: kindSnapshot, err: fmt.Errorf("frame: a part of a snapshot that did not begin")}
	}
	s := a.snap
	if s.builder == nil {
		return outcome{kind: kindSnapshot}
	}
	plain, buf, err := decodeChunk(b, a.buf)
	a.buf = buf
	if err != nil {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "chunk: %v", err)
	}
	a.list, err = appendEntries(a.list[:0], plain)
	if err != nil {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "chunk: %v", err)
	}
	for _, e := range a.list {
		s.gotBytes += int64(len(e.key) + len(e.value))
	}
	if s.gotBytes > s.bytes {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "more than the %d bytes that were announced", s.bytes)
	}
	if err := putAll(s.builder, a.list); err != nil {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, "snapshot: %v", err)
	}
	if int64(s.builder.Len()) > s.entries {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "more than the %d entries that were announced", s.entries)
	}
	return outcome{kind: kindSnapshot}
}

// end verifies a snapshot and makes it live.
func (a *applier) end(m *feedv1.SnapshotEnd) outcome {
	s := a.snap
	a.snap = nil
	if s == nil {
		return outcome{kind: kindSnapshot, err: fmt.Errorf("frame: the end of a snapshot that did not begin")}
	}
	if s.builder == nil {
		return outcome{kind: kindSnapshot}
	}
	a.buf, a.list = nil, nil
	if versionOf(m.GetVersion()) != s.version {
		return reject(kindSnapshot, s.version, feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot began as revision %d and ends as %d",
			s.version.Revision, m.GetVersion().GetRevision())
	}
	if hash := hashOf(m.GetSetHash()); int64(s.builder.Len()) != m.GetEntries() || s.builder.Hash() != hash {
		return reject(kindSnapshot, s.version, feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH,
			"the snapshot has %d entries with set hash %016x%016x, not %d with %016x%016x",
			s.builder.Len(), s.builder.Hash().Hi, s.builder.Hash().Lo, m.GetEntries(), hash.Hi, hash.Lo)
	}
	return a.swap(kindSnapshot, s.builder, s.version)
}
