package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/proto/link"
)

func TestWatchYieldsWholeRevisionsInOrder(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/before", "https://store.example/"))
	first := s.mustPut(t, testLink("/first", "https://store.example/"))
	want := make(map[int64]int)
	for i := range 50 {
		n := i%7 + 1
		var writes []Write
		for j := range n {
			writes = append(writes, Write{Verb: Put, Resource: testLink(fmt.Sprintf("/%d", j), fmt.Sprintf("https://store.example/%d", i))})
		}
		_, revision := s.mustWrite(t, writes...)
		want[revision] = n
	}
	_, last := s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/0"})
	want[last] = 1
	if _, err := s.Epoch(t.Context()); err != nil { // no resource: not shown
		t.Fatal(err)
	}
	end := s.mustPut(t, testDomain("*"))
	want[end] = 1
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	previous := first
	for batch, err := range s.Watch(ctx, first) {
		if err != nil {
			t.Fatal(err)
		}
		if len(batch.Changes) == 0 {
			continue
		}
		if batch.Revision <= previous || len(batch.Changes) != want[batch.Revision] {
			t.Fatalf("revision %d after %d has %d changes, want %d", batch.Revision, previous, len(batch.Changes), want[batch.Revision])
		}
		delete(want, batch.Revision)
		previous = batch.Revision
		if batch.Revision == last && (batch.Changes[0].Value != nil || batch.Changes[0].Name != "links/go.example.com/0") {
			t.Fatalf("the deletion came as %+v", batch.Changes[0])
		}
		if batch.Revision == end {
			break
		}
	}
	if len(want) != 0 {
		t.Fatalf("revisions that did not come: %v", want)
	}
}

func TestWatchSaysHowFarNothingHasChanged(t *testing.T) {
	s := start(t)
	first := s.mustPut(t, testDomain("*"))
	if _, err := s.Epoch(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for batch, err := range s.Watch(ctx, first) {
		if err != nil || len(batch.Changes) > 0 {
			t.Fatalf("got %+v, %v", batch, err)
		}
		if batch.Revision > first {
			break
		}
	}
}

func TestWatchOfCompactedRevisionsSaysSo(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := New(client)
	first := s.mustPut(t, testLink("/a", "https://store.example/1"))
	s.mustPut(t, testLink("/a", "https://store.example/2"))
	server.Compact(client)
	for _, err := range s.Watch(t.Context(), first-1) {
		if !errors.Is(err, ErrCompacted) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.Watch(ctx, 0) {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestWatchGoesOnAfterEtcdWasDown(t *testing.T) {
	server := etcdtest.New(t)
	s := New(server.Client())
	first := s.mustPut(t, testDomain("*"))
	batches := make(chan Batch, 100)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	defer func() { cancel(); <-stopped }()
	go func() {
		defer close(stopped)
		for after := first; ctx.Err() == nil; {
			for batch, err := range s.Watch(ctx, after) {
				if err != nil {
					break
				}
				after = batch.Revision
				if len(batch.Changes) > 0 {
					batches <- batch
				}
			}
		}
	}()
	server.Stop()
	server.Start()
	revision := int64(0)
	for revision == 0 { // until etcd is back
		if _, at, err := s.Write(t.Context(), "", []Write{{Verb: Put, Resource: testDomain("go.example.com")}}, false); err == nil {
			revision = at
		}
	}
	if batch := <-batches; batch.Changes[0].Name != "domains/go.example.com" {
		t.Fatalf("got %+v", batch)
	}
}

func TestLoadShowsOneRevisionInOrder(t *testing.T) {
	s := start(t)
	importLinks(t, s, "old", 1500) // several pages
	before, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	revision, err := s.Load(t.Context(), LoadOptions{}, func(o Object) error {
		if len(names) == 0 { // others write while it reads
			s.mustPut(t, testLink("/zzz", "https://store.example/"))
			s.mustWrite(t, Write{Verb: Delete, Name: "links/go.example.com/old/999"})
		}
		names = append(names, o.Name)
		return nil
	})
	if err != nil || revision != before {
		t.Fatalf("loaded revision %d, want %d: %v", revision, before, err)
	}
	if len(names) != 1500 || !slices.IsSorted(names) || slices.Contains(names, "links/go.example.com/zzz") {
		t.Fatalf("loaded %d names", len(names))
	}
}

func TestLoadOfNothingHasARevision(t *testing.T) {
	s := start(t)
	revision, err := s.Load(t.Context(), LoadOptions{}, func(Object) error { return errors.New("nothing is there") })
	if err != nil || revision == 0 {
		t.Fatalf("got revision %d, %v", revision, err)
	}
}

func TestLoadStopsAtTheFirstError(t *testing.T) {
	s := start(t)
	importLinks(t, s, "a", 1200)
	stop, seen := errors.New("stop"), 0
	_, err := s.Load(t.Context(), LoadOptions{}, func(Object) error { seen++; return stop })
	if !errors.Is(err, stop) || seen != 1 {
		t.Fatalf("got %v after %d", err, seen)
	}
}

func TestRecordsThatCannotBeReadAreLeftOutByLoadAndWatch(t *testing.T) {
	s := start(t)
	first := s.mustPut(t, testLink("/a", "https://store.example/"))
	if _, err := s.client.Put(t.Context(), resources+"links/go.example.com/bad", "\xff\xff"); err != nil {
		t.Fatal(err)
	}
	loaded := 0
	last, err := s.Load(t.Context(), LoadOptions{}, func(Object) error { loaded++; return nil })
	if err != nil || loaded != 1 {
		t.Fatalf("loaded %d: %v", loaded, err)
	}
	replay(t, s, first-1, last, func(_ int64, state map[string][]byte) {
		if len(state) != 1 {
			t.Fatalf("state has %d", len(state))
		}
	})
	o, _, err := s.Get(t.Context(), "links/go.example.com/bad")
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Resource()
	wantKind(t, err, link.Internal)
	s.mustPut(t, testLink("/bad", "https://store.example/")) // and can be mended
}

func TestLoadedValuesAreWhatIsHashed(t *testing.T) {
	s := start(t)
	in := testLink("/a", "https://store.example/")
	s.mustPut(t, in)
	want, err := link.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), LoadOptions{}, func(o Object) error {
		if !bytes.Equal(o.Value, want) {
			t.Errorf("loaded %x, want %x", o.Value, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func FuzzRecordValue(f *testing.F) {
	f.Add([]byte("\x0a\x03abc\x12\x00"))
	f.Add([]byte("\x0a\x7f"))
	f.Fuzz(func(_ *testing.T, record []byte) {
		_ = linkAffiliate(recordValue(record)) // must not panic
	})
}
