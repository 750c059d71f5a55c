package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// audit reads the stream up to a boot's last message, and gives the accounts of all.
func audit(t *testing.T, js jetstream.JetStream, last uint64) map[uint64]clickstream.Account {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	done := errors.New("done")
	keep := &clickstream.Audit{Whole: true}
	err := clickstream.Consume(ctx, js, clickstream.Options{Audit: keep}, func(_ context.Context, b *clickstream.Batch) error {
		if uint64(b.Boot) == last && b.Ledger.Final {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	accounts := make(map[uint64]clickstream.Account)
	for _, a := range keep.Accounts() {
		if !a.Closes() {
			t.Errorf("the account of boot %s does not close: %+v", a.Boot, a)
		}
		accounts[uint64(a.Boot)] = a
	}
	return accounts
}

// The first boot fills the spool, and the second one opens full.
func TestWhatWasDroppedWithoutNATSIsInTheLedger(t *testing.T) {
	for _, killed := range []bool{false, true} {
		s := natstest.Start(t)
		dir := t.TempDir()
		answered := make(map[uint64]uint64)
		for boot := uint64(5); boot <= 6; boot++ {
			r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot, c.SegmentBytes, c.MaxBytes = dir, boot, 256<<10, 1<<20 })
			for i := range 30000 {
				for r.Short() { // else clicks are dropped before the spool is full
					time.Sleep(time.Millisecond)
				}
				r.Record(event(i))
			}
			answered[boot] = r.Ledger().Answered
			if boot == 6 && r.Ledger().Recorded != 0 {
				t.Fatalf("the spool is not full: %+v", r.Ledger())
			}
			if killed {
				copied := t.TempDir()
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				dir = copied
			} else if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 7 })
		p, _ := start(t, s.URL(), r)
		flush(t, p)
		accounts := audit(t, s.JetStream(), 7)
		for boot, n := range answered {
			if got := accounts[boot]; got.Answered != n || got.Ended == killed {
				t.Errorf("killed: %t, boot %d: %d were answered: %+v", killed, boot, n, got)
			}
		}
	}
}

// duplicates is for how long the server drops what comes a second time.
const duplicates = 100 * time.Millisecond

// stopWithoutNATS makes a spool whose clicks are acknowledged, and what came of them
// afterwards is not told.
func stopWithoutNATS(t *testing.T, s *natstest.Server, dropped int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	p, stop := start(t, s.URL(), r, func(c *Config) { c.Stream.Duplicates = duplicates })
	r.Record(event(0))
	for r.Unacknowledged() > 0 {
		time.Sleep(time.Millisecond)
	}
	s.Stop()
	for range dropped {
		r.Record(&click.Event{Destination: make([]byte, 1<<20)})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := p.Flush(ctx); err == nil {
		t.Fatal("the end is told without NATS")
	}
	stop()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	return dir
}

func TestANodeThatStopsWithoutNATSTellsItsEndAtTheNextStartAndOnce(t *testing.T) {
	for _, dropped := range []int{0, 10} {
		s := natstest.Start(t)
		dir := stopWithoutNATS(t, s, dropped)
		for boot := uint64(6); boot <= 7; boot++ {
			r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, boot })
			p, stop := start(t, s.URL(), r)
			flush(t, p)
			stop()
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * duplicates)
		}
		if got := audit(t, s.JetStream(), 7)[5]; got.Answered != uint64(1+dropped) || got.Clicks != 1 || got.Dropped["too_large"] != uint64(dropped) || !got.Ended {
			t.Errorf("%d dropped: %+v", dropped, got)
		}
		finals := 0
		for _, m := range messages(t, s.JetStream()) {
			if b := unmarshal(t, m.Data); b.Boot == 5 && b.GetLedger().GetFinal() {
				finals++
			}
		}
		if finals != 1 {
			t.Errorf("%d dropped: the end is told %d times", dropped, finals)
		}
	}
}

func TestAStopWithoutNATSWaitsForClicksAndNotForAnAccountThatIsKept(t *testing.T) {
	nothing := func(*click.Recorder) {}
	for name, stop := range map[string]struct {
		level  click.Level
		before func(r *click.Recorder) // with NATS away
		waits  bool
	}{
		"only the account is left":    {click.Process, nothing, false},
		"at level fsync":              {click.Fsync, nothing, false},
		"drops are in the account":    {click.Process, func(r *click.Recorder) { r.Record(&click.Event{Destination: make([]byte, 1<<20)}) }, false},
		"a click is left":             {click.Process, func(r *click.Recorder) { r.Record(event(1)) }, true},
		"nothing outlives the memory": {click.Memory, nothing, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.Start(t)
			r := openRecorder(t, func(c *click.Config) { c.Level = stop.level })
			p, _ := start(t, s.URL(), r)
			r.Record(event(0))
			for r.Unacknowledged() > 0 {
				time.Sleep(time.Millisecond)
			}
			s.Stop()
			stop.before(r)
			wait := 20 * time.Second // is not to pass
			if stop.waits {
				wait = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			if err := p.Flush(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) != stop.waits {
				t.Errorf("the stop says %v, and was to wait for all of its time: %t", err, stop.waits)
			}
		})
	}
}

func TestAnAccountIsWaitedForWhileNATSRestarts(t *testing.T) {
	s := natstest.Start(t)
	p, r := connected(t, s, 1)
	r.End()
	done := make(chan error, 1)
	p.flush = append(p.flush, done)
	now := time.Now()
	p.leaveAccount(now)
	s.Stop()
	for deadline := now.Add(20 * time.Second); p.nc.IsConnected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it stays connected")
		}
	}
	for _, after := range []time.Duration{0, away - 1, away} {
		p.leaveAccount(now.Add(after))
		if left := len(p.flush) == 0; left != (after >= away) {
			t.Errorf("%v without NATS, it is left to the next start: %t", after, left)
		}
	}
	if err := <-done; err == nil {
		t.Error("it is told without NATS")
	}
}

func TestANodeThatHasNeverReachedNATSAndHasNoClicksDoesNotWait(t *testing.T) {
	p, _ := start(t, "nats://127.0.0.1:1", openRecorder(t))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.Flush(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the stop says %v", err)
	}
}

// A node that ends again and again without NATS leaves an account each time.
func TestManyAccountsTakeOneEncoderAndGoAsTheyAreTold(t *testing.T) {
	spool, dir := t.TempDir(), t.TempDir()
	left := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = spool, 5 })
	left.Record(&click.Event{Destination: make([]byte, 1<<20)})
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	account, err := os.ReadFile(filepath.Join(spool, "0000000000000005", "boot"))
	if err != nil {
		t.Fatal(err)
	}
	const boots = 1000
	for i := range boots { // all are boot 5's
		boot := filepath.Join(dir, fmt.Sprintf("%016x", 100+i))
		if err := os.Mkdir(boot, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(boot, "boot"), account, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
	p, err := New(Config{URL: "nats://127.0.0.1:1", Recorder: r})
	if err != nil {
		t.Fatal(err)
	}
	defer p.closeSources()
	encoders := make(map[*encoder]bool)
	for range 2 { // when batches are cut anew, too
		p.recut(p.limit)
		all := p.sources
		if len(all) != boots+1 {
			t.Fatalf("%d sources", len(all))
		}
		told := 0
		for b := p.next(time.Now()); len(p.sources) > 1; b = p.next(time.Now()) {
			encoders[p.sources[0].encoder] = true
			if batch := unmarshal(t, b.data); batch.Boot != 5 || batch.GetLedger().GetDropped() == nil {
				t.Fatalf("%+v", batch)
			}
			told++
		}
		kept := 0
		for _, s := range all[:boots] {
			if s != nil {
				kept++
			}
		}
		if told != boots || kept != 0 {
			t.Errorf("%d accounts are told, %d of their sources are still there", told, kept)
		}
	}
	if len(encoders) != 1 {
		t.Errorf("%d encoders were made", len(encoders))
	}
}
