package feed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestNodeAppliesSnapshotAndDeltas(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	if p.hello.GetNode() != "n1" || p.hello.GetRegion() != "r1" || p.hello.GetVersion() != nil {
		t.Fatalf("the node said %v", p.hello)
	}
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b", "/c": "https://x.test/c"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	<-n.Ready()
	wantHolds(t, n.live, 10, s)
	p.send(s.delta(10, 12, map[string]string{"/a": "", "/b": "https://x.test/b2", "/d": "https://x.test/d"}))
	p.wantApplied(12)
	wantHolds(t, n.live, 12, s)
}

func TestNodeIsReadyOnceItServesTheHeadThatItWasTold(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(heartbeat(12, time.Second))
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	p.send(heartbeat(13, time.Second)) // later heads do not put it off
	select {
	case <-n.Ready():
		t.Fatal("ready at revision 10, when the head was 12")
	default:
	}
	p.send(s.delta(10, 12, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(12)
	<-n.Ready()
}

func TestNodeThatIsReadyWithItsFileHasNotCaughtUp(t *testing.T) {
	dir, c := t.TempDir(), startControl(t)
	n := startNode(t, dir, c.address)
	s := state{"/a": "https://x.test/a"}
	p := c.accept()
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	n.stop()

	n = startNode(t, dir, c.address)
	<-n.Ready()
	p = c.accept()
	p.send(heartbeat(12, time.Second))
	p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(11)
	select {
	case <-n.CaughtUp():
		t.Fatal("it has caught up at revision 11, when the head was 12")
	default:
	}
	p.send(s.delta(11, 12, map[string]string{"/c": "https://x.test/c"}))
	p.wantApplied(12)
	<-n.CaughtUp()
}

func TestNodeIsReadyInAnEpochThatBeginsBeforeItHasCaughtUp(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(heartbeat(12, time.Second))
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	next := &linkv1.Version{Epoch: epoch + 1, Revision: 3}
	p.send(snapshotOf(next, entry("/a", "https://x.test/a"))...)
	p.wantApplied(3)
	p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{Head: next}}})
	select {
	case <-n.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("it is not ready with the newest state of the new epoch")
	}
}

func TestNodeResumesWithWhatItHolds(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	s := state{"/a": "https://x.test/a"}
	p := c.accept()
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	p.end <- nil
	p = c.accept()
	if p.hello.GetVersion().GetRevision() != 10 || hashOf(p.hello.GetSetHash()) != s.hash() {
		t.Fatalf("the node said %v", p.hello)
	}
	p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(11)
	wantHolds(t, n.live, 11, s)
}

func TestNodeRejectsWhatDoesNotVerifyAndKeepsWhatItHas(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	change := func(edit func(*feedv1.Delta)) *feedv1.SubscribeResponse {
		copied := state{"/a": "https://x.test/a"}
		f := copied.delta(10, 11, map[string]string{"/b": "https://x.test/b"})
		edit(f.GetDelta())
		return f
	}
	for name, bad := range map[string]struct {
		code feedv1.RejectCode
		edit func(*feedv1.Delta)
	}{
		"wrong hash":      {feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, func(d *feedv1.Delta) { d.SetHash.Lo++ }},
		"wrong count":     {feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, func(d *feedv1.Delta) { d.Entries++ }},
		"unknown delete":  {feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, func(d *feedv1.Delta) { d.Deletes = []string{"links/go.test/zz"} }},
		"wrong base":      {feedv1.RejectCode_REJECT_CODE_WRONG_BASE, func(d *feedv1.Delta) { d.From.Revision = 9 }},
		"other base":      {feedv1.RejectCode_REJECT_CODE_WRONG_BASE, func(d *feedv1.Delta) { d.From.Epoch++ }},
		"backwards":       {feedv1.RejectCode_REJECT_CODE_OLDER, func(d *feedv1.Delta) { d.To.Revision = 9 }},
		"into epoch":      {feedv1.RejectCode_REJECT_CODE_OLDER, func(d *feedv1.Delta) { d.To.Epoch++ }},
		"key of no kind":  {feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, func(d *feedv1.Delta) { d.Puts[0].Key = "" }},
		"value too long":  {feedv1.RejectCode_REJECT_CODE_BAD_FRAME, func(d *feedv1.Delta) { d.Puts[0].Value = make([]byte, table.MaxHeld+1) }},
		"key too long":    {feedv1.RejectCode_REJECT_CODE_BAD_FRAME, func(d *feedv1.Delta) { d.Puts[0].Key += strings.Repeat("x", table.MaxHeld) }},
		"damaged entry":   {feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, func(d *feedv1.Delta) { d.Puts[0].Value = []byte("nonsense") }},
		"key of another":  {feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, func(d *feedv1.Delta) { d.Puts[0].Key = "links/go.test/other" }},
		"put twice":       {feedv1.RejectCode_REJECT_CODE_BAD_FRAME, func(d *feedv1.Delta) { d.Puts = append(d.Puts, d.Puts[0]) }},
		"put and deleted": {feedv1.RejectCode_REJECT_CODE_BAD_FRAME, func(d *feedv1.Delta) { d.Deletes = append(d.Deletes, d.Puts[0].GetKey()) }},
	} {
		p.send(change(bad.edit))
		r := p.wantRejected(bad.code)
		if bad.code == feedv1.RejectCode_REJECT_CODE_BAD_ENTRY && !strings.Contains(r.GetReason(), "put ") {
			t.Errorf("%s: the reason does not name the key: %s", name, r.GetReason())
		}
		wantHolds(t, n.live, 10, s)
	}
	older := s.snapshot(9)
	p.send(older...)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_OLDER)
	wrong := s.snapshot(11)
	wrong[3].GetSnapshotEnd().SetHash.Hi++
	p.send(wrong...)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH)
	wrong = s.snapshot(11)
	wrong[0].GetSnapshotBegin().Bytes--
	p.send(wrong...)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_BAD_FRAME)
	twice := s.snapshot(11)
	twice[0].GetSnapshotBegin().Entries, twice[0].GetSnapshotBegin().Bytes = 2, 1000
	twice[1].GetSnapshotChunk().Entries = append(twice[1].GetSnapshotChunk().Entries, twice[1].GetSnapshotChunk().Entries...)
	p.send(twice...)
	if r := p.wantRejected(feedv1.RejectCode_REJECT_CODE_BAD_FRAME); !strings.Contains(r.GetReason(), "twice") {
		t.Errorf("the reason is %q", r.GetReason())
	}
	wantHolds(t, n.live, 10, s)
	p.send(s.snapshot(11)...)
	p.wantApplied(11)
	wantHolds(t, n.live, 11, s)
}

func TestNodeLeavesAReplicaThatIsBehind(t *testing.T) {
	good, behind := startControl(t), startControl(t)
	n := startNode(t, "", good.address, behind.address)
	s := state{"/a": "https://x.test/a"}
	for {
		select {
		case p := <-behind.peers:
			p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Head: version(1), Reason: "restarted"}}})
			continue
		case p := <-good.peers:
			p.send(s.snapshot(10)...)
			p.wantApplied(10)
			p.end <- nil
		}
		break
	}
	for range 2 { // whichever is next, it ends at the good one
		select {
		case p := <-behind.peers:
			p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Head: version(1), Reason: "restarted"}}})
		case p := <-good.peers:
			p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
			p.wantApplied(11)
			wantHolds(t, n.live, 11, s)
			return
		}
	}
	t.Fatal("the node did not come back")
}

func TestNodeReconnectsWhenNothingIsHeard(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	c.accept().send(heartbeat(1, 10*time.Millisecond))
	c.accept()
	if !strings.Contains(n.logs.String(), errSilent.Error()) {
		t.Errorf("the log does not say why: %s", n.logs)
	}
}

func TestNodeReportsItsStatus(t *testing.T) {
	c := startControl(t)
	startNode(t, "", c.address)
	m, err := c.accept().stream.Recv()
	if err != nil || m.GetStatus() == nil {
		t.Fatalf("the node said %v, %v", m, err)
	}
}

func TestNodeServesLastKnownGoodWithoutAControlPlane(t *testing.T) {
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	n.stop()
	c.server.Stop()

	n = startNode(t, dir, c.address)
	<-n.Ready()
	wantHolds(t, n.live, 10, s)
	if age := n.metrics.age(); age < 0 || age > 60 {
		t.Errorf("the state is said to be %v s old", age)
	}
}

// saved makes a folder with a current state of revision 11 and a previous one.
func saved(t *testing.T) (dir string, previous state) {
	t.Helper()
	dir = t.TempDir()
	s := state{"/a": "https://x.test/a"}
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	n.stop()
	n = startNode(t, dir, c.address)
	p = c.accept()
	now := state{"/a": "https://x.test/a"}
	p.send(now.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(11)
	n.stop()
	if _, err := readFile(filepath.Join(dir, currentName)); err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestNodeFallsBackToThePreviousFile(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"torn":      func(b []byte) []byte { return b[:len(b)-5] },
		"empty":     func([]byte) []byte { return nil },
		"flipped":   func(b []byte) []byte { b[len(b)-16-3] ^= 1; return b },
		"longer":    func(b []byte) []byte { return append(b, 0) },
		"newer":     func(b []byte) []byte { b[8] = 2; return b },
		"not ours":  func(b []byte) []byte { b[0] = 'X'; return b },
		"a removed": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir, previous := saved(t)
			path := filepath.Join(dir, currentName)
			if damage == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n := startNode(t, dir, "127.0.0.1:1")
			<-n.Ready()
			wantHolds(t, n.live, 10, previous)
			if lines := strings.Count(n.logs.String(), "is not used"); damage != nil && lines != 1 {
				t.Errorf("%d lines say that the file is not used: %s", lines, n.logs)
			}
			n.stop()
			// The previous one was good and stays until there is a better one.
			if _, err := readFile(filepath.Join(dir, previousName)); err != nil {
				t.Errorf("the good file was lost: %v", err)
			}
			if _, err := readFile(path); err != nil {
				t.Errorf("the damaged file was not replaced: %v", err)
			}
		})
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{}, {Targets: []string{"x"}}, {Targets: []string{"x"}, Node: "a b"}, {Targets: []string{"x"}, Node: "a", Region: "r"}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func TestEmptyStateIsAState(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	p.send(state{}.snapshot(3)...)
	p.wantApplied(3)
	if n.live.Load().Hash() != (link.SetHash{}) {
		t.Error("an empty state has a hash")
	}
}
