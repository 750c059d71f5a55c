package feed

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// keeping runs a keeper of one link until stop gives what it logged.
func keeping(t *testing.T, dir string) (k *keeper, stop func() string) {
	t.Helper()
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.example.com", Path: "/a", Destination: "https://store.example/",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b := table.NewBuilder(1)
	if err := b.Put([]byte("links/go.example.com/a"), value); err != nil {
		t.Fatal(err)
	}
	live := new(table.Live)
	live.Store(b.Build(table.Version{Epoch: 1, Revision: 2}))
	log := new(bytes.Buffer)
	k = newKeeper(dir, time.Second, live, newMetrics(live, nil), slog.New(slog.NewTextHandler(log, nil)))
	k.metrics.confirm()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.run(ctx) }()
	return k, func() string { cancel(); <-done; return log.String() }
}

func TestStateFileIsWrittenAgainWhenSomebodyRemovesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stop := keeping(t, t.TempDir())
		defer stop()
		k.changed(false)
		synctest.Wait()
		if err := os.Remove(k.current()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(touchInterval + time.Second)
		synctest.Wait()
		if _, err := readFile(k.current()); err != nil {
			t.Errorf("nothing has changed since, and: %v", err)
		}
	})
}

func TestStateFileIsWrittenAsSoonAsTheDiskTakesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way
			t.Fatal(err)
		}
		k, stop := keeping(t, dir)
		k.changed(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(touchInterval + time.Second)
		synctest.Wait()
		if _, err := readFile(k.current()); errors.Is(err, fs.ErrNotExist) {
			t.Error("it is tried once, and never again while nothing changes")
		} else if err != nil {
			t.Error(err)
		}
		log := stop()
		if n := strings.Count(log, "is not written"); n == 0 || n > 11 {
			t.Errorf("ten minutes are %d lines:\n%s", n, log)
		}
		if !strings.Contains(log, "is written again") {
			t.Errorf("the log does not say that it is mended:\n%s", log)
		}
	})
}
