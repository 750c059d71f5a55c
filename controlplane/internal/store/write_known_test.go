package store

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// follower knows what the watch has said, or all that it said at random earlier
// moments.
type follower struct {
	mu     sync.Mutex
	now    map[string]Known
	past   map[string][]Known
	seen   int64
	behind bool
}

// followed makes a store know what it writes, as a replica does.
func followed(t *testing.T, s *Store, behind bool) *follower {
	t.Helper()
	f := &follower{now: make(map[string]Known), past: make(map[string][]Known), behind: behind}
	after, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.seen = after
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for batch, err := range s.Watch(ctx, after) {
			if err != nil {
				return
			}
			f.take(batch)
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	s.Know(f.known)
	return f
}

func (f *follower) take(batch Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range batch.Changes {
		k := Known{}
		if c.Value != nil {
			k = Known{Value: c.Value, Revision: c.Revision, Created: c.Created()}
		}
		f.past[c.Name] = append(f.past[c.Name], f.now[c.Name])
		f.now[c.Name] = k
	}
	f.seen = batch.Revision
}

func (f *follower) known(name string) (Known, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if past := f.past[name]; f.behind && len(past) > 0 && rand.IntN(2) == 0 {
		return past[rand.IntN(len(past))], true
	}
	return f.now[name], true
}

// reaches waits until a revision is known.
func (f *follower) reaches(t *testing.T, revision int64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		seen := f.seen
		f.mu.Unlock()
		switch {
		case seen >= revision:
			return
		case time.Now().After(end):
			t.Fatalf("revision %d is not known, %d is", revision, seen)
		}
	}
}

func TestAWriteOfWhatIsKnownIsOneRoundTrip(t *testing.T) {
	s := start(t)
	f := followed(t, s, false)
	f.reaches(t, s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02")))
	trips := 0
	s.client.KV = counted{s.client.KV, &trips}
	missing := Write{Verb: Update, Resource: testLink("/a", "https://store.example/c"), AllowMissing: true}
	for _, w := range append(lifeOfALink(), missing) {
		trips = 0
		_, revision := s.mustWrite(t, w)
		if trips != 1 {
			t.Errorf("verb %d, fields %v: %d round trips, want 1", w.Verb, w.Mask, trips)
		}
		f.reaches(t, revision)
	}
}

func TestAWriteOfWhatIsKnownKeepsTheRestOfIt(t *testing.T) {
	s := start(t)
	f := followed(t, s, false)
	f.reaches(t, s.mustPut(t, testAffiliate("aff_01"), affiliateLink("/a", "aff_01")))
	s.now = func() time.Time { return time.Unix(1800000000, 0) }
	results, _ := s.mustWrite(t, Write{Verb: Update, Resource: testLink("/a", "https://store.example/b"), Mask: []string{"destination"}})
	o, _, err := s.Get(t.Context(), "links/go.example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := o.Resource()
	if err != nil {
		t.Fatal(err)
	}
	for what, l := range map[string]*linkv1.Link{"answered": results[0].Resource.GetLink(), "stored": stored.GetLink()} {
		if l.GetAffiliate() != "aff_01" || l.GetDestination() != "https://store.example/b" ||
			l.GetCreateTime().GetSeconds() != 1700000000 || l.GetUpdateTime().GetSeconds() != 1800000000 {
			t.Errorf("%s: %v", what, l)
		}
	}
}

// What is known may be of any moment that there was, or of none: that costs a
// round trip, and changes nothing.
func TestAWriteOfWhatIsNotTrueAnyMoreReads(t *testing.T) {
	s := start(t)
	_, first := s.mustWrite(t, Write{Verb: Put, Resource: affiliateLink("/a", "")})
	old, _, err := s.Get(t.Context(), "links/go.example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	labelled := testLink("/a", "https://store.example/now")
	labelled.GetLink().Labels = map[string]string{"kept": "yes"}
	_, second := s.mustWrite(t, Write{Verb: Put, Resource: labelled})
	var claim Known
	s.Know(func(string) (Known, bool) { return claim, true })
	outdated := Known{Value: old.Value, Revision: old.Revision, Created: old.Created()}

	for _, claim = range []Known{outdated, {}} {
		results, _ := s.mustWrite(t, Write{Verb: Update, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "go.example.com", Path: "/a", Campaign: "summer",
		}}}, Mask: []string{"campaign"}, AllowMissing: true})
		l := results[0].Resource.GetLink()
		if l.GetLabels()["kept"] != "yes" || l.GetDestination() != "https://store.example/now" {
			t.Errorf("with %+v: %v", claim, l)
		}
		second = results[0].Revision
	}

	claim = outdated
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Delete, Name: "links/go.example.com/a", Etag: Etag(first)}}, false)
	wantKind(t, err, link.Aborted)
	_, revision := s.mustWrite(t, Write{Verb: Update, Resource: testLink("/a", "https://store.example/b"), Mask: []string{"destination"}, Etag: Etag(second)})
	claim = Known{}
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Create, Resource: testLink("/a", "https://store.example/c")}}, false)
	wantKind(t, err, link.AlreadyExists)
	results, _ := s.mustWrite(t, Write{Verb: Update, Resource: testLink("/a", "https://store.example/b"), Mask: []string{"destination"}})
	if results[0].Outcome != Unchanged || results[0].Revision != revision {
		t.Errorf("got %+v, want it unchanged since %d", results[0], revision)
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/a"})
	claim = outdated
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Update, Resource: testLink("/a", "https://store.example/d")}}, false)
	wantKind(t, err, link.NotFound)
}

func TestAWriteOfWhatIsKnownNeedsItsAffiliate(t *testing.T) {
	s := start(t)
	f := followed(t, s, false)
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Create, Resource: affiliateLink("/a", "aff_01")}}, false)
	wantKind(t, err, link.FailedPrecondition)
	f.reaches(t, s.mustPut(t, testAffiliate("aff_01")))
	held, err := s.hold(t.Context(), []string{"aff_01"})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Create, Resource: affiliateLink("/a", "aff_01")}}, false)
	wantKind(t, err, link.FailedPrecondition)
	s.release(t.Context(), held)
	s.mustWrite(t, Write{Verb: Create, Resource: affiliateLink("/a", "aff_01")})
}
