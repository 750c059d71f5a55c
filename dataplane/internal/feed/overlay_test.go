package feed

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// resource gives the entry of any resource.
func resource(t testing.TB, r *linkv1.Resource) *feedv1.Entry {
	t.Helper()
	key, err := link.Name(r)
	if err != nil {
		t.Fatal(err)
	}
	value, err := link.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return &feedv1.Entry{Key: key, Value: value}
}

func linkEntry(t testing.TB, l *linkv1.Link) *feedv1.Entry {
	t.Helper()
	return resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}})
}

func affiliateEntry(t testing.TB, id string, state linkv1.AffiliateState, fallback string) *feedv1.Entry {
	t.Helper()
	return resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id, State: state, Fallback: fallback}}})
}

func takeDown(revision int64, entries ...*feedv1.Entry) *feedv1.SubscribeResponse {
	return &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_TakeDown{TakeDown: &feedv1.TakeDown{Version: version(revision), Entries: entries}}}
}

func deleted(path string) *feedv1.Entry { return &feedv1.Entry{Key: "links/go.test" + path} }

// snapshotOf is a whole state of any entries in frames.
func snapshotOf(v *linkv1.Version, entries ...*feedv1.Entry) []*feedv1.SubscribeResponse {
	var hash link.SetHash
	size := 0
	for _, e := range entries {
		hash = hash.Add(link.HashEntry([]byte(e.GetKey()), e.GetValue()))
		size += len(e.GetKey()) + len(e.GetValue())
	}
	return []*feedv1.SubscribeResponse{
		{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{Version: v, Entries: int64(len(entries)), Bytes: int64(size)}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{Entries: entries}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: v, Entries: int64(len(entries)), SetHash: hashProto(hash)}}},
	}
}

// decide asks the live table as a redirect does.
func decide(live *table.Live, host, path string) (string, link.Outcome) {
	var m link.Match
	var d link.Decision
	live.Load().Lookup([]byte(host), []byte(path), &m)
	link.Resolve(&m, &link.Request{Host: []byte(host), Path: []byte(path)}, &d)
	return string(d.Location), d.Outcome
}

func wantAnswer(t *testing.T, live *table.Live, path, location string, outcome link.Outcome) {
	t.Helper()
	if l, o := decide(live, "go.test", path); l != location || o != outcome {
		t.Errorf("%s goes to %q (%v), want %q (%v)", path, l, o, location, outcome)
	}
}

func (p *peer) wantTakenDown(revision int64) {
	p.t.Helper()
	if m := p.answer(); m.GetTakenDown().GetVersion().GetRevision() != revision {
		p.t.Fatalf("the node answered %v, not that it took down %d", m, revision)
	}
}

func TestTakeDownOvertakesAndIsDroppedOnceItsVersionIsServed(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b", "/c": "https://x.test/c"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	off := linkEntry(t, &linkv1.Link{Domain: "go.test", Path: "/b", Destination: "https://x.test/b", Disabled: true, Fallback: "https://x.test/sorry"})
	p.send(takeDown(12, deleted("/a"), off))
	p.wantTakenDown(12)
	refused := func() {
		t.Helper()
		wantAnswer(t, n.live, "/a", "", link.ToNotFound)
		wantAnswer(t, n.live, "/b", "https://x.test/sorry", link.IsDisabled)
		wantAnswer(t, n.live, "/c", "https://x.test/c", link.ToDestination)
	}
	refused()
	if v := n.live.Load().Version(); v.Revision != 10 {
		t.Errorf("a take-down changes the version to %v", v)
	}
	// An older version than the take-down's does not end it, and is checked
	// against what was verified.
	p.send(s.delta(10, 11, map[string]string{"/d": "https://x.test/d"}))
	p.wantApplied(11)
	refused()
	// Nor does another stream, which goes on with what was verified.
	p.end <- nil
	p = c.accept()
	if p.hello.GetVersion().GetRevision() != 11 || hashOf(p.hello.GetSetHash()) != s.hash() {
		t.Fatalf("the node said %v", p.hello)
	}
	refused()
	if got := n.metrics.takenDown.Load(); got != 2 {
		t.Errorf("%d are said to be taken down", got)
	}
	// The file has what was verified.
	n.stop()
	held, err := readFile(filepath.Join(dir, currentName))
	if err != nil || held.Hash() != s.hash() {
		t.Fatalf("the file has another state: %v", err)
	}
	n = startNode(t, dir, c.address)
	p = c.accept()
	refused()                                // what the control plane has perhaps forgotten
	p.send(takeDown(12, deleted("/a"), off)) // it says it again
	p.wantTakenDown(12)
	refused()
	// The version that holds it, and makes another one of a link.
	p.send(s.delta(11, 13, map[string]string{"/a": "https://x.test/a2", "/b": ""}))
	p.wantApplied(13)
	wantAnswer(t, n.live, "/a", "https://x.test/a2", link.ToDestination)
	wantAnswer(t, n.live, "/b", "", link.ToNotFound)
	wantHolds(t, n.live, 13, s)
	if got := n.metrics.takenDown.Load(); got != 0 || n.live.Load() != verified(n.live) {
		t.Errorf("%d are taken down still", got)
	}
	// One that is served already is acknowledged, and no more.
	p.send(takeDown(12, deleted("/a")), takeDown(13, deleted("/a")))
	p.wantTakenDown(12)
	p.wantTakenDown(13)
	wantAnswer(t, n.live, "/a", "https://x.test/a2", link.ToDestination)
}

func TestTakeDownInsideASnapshotAppliesToIt(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	frames := s.snapshot(10)
	p.send(frames[0], frames[1])
	p.send(takeDown(12, deleted("/a")), takeDown(10, deleted("/b")))
	p.wantTakenDown(12)
	p.wantTakenDown(10)
	p.send(frames[2:]...)
	p.wantApplied(10)
	wantAnswer(t, n.live, "/a", "", link.ToNotFound)
	wantAnswer(t, n.live, "/b", "https://x.test/b", link.ToDestination)
}

func TestTakeDownOfAnAffiliateRefusesItsLinks(t *testing.T) {
	const active, suspended = linkv1.AffiliateState_AFFILIATE_STATE_ACTIVE, linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED
	for name, down := range map[string]struct {
		entry    *feedv1.Entry
		location string
	}{
		"suspended":                   {affiliateEntry(t, "aff_1", suspended, "https://x.test/sorry"), "https://x.test/sorry"},
		"deleted":                     {&feedv1.Entry{Key: "affiliates/aff_1"}, ""},
		"active, against the promise": {affiliateEntry(t, "aff_1", active, ""), ""},
		"damaged":                     {&feedv1.Entry{Key: "affiliates/aff_1", Value: []byte("nonsense")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			live := &table.Live{}
			a := newApplier(live, Guard{})
			for _, f := range snapshotOf(version(10),
				affiliateEntry(t, "aff_1", active, ""),
				linkEntry(t, &linkv1.Link{Domain: "go.test", Path: "/a", Destination: "https://x.test/a", Affiliate: "aff_1"}),
				linkEntry(t, &linkv1.Link{Domain: "go.test", Path: "/b", Destination: "https://x.test/b"}),
			) {
				a.take(wire(t, f))
			}
			wantAnswer(t, live, "/a", "https://x.test/a", link.ToDestination)
			if o := a.take(wire(t, takeDown(11, down.entry))); o.takenDown == nil {
				t.Fatalf("outcome %+v", o)
			}
			wantAnswer(t, live, "/a", down.location, link.IsSuspended)
			wantAnswer(t, live, "/b", "https://x.test/b", link.ToDestination)
		})
	}
}

func TestTakeDownOnlyRefuses(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range (state{"/a": "https://x.test/a"}).snapshot(10) {
		a.take(wire(t, f))
	}
	a.take(wire(t, takeDown(11,
		entry("/a", "https://evil.test/"),   // not disabled: it is refused
		entry("/new", "https://evil.test/"), // nor is this put
		&feedv1.Entry{Key: "links/go.test/b", Value: []byte("nonsense")},
		&feedv1.Entry{Key: "links/go.test/c", Value: entry("/a", "https://evil.test/").GetValue()},
		resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: "go.test", NotFound: "https://evil.test/"}}}),
		&feedv1.Entry{Key: "policies/newer", Value: []byte("x")},
		&feedv1.Entry{},
	)))
	for _, path := range []string{"/a", "/new", "/b", "/c", "/d"} {
		wantAnswer(t, live, path, "", link.ToNotFound)
	}
}

func TestTakeDownFollowsPrefixesAndPolicies(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range snapshotOf(version(10),
		resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{
			Host: "go.test", CasePolicy: linkv1.CasePolicy_CASE_POLICY_IGNORE, TrailingSlash: linkv1.TrailingSlashPolicy_TRAILING_SLASH_POLICY_IGNORE,
		}}}),
		entry("/shop/*", "https://x.test/shop"), entry("/shop/sale/*", "https://x.test/sale"), entry("/shop/sale/Shoes", "https://x.test/shoes"),
	) {
		a.take(wire(t, f))
	}
	wantAnswer(t, live, "/SHOP/sale/shoes/", "https://x.test/shoes", link.ToDestination)
	// What answers then is what will answer when the link is gone.
	a.take(wire(t, takeDown(11, deleted("/shop/sale/Shoes"))))
	wantAnswer(t, live, "/SHOP/sale/shoes/", "https://x.test/sale/shoes/", link.ToDestination)
	a.take(wire(t, takeDown(12, linkEntry(t, &linkv1.Link{Domain: "go.test", Path: "/shop/sale/*", Destination: "https://x.test/sale", Disabled: true}))))
	wantAnswer(t, live, "/shop/Sale/shoes", "", link.IsDisabled)
	wantAnswer(t, live, "/shop/other", "https://x.test/shop/other", link.ToDestination)
	a.take(wire(t, takeDown(13, deleted("/shop/sale/*"), deleted("/shop/*"))))
	wantAnswer(t, live, "/shop/other", "", link.ToNotFound)
}

// shownOf gives what the live table has of blocks and policies: the reason of a
// block, and whether a policy is off.
func shownOf(live *table.Live) map[string]string {
	shown := map[string]string{}
	for key, value := range live.Load().All() {
		if r, err := link.Unmarshal(string(key), value); err != nil {
			shown[string(key)] = "damaged"
		} else if r.GetBlock() != nil {
			shown[string(key)] = r.GetBlock().GetReason()
		} else if r.GetPolicy() != nil {
			shown[string(key)] = fmt.Sprint("off: ", r.GetPolicy().GetOff())
		}
	}
	return shown
}

func blockEntry(t testing.TB, id, reason string) *feedv1.Entry {
	t.Helper()
	return resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
		Id: id, Match: &linkv1.Block_Prefix{Prefix: "192.0.2.0/24"}, Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE, Reason: reason,
	}}})
}

func policyEntry(t testing.TB, off bool) *feedv1.Entry {
	t.Helper()
	return resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Off: off}}})
}

func TestBlocksAndPoliciesOvertakeAsTheyAre(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range snapshotOf(version(10), blockEntry(t, "a", "flood"), blockEntry(t, "b", "by mistake"), policyEntry(t, false)) {
		a.take(wire(t, f))
	}
	verified := live.Load()
	for _, step := range []struct {
		entries []*feedv1.Entry
		want    string
	}{
		{[]*feedv1.Entry{policyEntry(t, true)}, "map[blocks/a:flood blocks/b:by mistake policies/*:off: true]"},
		{[]*feedv1.Entry{{Key: "blocks/b"}, blockEntry(t, "c", "new")}, "map[blocks/a:flood blocks/c:new policies/*:off: true]"},
		{[]*feedv1.Entry{blockEntry(t, "a", "changed"), {Key: "blocks/none"}}, "map[blocks/a:changed blocks/c:new policies/*:off: true]"},
		// What cannot be served changes nothing: what stands goes on.
		{[]*feedv1.Entry{
			{Key: "blocks/a", Value: []byte("nonsense")},
			{Key: "policies/*", Value: []byte{0xff}},
			{Key: "blocks/d", Value: blockEntry(t, "a", "of another").GetValue()},
			resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "e", Reason: "blocks nothing"}}}),
			resource(t, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "f", Reason: "all", Match: &linkv1.Block_Prefix{Prefix: "0.0.0.0/0"}}}}),
		}, "map[blocks/a:changed blocks/c:new policies/*:off: true]"},
		{[]*feedv1.Entry{{Key: "policies/*"}, {Key: "blocks/c"}}, "map[blocks/a:changed]"},
	} {
		revision := int64(11 + len(a.down.refusals))
		if o := a.take(wire(t, takeDown(revision, step.entries...))); o.takenDown == nil {
			t.Fatalf("outcome %+v", o)
		}
		if got := fmt.Sprint(shownOf(live)); got != step.want {
			t.Errorf("revision %d shows %s, want %s", revision, got, step.want)
		}
	}
	if live.Load().Verified() != verified {
		t.Error("what was verified has changed")
	}
}

func TestTakeDownOfAnotherEpochWaitsForIt(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{})
	s := state{"/a": "https://x.test/a"}
	for _, f := range s.snapshot(10) {
		a.take(wire(t, f))
	}
	other := &linkv1.Version{Epoch: epoch + 1, Revision: 5}
	a.take(wire(t, takeDown(12, deleted("/none"))))
	a.take(wire(t, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_TakeDown{TakeDown: &feedv1.TakeDown{Version: other, Entries: []*feedv1.Entry{deleted("/a")}}}}))
	wantAnswer(t, live, "/a", "https://x.test/a", link.ToDestination)
	for _, f := range snapshotOf(&linkv1.Version{Epoch: epoch + 1, Revision: 4}, entry("/a", "https://x.test/a")) {
		a.take(wire(t, f))
	}
	wantAnswer(t, live, "/a", "", link.ToNotFound)
	if len(a.down.refusals) != 1 {
		t.Errorf("%d are taken down, those of the epoch that is left included", len(a.down.refusals))
	}
}

func TestTooManyTakeDownsAreNotAcknowledged(t *testing.T) {
	o := overlay{}
	large := make([]byte, 1<<20)
	n := 0
	for ; n < 1000; n++ {
		if o.add(fmt.Sprint("links/go.test/", n), refusal{table.Version{Epoch: 1, Revision: 1}, large}) != nil {
			break
		}
	}
	if n == 1000 || o.size > maxTakenDownBytes || len(o.refusals) != n {
		t.Fatalf("%d of %d bytes are kept", n, o.size)
	}
	o.drop(table.Version{Epoch: 1, Revision: 1})
	if o.size != 0 || len(o.refusals) != 0 {
		t.Errorf("%d of %d bytes are left", len(o.refusals), o.size)
	}
}

// TestShownStateIsTheHeldOneWithWhatIsTakenDown compares the applier with a model
// over random versions, take-downs and deltas that skip some of the versions.
func TestShownStateIsTheHeldOneWithWhatIsTakenDown(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const paths = 12
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range (state{}).snapshot(1) {
		a.take(wire(t, f))
	}
	states := []state{nil, {}} // by revision
	held := 1
	downs := map[string]int{} // the revision of the latest take-down that was sent, by path
	for range 3000 {
		if r.IntN(2) == 0 { // a write
			s := maps.Clone(states[len(states)-1])
			path := fmt.Sprint("/", r.IntN(paths))
			if s[path] != "" && r.IntN(2) == 0 {
				delete(s, path)
				states = append(states, s)
				downs[path] = len(states) - 1
				if o := a.take(wire(t, takeDown(int64(len(states)-1), deleted(path)))); o.takenDown == nil {
					t.Fatal(o)
				}
			} else {
				s[path] = fmt.Sprint("https://x.test/", r.IntN(1000))
				states = append(states, s)
			}
		} else if to := held + r.IntN(len(states)-held); to > held { // some of what is missed
			s, d := states[to], &feedv1.Delta{From: version(int64(held)), To: version(int64(to)), Entries: int64(len(states[to])), SetHash: hashProto(states[to].hash())}
			for path, destination := range s {
				if states[held][path] != destination {
					d.Puts = append(d.Puts, entry(path, destination))
				}
			}
			for path := range states[held] {
				if s[path] == "" {
					d.Deletes = append(d.Deletes, "links/go.test"+path)
				}
			}
			if o := a.take(wire(t, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: d}})); o.applied == nil {
				t.Fatal(o.rejection)
			}
			held = to
		}
		for i := range paths {
			path := fmt.Sprint("/", i)
			want := states[held][path]
			if downs[path] > held {
				want = ""
			}
			if got, _ := decide(live, "go.test", path); got != want {
				t.Fatalf("at revision %d, with %s taken down at %d: it goes to %q, want %q", held, path, downs[path], got, want)
			}
		}
		if err := holds(live, int64(held), states[held]); err != nil && live.Load() == verified(live) {
			t.Fatal(err)
		}
	}
}

// FuzzTakeDown takes any take-down: nobody is sent anywhere new by it.
func FuzzTakeDown(f *testing.F) {
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	base := heldTable(f, s)
	for _, e := range [][]*feedv1.Entry{
		{deleted("/a")},
		{entry("/a", "https://y.test/")},
		{{Key: "affiliates/x"}},
		{linkEntry(f, &linkv1.Link{Domain: "go.test", Path: "/b", Destination: "https://x.test/b", Disabled: true})},
		{blockEntry(f, "a", "flood"), policyEntry(f, true), {Key: "blocks/b"}},
	} {
		b, _ := proto.Marshal(&feedv1.TakeDown{Version: version(11), Entries: e})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m feedv1.TakeDown
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		live := &table.Live{}
		live.Store(base)
		a := newApplier(live, Guard{})
		a.takeDown(&m, nil)
		if verified(live) != base || base.Hash() != s.hash() {
			t.Fatal("what was verified has changed")
		}
		for _, path := range []string{"/a", "/b"} {
			to, outcome := decide(live, "go.test", path)
			if outcome == link.ToDestination && to != s[path] {
				t.Fatalf("%s goes to %q", path, to)
			}
		}
	})
}
