package replica

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
)

func start(t *testing.T, client *clientv3.Client, id string) (d *Directory, stop func()) {
	t.Helper()
	d, err := New(client, Config{ID: id, Address: id + ":7070", TTL: time.Second, Retry: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = d.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return d, stop
}

// until waits until a replica knows exactly these.
func until(t *testing.T, d *Directory, want ...string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := d.Changed()
		var ids []string
		for _, p := range d.Peers() {
			if p.Address != p.ID+":7070" {
				t.Fatalf("%s is at %s", p.ID, p.Address)
			}
			ids = append(ids, p.ID)
		}
		if slices.Equal(ids, want) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("known are %v, not %v", ids, want)
		}
	}
}

func TestReplicasFindEachOther(t *testing.T) {
	client := etcdtest.Start(t)
	a, _ := start(t, client, "a")
	b, _ := start(t, client, "b")
	_, stopC := start(t, client, "c")
	until(t, a, "b", "c")
	until(t, b, "a", "c")
	stopC()
	until(t, a, "b")
	c := Peer{ID: "c", Address: "c:7070"}
	if _, got := a.PeersAndLeft(); !slices.Equal(got, []Peer{c}) {
		t.Errorf("left have %v", got)
	}
	start(t, client, "c")
	until(t, a, "b", "c")
	if _, got := a.PeersAndLeft(); len(got) != 0 {
		t.Errorf("left have %v, and c is back", got)
	}
}

func TestReplicasThatHaveLeftAreForgotten(t *testing.T) {
	d, err := New(nil, Config{ID: "a", Address: "a:7070"})
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for i := range maxLeft + 2 {
		id := string(rune('b' + i))
		list[prefix+id] = id + ":7070"
	}
	d.set(list, 1)
	d.set(nil, 2)
	_, left := d.PeersAndLeft()
	if len(left) != maxLeft || left[0].ID != "d" {
		t.Fatalf("left have %v", left)
	}
	d.Forget(left[0])
	if _, got := d.PeersAndLeft(); !slices.Equal(got, left[1:]) {
		t.Errorf("left have %v, want %v", got, left[1:])
	}
}

func TestAReplicaIsAmongThePeersOrHasLeft(t *testing.T) {
	d, err := New(nil, Config{ID: "a", Address: "a:7070"})
	if err != nil {
		t.Fatal(err)
	}
	d.set(map[string]string{prefix + "b": "b:7070"}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for revision := int64(2); revision < 20_000; revision += 2 {
			d.set(nil, revision)
			d.set(map[string]string{prefix + "b": "b:7070"}, revision+1)
		}
	}()
	for looking := true; looking; {
		select {
		case <-done:
			looking = false
		default:
		}
		if peers, left := d.PeersAndLeft(); len(peers)+len(left) != 1 {
			t.Errorf("peers are %v, and left have %v", peers, left)
			break
		}
	}
	<-done
}

// A watch is behind for a while when it begins after an event.
func TestRefreshKnowsAReplicaThatTheWatchHasNotToldYet(t *testing.T) {
	client := etcdtest.Start(t)
	a, err := New(client, Config{ID: "a", Address: "a:7070"})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, client, "b")
	<-b.Listed()
	if err := a.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, a, "b")
	later := a.revision
	a.set(nil, later-1) // what a late watch says
	until(t, a, "b")
	a.restart(nil, later-1) // what etcd says after a restore
	until(t, a)
	if err := a.Refresh(canceled(t)); err == nil {
		t.Error("a list that could not be read is taken for one")
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestReplicaIsListedAgainAfterItsLeaseIsLost(t *testing.T) {
	client := etcdtest.Start(t)
	a, _ := start(t, client, "a")
	start(t, client, "b")
	until(t, a, "b")
	got, err := client.Get(t.Context(), prefix+"b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Revoke(t.Context(), clientv3.LeaseID(got.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	until(t, a)
	until(t, a, "b")
}

// A replica that is started again, or an etcd that is restored, leaves behind
// who was at an address before.
func TestOneReplicaIsKnownPerAddress(t *testing.T) {
	client := etcdtest.Start(t)
	a, _ := start(t, client, "a")
	start(t, client, "c")
	until(t, a, "c")
	for id, address := range map[string]string{"before-a": "a:7070", "d": "c:7070"} {
		if _, err := client.Put(t.Context(), prefix+id, address); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, a, "c")
}

func TestReplicaNeedsAnIDAndAnAddress(t *testing.T) {
	for _, cfg := range []Config{{}, {ID: "a"}, {ID: "a/b", Address: "x:1"}} {
		if _, err := New(nil, cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// slow is a client of etcd whose first answer to a reading comes late.
type slow struct {
	clientv3.KV
	clientv3.Watcher
	begun           atomic.Bool
	read, answer    chan struct{} // closed when it is there, and when it may come
	watched, events chan struct{} // closed when a watch begins, and when it may
}

func (s *slow) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	got, err := s.KV.Get(ctx, key, opts...)
	if !s.begun.Swap(true) {
		close(s.read)
		<-s.answer
	}
	return got, err
}

func (s *slow) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	close(s.watched)
	<-s.events
	return s.Watcher.Watch(ctx, key, opts...)
}

func TestWatchThatBeginsDoesNotForgetAReplicaThatRefreshHasFound(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := &slow{
		KV: client.KV, Watcher: client.Watcher,
		read: make(chan struct{}), answer: make(chan struct{}), watched: make(chan struct{}), events: make(chan struct{}),
	}
	client.KV, client.Watcher = s, s
	a, err := New(client, Config{ID: "a", Address: "a:7070"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { _ = a.watch(ctx) })
	defer watching.Wait()
	defer cancel()
	<-s.read
	b, _ := start(t, server.Client(), "b")
	<-b.Listed()
	if err := a.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(s.answer)
	<-s.watched
	if len(a.Peers()) != 1 {
		t.Errorf("known are %v, and b was listed before the refresh", a.Peers())
	}
	close(s.events)
}
