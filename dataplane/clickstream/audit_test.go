package clickstream

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func TestAnAuditOfAWindowKnowsWhatCameBefore(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	dropped := func(answered, n uint64) func(*clickv1.Batch) {
		return func(b *clickv1.Batch) {
			b.Ledger.Answered = answered
			b.Ledger.Dropped = []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_SPOOL_FULL, Clicks: n}}
		}
	}
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 5, dropped(8, 3)))
	publish(Subject("eu", "n"), message(t, "n", 1, 8, 3, dropped(13, 3))) // 6 and 7 come late
	publish(Subject("eu", "old"), message(t, "old", 1, 1, 5))
	from := apart()
	publish(Subject("eu", "n"), message(t, "n", 1, 4, 10, dropped(20, 7))) // 6, 7 and 11 to 13 are new
	publish(Subject("eu", "m"), message(t, "m", 1, 101, 10, dropped(111, 1)))
	var audit Audit
	got := strings.Join(read(t, js, Options{Start: At(from), Lead: time.Hour, Audit: &audit}), " ")
	if !strings.HasPrefix(got, "n/1:6 n/1:7 n/1:11 n/1:12 n/1:13 m/1:101 ") {
		t.Fatal(got)
	}
	a := audit.Accounts()
	if len(a) != 2 || !a[0].Closes() || !a[1].Closes() {
		t.Fatalf("%+v", a)
	}
	if m := a[0]; m.Answered != 10 || m.Clicks != 10 || m.Lost() != 0 {
		t.Errorf("%+v", m)
	}
	if n := a[1]; n.Answered != 7 || n.Clicks != 3 || n.Late != 2 || n.Lost() != 4 || n.Duplicates != 5 {
		t.Errorf("%+v", n)
	}
}

// The last message before the window is older than the one before it: it was
// published again.
func TestAnAuditOfAWindowTakesTheLatestAccountFromBefore(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	dropped := func(b *clickv1.Batch) {
		b.Ledger.Answered += 3
		b.Ledger.Dropped = []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_SPOOL_FULL, Clicks: 3}}
	}
	publish(subject, message(t, "n", 1, 1, 5))
	publish(subject, message(t, "n", 1, 6, 5, dropped))
	publish(subject, message(t, "n", 1, 1, 5))
	from := apart()
	publish(subject, message(t, "n", 1, 11, 5, dropped))
	var audit Audit
	read(t, js, Options{Start: At(from), Lead: time.Hour, Audit: &audit})
	if a := audit.Accounts(); len(a) != 1 || !a[0].Closes() || a[0].Answered != 5 || a[0].Lost() != 0 {
		t.Fatalf("%+v", a)
	}
}

func TestAnAuditOfAWholeStreamMissesWhatABootBeganWith(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 6, 5))
	publish(Subject("eu", "n"), message(t, "n", 1, 11, 0))
	for whole, missing := range map[bool]int64{true: 5, false: 0} {
		audit := Audit{Whole: whole}
		read(t, js, Options{Audit: &audit})
		a := audit.Accounts()
		if len(a) != 1 || a[0].Difference() != missing || a[0].Closes() == whole || whole && !slices.Equal(a[0].Missing, []Range{{1, 5}}) {
			t.Errorf("%t: %+v", whole, a)
		}
	}
}

// What a node has answered is the same in both of its accounts.
func TestAnAuditKeepsWhatWasLostLaterWhenAnOlderMessageComesAgain(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", 1, 1, 5))
	publish(subject, message(t, "n", 1, 8, 3)) // 6 and 7 are refused
	publish(subject, message(t, "n", 1, 11, 0, func(b *clickv1.Batch) {
		b.Ledger.Recorded = 8
		b.Ledger.Dropped = []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_TOO_LARGE, Clicks: 2}}
	}))
	publish(subject, message(t, "n", 1, 8, 3))
	var audit Audit
	read(t, js, Options{Audit: &audit})
	if a := audit.Accounts(); len(a) != 1 || !a[0].Closes() || a[0].Answered != 10 || a[0].Lost() != 2 {
		t.Fatalf("%+v", a)
	}
}

// A gap at the end of a window is none when its clicks came a little later.
func TestAnAuditSeesWhatCameLate(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	publish(Subject("eu", "n"), message(t, "n", 1, 1, 5))
	publish(Subject("eu", "n"), message(t, "n", 1, 8, 3))
	until := apart()
	publish(Subject("eu", "n"), message(t, "n", 1, 6, 2))
	publish(Subject("eu", "n"), message(t, "n", 1, 20, 2)) // all that is beyond the window
	publish(Subject("eu", "m"), message(t, "m", 1, 1, 2))
	for trail, missing := range map[time.Duration]int64{0: 2, time.Since(until): 0} {
		var audit Audit
		clicks := 0
		if err := Consume(t.Context(), js, Options{Until: until, Trail: trail, Audit: &audit, Log: quiet()}, func(_ context.Context, b *Batch) error {
			clicks += len(b.Clicks)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		a := audit.Accounts()
		if len(a) != 1 || a[0].Difference() != missing || a[0].Closes() != (missing == 0) || clicks != 8 {
			t.Errorf("%s: %d clicks, %+v", trail, clicks, a)
		}
	}
}

// The node finds out a little later that the stream will never have what it refused, and
// drops others then, which are not of the window.
func TestAnAuditSeesWhatWasExplainedLate(t *testing.T) {
	js := natstest.Start(t).JetStream()
	publish := stream(t, js)
	later := func(explained uint64) func(*clickv1.Batch) {
		return func(b *clickv1.Batch) {
			b.Ledger.Recorded -= 1 + explained
			b.Ledger.Answered += 4
			b.Ledger.Dropped = []*clickv1.Drop{
				{Reason: clickv1.DropReason_DROP_REASON_SPOOL_FULL, Clicks: 4},
				{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: 1},
				{Reason: clickv1.DropReason_DROP_REASON_TOO_LARGE, Clicks: explained},
			}
		}
	}
	for boot := range uint64(2) {
		publish(Subject("eu", "n"), message(t, "n", boot, 1, 5))
		publish(Subject("eu", "n"), message(t, "n", boot, 9, 2, func(b *clickv1.Batch) { // of 6 to 8 it has lost one
			b.Ledger.Recorded--
			b.Ledger.Dropped = []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: 1}}
		}))
	}
	until := time.Now()
	publish(Subject("eu", "n"), message(t, "n", 0, 11, 3, later(1))) // one is still missing
	publish(Subject("eu", "n"), message(t, "n", 1, 11, 3, later(2)))
	var audit Audit
	err := Consume(t.Context(), js, Options{Until: until, Trail: time.Since(until), Audit: &audit, Log: quiet()}, func(context.Context, *Batch) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	a := audit.Accounts()
	if len(a) != 2 || a[0].Closes() || a[0].Difference() != 2 || a[0].Lost() != 1 {
		t.Fatalf("%+v", a)
	}
	if b := a[1]; !b.Closes() || b.Answered != 10 || b.Clicks != 7 || b.Dropped["corrupt"] != 1 || b.Dropped["too_large"] != 2 || b.Lost() != 3 {
		t.Errorf("%+v", b)
	}
}
