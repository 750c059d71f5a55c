package feed

import (
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/proto/aff/afftest"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// grown is a frame as a later release may send it, also within what it compresses.
func grown(t *testing.T, frames ...*feedv1.SubscribeResponse) []*feedv1.SubscribeResponse {
	t.Helper()
	for _, f := range frames {
		if chunk := f.GetSnapshotChunk(); chunk.GetCompressed() != nil {
			plain, err := s2.Decode(nil, chunk.Compressed)
			if err != nil {
				t.Fatal(err)
			}
			var inner feedv1.SnapshotChunk
			if err := proto.Unmarshal(plain, &inner); err != nil {
				t.Fatal(err)
			}
			afftest.Grow(inner.ProtoReflect())
			if plain, err = proto.Marshal(&inner); err != nil {
				t.Fatal(err)
			}
			chunk.Compressed = s2.Encode(nil, plain)
		}
		afftest.Grow(f.ProtoReflect())
	}
	return frames
}

// grownEntry is the entry of a resource as a later release may store it.
func grownEntry(t *testing.T, r *linkv1.Resource) *feedv1.Entry {
	t.Helper()
	e := resource(t, r)
	afftest.Grow(r.ProtoReflect())
	value, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	e.Value = value
	return e
}

func ruledLink(path string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.test", Path: path, Destination: "https://x.test" + path, Rules: []*linkv1.Rule{{When: `country == "DE"`, Outcome: &linkv1.Rule_Destination{Destination: "https://x.test/de"}}},
	}}}
}

// served is a node that serves revision 10: /a and /b.
func served(t *testing.T) (*control, *node, *peer, state) {
	t.Helper()
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	return c, n, p, s
}

// What a later release says in messages that this one has, is what it says without what
// it has added. A kind of message that this one does not have is passed over.
func TestNodeFollowsAControlPlaneOfALaterRelease(t *testing.T) {
	behind := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Head: version(9), Reason: "restored"}}}
	full := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{RetryLater: &feedv1.RetryLater{After: durationpb.New(time.Millisecond)}}}
	for name, says := range map[string]func(*testing.T, *control, *node, *peer, state){
		"snapshot": func(t *testing.T, _ *control, n *node, p *peer, s state) {
			s["/c"] = "https://x.test/c"
			p.send(grown(t, s.snapshot(11)...)...)
			p.wantApplied(11)
			wantHolds(t, n.live, 11, s)
		},
		"delta": func(t *testing.T, _ *control, n *node, p *peer, s state) {
			p.send(grown(t, s.delta(10, 11, map[string]string{"/a": "", "/c": "https://x.test/c"}))...)
			p.wantApplied(11)
			wantHolds(t, n.live, 11, s)
		},
		"take-down": func(t *testing.T, _ *control, n *node, p *peer, _ state) {
			p.send(grown(t, takeDown(11, deleted("/a")))...)
			p.wantTakenDown(11)
			wantAnswer(t, n.live, "/a", "", link.ToNotFound)
		},
		"heartbeat": func(t *testing.T, c *control, _ *node, p *peer, s state) {
			p.send(grown(t, heartbeat(10, 10*time.Millisecond))...)
			p = c.accept() // for it has believed the interval
			p.send(s.delta(10, 11, map[string]string{"/c": "https://x.test/c"}))
			p.wantApplied(11)
		},
		"behind": func(t *testing.T, c *control, _ *node, p *peer, _ state) {
			p.send(grown(t, behind)...)
			c.accept()
		},
		"retry later": func(t *testing.T, c *control, _ *node, p *peer, _ state) {
			p.send(grown(t, full)...)
			c.accept()
		},
		"unknown messages, also between those of a snapshot": func(t *testing.T, _ *control, n *node, p *peer, s state) {
			p.send(unknownFrame(), unknownFrame())
			for _, f := range s.snapshot(11) {
				p.send(unknownFrame(), f)
			}
			p.wantApplied(11) // and nothing is said to these
			wantHolds(t, n.live, 11, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, n, p, s := served(t)
			says(t, c, n, p, s)
		})
	}
}

// All that a node holds counts for its set hash, byte by byte.
func TestNodeServesResourcesThatALaterReleaseHasWritten(t *testing.T) {
	affiliate := func(state linkv1.AffiliateState) *linkv1.Resource {
		return &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "aff_1", State: state}}}
	}
	known := []*linkv1.Resource{
		ruledLink("/a"), ruledLink("/b"), affiliate(linkv1.AffiliateState_AFFILIATE_STATE_ACTIVE),
		{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: "go.test", NotFound: "https://x.test/none"}}},
		{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b1", Reason: "test", Match: &linkv1.Block_Prefix{Prefix: "192.0.2.1"}}}},
		{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Off: true}}},
	}
	var entries []*feedv1.Entry
	for _, r := range known {
		entries = append(entries, grownEntry(t, r))
	}
	entries = append(entries,
		&feedv1.Entry{Key: "campaigns/summer", Value: afftest.Unknown()},      // a kind that this release does not know
		&feedv1.Entry{Key: "links/go.test/strange", Value: afftest.Unknown()}, // of one, under the name of a link
	)
	const kinds = 2
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	p.send(grown(t, snapshotOf(version(10), entries...)...)...)
	p.wantApplied(10)
	held := n.live.Load()
	if held.Len() != len(entries) || held.Unserved() != kinds || held.Links() != 2 {
		t.Errorf("of %d entries, %d are held, %d of them not served; %d links", len(entries), held.Len(), held.Unserved(), held.Links())
	}
	wantAnswer(t, n.live, "/a", "https://x.test/a", link.ToDestination)

	more := []*feedv1.Entry{grownEntry(t, ruledLink("/c")), grownEntry(t, affiliate(linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED))}
	hash := held.Hash().Sub(link.HashEntry([]byte(entries[2].GetKey()), entries[2].GetValue()))
	hash = hash.Sub(link.HashEntry([]byte(entries[6].GetKey()), entries[6].GetValue()))
	for _, e := range more {
		hash = hash.Add(link.HashEntry([]byte(e.GetKey()), e.GetValue()))
	}
	p.send(grown(t, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: &feedv1.Delta{
		From: version(10), To: version(11), Puts: more, Deletes: []string{entries[6].GetKey()}, SetHash: hashProto(hash), Entries: int64(len(entries)),
	}}})...)
	p.wantApplied(11)
	if held = n.live.Load(); held.Hash() != hash || held.Unserved() != kinds-1 {
		t.Errorf("after the delta, %d entries are not served", held.Unserved())
	}
	wantAnswer(t, n.live, "/c", "https://x.test/c", link.ToDestination)

	off := ruledLink("/a")
	off.GetLink().Disabled = true
	p.send(grown(t, takeDown(12, grownEntry(t, off), &feedv1.Entry{Key: "campaigns/winter", Value: afftest.Unknown()}))...)
	p.wantTakenDown(12)
	if _, o := decide(n.live, "go.test", "/a"); o == link.ToDestination {
		t.Error("a link that was taken down is served")
	}
}

// A control plane from before take-downs, releases and rejoining: it does not say first
// which version is to be reached, and has no field that came since.
func TestNodeFollowsAControlPlaneOfAnEarlierRelease(t *testing.T) {
	_, n, p, s := served(t)
	select {
	case <-n.Ready(): // there was no heartbeat
	case <-time.After(20 * time.Second):
		t.Fatal("the node is not ready")
	}
	p.send(s.delta(10, 11, map[string]string{"/a": "", "/c": "https://x.test/c"}))
	p.wantApplied(11)
	wrong := s.delta(11, 12, map[string]string{"/d": "https://x.test/d"})
	wrong.GetDelta().SetHash.Lo++
	p.send(wrong)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH)
	p.send(s.snapshot(12)...)
	p.wantApplied(12)
	wantHolds(t, n.live, 12, s)
	p.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{Head: version(12)}}}) // without an interval
	p.send(s.delta(12, 13, map[string]string{"/d": ""}))
	p.wantApplied(13)
	wantHolds(t, n.live, 13, s)
}
