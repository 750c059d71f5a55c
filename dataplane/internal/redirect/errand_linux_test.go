package redirect

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// lends gives a node with one loop that has time for errands.
func lends(t *testing.T) (*node, *client) {
	t.Helper()
	onlyLoops(t)
	n := startNode(t, time.Second, oneLoop)
	c := n.dial(t)
	for begin := time.Now(); !n.Beside(func(func() bool) {}); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the loop does nothing for others")
		}
		c.send(getA) // it weighs what it takes with its turns
		c.expect(302)
	}
	return n, c
}

func TestRequestsAreAnsweredWhileALoopWorksForOthers(t *testing.T) {
	n, c := lends(t)
	const requests = 100
	var looks int
	if !n.Beside(func(look func() bool) {
		before := n.Stats().Redirects
		answered := make(chan bool)
		go func() {
			defer close(answered)
			for range requests {
				c.send(getA)
				c.expect(302)
			}
		}()
		for begin := time.Now(); n.Stats().Redirects < before+requests && time.Since(begin) < 10*time.Second; looks++ {
			look()
		}
		<-answered
	}) {
		t.Fatal("work was not done")
	}
	if looks < requests {
		t.Errorf("%d requests were answered in %d looks", requests, looks)
	}
	c.send(getA) // and behind it
	c.expect(302)
}

// What others want of the loop meanwhile, it does, too.
func TestALoopThatWorksForOthersTakesUpConnections(t *testing.T) {
	n, _ := lends(t)
	dialled, done := make(chan *client), make(chan bool)
	go func() { dialled <- n.dial(t) }()
	if !n.Beside(func(look func() bool) {
		var c *client
		for c == nil {
			select {
			case c = <-dialled:
			default:
				look()
			}
		}
		go func() {
			c.send(getA)
			c.expect(302)
			close(done)
		}()
		for answered := false; !answered; {
			select {
			case <-done:
				answered = true
			default:
				look()
			}
		}
	}) {
		t.Fatal("work was not done")
	}
}

func TestWorkIsDoneOnceAndInTurn(t *testing.T) {
	n, _ := lends(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	ran, refused, within := 0, 0, 0
	for range 20 {
		all.Go(func() {
			for range 100 {
				ok := n.Beside(func(look func() bool) {
					within++ // all of them are the loop's
					look()
					within--
					if within != 0 {
						t.Error("two are done at the same time")
					}
				})
				mu.Lock()
				if ok {
					ran++
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if ran == 0 || ran+refused != 2000 {
		t.Errorf("%d were done, and %d not", ran, refused)
	}
}

// Each of the looks may find that there is more to be done.
func TestWhoeverLendsWhileALoopWorksIsTold(t *testing.T) {
	n, _ := lends(t)
	told := make(chan bool, 3)
	lend := func() { told <- n.Beside(func(func() bool) {}) }
	if !n.Beside(func(look func() bool) {
		for range cap(told) {
			go lend()
			for begin := time.Now(); time.Since(begin) < 20*time.Millisecond; {
				look()
			}
		}
	}) {
		t.Fatal("work was not done")
	}
	for range cap(told) {
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("somebody waits for work that is forgotten")
		}
	}
}

// What others want would take for ever otherwise.
func TestALoopThatGetsBusyHasWhatItDoesForOthersEnd(t *testing.T) {
	n, c := lends(t)
	stop := make(chan struct{})
	ended := make(chan struct{})
	ok := false
	if !n.Beside(func(look func() bool) {
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				default:
					c.send(getA)
					c.expect(302)
				}
			}
		}()
		begin := time.Now()
		for !ok && time.Since(begin) < 10*time.Second {
			ok = !look()
		}
		if took := time.Since(begin); ok && took < longest/2 {
			t.Errorf("it is to end after %v", took)
		}
	}) {
		t.Fatal("work was not done")
	}
	close(stop)
	<-ended
	if !ok {
		t.Error("it may go on for ever")
	}
}

func TestALoopThatIsBusyDoesNothingForOthers(t *testing.T) {
	n, _ := lends(t)
	l := n.only.Load()
	n.Beside(func(func() bool) { l.standing.far = false })
	if n.Beside(func(func() bool) { t.Error("work was done") }) {
		t.Error("it is said that work was done")
	}
}

// Others would wait for work that the loop of one group does, and so they do where there
// is none to do it.
func TestWorkIsDoneWhereAllThatServesIsOneLoop(t *testing.T) {
	none := func(n *node, what string) {
		t.Helper()
		if n.Beside(func(func() bool) { t.Errorf("%s: work was done", what) }) {
			t.Errorf("%s: it is said that work was done", what)
		}
	}
	none(startNode(t, time.Second, func(c *Config) { c.Loops = 0 }), "no loops")
	onlyLoops(t)
	none(startNode(t, time.Second, func(c *Config) { c.Loops = 2 }), "two loops")

	n, _ := lends(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	second := make(chan error)
	go func() { second <- n.Serve(ctx, ln, time.Second) }()
	for begin := time.Now(); n.only.Load() != nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the loop goes on with two listeners")
		}
	}
	none(n, "two listeners")
	stop()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// Who runs a node sees whether its loop has time for a backlog.
func TestWorkThatALoopRunsOrRefusesIsCounted(t *testing.T) {
	count := func(n *node) [2]uint64 {
		st := n.Stats()
		return [2]uint64{st.ErrandsRun, st.ErrandsRefused}
	}
	none := startNode(t, time.Second, func(c *Config) { c.Loops = 0 })
	none.Beside(func(func() bool) {})
	if got := count(none); got != [2]uint64{0, 1} {
		t.Errorf("no loop: %v were run and refused, want 0 and 1", got)
	}

	n, _ := lends(t) // has refused some until it knew that it has time
	l := n.only.Load()
	before := count(n)
	want := func(what string, run, refused uint64) {
		t.Helper()
		now := count(n)
		if got := [2]uint64{now[0] - before[0], now[1] - before[1]}; got != [2]uint64{run, refused} {
			t.Errorf("%s: %v were run and refused, want %d and %d", what, got, run, refused)
		}
		before = now
	}
	other := make(chan bool)
	if !n.Beside(func(func() bool) {
		go func() { other <- n.Beside(func(func() bool) {}) }()
		if <-other {
			t.Error("two are run at the same time")
		}
		want("another one is being run", 0, 1)
		l.standing.far = false
	}) {
		t.Fatal("work was not done")
	}
	want("the loop has time", 1, 0)
	n.Beside(func(func() bool) {})
	want("the loop is busy", 0, 1)
	n.stop()
	n.Beside(func(func() bool) {})
	want("the loop has ended", 0, 1)
}

// Whoever waits for work to be done when the loop ends is told.
func TestALoopThatHasEndedDoesNothingForOthers(t *testing.T) {
	n, _ := lends(t)
	l := n.only.Load()
	var ended atomic.Bool
	told := make(chan struct{})
	go func() {
		defer close(told)
		for !ended.Load() { // it may be busy in between
			l.lend(func(func() bool) {})
		}
	}()
	n.stop()
	ended.Store(true)
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatal("work is waited for")
	}
	if l.lend(func(func() bool) {}) {
		t.Error("a loop that has ended works")
	}
}
