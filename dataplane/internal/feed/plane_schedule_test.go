package feed

import (
	"strings"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// serve is a replica's end of a stream: a model of the control plane that also
// does what none ever should.
func (w *world) serve(r *modelReplica, p *pipe) {
	first := p.answer()
	if first == nil {
		return
	}
	hello := first.GetHello()
	w.mu.Lock()
	if hello == nil {
		w.fail("a stream begins with %v", first)
	}
	w.check("hello", hello.GetVersion(), hello.GetSetHash())
	held, head, busy := hello.GetVersion().GetRevision(), r.head, r.busy
	w.mu.Unlock()
	switch {
	case busy:
		p.say(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{RetryLater: &feedv1.RetryLater{After: durationpb.New(20 * time.Millisecond)}}})
		p.answer() // the node leaves
		return
	case held > head:
		p.say(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Head: version(head), Reason: "the model says so"}}})
		return
	}
	told := held // take-downs up to this revision were said
	beat := time.Now()
	p.say(heartbeat(head, time.Second))
	for {
		w.pause()
		select {
		case <-p.cut:
			return
		case <-p.ctx.Done():
			return
		default:
		}
		f, ok := w.next(r, held), true
		if f == nil || !f.snapshot || w.draw(2) == 0 { // else while it is taken in
			if told, ok = w.tellDowns(r, p, held, held, told); !ok {
				return
			}
		}
		if f == nil {
			if time.Since(beat) > time.Second {
				beat = time.Now()
				if !p.say(heartbeat(held, time.Second)) {
					return
				}
			}
			continue
		}
		say := func() bool {
			told, ok = w.tellDowns(r, p, held, f.to, told)
			return ok
		}
		if held, ok = w.exchange(p, f, held, say); !ok {
			return
		}
	}
}

// tellDowns says what was taken down in versions that the node does not hold, which is at
// most at another one by now.
func (w *world) tellDowns(r *modelReplica, p *pipe, held, most, told int64) (int64, bool) {
	w.mu.Lock()
	var now []takenDown
	for _, d := range w.downs {
		if d.revision > max(told, held) && d.revision <= r.head {
			now = append(now, d)
		}
	}
	w.mu.Unlock()
	for len(now) > 0 {
		m := &feedv1.TakeDown{Version: version(now[0].revision)}
		for len(now) > 0 && now[0].revision == m.Version.Revision {
			e := &feedv1.Entry{Key: now[0].key}
			if now[0].value != "" {
				e.Value = []byte(now[0].value)
			}
			m.Entries = append(m.Entries, e)
			now = now[1:]
		}
		if !p.say(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_TakeDown{TakeDown: m}}) {
			return told, false
		}
		a := p.answer()
		if a != nil && a.GetTakenDown() == nil { // about the frame that is under way
			p.early = a
			a = p.answer()
		}
		if a == nil {
			return told, false
		}
		w.mu.Lock()
		got := a.GetTakenDown().GetVersion().GetRevision()
		if got != m.Version.Revision && (a.GetTakenDown() == nil || got > m.Version.Revision || !w.leavesToGuard(max(held, most))) {
			w.fail("a take-down of revision %d is answered with %v", m.Version.Revision, a)
		}
		w.refused++
		// What it holds by now need not be refused by an older state.
		w.refuses[m.Version.Revision] = got == m.Version.Revision && m.Version.Revision > p.early.GetApplied().GetVersion().GetRevision()
		w.mu.Unlock()
		told = m.Version.Revision
	}
	return told, true
}

// leavesToGuard says whether behind some state that the node may have held, up to
// the one that it holds, so many links were deleted that it leaves some to their
// versions. w.mu is held.
func (w *world) leavesToGuard(held int64) bool {
	for revision, state := range w.states {
		links, gone := 0, map[string]bool{}
		for key := range state {
			if strings.HasPrefix(key, "links/") {
				links++
			}
		}
		for _, d := range w.downs {
			if d.revision > revision && d.value == "" && strings.HasPrefix(d.key, "links/") {
				gone[d.key] = true
			}
		}
		if revision <= held && links >= floor && len(gone) > links*20/100 {
			return true
		}
	}
	return false
}

// sent is a frame, and what the node has to make of it.
type sent struct {
	messages [][]byte
	to       int64
	snapshot bool
	released bool
	poison   string              // why it must not be taken; "": it is good
	codes    []feedv1.RejectCode // with which it may be rejected
}

// next makes the next frame for a node that holds a revision, nil: none.
func (w *world) next(r *modelReplica, held int64) *sent {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.healed && w.rng.IntN(25) == 0 && len(w.history) > 2 {
		w.poisoned++
		return w.spoiled(held)
	}
	if r.head <= held {
		return nil
	}
	to := r.head
	if w.rng.IntN(2) == 0 {
		to = w.at(held+1, r.head)
	}
	if held == 0 || held < r.base || w.rng.IntN(6) == 0 {
		return w.snapshot(to)
	}
	return w.delta(held, to)
}

// frame collects the messages of a frame.
func frame(f *sent, messages ...*feedv1.SubscribeResponse) *sent {
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		f.messages = append(f.messages, b)
	}
	return f
}

func (w *world) delta(from, to int64) *sent {
	f := &sent{to: to, released: to <= w.released}
	return frame(f, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: w.deltaMessage(from, to, f.released)}})
}

func (w *world) deltaMessage(from, to int64, released bool) *feedv1.Delta {
	before, after := w.states[from], w.states[to]
	d := &feedv1.Delta{From: version(from), To: version(to), SetHash: hashProto(after.hash()), Entries: int64(len(after)), Released: released}
	for _, key := range sortedKeys(before) {
		if _, ok := after[key]; !ok {
			d.Deletes = append(d.Deletes, key)
		}
	}
	for _, key := range sortedKeys(after) {
		if before[key] != after[key] {
			d.Puts = append(d.Puts, &feedv1.Entry{Key: key, Value: []byte(after[key])})
		}
	}
	return d
}

func (w *world) snapshot(to int64) *sent {
	f := &sent{to: to, snapshot: true, released: to <= w.released}
	return frame(f, w.snapshotMessages(to, f.released)...)
}

func (w *world) snapshotMessages(to int64, released bool) []*feedv1.SubscribeResponse {
	state := w.states[to]
	begin := &feedv1.SnapshotBegin{Version: version(to), Entries: int64(len(state)), Released: released}
	chunks := make([]feedv1.SnapshotChunk, 2)
	for i, key := range sortedKeys(state) {
		begin.Bytes += int64(len(key) + len(state[key]))
		c := &chunks[i%2]
		c.Entries = append(c.Entries, &feedv1.Entry{Key: key, Value: []byte(state[key])})
	}
	packed, _ := proto.Marshal(&chunks[1])
	return []*feedv1.SubscribeResponse{
		{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: begin}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{Entries: chunks[0].Entries}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{Compressed: s2.Encode(nil, packed), Compression: feedv1.Compression_COMPRESSION_S2}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: version(to), SetHash: hashProto(state.hash()), Entries: int64(len(state))}}},
	}
}

// spoiled makes a frame that the node must not take.
func (w *world) spoiled(held int64) *sent {
	const older, mismatch, base, bad = feedv1.RejectCode_REJECT_CODE_OLDER, feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH,
		feedv1.RejectCode_REJECT_CODE_WRONG_BASE, feedv1.RejectCode_REJECT_CODE_BAD_FRAME
	to := w.head()
	f := &sent{to: to, released: true}
	if held == 0 || to <= held || w.rng.IntN(3) == 0 {
		f.snapshot = true
		m := w.snapshotMessages(to, true)
		switch w.rng.IntN(4) {
		case 0:
			f.poison, f.codes = "a snapshot without one of its parts", []feedv1.RejectCode{mismatch}
			m = append(m[:1], m[2:]...)
			if len(w.states[to]) == 0 {
				return nil
			}
		case 1:
			f.poison, f.codes = "a snapshot with another set hash", []feedv1.RejectCode{mismatch}
			m[3].GetSnapshotEnd().SetHash.Lo++
		case 2:
			f.poison = "a snapshot that breaks off"
			m = m[:2]
		default:
			if held < 2 {
				return nil
			}
			f.to = w.at(1, held-1)
			f.poison, f.codes = "an older snapshot", []feedv1.RejectCode{older}
			m = w.snapshotMessages(f.to, true)
		}
		return frame(f, m...)
	}
	d := w.deltaMessage(held, to, true)
	switch w.rng.IntN(6) {
	case 0:
		f.poison, f.codes = "a delta with another set hash", []feedv1.RejectCode{mismatch}
		d.SetHash.Hi ^= 1 << 40
	case 1:
		if len(d.Puts)+len(d.Deletes) == 0 {
			return nil
		}
		f.poison, f.codes = "a delta that lacks a change", []feedv1.RejectCode{mismatch}
		if len(d.Puts) > 0 {
			d.Puts = d.Puts[1:]
		} else {
			d.Deletes = d.Deletes[1:]
		}
	case 2:
		f.poison, f.codes = "a delta from another version", []feedv1.RejectCode{base}
		d.From.Revision--
	case 3:
		f.poison, f.codes = "a delta to an older version", []feedv1.RejectCode{older}
		f.to = held - 1
		d.To.Revision = f.to
	case 4:
		if len(d.Puts) == 0 {
			return nil
		}
		f.poison, f.codes = "a delta with a value that never was", []feedv1.RejectCode{mismatch, bad, feedv1.RejectCode_REJECT_CODE_BAD_ENTRY}
		d.Puts[0].Value = []byte(valueOf(0, "never", false))
	default:
		f.poison = "a message that does not decode"
		b, err := proto.Marshal(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: d}})
		if err != nil {
			panic(err)
		}
		f.messages = [][]byte{b[:len(b)-1]}
		return f
	}
	return frame(f, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: d}})
}
