package snapshot

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func TestKnownIsWhatTheSourceHolds(t *testing.T) {
	const name = "links/go.test/x"
	server := etcdtest.New(t)
	client := server.Client()
	s := store.New(client)
	l := New(s, Config{Logger: quiet, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	if _, ok := l.Known(name); ok {
		t.Error("something is known before anything was read")
	}
	stop := follow(t, l)
	<-l.Ready()
	holds := func(when string) store.Known {
		t.Helper()
		o, _, err := s.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		k, ok := l.Known(name)
		if !ok || !bytes.Equal(k.Value, o.Value) || k.Revision != o.Revision || k.Created.IsZero() || !k.Created.Equal(o.Created()) {
			t.Errorf("%s: known is %+v, etcd has %+v of %v", when, k, o, o.Created())
		}
		return k
	}
	write := func(w store.Write) {
		t.Helper()
		_, revision, err := s.Write(t.Context(), "test", []store.Write{w}, false)
		if err != nil {
			t.Fatal(err)
		}
		until(t, l, revision)
	}

	if k, ok := l.Known(name); !ok || k.Revision != 0 {
		t.Errorf("nothing is there, and known is %+v, %t", k, ok)
	}
	write(put("/x"))
	k := holds("written")

	// Written again as it was, as by somebody who is not told apart by nodes.
	record, err := proto.Marshal(&linkv1.Record{Resource: k.Value, CreateTime: timestamppb.New(k.Created), UpdatedBy: "another"})
	if err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	again, err := client.Put(t.Context(), "/aff/v1/r/"+name, string(record))
	if err != nil {
		t.Fatal(err)
	}
	until(t, l, again.Header.Revision)
	holds("written again")
	if l.Head() != head {
		t.Errorf("it is a version of its own: %+v", l.Head())
	}

	stop()
	if _, err := client.Put(t.Context(), "/aff/v1/r/"+name, string(record)); err != nil {
		t.Fatal(err)
	}
	last := server.Compact(client)
	stop = follow(t, l)
	until(t, l, last)
	holds("read anew")
	stop()
	l = New(s, Config{Logger: quiet, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	follow(t, l)
	<-l.Ready()
	holds("read by another")

	write(store.Write{Verb: store.Delete, Name: name})
	if k, ok := l.Known(name); !ok || k.Revision != 0 || k.Value != nil {
		t.Errorf("deleted, and known is %+v, %t", k, ok)
	}
	l.alarm.wentBack(1, last+1000)
	if _, ok := l.Known(name); ok {
		t.Error("something is known of a source that went back")
	}
}

func TestWhatIsWrittenAgainChangesNothingThatIsFrozen(t *testing.T) {
	s := newState()
	made := func(revision int64) entry {
		return makeEntry(&store.Object{Name: "links/a/1", Value: []byte("value"), Revision: revision})
	}
	s.set("links/a/1", made(1))
	before := s.freeze()
	if old := s.set("links/a/1", made(2)); !old.same(made(2)) {
		t.Error("it counts as a change")
	}
	after := s.freeze()
	if before.hash != after.hash || before.entries != after.entries || before.bytes != after.bytes {
		t.Errorf("before: %+v, after: %+v", before, after)
	}
	at := s.index("links/a/1")
	if was, is := before.shards[at].m["links/a/1"].known().Revision, after.shards[at].m["links/a/1"].known().Revision; was != 1 || is != 2 {
		t.Errorf("revisions %d and %d, want 1 and 2", was, is)
	}
}
