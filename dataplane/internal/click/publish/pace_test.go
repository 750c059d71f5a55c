package publish

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestABacklogShrinksAsFastAsItIsToAndNoFaster(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		name   string
		rate   float64       // of clicks that come
		slow   time.Duration // after which something is sent too late
		clicks float64       // that are sent within a second
	}{
		{"few come", 1000, 0, 101_000},
		{"as many come as it shrinks by", 100_000, 0, 200_000},
		{"more come", 300_000, 0, 600_000},
		{"timers are coarse", 1000, late, 101_000},
		{"the machine stalls", 1000, 4 * late, 25_000},
	} {
		p := pace{drain: 100_000, rate: c.rate, came: begin, due: begin}
		const clicks = 10 // a batch
		var sent float64
		for now := begin; now.Sub(begin) < time.Second; {
			if wait := p.wait(now); wait > 0 {
				now = now.Add(max(wait, c.slow))
				continue
			}
			p.sent(now, clicks)
			sent += clicks
		}
		if sent < 0.95*c.clicks || sent > 1.05*c.clicks {
			t.Errorf("%s: %.0f clicks are sent in a second, want %.0f", c.name, sent, c.clicks)
		}
	}
}

func TestWhatWasSentInAHurryIsNotWaitedFor(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := pace{drain: 1000, rate: 1, came: now}
	for range 100 {
		p.sent(now, 1000)
	}
	if wait := p.wait(now); wait > time.Second {
		t.Errorf("the next batch waits for %v", wait)
	}
}

func TestPaceCountsTheClicksThatCome(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var p pace
	for last := uint64(0); last < 1000; last += 10 {
		now = now.Add(10 * time.Millisecond)
		p.look(now, func() uint64 { return last })
	}
	if p.rate < 990 || p.rate > 1010 {
		t.Errorf("%.0f clicks come a second, want 1000", p.rate)
	}
	if p.look(now.Add(paceEvery), func() uint64 { return p.last }); p.rate != 0 {
		t.Errorf("%.0f clicks come a second, and there was none", p.rate)
	}
}

// A click that comes now and then would find the core full otherwise.
func TestABacklogWaitsForThePaceUntilNoClickHasComeForASecond(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	p := pace{drain: 1000}
	if p.look(began, func() uint64 { return 0 }); p.wait(began) != 0 {
		t.Error("a backlog waits before the first click has come")
	}
	came := began.Add(paceEvery)
	p.look(came, func() uint64 { return 1 })
	waits := func(now time.Time) bool {
		p.look(now, func() uint64 { return 1 })
		p.sent(now, 1000)
		return p.wait(now) > 0
	}
	for now := came; now.Sub(came) <= nobody; now = now.Add(tick) {
		if !waits(now) {
			t.Fatalf("a backlog does not wait %v after a click", now.Sub(came))
		}
	}
	if now := came.Add(nobody + tick); waits(now) {
		t.Errorf("a backlog waits %v after a click", now.Sub(came))
	}
}

// A backlog of 2000 clicks that is to shrink by 2000 a second, while a thousand come. The
// clock is the test's.
func TestABacklogIsPublishedSlowlyWhileRedirectsCome(t *testing.T) {
	const n = 2000
	r := backlogOf(t, n)
	p := byHand(t, Config{URL: natstest.Start(t).URL(), Recorder: r})
	p.pace.drain = n
	settle(t, p)
	begin := time.Now()
	now := begin
	for i := n; p.published.Load() < n; i++ {
		r.Record(event(i))
		p.pump(t.Context(), now)
		for len(p.inFlight) > 0 {
			p.answered(<-p.acks)
		}
		now = now.Add(time.Millisecond)
	}
	took := now.Sub(begin)
	if took < 700*time.Millisecond || took > 850*time.Millisecond {
		t.Errorf("%d clicks were published after %v", n, took)
	}
}

// It is to shrink by a click a second, and does not wait for that.
func TestABacklogIsNotPublishedSlowlyForNobody(t *testing.T) {
	p := slow(t, 2000, 1)
	run(t, p)
	for p.published.Load() < 2000 {
		time.Sleep(time.Millisecond)
	}
}

func TestANodeThatEndsPublishesAsFastAsItCan(t *testing.T) {
	p := slow(t, 2000, 1)
	asIfClicksCame(p)
	run(t, p)
	flush(t, p)
}

// What is at level memory is lost with the process.
func TestClicksThatAreInMemoryAloneArePublishedAsFastAsCanBe(t *testing.T) {
	p := slow(t, 2000, 1, func(c *click.Config) { c.Level = click.Memory })
	asIfClicksCame(p)
	run(t, p)
	for begin := time.Now(); p.published.Load() < 2000; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%d clicks are published", p.published.Load())
		}
	}
}

// asIfClicksCame makes a publisher that has not begun believe that there are redirects
// all the time.
func asIfClicksCame(p *Publisher) {
	later := time.Now().Add(time.Hour)
	p.pace.rate, p.pace.came, p.pace.at = 1, later, later
}

// backlogOf is a recorder of n clicks, which are published in batches of about 450.
func backlogOf(t *testing.T, n int, change ...func(*click.Config)) *click.Recorder {
	t.Helper()
	r := openRecorder(t, change...)
	for i := range n {
		e := event(i)
		e.UserAgent = fmt.Appendf(nil, "%0500d", i)
		r.Record(e)
	}
	return r
}

// slow is a publisher of a backlog of n clicks that shrinks by so many a second.
func slow(t *testing.T, n int, drain float64, change ...func(*click.Config)) *Publisher {
	t.Helper()
	r := backlogOf(t, n, change...)
	p, err := New(Config{URL: natstest.Start(t).URL(), Recorder: r, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.pace.drain = drain
	return p
}
