package publish

import (
	"bytes"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// fillSegments makes a backlog of which most is in segments that are over, and gives how
// many clicks it has.
func fillSegments(t *testing.T, r *click.Recorder) (n int) {
	t.Helper()
	for ; r.Bytes() < 24<<20; n++ {
		for begin := time.Now(); r.Short(); time.Sleep(time.Millisecond) {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("there is no room for click %d", n)
			}
		}
		e := event(n)
		e.Referrer = fmt.Appendf(nil, "https://%0200d.example/", n%1000)
		r.Record(e)
	}
	return n
}

// Who does the work records clicks in between, as a loop does with each answer.
func TestABacklogIsEncodedWhereThatTakesLeastFromRedirects(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	n := fillSegments(t, r)
	var works, writes, looks, asked, recorded atomic.Int64
	errands := make(chan func(), 1)
	stopped := make(chan struct{})
	defer close(stopped)
	go func() { // the loop
		for {
			select {
			case work := <-errands:
				work()
			case <-stopped:
				return
			}
		}
	}()
	p, _ := start(t, s.URL(), r, func(c *Config) {
		c.Beside = func(work func(look func() bool)) bool {
			if asked.Add(1)%5 == 0 { // it is busy
				return false
			}
			stack := make([]byte, 16<<10)
			if bytes.Contains(stack[:runtime.Stack(stack, false)], []byte("writeBeside")) {
				writes.Add(1)
			}
			done := make(chan struct{})
			errands <- func() {
				defer close(done)
				work(func() bool {
					if looks.Add(1)%100 == 0 {
						r.Record(event(n + int(recorded.Add(1))))
					}
					return looks.Load()%997 != 0 // then it gets busy
				})
				works.Add(1)
			}
			<-done
			return true
		}
	})
	for r.Unacknowledged() > 0 {
		time.Sleep(time.Millisecond)
	}
	flush(t, p) // behind which no click is recorded
	all := n + int(recorded.Load())
	clicks, account := consumed(t, s.JetStream(), r.Log().Identity().Boot)
	if len(clicks) != all || account.Answered != uint64(all) || len(account.Dropped) > 0 {
		t.Errorf("%d of %d clicks are in the stream: %+v", len(clicks), all, account)
	}
	// A fifth of the time it has to be done here, and so has what is in the last segment.
	if least := int64(n / yieldEvery / 2); works.Load() == 0 || looks.Load() < least || recorded.Load() == 0 {
		t.Errorf("%d clicks: requests were looked for %d times in %d works, want %d", n, looks.Load(), works.Load(), least)
	}
	if writes.Load() == 0 {
		t.Error("nothing was written to NATS there")
	}
	t.Logf("%d clicks, %d works, %d looks, %d recorded meanwhile", n, works.Load(), looks.Load(), recorded.Load())
}

// What comes now is encoded here: to have it done elsewhere takes as long.
func TestClicksThatComeAreEncodedByThePublisher(t *testing.T) {
	s := natstest.Start(t)
	r := openRecorder(t)
	var asked atomic.Int64
	p, _ := start(t, s.URL(), r, func(c *Config) {
		c.Beside = func(func(func() bool)) bool {
			asked.Add(1)
			return false
		}
	})
	const n = 100
	for i := range n {
		r.Record(event(i))
	}
	for p.published.Load() < n {
		time.Sleep(time.Millisecond)
	}
	if asked.Load() != 0 {
		t.Errorf("somebody else was to encode %d times", asked.Load())
	}
}
