package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/proto/link"
)

// wantOutcomes checks the outcomes of rows; 0 is a failure.
func wantOutcomes(t *testing.T, results []RowResult, want ...Outcome) {
	t.Helper()
	if len(results) != len(want) {
		t.Fatalf("%d rows have an outcome, want %d: %+v", len(results), len(want), results)
	}
	for i, r := range results {
		if r.Row != int64(i) || r.Outcome != want[i] || (r.Err != nil) != (want[i] == 0) {
			t.Errorf("row %d: got %+v, want outcome %d", i, r, want[i])
		}
		if r.Err == nil && r.Revision == 0 {
			t.Errorf("row %d has no revision", i)
		}
	}
}

func mustImport(t *testing.T, s *Store, opts ImportOptions, rows ...*linkv1.Resource) []RowResult {
	t.Helper()
	results, err := importRows(t, s, opts, rows...)
	if err != nil {
		t.Fatalf("import: %v", err)
	}
	return results
}

func TestImportTellsCreatedUpdatedAndUnchanged(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/same", "https://store.example/1"), testLink("/other", "https://store.example/1"))
	results := mustImport(t, s, ImportOptions{},
		testLink("/new", "https://store.example/1"), testLink("/same", "https://store.example/1"), testLink("/other", "https://store.example/2"))
	wantOutcomes(t, results, Created, Unchanged, Updated)
	if l := s.mustGet(t, "links/go.example.com/other").GetLink(); l.GetDestination() != "https://store.example/2" || l.GetUpdatedBy() != "importer" {
		t.Fatalf("got %v", l)
	}
	if results[1].Revision >= results[0].Revision {
		t.Fatalf("the unchanged row is in effect since %d, the new one since %d", results[1].Revision, results[0].Revision)
	}
}

func TestImportUpdateKeepsTheCreateTime(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/1"))
	s.now = func() time.Time { return time.Unix(1800000000, 0) }
	mustImport(t, s, ImportOptions{}, testLink("/a", "https://store.example/2"))
	l := s.mustGet(t, "links/go.example.com/a").GetLink()
	if l.GetCreateTime().GetSeconds() != 1700000000 || l.GetUpdateTime().GetSeconds() != 1800000000 {
		t.Fatalf("times are %v and %v", l.GetCreateTime(), l.GetUpdateTime())
	}
}

func TestImportOfABadRowDoesNotSpoilTheOthers(t *testing.T) {
	s := start(t)
	results := mustImport(t, s, ImportOptions{},
		testLink("/a", "https://store.example/"), testLink("/b", "not a url"), affiliateLink("/c", "nobody"),
		&linkv1.Resource{}, nil, testLink("/d", "https://store.example/"))
	wantOutcomes(t, results, Created, 0, 0, 0, 0, Created)
	wantKind(t, results[1].Err, link.Invalid)
	if e := wantKind(t, results[2].Err, link.FailedPrecondition); e.Hint != "affctl affiliate create nobody" {
		t.Fatalf("error says %+v", e)
	}
	wantKind(t, results[3].Err, link.Invalid)
}

func TestImportWritesRowsOfOneNameInTheirOrder(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	last := make(map[string]string)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		path, to := fmt.Sprintf("/%d", random.IntN(300)), fmt.Sprintf("https://store.example/%d", i)
		rows = append(rows, testLink(path, to))
		last[path] = to
	}
	created := 0
	for _, r := range mustImport(t, s, ImportOptions{}, rows...) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if r.Outcome == Created {
			created++
		}
	}
	if created != len(last) {
		t.Errorf("%d rows were created, want %d", created, len(last))
	}
	for path, to := range last {
		if got := s.mustGet(t, "links/go.example.com"+path).GetLink().GetDestination(); got != to {
			t.Errorf("%s goes to %s, want %s", path, got, to)
		}
	}
}

func TestImportOfOneNameTwiceInARow(t *testing.T) {
	s := start(t)
	a, b := testLink("/a", "https://store.example/1"), testLink("/a", "https://store.example/2")
	wantOutcomes(t, mustImport(t, s, ImportOptions{}, a, a, b, b, a), Created, Unchanged, Updated, Unchanged, Updated)
	wantOutcomes(t, mustImport(t, s, ImportOptions{CreateOnly: true}, a, testLink("/n", "https://store.example/"), testLink("/n", "https://store.example/")), 0, Created, 0)
}

func TestImportFindsAffiliatesOfRowsBefore(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	for i := range 300 { // more than a transaction holds
		rows = append(rows, testAffiliate(fmt.Sprintf("aff_%d", i)))
	}
	for i := range 300 {
		rows = append(rows, affiliateLink(fmt.Sprintf("/%d", i), fmt.Sprintf("aff_%d", i)))
	}
	for _, opts := range []ImportOptions{{DryRun: true}, {StopOnError: true}, {}} {
		for _, r := range mustImport(t, s, opts, rows...) {
			if r.Err != nil {
				t.Fatalf("%+v: row %d: %v", opts, r.Row, r.Err)
			}
		}
	}
	wantOutcomes(t, mustImport(t, s, ImportOptions{}, affiliateLink("/x", "late"), testAffiliate("late"), affiliateLink("/y", "late")), 0, Created, Created)
}

func TestImportWaitsForTheAffiliateThatIsUnderWay(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	for round := range 20 { // a transaction of affiliates, then one of their links
		for i := range batchNames {
			rows = append(rows, testAffiliate(fmt.Sprintf("aff_%d_%d", round, i)))
		}
		for i := range batchNames {
			rows = append(rows, affiliateLink(fmt.Sprintf("/%d/%d", round, i), fmt.Sprintf("aff_%d_%d", round, i)))
		}
	}
	for _, r := range mustImport(t, s, ImportOptions{}, rows...) {
		if r.Err != nil {
			t.Fatalf("row %d: %v", r.Row, r.Err)
		}
	}
}

func TestImportForgetsAffiliatesThatAreDeletedMeanwhile(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02"))
	rows, answered, ended := make(chan []*linkv1.Resource), make(chan RowResult), make(chan error)
	go func() {
		ended <- s.Import(t.Context(), "", ImportOptions{}, rows, func(results []RowResult) error {
			for _, r := range results {
				answered <- r
			}
			return nil
		})
	}()
	next := func(r *linkv1.Resource) error {
		rows <- []*linkv1.Resource{r}
		return (<-answered).Err
	}
	if err := next(affiliateLink("/a", "aff_01")); err != nil {
		t.Fatal(err)
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/a"}, deleteAffiliate("aff_01"))
	if err := next(affiliateLink("/b", "aff_02")); err != nil {
		t.Fatal(err)
	}
	wantKind(t, next(affiliateLink("/a", "aff_01")), link.FailedPrecondition)
	close(rows)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestImportCreateOnlyRefusesWhatExists(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/1"))
	results := mustImport(t, s, ImportOptions{CreateOnly: true}, testLink("/a", "https://store.example/1"), testLink("/b", "https://store.example/1"))
	wantOutcomes(t, results, 0, Created)
	wantKind(t, results[0].Err, link.AlreadyExists)
}

func TestImportStopsAtTheFirstRowThatFails(t *testing.T) {
	for name, bad := range map[string]*linkv1.Resource{"invalid": testLink("/bad", "nonsense"), "no affiliate": affiliateLink("/bad", "nobody")} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			var rows []*linkv1.Resource
			for i := range 500 {
				rows = append(rows, testLink(fmt.Sprintf("/%d", i), "https://store.example/"))
			}
			rows[333] = bad
			results, err := importRows(t, s, ImportOptions{StopOnError: true}, rows...)
			if err == nil || !strings.Contains(err.Error(), "334 rows") {
				t.Fatalf("import ended with %v", err)
			}
			if len(results) != 334 || results[333].Err == nil {
				t.Fatalf("%d rows have an outcome", len(results))
			}
			written, err := s.Count(t.Context(), Filter{Kind: link.Links}, 0)
			if err != nil || written != 333 {
				t.Fatalf("%d rows are written: %v", written, err)
			}
		})
	}
}

func TestImportDryRunTellsWhatWouldBe(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/1"), testLink("/b", "https://store.example/1"))
	before, _ := s.Revision(t.Context())
	rows := []*linkv1.Resource{
		testLink("/a", "https://store.example/1"), testLink("/b", "https://store.example/2"), testLink("/c", "https://store.example/"),
		testLink("/bad", ""), affiliateLink("/d", "new"), testAffiliate("new"), affiliateLink("/d", "new"), testLink("/b", "https://store.example/2"),
	}
	want := []Outcome{Unchanged, Updated, Created, 0, 0, Created, Created, Unchanged}
	results := mustImport(t, s, ImportOptions{DryRun: true}, rows...)
	for i, r := range results {
		if r.Outcome != want[i] {
			t.Errorf("dry run: row %d has outcome %d, want %d", i, r.Outcome, want[i])
		}
	}
	if now, _ := s.Revision(t.Context()); now != before {
		t.Fatalf("etcd moved from %d to %d", before, now)
	}
	wantOutcomes(t, mustImport(t, s, ImportOptions{}, rows...), want...)
}

func TestImportsThatRaceLoseNothing(t *testing.T) {
	s := start(t)
	const imports, rows = 4, 600
	done := make(chan error)
	for n := range imports {
		go func() {
			var all []*linkv1.Resource
			for i := range rows {
				all = append(all, testLink(fmt.Sprintf("/%d", i), fmt.Sprintf("https://store.example/%d", n)))
			}
			results, err := importRows(t, s, ImportOptions{}, all...)
			for _, r := range results {
				err = errors.Join(err, r.Err)
			}
			done <- err
		}()
	}
	for range imports {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n, err := s.Count(t.Context(), Filter{Kind: link.Links}, 0); n != rows {
		t.Fatalf("%d links, want %d: %v", n, rows, err)
	}
}

func TestImportOfRowsThatComeSlowlyAnswersAtOnce(t *testing.T) {
	s := start(t)
	rows, answered := make(chan []*linkv1.Resource), make(chan RowResult, 1)
	quiet := make(chan struct{}, 10)
	ended := make(chan error)
	go func() {
		ended <- s.Import(t.Context(), "", ImportOptions{}, rows, func(results []RowResult) error {
			if len(results) == 0 {
				quiet <- struct{}{}
			}
			for _, r := range results {
				answered <- r
			}
			return nil
		})
	}()
	<-quiet
	for i := range 3 {
		rows <- []*linkv1.Resource{testLink(fmt.Sprintf("/%d", i), "https://store.example/")}
		if r := <-answered; r.Outcome != Created || r.Row != int64(i) {
			t.Fatalf("got %+v", r)
		}
		<-quiet
	}
	close(rows)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestImportEndsWhenEtcdGoesAwayAndTellsHowFarItCame(t *testing.T) {
	server := etcdtest.New(t)
	s := New(server.Client())
	s.timeout = time.Second
	rows, stop := make(chan []*linkv1.Resource), make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			select {
			case rows <- []*linkv1.Resource{testLink(fmt.Sprintf("/%d", i), "https://store.example/")}:
			case <-stop:
				return
			}
		}
	}()
	outcomes := int64(0)
	err := s.Import(t.Context(), "", ImportOptions{}, rows, func(results []RowResult) error {
		if outcomes += int64(len(results)); outcomes > 100 {
			server.Stop()
		}
		return nil
	})
	close(stop)
	if e := wantKind(t, err, link.Unavailable); !strings.Contains(e.Message, fmt.Sprintf("%d rows have their outcome", outcomes)) {
		t.Fatalf("after %d outcomes the error says %v", outcomes, e)
	}
	server.Start()
	s.timeout = 10 * time.Second
	n, err := s.Count(t.Context(), Filter{Kind: link.Links}, 0)
	if err != nil || n < outcomes {
		t.Fatalf("%d links are stored, and %d were told: %v", n, outcomes, err)
	}
}

func TestImportEndsWithItsContextOrItsReader(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Import(ctx, "", ImportOptions{}, make(chan []*linkv1.Resource), func([]RowResult) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	gone := errors.New("nobody listens")
	rows := make(chan []*linkv1.Resource, 1)
	rows <- []*linkv1.Resource{testLink("/a", "https://store.example/")}
	err = s.Import(t.Context(), "", ImportOptions{}, rows, func(results []RowResult) error {
		if len(results) > 0 {
			return gone
		}
		return nil
	})
	if !errors.Is(err, gone) {
		t.Fatalf("got %v", err)
	}
}

func TestImportOfLargeRowsFitsItsTransactions(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	for i := range 300 {
		r := testLink(fmt.Sprintf("/%d", i), "https://store.example/"+strings.Repeat("x", 8000))
		r.GetLink().Fallback = r.GetLink().GetDestination()
		rows = append(rows, r)
	}
	for _, r := range mustImport(t, s, ImportOptions{}, rows...) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

func TestImportOfLongNamesFitsTransactionsOfEtcd(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	var want []Outcome
	for i := range 200 {
		rows = append(rows, testLink("/"+strings.Repeat("a", 8180)+fmt.Sprint(i), "https://store.example/"))
		want = append(want, Created)
	}
	wantOutcomes(t, mustImport(t, s, ImportOptions{}, rows...), want...)
}

func TestImportOfManyAffiliatesOfFewLinksFitsTransactionsOfEtcd(t *testing.T) {
	s := start(t)
	var rows []*linkv1.Resource
	var want []Outcome
	for i := range 300 {
		s.mustPut(t, testAffiliate(fmt.Sprintf("aff_%d", i)))
		rows = append(rows, affiliateLink(fmt.Sprintf("/%d", i%2), fmt.Sprintf("aff_%d", i)))
		want = append(want, Updated)
	}
	want[0], want[1] = Created, Created
	wantOutcomes(t, mustImport(t, s, ImportOptions{}, rows...), want...)
}
