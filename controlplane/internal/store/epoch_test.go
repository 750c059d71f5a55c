package store

import (
	"errors"
	"slices"
	"testing"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/proto/link"
)

func TestNewEpochKnowsThoseBeforeIt(t *testing.T) {
	s := New(etcdtest.Start(t))
	first, err := s.Epoch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, revision, err := s.NewEpoch(t.Context(), first, []uint64{77, first, 0})
	if err != nil || second == first || revision == 0 {
		t.Fatalf("a new epoch is %x at %d, %v", second, revision, err)
	}
	got, err := s.Epochs(t.Context())
	slices.Sort(got.Past)
	want := []uint64{77, first}
	slices.Sort(want)
	if err != nil || got.Current != second || !slices.Equal(got.Past, want) {
		t.Fatalf("the epochs are %x, %v; want %x after %x", got, err, second, want)
	}
	_, _, err = s.NewEpoch(t.Context(), first, nil)
	if e, ok := errors.AsType[*link.Error](err); !ok || e.Kind != link.Aborted {
		t.Fatalf("an epoch that is over was ended again: %v", err)
	}
}

func TestWatchTellsOfEpochsAndReleasesInTheirRevisions(t *testing.T) {
	s := start(t)
	first := s.mustPut(t, testLink("/a", "https://store.example/"))
	if err := s.Release(t.Context(), 7, 5); err != nil {
		t.Fatal(err)
	}
	_, shrunk, err := s.WriteWith(t.Context(), "test", []Write{{Verb: Delete, Name: "links/go.example.com/a"}}, WriteOptions{AllowShrink: 7})
	if err != nil {
		t.Fatal(err)
	}
	epoch, err := s.Epoch(t.Context()) // makes one
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = s.NewEpoch(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	epochs := 0
	for batch, err := range s.Watch(t.Context(), first) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case batch.Epoch:
			epochs++
		case batch.Release == Release{Epoch: 7, UpTo: 5} && len(batch.Changes) == 0:
		case batch.Release == Release{Epoch: 7, Write: shrunk} && batch.Revision == shrunk && len(batch.Changes) == 1:
		default:
			t.Fatalf("the watch gave %+v", batch)
		}
		if epochs == 2 {
			break
		}
	}
	if got, err := s.Released(t.Context(), 7); err != nil || got != (Release{Epoch: 7, UpTo: 5, Write: shrunk}) {
		t.Fatalf("released is %+v, %v", got, err)
	}
	if got, err := s.ReleasedAt(t.Context(), 7, shrunk-1); err != nil || got != (Release{Epoch: 7, UpTo: 5}) {
		t.Fatalf("before the write, released was %+v, %v", got, err)
	}
}

func TestReleaseIsNeverTakenBack(t *testing.T) {
	s := start(t)
	for _, upTo := range []int64{5, 9, 3} {
		if err := s.Release(t.Context(), 7, upTo); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Released(t.Context(), 7); err != nil || got.UpTo != 9 {
		t.Fatalf("released is %+v, %v", got, err)
	}
	if err := s.Release(t.Context(), 8, 2); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Released(t.Context(), 8); err != nil || got != (Release{Epoch: 8, UpTo: 2}) {
		t.Fatalf("in another epoch, released is %+v, %v", got, err)
	}
}

func TestFirstRevisionThatIsHeldIsKeptUntilItIsReleased(t *testing.T) {
	s := start(t)
	hold := func(revision, want int64) {
		t.Helper()
		if err := s.Hold(t.Context(), 7, revision); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Held(t.Context(), 7); err != nil || got != want {
			t.Fatalf("held is %d, %v; want %d", got, err, want)
		}
	}
	hold(10, 10)
	hold(12, 10)
	hold(8, 8)
	if got, err := s.Held(t.Context(), 8); err != nil || got != 0 {
		t.Fatalf("another epoch holds %d, %v", got, err)
	}
	if err := s.Release(t.Context(), 7, 8); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Held(t.Context(), 7); err != nil || got != 0 {
		t.Fatalf("what is released is held: %d, %v", got, err)
	}
	hold(12, 12)
}

func TestLoadOfAnEarlierRevisionUntilItIsCompacted(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := New(client)
	first := s.mustPut(t, testDomain("*"))
	s.mustPut(t, testDomain("go.example.com"))
	n := 0
	load := func() error {
		_, err := s.Load(t.Context(), LoadOptions{At: first}, func(Object) error { n++; return nil })
		return err
	}
	if err := load(); err != nil || n != 1 {
		t.Fatalf("at the first revision there are %d, %v", n, err)
	}
	server.Compact(client)
	if err := load(); !errors.Is(err, ErrCompacted) {
		t.Fatalf("of a revision that is gone: %v", err)
	}
}
