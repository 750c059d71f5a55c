package feed

import (
	"fmt"
	"math"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// incoming is a snapshot under way.
type incoming struct {
	version  table.Version
	builder  *table.Builder // nil: rejected, the rest is passed over
	released bool
	entries  int64 // that were announced
	bytes    int64
	got      int64 // entries that came
	unserved unserved
}

// newBuilder begins a table for so many entries, as was announced. What a builder
// makes room for before anything has come is some megabytes at most; with too low
// a number it outgrows that again and again, and all of it is garbage at the end.
func newBuilder(entries int64) *table.Builder {
	return table.NewBuilder(int(min(entries, math.MaxInt32)))
}

// begin begins a snapshot. One that was under way is forgotten.
func (a *applier) begin(m *feedv1.SnapshotBegin) outcome {
	a.wire.done()
	v := versionOf(m.GetVersion())
	a.snap = &incoming{version: v, entries: m.GetEntries(), bytes: m.GetBytes(), released: m.GetReleased()}
	held := heldVersion(a.live)
	switch {
	case v.Epoch == 0 || v.Revision <= 0:
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot without a version")
	case v.Epoch == held.Epoch && v.Revision < held.Revision:
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_OLDER, "snapshot of revision %d, the node holds revision %d; %s",
			v.Revision, held.Revision, afterRestore)
	case v.Epoch != held.Epoch && a.past.has(v.Epoch):
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_OLDER, "snapshot of epoch %016x, which the node has left for epoch %016x; %s",
			v.Epoch, held.Epoch, afterRestore)
	}
	err := a.guard.size(m.GetEntries(), m.GetBytes())
	if err == nil {
		err = a.wire.arm(v)
	}
	if err != nil {
		return reject(kindSnapshot, v, feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot: %v", err)
	}
	a.snap.builder = newBuilder(m.GetEntries())
	return outcome{kind: kindSnapshot}
}

// afterRestore is the cure where a control plane lost what nodes hold.
const afterRestore = "if etcd was restored from a backup, run: affctl fleet new-epoch"

// fail rejects the snapshot under way.
func (a *applier) fail(code feedv1.RejectCode, format string, args ...any) outcome {
	a.wire.done()
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
	if err == nil {
		a.list, err = appendEntries(a.list[:0], plain)
	}
	if err == nil {
		err = holdable(a.list)
	}
	if err != nil {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "chunk: %v", err)
	}
	if err := putAll(s.builder, a.list, a.guard.MaxEntryBytes, &s.unserved); err != nil {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, "snapshot: %v", err)
	}
	s.got += int64(len(a.list))
	switch {
	case s.got > s.entries:
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "more than the %d entries that were announced", s.entries)
	case int64(s.builder.Len()) < s.got:
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "a key is there twice")
	case int64(s.builder.Size()) > s.bytes:
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "more than the %d bytes that were announced", s.bytes)
	}
	return outcome{kind: kindSnapshot}
}

// end verifies a snapshot and makes it live, or the candidate for that where it takes
// the place of a state.
func (a *applier) end(m *feedv1.SnapshotEnd) outcome {
	s := a.snap
	if s == nil {
		return outcome{kind: kindSnapshot, err: fmt.Errorf("frame: the end of a snapshot that did not begin")}
	}
	defer a.reset()
	if s.builder == nil {
		return outcome{kind: kindSnapshot}
	}
	a.buf, a.list = nil, nil
	if versionOf(m.GetVersion()) != s.version {
		return a.fail(feedv1.RejectCode_REJECT_CODE_BAD_FRAME, "snapshot began as revision %d and ends as %d",
			s.version.Revision, m.GetVersion().GetRevision())
	}
	if hash := hashOf(m.GetSetHash()); int64(s.builder.Len()) != m.GetEntries() || s.builder.Hash() != hash {
		return a.fail(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH,
			"the snapshot has %d entries with set hash %016x%016x, not %d with %016x%016x",
			s.builder.Len(), s.builder.Hash().Hi, s.builder.Hash().Lo, m.GetEntries(), hash.Hi, hash.Lo)
	}
	if held := verified(a.live); held != nil && !s.released {
		if err := a.guard.change(held, s.builder, -1); err != nil {
			return guarded(kindSnapshot, s.version, err)
		}
	}
	next := s.builder.Build(s.version)
	if a.keeper != nil && a.live.Load() != nil {
		a.propose(next, s.unserved)
		return outcome{kind: kindSnapshot}
	}
	return outcome{kind: kindSnapshot, applied: a.publish(next), unserved: s.unserved, write: directly}
}
