package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"

	"github.com/affleet/affleet/proto/link"
)

func deleteAffiliate(id string) Write { return Write{Verb: Delete, Name: "affiliates/" + id} }

func TestLinkNeedsItsAffiliate(t *testing.T) {
	s := start(t)
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Create, Resource: affiliateLink("/a", "aff_01")}}, false)
	e := wantKind(t, err, link.FailedPrecondition)
	if e.Hint != "affctl affiliate create aff_01" || e.Field != "affiliate" || e.Resource != "links/go.example.com/a" {
		t.Fatalf("error says %+v", e)
	}
	s.mustPut(t, affiliateLink("/a", "aff_01"), testAffiliate("aff_01")) // in one batch, in any order
	s.mustPut(t, affiliateLink("/b", "aff_01"))
}

func TestAffiliateOfALinkCannotBeDeleted(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02"), affiliateLink("/a", "aff_01"))
	_, _, err := s.Write(t.Context(), "", []Write{deleteAffiliate("aff_01")}, false)
	if e := wantKind(t, err, link.FailedPrecondition); !strings.Contains(e.Message, "links/go.example.com/a") {
		t.Fatalf("the error does not name the link: %v", e)
	}
	s.mustWrite(t, deleteAffiliate("aff_02"))
	s.mustPut(t, affiliateLink("/b", "aff_01")) // the guard was let go
	_, _, err = s.Write(t.Context(), "", []Write{deleteAffiliate("aff_02")}, false)
	wantKind(t, err, link.NotFound)
}

func TestAffiliateIsDeletedTogetherWithItsLinks(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02"), affiliateLink("/a", "aff_01"), affiliateLink("/b", "aff_01"))
	gone := Write{Verb: Delete, Name: "links/go.example.com/a"}
	_, _, err := s.Write(t.Context(), "", []Write{gone, deleteAffiliate("aff_01")}, false)
	if e := wantKind(t, err, link.FailedPrecondition); !strings.Contains(e.Message, "/b") {
		t.Fatalf("the error does not name the link that is left: %v", e)
	}
	_, _, err = s.Write(t.Context(), "", []Write{gone, {Verb: Put, Resource: affiliateLink("/b", "aff_01")}, deleteAffiliate("aff_01")}, false)
	wantKind(t, err, link.FailedPrecondition) // rewritten as it was
	_, revision := s.mustWrite(t, gone, Write{Verb: Put, Resource: affiliateLink("/b", "aff_02")}, deleteAffiliate("aff_01"))
	if _, at, err := s.Get(t.Context(), "affiliates/aff_01"); err == nil || at < revision {
		t.Fatal("the affiliate is still there")
	}
}

func TestGuardOfADeadProcessBlocksNobodyAfterItsLease(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02"))
	h, err := s.hold(t.Context(), []string{"aff_01"})
	if err != nil || h == nil {
		t.Fatalf("hold: %v, %v", h, err)
	}
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Put, Resource: affiliateLink("/a", "aff_01")}}, false)
	if e := wantKind(t, err, link.FailedPrecondition); !strings.Contains(e.Message, "being deleted") {
		t.Fatalf("error says %v", e)
	}
	s.mustPut(t, affiliateLink("/b", "aff_02")) // another one's links are written all the while
	if second, err := s.hold(t.Context(), []string{"aff_02"}); second != nil || err != nil {
		t.Fatalf("held twice: %v, %v", second, err)
	}
	s.patience = 0
	_, _, err = s.Write(t.Context(), "", []Write{deleteAffiliate("aff_02")}, false)
	if e := wantKind(t, err, link.Aborted); !strings.Contains(e.Message, "another affiliate is being deleted") {
		t.Fatalf("error says %v", e)
	}
	s.patience = time.Minute
	s.revoke(t.Context(), h.lease) // as when it runs out
	s.mustPut(t, affiliateLink("/a", "aff_01"))
	got, err := s.txn(t.Context(), h.compares(), h.letGo(), nil)
	if err != nil || got.Succeeded {
		t.Fatalf("a hold that ran out still counts: %v", err)
	}
}

func TestLinkIsNotWrittenOnceItsAffiliateIsDeletedInBetween(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"))
	tx, err := newTransaction(s, "", []Write{{Verb: Create, Resource: affiliateLink("/a", "aff_01")}}, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	read, err := tx.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.workOut(s.now()); err != nil {
		t.Fatal(err)
	}
	compares, ops, err := tx.guard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.mustWrite(t, deleteAffiliate("aff_01"))
	if _, _, err := tx.commit(t.Context(), read, compares, ops); !errors.Is(err, errRaced) {
		t.Fatalf("got %v", err)
	}
}

// counted counts the round trips to etcd.
type counted struct {
	clientv3.KV
	trips *int
}

func (c counted) Txn(ctx context.Context) clientv3.Txn {
	*c.trips++
	return c.KV.Txn(ctx)
}

// lifeOfALink are writes of a link, of every sort; the affiliates aff_01 and aff_02
// are there.
func lifeOfALink() []Write {
	return []Write{
		{Verb: Create, Resource: affiliateLink("/a", "aff_01")},
		{Verb: Update, Resource: testLink("/a", "https://store.example/b"), Mask: []string{"destination"}},
		{Verb: Update, Resource: affiliateLink("/a", "aff_02"), Mask: []string{"affiliate"}},
		{Verb: Put, Resource: affiliateLink("/a", "aff_01")},
		{Verb: Delete, Name: "links/go.example.com/a"},
	}
}

func TestAWriteOfALinkReadsOnceAndWritesOnce(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), testAffiliate("aff_02"))
	trips := 0
	s.client.KV = counted{s.client.KV, &trips}
	for _, w := range lifeOfALink() {
		trips = 0
		s.mustWrite(t, w)
		if trips != 2 {
			t.Errorf("verb %d, fields %v: %d round trips, want 2", w.Verb, w.Mask, trips)
		}
	}
}

func TestAWriteOfManyLinksAndAffiliatesFitsTransactionsOfEtcd(t *testing.T) {
	s := start(t)
	var affiliates, links []*linkv1.Resource
	for i := range MaxWrites {
		id := fmt.Sprintf("aff_%02d", i)
		affiliates, links = append(affiliates, testAffiliate(id)), append(links, affiliateLink("/"+id, id))
	}
	s.mustPut(t, affiliates...)
	s.mustPut(t, links...)
}

func TestALinkThatKeepsItsAffiliateHoldsUpItsDeletion(t *testing.T) {
	s := start(t)
	s.mustPut(t, testAffiliate("aff_01"), affiliateLink("/a", "aff_01"))
	held, err := s.hold(t.Context(), []string{"aff_01"})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Write(t.Context(), "", []Write{{Verb: Create, Resource: affiliateLink("/b", "aff_01")}}, false)
	wantKind(t, err, link.FailedPrecondition)
	s.mustWrite(t, Write{Verb: Update, Resource: testLink("/a", "https://store.example/b"), Mask: []string{"destination"}})
	if name, _, err := s.linkOf(t.Context(), held, []string{"aff_01"}, func(string) bool { return false }); err != nil || name != "links/go.example.com/a" {
		t.Errorf("the deletion finds %q, %v", name, err)
	}
	s.release(t.Context(), held)
}

// TestNoRevisionHasALinkWithoutItsAffiliate lets writers of links, an import
// and deleters of their affiliates race, and then looks at every revision that
// there was.
func TestNoRevisionHasALinkWithoutItsAffiliate(t *testing.T) {
	t.Run("read first", func(t *testing.T) { noLinkWithoutItsAffiliate(t, start(t)) })
	t.Run("known", func(t *testing.T) {
		s := start(t)
		followed(t, s, false)
		noLinkWithoutItsAffiliate(t, s)
	})
	t.Run("known of any moment", func(t *testing.T) {
		s := start(t)
		followed(t, s, true)
		noLinkWithoutItsAffiliate(t, s)
	})
}

func noLinkWithoutItsAffiliate(t *testing.T, s *Store) {
	first := s.mustPut(t, testAffiliate("aff_0"), testAffiliate("aff_1"))
	const rounds = 60
	var wait sync.WaitGroup
	var written, deleted atomic.Int64
	try := func(counter *atomic.Int64, writes ...Write) {
		_, _, err := s.Write(t.Context(), "", writes, false)
		if err == nil {
			counter.Add(1)
			return
		}
		if e, ok := errors.AsType[*link.Error](err); !ok || e.Kind != link.FailedPrecondition && e.Kind != link.NotFound && e.Kind != link.Aborted {
			t.Error(err)
		}
	}
	for writer := range 4 {
		id, path := fmt.Sprintf("aff_%d", writer%2), fmt.Sprintf("/w%d", writer)
		other := fmt.Sprintf("aff_%d", 1-writer%2)
		wait.Go(func() {
			for i := range rounds {
				try(&written, Write{Verb: Put, Resource: affiliateLink(path, id)})
				kept := testLink(path, fmt.Sprintf("https://store.example/%d", i))
				try(&written, Write{Verb: Update, Resource: kept, Mask: []string{"destination"}})
				try(&written, Write{Verb: Update, Resource: affiliateLink(path, other), Mask: []string{"affiliate"}})
				try(&written, Write{Verb: Delete, Name: "links/go.example.com" + path})
			}
		})
	}
	for id := range 2 {
		id := fmt.Sprintf("aff_%d", id)
		wait.Go(func() {
			for range rounds {
				try(&deleted, deleteAffiliate(id))
				try(&written, Write{Verb: Put, Resource: testAffiliate(id)})
			}
		})
	}
	wait.Go(func() {
		for range rounds {
			importRows(t, s, ImportOptions{}, affiliateLink("/i", "aff_0"), testLink("/j", "https://store.example/"))
			try(&written, Write{Verb: Delete, Name: "links/go.example.com/i", AllowMissing: true})
		}
	})
	wait.Wait()
	if written.Load() == 0 || deleted.Load() == 0 {
		t.Fatalf("nothing raced: %d writes, %d deletions", written.Load(), deleted.Load())
	}
	t.Logf("%d writes, %d deletions of affiliates", written.Load(), deleted.Load())
	last, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	replay(t, s, first-1, last, func(revision int64, state map[string][]byte) {
		for name, value := range state {
			if id := linkAffiliate(value); strings.HasPrefix(name, "links/") && len(id) > 0 && state["affiliates/"+string(id)] == nil {
				t.Errorf("revision %d: %s names %s, which does not exist", revision, name, id)
			}
		}
	})
}

// replay follows the watch from an empty state after one revision to another,
// and shows each state to check.
func replay(t *testing.T, s *Store, after, last int64, check func(revision int64, state map[string][]byte)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	state, previous := make(map[string][]byte), after
	for batch, err := range s.Watch(ctx, after) {
		if err != nil {
			t.Fatal(err)
		}
		if batch.Revision < previous || batch.Revision == previous && len(batch.Changes) > 0 {
			t.Fatalf("revision %d comes after %d", batch.Revision, previous)
		}
		previous = batch.Revision
		for _, c := range batch.Changes {
			if c.Value == nil {
				delete(state, c.Name)
			} else {
				state[c.Name] = c.Value
			}
		}
		check(batch.Revision, state)
		if batch.Revision >= last {
			return
		}
	}
}

// importRows imports rows in one message and gives the results in the order of
// the rows.
func importRows(t testing.TB, s *Store, opts ImportOptions, rows ...*linkv1.Resource) ([]RowResult, error) {
	t.Helper()
	send := make(chan []*linkv1.Resource, 1)
	send <- rows
	close(send)
	var all []RowResult
	err := s.Import(t.Context(), "importer", opts, send, func(results []RowResult) error {
		all = append(all, results...)
		return nil
	})
	slices.SortFunc(all, func(a, b RowResult) int { return int(a.Row - b.Row) })
	return all, err
}
