package click

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// within reads what there is of a backlog, so many clicks at a time, and what is left
// with Each.
func within(t *testing.T, cursor *Cursor, bytes, clicks int) (times []int64, byWithin, told int) {
	t.Helper()
	var c Click
	taken := 0
	take := func() bool {
		if taken == clicks {
			return false
		}
		taken++
		times = append(times, c.Time)
		return true
	}
	for {
		for before := -1; before < len(times) && cursor.Ahead(bytes); {
			before, taken = len(times), 0
			cursor.Within(&c, take)
			byWithin += len(times) - before
		}
		taken = 0
		before := len(times)
		switch err := cursor.Each(&c, take); {
		case errors.Is(err, ErrDamaged):
			told++
		case err != nil:
			t.Fatal(err)
		case len(times) == before:
			return times, byWithin, told
		}
	}
}

func TestABacklogIsReadAheadAndThenWithoutAWait(t *testing.T) {
	const n = 2000 // of 1 KiB
	r := open(t)
	recordSlowly(t, r, 1, n+1)
	full := 0
	for _, s := range all(r.Log()) {
		if s.sealed.Load() != 0 {
			full += int(s.sealed.Load() - 1)
		}
	}
	if full < n/2 {
		t.Fatalf("%d of %d clicks are in segments that are over", full, n)
	}
	for _, bytes := range []int{pageSize, 3 * pageSize, 64 << 10, 100 << 20} {
		for _, clicks := range []int{1, 7, n} {
			t.Run(fmt.Sprintf("%d bytes, %d clicks", bytes, clicks), func(t *testing.T) {
				cursor := r.Log().Cursor(0)
				defer cursor.Close()
				times, byWithin, told := within(t, cursor, bytes, clicks)
				for i, got := range times {
					if got != int64(i+1) {
						t.Fatalf("click %d is %d", i+1, got)
					}
				}
				if len(times) != n || told != 0 || cursor.Position() != n+1 {
					t.Errorf("%d of %d clicks, damage %d times, at %d", len(times), n, told, cursor.Position())
				}
				if least := full * 9 / 10; clicks == n && byWithin < least {
					t.Errorf("%d clicks came without a wait, want %d", byWithin, least)
				}
			})
		}
	}
}

// The page in which the last click of what was looked at ends, Ahead has looked at, too:
// where that page is not to be had, Ahead is what finds out.
func TestWhatIsReadAheadIsThereToTheEndOfTheLastClick(t *testing.T) {
	r := open(t)
	for i := range 200 {
		e := &Event{UserAgent: make([]byte, 1000)}
		if i%7 == 6 {
			e.Destination = make([]byte, 3*pageSize)
		}
		r.Record(e)
		waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	}
	behind := func(t *testing.T, clicks int) *Cursor {
		cursor := r.Log().Cursor(0)
		t.Cleanup(cursor.Close)
		var c Click
		n := 0
		if err := cursor.Each(&c, func() bool { n++; return n <= clicks }); err != nil {
			t.Fatal(err)
		}
		return cursor
	}
	for clicks := range 30 {
		t.Run(fmt.Sprintf("behind %d clicks", clicks), func(t *testing.T) {
			var c Click
			on := func() bool { // as who encodes them
				_, _ = bytes.Clone(c.UserAgent), bytes.Clone(c.Destination)
				return true
			}
			cursor := behind(t, clicks)
			if !cursor.Ahead(2 * pageSize) {
				t.Fatal("there is no backlog")
			}
			cursor.Within(&c, on)
			last := (cursor.pos - 1) &^ (pageSize - 1)
			cursor = behind(t, clicks)
			forbid(t, cursor.segment, last)
			if cursor.Ahead(2 * pageSize) {
				cursor.Within(&c, on)
			}
			if cursor.searching {
				t.Error("a click was only there in part")
			}
		})
	}
}

// To step over thousands of clicks takes long, and they need not be in memory.
func TestACursorThatStartsInTheMiddleOfASegmentFindsItsPlaceWithEach(t *testing.T) {
	const n = 2000
	r := open(t)
	recordSlowly(t, r, 1, n+1)
	cursor := r.Log().Cursor(100)
	defer cursor.Close()
	if cursor.Ahead(1 << 20) {
		t.Error("Within would step over a hundred clicks")
	}
	var c Click
	one := 0
	if err := cursor.Each(&c, func() bool { one++; return one == 1 }); err != nil {
		t.Fatal(err)
	}
	if c.Sequence != 102 || !cursor.Ahead(1<<20) {
		t.Errorf("at click %d there is no backlog", c.Sequence)
	}
}

// Who records has the segment that is not over.
func TestWhatIsBeingRecordedIsNoBacklog(t *testing.T) {
	r := open(t)
	recordTimes(r, 1, 11)
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	if cursor.Ahead(1 << 20) {
		t.Error("there is a backlog")
	}
	if got := len(readOn(t, cursor)); got != 10 {
		t.Errorf("%d clicks, want 10", got)
	}
}

func TestABacklogWithAPageThatCannotBeReadIsReadAllTheSame(t *testing.T) {
	const n = 2000
	for name, damage := range map[string]func(t *testing.T, cursor *Cursor, s *segment){
		"before it is looked at": func(t *testing.T, _ *Cursor, s *segment) { forbid(t, s, 8*pageSize) },
		"behind that": func(t *testing.T, cursor *Cursor, s *segment) {
			if !cursor.Ahead(100 << 20) {
				t.Fatal("there is no backlog")
			}
			forbid(t, s, 8*pageSize)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			recordSlowly(t, r, 1, n+1)
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			damage(t, cursor, all(r.Log())[0])
			times, _, told := within(t, cursor, 100<<20, n)
			account := r.Ledger()
			lost := account.Lost()
			if told == 0 || lost == 0 || lost > 8 || uint64(len(times)) != n-lost {
				t.Errorf("%d of %d clicks, %d are lost, damage %d times", len(times), n, lost, told)
			}
			for i := range times[1:] {
				if times[i+1] <= times[i] {
					t.Fatalf("click %d follows %d", times[i+1], times[i])
				}
			}
		})
	}
}

// An earlier boot's clicks may be damaged anywhere.
func TestAnEarlierBootsClicksAreReadWithAWait(t *testing.T) {
	dir := t.TempDir()
	r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	const n = 2000
	recordSlowly(t, r, 1, n+1)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	cursor := r.Earlier()[0].Cursor(0)
	defer cursor.Close()
	if times, byWithin, _ := within(t, cursor, 1<<20, n); len(times) != n || byWithin != 0 {
		t.Errorf("%d of %d clicks, %d of them by Within", len(times), n, byWithin)
	}
}
