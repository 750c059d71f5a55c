package controlplane

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
)

// TestTheLogHearsOfProgressWhateverElseIsWatched: another watch begins at a
// revision at which nothing was written yet.
func TestTheLogHearsOfProgressWhateverElseIsWatched(t *testing.T) {
	client := etcdtest.New(t, func(cfg *embed.Config) { cfg.WatchProgressNotifyInterval = time.Hour }).Client()
	resources := store.New(client)
	if _, err := client.Put(t.Context(), "elsewhere", ""); err != nil {
		t.Fatal(err)
	}
	head, err := resources.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	other := client.Watch(clientv3.WithRequireLeader(ctx), "nothing", clientv3.WithRev(head+1), clientv3.WithCreatedNotify())
	<-other // it has begun
	go func() {
		for ctx.Err() == nil {
			_ = client.RequestProgress(clientv3.WithRequireLeader(alone(ctx)))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	for batch, err := range (followed{resources}).Watch(ctx, head-1) {
		if err != nil {
			t.Fatal(err)
		}
		if batch.Revision == head {
			return
		}
	}
}
