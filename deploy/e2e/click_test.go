package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/processes"
)

// answeredClicks are the numbers of the requests that were answered, and of
// those that were sent and whose answer did not arrive.
type answeredClicks struct {
	mu       sync.Mutex
	next     int
	answered map[string]bool
	unsure   map[string]bool
}

// ask sends requests with a number each, one after the other, until the load
// ends. A node that is dead answers nothing.
func (a *answeredClicks) ask(addr string, end <-chan struct{}) {
	for {
		select {
		case <-end:
			return
		default:
		}
		a.mu.Lock()
		a.next++
		path := fmt.Sprintf("/go/%d", a.next)
		a.mu.Unlock()
		_, err := askOnce(addr, path)
		a.mu.Lock()
		if err == nil {
			a.answered[path] = true
		} else {
			a.unsure[path] = true
		}
		a.mu.Unlock()
		if err != nil {
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

func (a *answeredClicks) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answered)
}

// readStream reads the stream to its end with the reference consumer.
func (f *fleet) readStream(options clickstream.Options, each func(*clickstream.Batch)) {
	f.t.Helper()
	nc, err := nats.Connect("nats://"+f.NATSAddr, nats.RetryOnFailedConnect(true), nats.ReconnectWait(50*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		f.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), processes.Patience)
	defer cancel()
	options.Until, options.Log = time.Now(), slog.New(slog.DiscardHandler)
	if err := clickstream.Consume(ctx, js, options, func(_ context.Context, batch *clickstream.Batch) error {
		each(batch)
		return nil
	}); err != nil {
		f.t.Fatal(err)
	}
}

// pathsInStream gives how often each path is in the stream.
func (f *fleet) pathsInStream() (paths map[string]int, gaps []clickstream.Gap) {
	f.t.Helper()
	paths = map[string]int{}
	f.readStream(clickstream.Options{Gap: func(g clickstream.Gap) { gaps = append(gaps, g) }}, func(batch *clickstream.Batch) {
		for i := range batch.Clicks {
			paths[batch.Clicks[i].Path]++
		}
	})
	return paths, gaps
}

func TestEveryAnsweredRedirectIsInTheStreamOnceWhateverIsKilledWhen(t *testing.T) {
	f := startFleet(t, 1, 1)
	f.do("link", "create", "/go/*", "https://store.com/", "--wait")
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)

	load := &answeredClicks{answered: map[string]bool{}, unsure: map[string]bool{}}
	end := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { load.ask(f.NodeAddr[0], end) })
	}
	stopLoad := sync.OnceFunc(func() { close(end); clients.Wait() })
	t.Cleanup(stopLoad)
	// more waits until so many more requests are answered: a moment of no
	// meaning to the node.
	more := func() {
		from, n := load.count(), 1+rnd.IntN(300)
		f.eventually("requests are answered", func() bool { return load.count() >= from+n })
	}
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	down := false
	for round := range rounds {
		more()
		switch rnd.IntN(3) {
		case 0: // NATS is there, or away, all the time
		case 1:
			if down {
				f.must(f.NATS.Restart())
			} else {
				f.NATS.Kill()
			}
			down = !down
			more()
		case 2:
			if !down {
				f.NATS.Kill()
				more()
				f.must(f.NATS.Restart())
			}
		}
		if round%4 != 3 {
			f.Nodes[0].Kill()
		} else { // a node that is killed again and again takes its state for the cause
			if down {
				f.must(f.NATS.Restart())
				down = false
			}
			if code, err := f.Nodes[0].Stop(); code != 0 {
				t.Errorf("SIGTERM ends with exit code %d %v, want 0", code, err)
			}
		}
		f.must(f.Nodes[0].Restart())
	}
	more()
	if down {
		f.must(f.NATS.Restart())
	}
	stopLoad()
	f.must(f.WaitReady())
	if code, err := f.Nodes[0].Stop(); code != 0 {
		t.Errorf("SIGTERM ends with exit code %d %v, want 0", code, err)
	}

	// The final node published all that was left before it ended, or it is in
	// the spool for the next one.
	f.must(f.Nodes[0].Restart())
	f.must(f.WaitReady())
	var paths map[string]int
	var gaps []clickstream.Gap
	missing := func() (n int) {
		for path := range load.answered {
			if paths[path] == 0 {
				n++
			}
		}
		return n
	}
	f.eventually("every answered redirect is in the stream", func() bool {
		paths, gaps = f.pathsInStream()
		return missing() == 0
	})
	for path, times := range paths {
		if times != 1 || !load.answered[path] && !load.unsure[path] {
			t.Errorf("%s is in the stream %d times; answered: %v", path, times, load.answered[path])
		}
	}
	for _, gap := range gaps {
		t.Errorf("a gap: %+v", gap)
	}
	if load.count() < 100 {
		t.Errorf("only %d requests were answered", load.count())
	}
	t.Logf("%d requests answered, %d without an answer, %d clicks", load.count(), len(load.unsure), len(paths))
}

func TestANodeWhoseClicksArePublishedStopsWithoutNATSAndTellsItsEndAtTheNextStart(t *testing.T) {
	f := newFleet(t, 1, 1)
	f.NodeArgs = []string{"--flush", "10m"} // is not to be waited for
	f.must(f.StartAll())
	f.do("link", "create", "/a", "https://store.com/", "--wait")
	f.wantRedirect("/a", "https://store.com/")
	f.eventually("the click is published", func() bool {
		return strings.Contains(processes.Get(f.NodeAdmin[0], "/metrics").Body, "\naff_clicks_published_total 1\n")
	})
	f.NATS.Kill()
	if code, err := f.Nodes[0].Stop(); code != 0 {
		t.Fatalf("SIGTERM ends with exit code %d %v, want 0", code, err)
	}
	f.must(f.NATS.Restart())
	f.must(f.Nodes[0].Restart())
	f.eventually("the end of the first boot is in the stream", func() bool {
		audit := &clickstream.Audit{}
		f.readStream(clickstream.Options{Audit: audit}, func(*clickstream.Batch) {})
		return slices.ContainsFunc(audit.Accounts(), func(a clickstream.Account) bool { return a.Ended && a.Answered == 1 })
	})
}
