package store

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// testBlock is a block; one without ttl stands until it is deleted.
func testBlock(id, reason string, ttl time.Duration) *linkv1.Resource {
	b := &linkv1.Block{Id: id, Match: &linkv1.Block_Prefix{Prefix: "192.0.2.0/24"}, Reason: reason}
	if ttl > 0 {
		b.Ttl = durationpb.New(ttl)
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
}

// leases lists what leases there are, each with how many keys it holds and its
// seconds when it was granted.
func (s *Store) leases(t *testing.T) (all []string) {
	t.Helper()
	got, err := s.client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got.Leases {
		all = append(all, s.lease(t, int64(l.ID)))
	}
	return all
}

func (s *Store) lease(t *testing.T, id int64) string {
	t.Helper()
	got, err := s.client.TimeToLive(t.Context(), clientv3.LeaseID(id), clientv3.WithAttachedKeys())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d of %ds", len(got.Keys), got.GrantedTTL)
}

func (s *Store) wantLeases(t *testing.T, want ...string) {
	t.Helper()
	if got := s.leases(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("there are the leases %v, want %v", got, want)
	}
}

func (s *Store) later(d time.Duration) { at := s.now().Add(d); s.now = func() time.Time { return at } }

func TestBlockEndsWithItsLease(t *testing.T) {
	s := start(t)
	s.now = time.Now
	revision := s.mustPut(t, testBlock("short", "r", time.Second), testBlock("long", "r", time.Hour), testBlock("stands", "r", 0))
	end := s.mustGet(t, "blocks/short").GetBlock().GetExpireTime().AsTime()
	if left := time.Until(end); left > 2*time.Second || end.Nanosecond() != 0 {
		t.Errorf("a block of a second ends in %v, at %v", left, end)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for batch, err := range s.Watch(ctx, revision) {
		if err != nil {
			t.Fatal(err)
		}
		if len(batch.Changes) == 0 {
			continue
		}
		if c := batch.Changes[0]; len(batch.Changes) != 1 || c.Name != "blocks/short" || c.Value != nil || batch.Revision <= revision {
			t.Fatalf("revision %d: %+v", batch.Revision, batch.Changes)
		}
		break
	}
	if time.Now().Before(end.Add(-time.Second)) {
		t.Error("it ended before its time")
	}
	_, _, err := s.Get(t.Context(), "blocks/short")
	wantKind(t, err, link.NotFound)
	s.mustGet(t, "blocks/long")
	s.mustGet(t, "blocks/stands")
}

func TestWritesOfABlockGrantKeepAndRevokeItsLease(t *testing.T) {
	s := start(t)
	b := testBlock("b", "r", time.Hour)
	end := func() int64 { return s.mustGet(t, "blocks/b").GetBlock().GetExpireTime().GetSeconds() - s.now().Unix() }
	s.mustPut(t, b)
	if s.wantLeases(t, "1 of 3600s"); end() != 3600 {
		t.Errorf("it ends in %d s", end())
	}
	s.later(10 * time.Minute)
	// A change of something else keeps the end and the lease.
	b.GetBlock().Reason = "other"
	s.mustWrite(t, Write{Verb: Update, Resource: b, Mask: []string{"reason"}})
	if s.wantLeases(t, "1 of 3600s"); end() != 3000 {
		t.Errorf("it ends in %d s", end())
	}
	// So does what was read, written back.
	read := s.mustGet(t, "blocks/b")
	if done, _ := s.mustWrite(t, Write{Verb: Put, Resource: read}); done[0].Outcome != Unchanged {
		t.Errorf("outcome %d", done[0].Outcome)
	}
	// The same without an end is as if it were new.
	s.mustPut(t, b)
	if s.wantLeases(t, "1 of 3600s"); end() != 3600 {
		t.Errorf("it ends in %d s", end())
	}
	s.later(time.Minute)
	// Another ttl, by mask, and in what was read.
	b.GetBlock().Ttl = durationpb.New(2 * time.Hour)
	s.mustWrite(t, Write{Verb: Update, Resource: b, Mask: []string{"ttl"}})
	if s.wantLeases(t, "1 of 7200s"); end() != 7200 {
		t.Errorf("it ends in %d s", end())
	}
	s.later(time.Minute)
	read = s.mustGet(t, "blocks/b")
	read.GetBlock().Ttl = durationpb.New(30 * time.Minute)
	s.mustPut(t, read)
	if s.wantLeases(t, "1 of 1800s"); end() != 1800 {
		t.Errorf("it ends in %d s", end())
	}
	// None any more, and one again.
	b.GetBlock().Ttl = nil
	s.mustWrite(t, Write{Verb: Update, Resource: b, Mask: []string{"ttl"}})
	s.wantLeases(t)
	if got := s.mustGet(t, "blocks/b").GetBlock(); got.GetExpireTime() != nil || got.GetTtl() != nil {
		t.Errorf("got %v", got)
	}
	s.mustPut(t, testBlock("b", "r", time.Minute))
	s.wantLeases(t, "1 of 60s")
	s.mustWrite(t, Write{Verb: Delete, Name: "blocks/b"})
	s.wantLeases(t)
}

func TestMaskCannotNameTheEndOfABlock(t *testing.T) {
	s := start(t)
	s.mustPut(t, testBlock("b", "r", time.Hour))
	for _, path := range []string{"expire_time", "expire_time.seconds", "id", "updated_by"} {
		_, _, err := s.Write(t.Context(), "", []Write{{Verb: Update, Resource: testBlock("b", "r", time.Hour), Mask: []string{path}}}, false)
		if e := wantKind(t, err, link.Invalid); e.Field != "update_mask" {
			t.Errorf("mask %q: %v", path, err)
		}
	}
}

func TestBlocksOfOneTransactionThatEndTogetherShareALease(t *testing.T) {
	s := start(t)
	s.mustPut(t, testBlock("a", "r", time.Hour), testBlock("b", "r", time.Hour), testBlock("c", "r", time.Minute), testBlock("d", "r", 0))
	got := s.leases(t)
	if len(got) != 2 || got[0]+got[1] != "2 of 3600s1 of 60s" && got[0]+got[1] != "1 of 60s2 of 3600s" {
		t.Fatalf("leases %v", got)
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "blocks/c"})
	s.mustPut(t, testBlock("a", "r", 0))
	s.wantLeases(t, "1 of 3600s") // it holds b still
	s.mustWrite(t, Write{Verb: Delete, Name: "blocks/b"})
	s.wantLeases(t)
}

func TestTransactionThatIsNotMadeLeavesNoLease(t *testing.T) {
	s := start(t)
	s.mustPut(t, testBlock("b", "r", time.Hour))
	_, _, err := s.Write(t.Context(), "", []Write{{Verb: Put, Resource: testBlock("a", "r", time.Minute)}, {Verb: Create, Resource: testBlock("b", "r", time.Minute)}}, false)
	wantKind(t, err, link.AlreadyExists)
	results, _, err := s.Write(t.Context(), "", []Write{{Verb: Put, Resource: testBlock("a", "r", time.Minute)}}, true)
	if err != nil || results[0].Resource.GetBlock().GetExpireTime().GetSeconds() != s.now().Unix()+60 {
		t.Errorf("a dry run gives %v, %v", results, err)
	}
	s.wantLeases(t, "1 of 3600s")
	// Transactions that fail because others were faster, in earnest.
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			s.mustPut(t, testBlock("b", fmt.Sprint("r", i), time.Hour+time.Duration(i)*time.Second))
			if _, err := importRows(t, s, ImportOptions{}, testBlock("b", fmt.Sprint("i", i), 2*time.Hour+time.Duration(i)*time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if got := s.leases(t); len(got) != 1 || got[0][:5] != "1 of " {
		t.Errorf("leases %v", got)
	}
}

// TestBlockGoesWithTheLeaseThatAWriteWouldKeep ends the lease between reading and
// writing.
func TestBlockGoesWithTheLeaseThatAWriteWouldKeep(t *testing.T) {
	s := start(t)
	s.mustPut(t, testBlock("b", "r", time.Hour))
	read := s.mustGet(t, "blocks/b")
	read.GetBlock().Reason = "other"
	tx, err := newTransaction(s, "", []Write{{Verb: Put, Resource: read}}, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at, err := tx.read(t.Context())
	if err == nil {
		err = tx.workOut(s.now())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Revoke(t.Context(), tx.changes[0].old.lease); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tx.commit(t.Context(), at, nil, nil); err != errRaced { //nolint:errorlint // it is that one
		t.Fatalf("got %v", err)
	}
	if _, _, err := tx.try(t.Context()); err != nil { // it is made anew, with its end
		t.Fatal(err)
	}
	if got := s.mustGet(t, "blocks/b").GetBlock(); !proto.Equal(got.GetExpireTime(), read.GetBlock().GetExpireTime()) || got.GetReason() != "other" {
		t.Errorf("got %v", got)
	}
	s.wantLeases(t, "1 of 3600s")
}

func TestBlocksThatAreExportedAreWrittenBackWithWhatRemains(t *testing.T) {
	for name, write := range map[string]func(*testing.T, *Store, *linkv1.Resource) error{
		"written": func(t *testing.T, s *Store, r *linkv1.Resource) error {
			_, _, err := s.Write(t.Context(), "", []Write{{Verb: Put, Resource: r}}, false)
			return err
		},
		"imported": func(t *testing.T, s *Store, r *linkv1.Resource) error {
			got, err := importRows(t, s, ImportOptions{}, r)
			if err != nil {
				t.Fatal(err)
			}
			return got[0].Err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			s.mustPut(t, testBlock("short", "r", time.Minute), testBlock("long", "r", time.Hour), testBlock("stands", "r", 0))
			var exported []*linkv1.Resource
			if _, err := s.Scan(t.Context(), Filter{Kind: link.Blocks}, 0, func(o Object) error {
				r, err := o.Resource()
				exported = append(exported, r)
				return err
			}); err != nil || len(exported) != 3 {
				t.Fatal(exported, err)
			}
			for _, r := range exported {
				s.mustWrite(t, Write{Verb: Delete, Name: "blocks/" + r.GetBlock().GetId()})
			}
			s.later(10 * time.Minute)
			for _, r := range exported {
				err := write(t, s, r)
				if r.GetBlock().GetId() == "short" {
					if e := wantKind(t, err, link.Invalid); e.Field != "expire_time" || e.Hint == "" {
						t.Errorf("%+v", e)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				got := s.mustGet(t, "blocks/"+r.GetBlock().GetId()).GetBlock()
				if !proto.Equal(got.GetExpireTime(), r.GetBlock().GetExpireTime()) || !proto.Equal(got.GetTtl(), r.GetBlock().GetTtl()) {
					t.Errorf("got %v, exported was %v", got, r)
				}
			}
			s.wantLeases(t, "1 of 3000s")
			_, _, err := s.Get(t.Context(), "blocks/short")
			wantKind(t, err, link.NotFound)
			// Nor is one written that ends later than its ttl says.
			r := testBlock("late", "r", time.Minute)
			r.GetBlock().ExpireTime = timestamppb.New(s.now().Add(time.Hour))
			if e := wantKind(t, write(t, s, r), link.Invalid); e.Field != "expire_time" {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestImportOfAListOfBlocksNeedsFewLeasesAndIsRenewed(t *testing.T) {
	s := start(t)
	rows := make([]*linkv1.Resource, 1000)
	for i := range rows {
		rows[i] = testBlock(fmt.Sprint("b", i), "r", time.Hour)
	}
	rows = append(rows, testBlock("b0", "again", time.Minute))
	got := mustImport(t, s, ImportOptions{}, rows...)
	if last := got[len(got)-1]; last.Err != nil || s.mustGet(t, "blocks/b0").GetBlock().GetReason() != "again" {
		t.Fatalf("%+v", last)
	}
	if n := len(s.leases(t)); n > 15 {
		t.Errorf("%d leases for 1001 rows", n)
	}
	s.later(time.Minute)
	for _, r := range mustImport(t, s, ImportOptions{}, rows[:1000]...) {
		if r.Outcome != Updated {
			t.Fatalf("%+v: a list that is written again stands longer", r)
		}
	}
	held := 0
	for _, l := range s.leases(t) {
		var keys, ttl int
		if _, err := fmt.Sscanf(l, "%d of %ds", &keys, &ttl); err != nil || keys == 0 || ttl != 3600 {
			t.Errorf("lease %s", l)
		}
		held += keys
	}
	if held != 1000 {
		t.Errorf("%d blocks are held", held)
	}
	before := s.leases(t)
	var exported []*linkv1.Resource
	for i := range 1000 {
		exported = append(exported, s.mustGet(t, fmt.Sprint("blocks/b", i)))
	}
	s.later(time.Minute)
	for _, r := range mustImport(t, s, ImportOptions{}, exported...) {
		if r.Outcome != Unchanged {
			t.Fatalf("%+v", r)
		}
	}
	if after := s.leases(t); len(after) != len(before) {
		t.Errorf("%d leases, and %d before", len(after), len(before))
	}
}

func TestPoliciesAreResourcesLikeAnyOther(t *testing.T) {
	s := start(t)
	policy := func(scope string, action linkv1.BlockAction) *linkv1.Resource {
		return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: scope, Labels: []*linkv1.LabelPolicy{{Label: "rate", Action: action}}}}}
	}
	const refuse, fallback = linkv1.BlockAction_BLOCK_ACTION_REFUSE, linkv1.BlockAction_BLOCK_ACTION_FALLBACK
	s.mustPut(t, policy("*", refuse), policy("domains/go.example.com", refuse), policy("affiliates/aff_01", refuse), testBlock("b", "r", 0))
	mustImport(t, s, ImportOptions{}, policy("domains/*", fallback))
	names, _ := listAll(t, s, Query{Filter: Filter{Kind: link.Policies}})
	if fmt.Sprint(names) != "[policies/* policies/affiliates/aff_01 policies/domains/* policies/domains/go.example.com]" {
		t.Errorf("%v", names)
	}
	off := policy("*", fallback)
	off.GetPolicy().Off = true
	s.mustWrite(t, Write{Verb: Update, Resource: off, Mask: []string{"off"}})
	if p := s.mustGet(t, "policies/*").GetPolicy(); !p.GetOff() || p.GetLabels()[0].GetAction() != refuse || p.GetUpdatedBy() != "tester" {
		t.Errorf("got %v", p)
	}
	for _, w := range []Write{
		{Verb: Update, Resource: off, Mask: []string{"scope"}},
		{Verb: Put, Resource: policy("*", 0)},
	} {
		_, _, err := s.Write(t.Context(), "", []Write{w}, false)
		wantKind(t, err, link.Invalid)
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "policies/affiliates/aff_01"})
	_, _, err := s.Get(t.Context(), "policies/affiliates/aff_01")
	wantKind(t, err, link.NotFound)
}
