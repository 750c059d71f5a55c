package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/proto/link"
)

// start makes a store of an empty etcd, with a clock that stands still.
func start(t *testing.T) *Store {
	t.Helper()
	s := New(etcdtest.Start(t))
	s.now = func() time.Time { return time.Unix(1700000000, 0) }
	return s
}

func testAffiliate(id string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id}}}
}

func testDomain(host string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: host}}}
}

// affiliateLink is a link of an affiliate.
func affiliateLink(path, affiliate string) *linkv1.Resource {
	r := testLink(path, "https://store.example/")
	r.GetLink().Affiliate = affiliate
	return r
}

func (s *Store) mustWrite(t testing.TB, writes ...Write) ([]Result, int64) {
	t.Helper()
	results, revision, err := s.Write(t.Context(), "tester", writes, false)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	return results, revision
}

func (s *Store) mustPut(t testing.TB, resources ...*linkv1.Resource) int64 {
	t.Helper()
	writes := make([]Write, len(resources))
	for i, r := range resources {
		writes[i] = Write{Verb: Put, Resource: r}
	}
	_, revision := s.mustWrite(t, writes...)
	return revision
}

func (s *Store) mustGet(t testing.TB, name string) *linkv1.Resource {
	t.Helper()
	o, _, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	r, err := o.Resource()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantKind checks an error's kind and gives it.
func wantKind(t testing.TB, err error, kind link.ErrorKind) *link.Error {
	t.Helper()
	problems := link.Problems(err)
	if len(problems) == 0 || problems[0].Kind != kind {
		t.Fatalf("got error %v, want kind %d", err, kind)
	}
	return problems[0]
}

func TestEpochIsMadeOnceAndStays(t *testing.T) {
	s := start(t)
	var wait sync.WaitGroup
	seen := make([]uint64, 10)
	for i := range seen {
		wait.Go(func() {
			var err error
			if seen[i], err = s.Epoch(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, epoch := range seen {
		if epoch == 0 || epoch != seen[0] {
			t.Fatalf("epochs differ: %x", seen)
		}
	}
	if _, err := s.client.Put(t.Context(), epochKey, "damaged"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Epoch(t.Context())
	wantKind(t, err, link.FailedPrecondition)
}

func TestCreateIsReadBackWithItsReadOnlyFields(t *testing.T) {
	s := start(t)
	in := testLink("/a", "https://store.example/a")
	in.GetLink().Revision, in.GetLink().UpdatedBy = 99, "forged"
	results, revision := s.mustWrite(t, Write{Verb: Create, Resource: in})
	got := s.mustGet(t, "links/go.example.com/a")
	if !proto.Equal(got, results[0].Resource) {
		t.Fatalf("get gives %v, write gave %v", got, results[0].Resource)
	}
	l := got.GetLink()
	if l.GetRevision() != revision || l.GetUpdatedBy() != "tester" || l.GetCreateTime().GetSeconds() != 1700000000 {
		t.Fatalf("read-only fields are wrong: %v, revision %d", l, revision)
	}
	if results[0].Outcome != Created {
		t.Fatalf("outcome is %d", results[0].Outcome)
	}
}

func TestSecondCreateIsRefused(t *testing.T) {
	s := start(t)
	in := testLink("/a", "https://store.example/a")
	s.mustWrite(t, Write{Verb: Create, Resource: in})
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Create, Resource: in}}, false)
	if e := wantKind(t, err, link.AlreadyExists); e.Resource != "links/go.example.com/a" || e.Hint == "" {
		t.Fatalf("error says %+v", e)
	}
}

func TestUpdateKeepsCreateTimeAndNeedsTheResource(t *testing.T) {
	s := start(t)
	in := testLink("/a", "https://store.example/a")
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Update, Resource: in}}, false)
	wantKind(t, err, link.NotFound)
	s.mustWrite(t, Write{Verb: Update, Resource: in, AllowMissing: true, Mask: []string{"nonsense is ignored on create"}})
	s.now = func() time.Time { return time.Unix(1800000000, 0) }
	s.mustWrite(t, Write{Verb: Update, Resource: testLink("/a", "https://store.example/b")})
	l := s.mustGet(t, "links/go.example.com/a").GetLink()
	if l.GetCreateTime().GetSeconds() != 1700000000 || l.GetUpdateTime().GetSeconds() != 1800000000 {
		t.Fatalf("times are %v and %v", l.GetCreateTime(), l.GetUpdateTime())
	}
}

func TestUpdateMaskChangesOnlyWhatItNames(t *testing.T) {
	s := start(t)
	old := testLink("/a", "https://store.example/a")
	old.GetLink().Campaign, old.GetLink().StatusCode = "spring", 301
	s.mustPut(t, old)
	update := testLink("/a", "https://store.example/b")
	update.GetLink().Query = &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_DROP}
	s.mustWrite(t, Write{Verb: Update, Resource: update, Mask: []string{"destination", "campaign", "query.mode"}})
	l := s.mustGet(t, "links/go.example.com/a").GetLink()
	if l.GetDestination() != "https://store.example/b" || l.GetCampaign() != "" || l.GetStatusCode() != 301 ||
		l.GetQuery().GetMode() != linkv1.QueryMode_QUERY_MODE_DROP {
		t.Fatalf("got %v", l)
	}
}

func TestUpdateMaskRefusesFieldsThatCannotChange(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/a"), testDomain("go.example.com"), testAffiliate("aff_01"))
	for _, c := range []struct {
		resource *linkv1.Resource
		path     string
	}{
		{testLink("/a", "https://store.example/b"), "path"},
		{testLink("/a", "https://store.example/b"), "domain"},
		{testLink("/a", "https://store.example/b"), "revision"},
		{testLink("/a", "https://store.example/b"), "update_time.seconds"},
		{testLink("/a", "https://store.example/b"), "destnation"},
		{testLink("/a", "https://store.example/b"), "destination.host"},
		{testLink("/a", "https://store.example/b"), "query.mod"},
		{testLink("/a", "https://store.example/b"), "labels.team"},
		{testLink("/a", "https://store.example/b"), ""},
		{testDomain("go.example.com"), "host"},
		{testAffiliate("aff_01"), "id"},
	} {
		_, _, err := s.Write(t.Context(), "", []Write{{Verb: Update, Resource: c.resource, Mask: []string{c.path}}}, false)
		if e := wantKind(t, err, link.Invalid); e.Field != "update_mask" {
			t.Errorf("mask %q: field is %q", c.path, e.Field)
		}
	}
}

func TestMaskedResultIsValidated(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/a"))
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Update, Resource: testLink("/a", "/relative"), Mask: []string{"destination"}}}, false)
	if e := wantKind(t, err, link.Invalid); e.Field != "destination" {
		t.Fatalf("field is %q", e.Field)
	}
}

func TestStaleEtagIsAbortedWithTheCurrentOne(t *testing.T) {
	s := start(t)
	first := s.mustPut(t, testLink("/a", "https://store.example/a"))
	second := s.mustPut(t, testLink("/a", "https://store.example/b"))
	for _, verb := range []Verb{Update, Put, Delete} {
		_, _, err := s.Write(t.Context(), "", []Write{{
			Verb: verb, Name: "links/go.example.com/a",
			Resource: testLink("/a", "https://store.example/c"), Etag: Etag(first),
		}}, false)
		e := wantKind(t, err, link.Aborted)
		if e.Etag != Etag(second) || !strings.Contains(e.Message, Etag(second)) {
			t.Fatalf("verb %d: error says %+v, current is %d", verb, e, second)
		}
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/a", Etag: Etag(second)})
}

func TestUnchangedContentIsNotWritten(t *testing.T) {
	s := start(t)
	first := s.mustPut(t, testLink("/a", "https://store.example/a"))
	results, revision := s.mustWrite(t, Write{Verb: Put, Resource: testLink("/a", "https://store.example/a")})
	if revision != first || results[0].Revision != first || results[0].Outcome != Unchanged {
		t.Fatalf("got revision %d, result %+v; was written at %d", revision, results[0], first)
	}
	if now, err := s.Revision(t.Context()); err != nil || now != first {
		t.Fatalf("etcd is at %d, want %d (%v)", now, first, err)
	}
}

func TestDeleteOfWhatIsMissing(t *testing.T) {
	s := start(t)
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Delete, Name: "links/go.example.com/a"}}, false)
	wantKind(t, err, link.NotFound)
	results, revision := s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/a", AllowMissing: true})
	if results[0].Outcome != Unchanged || revision == 0 {
		t.Fatalf("got %+v at %d", results[0], revision)
	}
}

func TestBatchIsOneRevisionAllOrNone(t *testing.T) {
	s := start(t)
	var writes []Write
	for i := range MaxWrites {
		writes = append(writes, Write{Verb: Create, Resource: testLink(fmt.Sprintf("/%d", i), "https://store.example/")})
	}
	results, revision := s.mustWrite(t, writes...)
	for _, r := range results {
		if r.Revision != revision {
			t.Fatalf("%s has revision %d, the batch %d", r.Name, r.Revision, revision)
		}
	}
	writes[0].Resource = testLink("/new", "https://store.example/")
	_, _, err := s.Write(t.Context(), "", writes, false)
	if n := len(link.Problems(err)); n != MaxWrites-1 {
		t.Fatalf("%d problems are told, want %d", n, MaxWrites-1)
	}
	_, _, err = s.Get(t.Context(), "links/go.example.com/new")
	wantKind(t, err, link.NotFound)
}

func TestBatchRefusesTooManyWritesNoneAndTwoOfOneName(t *testing.T) {
	s := start(t)
	one := Write{Verb: Put, Resource: testLink("/a", "https://store.example/")}
	for _, writes := range [][]Write{nil, make([]Write, MaxWrites+1), {one, one}, {one, {Verb: Delete, Name: "links/go.example.com/a"}}} {
		_, _, err := s.Write(t.Context(), "", writes, false)
		wantKind(t, err, link.Invalid)
	}
}

func TestBatchLargerThanEtcdTakesIsRefusedWithAHint(t *testing.T) {
	s := start(t)
	var writes []Write
	for i := range MaxWrites {
		r := testLink(fmt.Sprintf("/%d", i), "https://store.example/"+strings.Repeat("x", link.MaxDestination-30))
		r.GetLink().Fallback = r.GetLink().GetDestination()
		writes = append(writes, Write{Verb: Create, Resource: r})
	}
	_, _, err := s.Write(t.Context(), "", writes, false)
	if e := wantKind(t, err, link.Invalid); e.Hint == "" {
		t.Fatalf("no hint: %v", e)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testLink("/old", "https://store.example/old"))
	before, _ := s.Revision(t.Context())
	results, _, err := s.Write(t.Context(), "", []Write{
		{Verb: Create, Resource: testLink("/a", "https://store.example/")},
		{Verb: Delete, Name: "affiliates/aff_01"},
		{Verb: Update, Resource: testLink("/old", "https://store.example/new")},
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Outcome{Created, Deleted, Updated} {
		if results[i].Outcome != want {
			t.Errorf("write %d: outcome %d, want %d", i, results[i].Outcome, want)
		}
	}
	if now, _ := s.Revision(t.Context()); now != before {
		t.Fatalf("etcd moved from %d to %d", before, now)
	}
}

func TestConcurrentIncrementsLoseNoUpdate(t *testing.T) {
	s := start(t)
	const name, writers, each = "links/go.example.com/n", 100, 3
	s.mustPut(t, testLink("/n", "https://store.example/"))
	var wait sync.WaitGroup
	for range writers {
		wait.Go(func() {
			for range each {
				if err := increment(t.Context(), s, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if got := s.mustGet(t, name).GetLink().GetLabels()["n"]; got != fmt.Sprint(writers*each) {
		t.Fatalf("label is %s after %d increments", got, writers*each)
	}
}

// increment adds 1 to the label n, again and again until nobody was faster.
func increment(ctx context.Context, s *Store, name string) error {
	for {
		o, _, err := s.Get(ctx, name)
		if err != nil {
			return err
		}
		r, err := o.Resource()
		if err != nil {
			return err
		}
		n := 0
		_, _ = fmt.Sscan(r.GetLink().GetLabels()["n"], &n)
		r.GetLink().Labels = map[string]string{"n": fmt.Sprint(n + 1)}
		_, _, err = s.Write(ctx, "", []Write{{Verb: Update, Resource: r, Mask: []string{"labels"}, Etag: Etag(o.Revision)}}, false)
		if e, ok := errors.AsType[*link.Error](err); ok && e.Kind == link.Aborted {
			continue
		}
		return err
	}
}

func TestRacingWritesWithoutEtagAllSucceed(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/n", "https://store.example/"))
	masks := []string{"campaign", "status_code", "fallback", "disabled"}
	full := testLink("/n", "https://store.example/")
	full.GetLink().Campaign, full.GetLink().StatusCode, full.GetLink().Fallback, full.GetLink().Disabled = "c", 301, "https://f.example/", true
	var wait sync.WaitGroup
	for i := range 40 {
		wait.Go(func() {
			if _, _, err := s.Write(t.Context(), "", []Write{{Verb: Update, Resource: full, Mask: masks[i%4 : i%4+1]}}, false); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	l := s.mustGet(t, "links/go.example.com/n").GetLink()
	if l.GetCampaign() != "c" || l.GetStatusCode() != 301 || l.GetFallback() == "" || !l.GetDisabled() {
		t.Fatalf("an update was lost: %v", l)
	}
}

func TestEtcdDownIsUnavailableSoonAndWorksAgainAfterwards(t *testing.T) {
	server := etcdtest.New(t)
	s := New(server.Client())
	s.timeout = time.Second
	s.mustPut(t, testLink("/a", "https://store.example/"))
	server.Stop()
	began := time.Now()
	calls := map[string]func() error{
		"get":  func() error { _, _, err := s.Get(t.Context(), "links/go.example.com/a"); return err },
		"list": func() error { _, err := s.List(t.Context(), Query{Filter: Filter{Kind: link.Links}}); return err },
		"load": func() error {
			_, err := s.Load(t.Context(), LoadOptions{}, func(Object) error { return nil })
			return err
		},
		"epoch": func() error { _, err := s.Epoch(t.Context()); return err },
		"write": func() error {
			_, _, err := s.Write(t.Context(), "", []Write{{Verb: Put, Resource: testLink("/b", "https://store.example/")}}, false)
			return err
		},
	}
	for name, call := range calls {
		e := wantKind(t, call(), link.Unavailable)
		if !strings.Contains(e.Hint, server.Endpoint()) {
			t.Errorf("%s: the hint does not say where etcd is expected: %q", name, e.Hint)
		}
		if e.Message != "etcd does not answer" { // a write reads first, and got no further
			t.Errorf("it says %q", e.Message)
		}
	}
	if took := time.Since(began); took > time.Duration(len(calls))*s.timeout+2*time.Second {
		t.Fatalf("took %v to say so", took)
	}
	server.Start()
	s.timeout = 10 * time.Second
	s.mustPut(t, testLink("/b", "https://store.example/"))
	s.mustGet(t, "links/go.example.com/a")
}

func TestFullEtcdIsAnExhaustedResource(t *testing.T) {
	s := New(etcdtest.New(t, func(cfg *embed.Config) { cfg.QuotaBackendBytes = 1 << 20 }).Client())
	big := "https://store.example/" + strings.Repeat("x", 8000)
	var err error
	for i := 0; err == nil && i < 200; i++ {
		var writes []Write
		for j := range MaxWrites {
			writes = append(writes, Write{Verb: Create, Resource: testLink(fmt.Sprintf("/%d/%d", i, j), big)})
		}
		_, _, err = s.Write(t.Context(), "", writes, false)
	}
	if e := wantKind(t, err, link.ResourceExhausted); !strings.Contains(e.Hint, "quota-backend-bytes") {
		t.Fatalf("hint is %q", e.Hint)
	}
}

func TestCallersOwnDeadlineIsNotEtcdsFault(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Get(ctx, "links/go.example.com/a"); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := s.Write(ctx, "", []Write{{Verb: Put, Resource: testDomain("*")}}, false); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
