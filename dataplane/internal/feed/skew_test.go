package feed

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// ofLaterRelease is a link with a policy that a later release may have.
func ofLaterRelease(t *testing.T, path string) *feedv1.Entry {
	t.Helper()
	return linkEntry(t, &linkv1.Link{Domain: "go.test", Path: path, Destination: "https://x.test/a", Rest: linkv1.RestPolicy(99)})
}

// newer are entries of a release that this one does not know, or that are wrong.
func newer(t *testing.T) []*feedv1.Entry {
	t.Helper()
	return []*feedv1.Entry{
		ofLaterRelease(t, "/later/*"), affiliateEntry(t, "aff_1", linkv1.AffiliateState(99), ""),
		{Key: "links/go.test/damaged", Value: []byte("\xff")},
		{Key: "links/go.test/empty"},
		{Key: "policies/p1", Value: []byte("of a later release")},
	}
}

func TestEntriesThatCannotBeServedSpoilNoOthers(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	all := append(newer(t), entry("/a", "https://x.test/a"))
	p.send(snapshotOf(version(10), all...)...)
	p.wantApplied(10)
	wantAnswer(t, n.live, "/a", "https://x.test/a", link.ToDestination)
	for _, path := range []string{"/later/x", "/damaged", "/empty"} {
		wantAnswer(t, n.live, path, "", link.ToNotFound)
	}
	for {
		m, err := p.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if s := m.GetStatus(); s.GetVersion() != nil {
			if s.GetUnservedEntries() != 5 || s.GetLinks() != 1 {
				t.Errorf("the status is %v", s)
			}
			break
		}
	}
	// One that was served, becomes one that is not, and is again.
	was := n.live.Load()
	worse := ofLaterRelease(t, "/a")
	step := func(from int64, e *feedv1.Entry, old []byte) {
		t.Helper()
		hash := was.Hash().Sub(link.HashEntry([]byte(e.GetKey()), old)).Add(link.HashEntry([]byte(e.GetKey()), e.GetValue()))
		p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: &feedv1.Delta{
			From: version(from), To: version(from + 1), Puts: []*feedv1.Entry{e}, SetHash: hashProto(hash), Entries: int64(was.Len()),
		}}})
		p.wantApplied(from + 1)
		was = n.live.Load()
	}
	better := entry("/a", "https://x.test/a")
	step(10, worse, better.GetValue())
	wantAnswer(t, n.live, "/a", "", link.ToNotFound)
	step(11, better, worse.GetValue())
	wantAnswer(t, n.live, "/a", "https://x.test/a", link.ToDestination)
	step(12, worse, better.GetValue())
	n.stop()

	// They are in the file, for a later release.
	held, err := readFile(filepath.Join(dir, currentName))
	if err != nil {
		t.Fatal(err)
	}
	if held.Hash() != was.Hash() || held.Unserved() != 6 || held.Links() != 0 || held.LinkEntries() != 4 {
		t.Errorf("the file has %d entries that are not served and %d links", held.Unserved(), held.Links())
	}
	log := n.logs.String()
	if strings.Count(log, "held and not served") != 1 || !strings.Contains(log, "links/go.test/later/*") || !strings.Contains(log, "is no policy") {
		t.Errorf("the log does not say once which entry is not served and why:\n%s", log)
	}
}

func TestFramesOfANewerControlPlaneArePassedOver(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	frames := s.snapshot(10)
	p.send(frames[:2]...)
	p.send(unknownFrame()) // in the middle of a snapshot as well
	p.send(frames[2:]...)
	p.wantApplied(10)
	// Fields that it has added are no error either.
	d := s.delta(10, 11, map[string]string{"/b": "https://x.test/b"})
	d.GetDelta().ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), []byte("x")))
	p.send(unknownFrame(), d)
	p.wantApplied(11)
	wantHolds(t, n.live, 11, s)
	if n.metrics.frames[kindOther][resultOK].Load() != 2 {
		t.Error("they are not counted")
	}
}

// unknownFrame is a frame of a kind that this release does not know.
func unknownFrame() *feedv1.SubscribeResponse {
	m := &feedv1.SubscribeResponse{}
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 77, protowire.BytesType), []byte("later")))
	return m
}

func TestChunkInZstandardIsTaken(t *testing.T) {
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b", "/c": "https://x.test/c"}
	frames := s.snapshot(10)
	plain, _ := proto.Marshal(frames[1].GetSnapshotChunk())
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frames[1] = &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{
		Compressed: w.EncodeAll(plain, nil), Compression: feedv1.Compression_COMPRESSION_ZSTD,
	}}}
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range frames {
		a.take(wire(t, f))
	}
	wantHolds(t, live, 10, s)
	bomb := w.EncodeAll(make([]byte, maxDecompressed+1), nil)
	if _, err := unzstd(bomb, nil); err == nil {
		t.Error("a chunk of any size is unpacked")
	}
}

func TestAnotherEpochIsTakenOnceAndNeverGoneBackTo(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	next := &linkv1.Version{Epoch: epoch + 1, Revision: 4}
	p.send(snapshotOf(next, entry("/new", "https://x.test/new"))...)
	p.wantApplied(4)
	wantAnswer(t, n.live, "/new", "https://x.test/new", link.ToDestination)
	p.send(s.snapshot(11)...)
	if r := p.wantRejected(feedv1.RejectCode_REJECT_CODE_OLDER); !strings.Contains(r.GetReason(), "affctl fleet new-epoch") {
		t.Errorf("the cure is missing: %s", r.GetReason())
	}
	if !n.metrics.refusesOlder.Load() {
		t.Error("no alarm")
	}
	n.stop()

	n = startNode(t, dir, c.address)
	p = c.accept()
	if v := p.hello.GetVersion(); v.GetEpoch() != epoch+1 || v.GetRevision() != 4 {
		t.Fatalf("after a restart the node holds %v", v)
	}
	p.send(s.snapshot(11)...)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_OLDER)
	p.send(snapshotOf(&linkv1.Version{Epoch: epoch + 2, Revision: 1}, entry("/new", "https://x.test/new"))...)
	p.wantApplied(1)
	if n.metrics.refusesOlder.Load() {
		t.Error("the alarm goes on")
	}
}

func TestNodeComesBackWhenItIsToldTo(t *testing.T) {
	full, free := startControl(t), startControl(t)
	n := startNode(t, "", full.address, free.address)
	s := state{"/a": "https://x.test/a"}
	const after = 30 * time.Millisecond
	var sent time.Time
	for {
		select {
		case p := <-full.peers:
			sent = time.Now()
			p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{RetryLater: &feedv1.RetryLater{After: durationpb.New(after), Reason: "no room"}}})
			continue
		case p := <-free.peers:
			if waited := time.Since(sent); !sent.IsZero() && waited < after {
				t.Errorf("the node came after %v", waited)
			}
			p.send(s.snapshot(10)...)
			p.wantApplied(10)
			if sent.IsZero() {
				p.end <- nil
				p := full.accept()
				sent = time.Now()
				p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{RetryLater: &feedv1.RetryLater{After: durationpb.New(after)}}})
				free.accept()
				if waited := time.Since(sent); waited < after {
					t.Errorf("the node came after %v", waited)
				}
			}
		}
		break
	}
	wantHolds(t, n.live, 10, s)
}

func TestNodesThatWereSentAwayTogetherDoNotComeBackTogether(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		for after, atLeast := range map[time.Duration]time.Duration{time.Second: time.Second, -1: minLater, 1000 * time.Hour: maxLater} {
			w := (&laterError{after: after}).wait()
			if w < atLeast || w > atLeast+atLeast/2 {
				t.Fatalf("told to come after %v, the node comes after %v", after, w)
			}
			seen[w] = true
		}
	}
	if len(seen) < 100 {
		t.Errorf("there are %d different times", len(seen))
	}
}

func TestNodeRaisesTheAlarmWhenEveryControlPlaneIsBehind(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	p.end <- nil
	behind := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Head: version(9), Reason: "restored"}}}
	for range minBehind {
		if n.metrics.refusesOlder.Load() {
			t.Fatal("the alarm is early: a control plane may be behind for a moment")
		}
		c.accept().send(behind)
	}
	p = c.accept()
	if !n.metrics.refusesOlder.Load() || !strings.Contains(n.logs.String(), "affctl fleet new-epoch") {
		t.Errorf("no alarm: %s", n.logs)
	}
	wantHolds(t, n.live, 10, s)
	p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(11)
	if n.metrics.refusesOlder.Load() {
		t.Error("the alarm goes on")
	}
}
