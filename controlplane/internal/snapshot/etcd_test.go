package snapshot

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// follow runs a log until stop is called.
func follow(t *testing.T, l *Log) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

func put(path string) store.Write {
	return store.Write{Verb: store.Put, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{
		Link: &linkv1.Link{Domain: "go.test", Path: path, Destination: "https://shop.test/"},
	}}}
}

// until waits until the log has seen a revision.
func until(t *testing.T, l *Log, revision int64) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		v := l.View()
		if v.Seen() >= revision {
			return
		}
		select {
		case <-v.Advanced():
		case <-deadline:
			t.Fatalf("the log has seen %d, not %d", v.Seen(), revision)
		}
	}
}

func TestLogGetsOverACompactionOfRealEtcdWithoutZombies(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := store.New(client)
	write := func(writes ...store.Write) int64 {
		_, revision, err := s.Write(t.Context(), "test", writes, false)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	write(put("/kept"), put("/gone"))
	l := New(s, Config{Logger: quiet, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	stop := follow(t, l)
	<-l.Ready()
	n := &replicaNode{entries: map[string]string{}}
	next(t, l, n)
	stop() // cut off
	write(store.Write{Verb: store.Delete, Name: "links/go.test/gone"})
	for i := range 10 {
		write(put(fmt.Sprint("/new-", i%2)))
	}
	last := server.Compact(client)
	follow(t, l)
	until(t, l, last)
	if f := next(t, l, n); f == nil || f.Kind != Delta {
		t.Fatalf("the node was sent %+v", f)
	}
	if _, zombie := n.entries["links/go.test/gone"]; zombie || len(n.entries) != 3 {
		t.Fatalf("the node holds %v", n.entries)
	}
}

// A watch begins behind the last revision, and etcd says nothing of its progress until
// there is a next one.
func TestLogFollowsAnEtcdInWhichNothingIsWritten(t *testing.T) {
	server := etcdtest.New(t, func(cfg *embed.Config) { cfg.WatchProgressNotifyInterval = time.Hour })
	client := server.Client()
	s := store.New(client)
	if _, err := s.Epochs(t.Context()); err != nil { // makes one, so that the log need not
		t.Fatal(err)
	}
	const interval = 50 * time.Millisecond
	l := New(s, Config{
		Logger: quiet, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, ProgressInterval: interval,
		Progress: client.RequestProgress,
	})
	follow(t, l)
	<-l.Ready()
	for end := time.Now().Add(20 * interval); time.Now().Before(end); time.Sleep(interval / 5) {
		if !l.metrics.following.Load() {
			t.Fatal("the log takes etcd to be down")
		}
	}
}

func TestLogGoesOnAfterEtcdWasDown(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := store.New(client)
	l := New(s, Config{
		Logger: quiet, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, ProgressInterval: 20 * time.Millisecond,
		Progress: client.RequestProgress,
	})
	follow(t, l)
	<-l.Ready()
	server.Stop()
	for deadline := time.Now().Add(20 * time.Second); l.metrics.following.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log does not notice that etcd is down")
		}
	}
	head := l.Head()
	if head.Epoch == 0 {
		t.Fatal("the state is gone")
	}
	server.Start()
	var revision int64
	for {
		var err error
		if _, revision, err = s.Write(t.Context(), "test", []store.Write{put("/x")}, false); err == nil {
			break
		}
	}
	until(t, l, revision)
	if l.View().head().entries != 1 || !l.metrics.following.Load() {
		t.Fatalf("the log holds %+v", l.View().head())
	}
}
