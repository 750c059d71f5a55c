package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

const (
	perHour = linkv1.CapPeriod_CAP_PERIOD_HOUR
	perDay  = linkv1.CapPeriod_CAP_PERIOD_DAY
	perLife = linkv1.CapPeriod_CAP_PERIOD_TOTAL
)

// putCapped writes a link with a cap.
func (s *Store) putCapped(t *testing.T, path string, clicks uint64, period linkv1.CapPeriod) {
	t.Helper()
	r := testLink(path, "https://store.example/")
	r.GetLink().Fallback = "https://store.example/full"
	r.GetLink().Cap = &linkv1.Cap{Clicks: clicks, Period: period}
	s.mustPut(t, r)
}

func capped(path string) string { return testLink(path, "").GetLink().GetDomain() + path }

func (s *Store) mustLease(t *testing.T, claims ...CapClaim) []uint64 {
	t.Helper()
	granted, err := s.LeaseCaps(t.Context(), claims)
	if err != nil {
		t.Fatal(err)
	}
	clicks := make([]uint64, len(granted))
	for i, g := range granted {
		clicks[i] = g.Clicks
	}
	return clicks
}

func (s *Store) hour() int64 { return s.now().Unix() / 3600 }

func TestLeasesOfACapAddUpToIt(t *testing.T) {
	s := start(t)
	s.putCapped(t, "/a", 100, perHour)
	total := uint64(0)
	for range 100 {
		g := s.mustLease(t, CapClaim{Link: capped("/a"), Period: perHour, Number: s.hour(), Wanted: 40})[0]
		if total == 0 && g != 25 {
			t.Errorf("the first lease is %d: a quarter of what is left is 25", g)
		}
		total += g
	}
	if total != 100 {
		t.Errorf("%d clicks were leased, and the cap is 100", total)
	}
	// What is given back is leased again, and what is owed is not.
	claim := CapClaim{Link: capped("/a"), Period: perHour, Number: s.hour(), Wanted: 10, Returned: 4, Owed: 3}
	if g := s.mustLease(t, claim, claim); g[0] != 1 || g[1] != 1 {
		t.Errorf("leased %v, want 1 and 1", g)
	}
	claim = CapClaim{Link: capped("/a"), Period: perHour, Number: s.hour(), Wanted: 10, Owed: 50}
	if g := s.mustLease(t, claim); g[0] != 0 {
		t.Errorf("leased %v beyond the cap", g)
	}
}

func TestEachPeriodHasItsOwnCount(t *testing.T) {
	s := start(t)
	s.putCapped(t, "/h", 2, perHour)
	s.putCapped(t, "/d", 2, perDay)
	s.putCapped(t, "/t", 2, perLife)
	lease := func(path string, period linkv1.CapPeriod, number int64) uint64 {
		t.Helper()
		return s.mustLease(t, CapClaim{Link: capped(path), Period: period, Number: number, Wanted: 1})[0]
	}
	for _, number := range []int64{s.hour(), s.hour() - 1, s.hour() + 1} {
		if got := []uint64{lease("/h", perHour, number), lease("/h", perHour, number), lease("/h", perHour, number)}; !slices.Equal(got, []uint64{1, 1, 0}) {
			t.Errorf("hour %d: leases %v, want 2", number, got)
		}
	}
	day := s.now().Unix() / 86400
	if got := []uint64{lease("/d", perDay, day), lease("/d", perDay, day), lease("/d", perDay, day)}; !slices.Equal(got, []uint64{1, 1, 0}) {
		t.Errorf("day: leases %v, want 2", got)
	}
	if lease("/t", perLife, 0) != 1 || lease("/t", perLife, 7) != 1 || lease("/t", perLife, 0) != 0 {
		t.Error("in all: want 2 leases")
	}
	for name, g := range map[string]uint64{
		"an hour long ago":      lease("/h", perHour, s.hour()-2),
		"an hour to come":       lease("/h", perHour, s.hour()+2),
		"another kind of cap":   lease("/h", perDay, day),
		"no link":               lease("/none", perLife, 0),
		"a link without a path": s.mustLease(t, CapClaim{Link: "x", Period: perLife, Wanted: 1})[0],
		"no period":             lease("/t", 0, 0),
	} {
		if g != 0 {
			t.Errorf("%s: %d were leased", name, g)
		}
	}
	// The clock goes on: counters of the past go, those of the present stay.
	now := s.now()
	s.now = func() time.Time { return now.Add(3 * time.Hour) }
	lease("/h", perHour, s.hour())
	if err := s.SweepCaps(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := s.client.Get(t.Context(), capKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 3 {
		t.Errorf("left are %v, want the new hour's, the day's and the one in all", got.Kvs)
	}
}

func TestALinkThatIsWrittenAnewBeginsAtZeroAndADeletedOneIsSwept(t *testing.T) {
	s := start(t)
	claim := CapClaim{Link: capped("/t"), Period: perLife, Wanted: 1}
	s.putCapped(t, "/t", 1, perLife)
	if s.mustLease(t, claim)[0] != 1 || s.mustLease(t, claim)[0] != 0 {
		t.Fatal("want one lease")
	}
	s.putCapped(t, "/t", 2, perLife) // edited, not written anew
	if s.mustLease(t, claim)[0] != 1 || s.mustLease(t, claim)[0] != 0 {
		t.Fatal("a higher cap has to give one more")
	}
	s.mustWrite(t, Write{Verb: Delete, Name: "links/" + capped("/t")})
	if s.mustLease(t, claim)[0] != 0 {
		t.Fatal("a deleted link has no leases")
	}
	s.putCapped(t, "/t", 2, perLife)
	if s.mustLease(t, claim)[0] != 1 {
		t.Fatal("the new link did not begin at 0")
	}
	for i := range 2*maxCapLinks + 5 {
		s.putCapped(t, fmt.Sprintf("/gone/%d", i), 1, perLife)
		s.mustLease(t, CapClaim{Link: capped(fmt.Sprintf("/gone/%d", i)), Period: perLife, Wanted: 1})
		s.mustWrite(t, Write{Verb: Delete, Name: "links/" + capped(fmt.Sprintf("/gone/%d", i))})
	}
	if err := s.SweepCaps(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := s.client.Get(t.Context(), capKeys, clientv3.WithPrefix())
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Key) != capTotal+capped("/t") {
		t.Errorf("left are %v, %v", got.Kvs, err)
	}
}

// TestCompetingReplicasNeverLeaseMoreThanTheCap leases many links from several
// stores at once, with returns in between.
func TestCompetingReplicasNeverLeaseMoreThanTheCap(t *testing.T) {
	server := etcdtest.New(t)
	const links, clicks = 70, 40 // more than one transaction
	first := New(server.Client())
	for i := range links {
		first.putCapped(t, fmt.Sprintf("/%d", i), clicks, perLife)
	}
	var held [links]atomic.Int64
	var running sync.WaitGroup
	for replica := range 4 {
		s := New(server.Client())
		s.patience = time.Minute // the race detector makes it slow
		rnd := rand.New(rand.NewPCG(uint64(replica), 1))
		running.Go(func() {
			var mine [links]uint64
			for range 40 {
				claims := make([]CapClaim, links)
				for i := range claims {
					back := rnd.Uint64N(mine[i] + 1)
					mine[i] -= back
					held[i].Add(-int64(back))
					claims[i] = CapClaim{Link: capped(fmt.Sprintf("/%d", i)), Period: perLife, Returned: back, Wanted: rnd.Uint64N(20)}
				}
				granted, err := s.LeaseCaps(t.Context(), claims)
				if err != nil {
					t.Error(err)
					return
				}
				for i, g := range granted {
					mine[i] += g.Clicks
					if n := held[i].Add(int64(g.Clicks)); n > clicks {
						t.Errorf("link %d: %d are held, and the cap is %d", i, n, clicks)
					}
				}
			}
		})
	}
	running.Wait()
	for i := range links {
		for {
			g := first.mustLease(t, CapClaim{Link: capped(fmt.Sprintf("/%d", i)), Period: perLife, Wanted: clicks})[0]
			if g == 0 {
				break
			}
			held[i].Add(int64(g))
		}
		if n := held[i].Load(); n != clicks {
			t.Errorf("link %d: %d were leased in the end, want %d", i, n, clicks)
		}
	}
}

func TestACounterThatNobodyHereHasWrittenIsZero(t *testing.T) {
	s := start(t)
	s.putCapped(t, "/t", 4, perLife)
	if _, err := s.client.Put(t.Context(), capTotal+capped("/t"), "what\x00"); err != nil {
		t.Fatal(err)
	}
	if g := s.mustLease(t, CapClaim{Link: capped("/t"), Period: perLife, Wanted: 4})[0]; g != 1 {
		t.Errorf("leased %d, want 1", g)
	}
}

func TestReplicaWhoseClockIsAheadDoesNotSweepThePresentHour(t *testing.T) {
	s := start(t)
	s.putCapped(t, "/h", 1, perHour)
	claim := CapClaim{Link: capped("/h"), Period: perHour, Number: s.hour(), Wanted: 1}
	if s.mustLease(t, claim)[0] != 1 {
		t.Fatal("want one lease")
	}
	ahead := New(s.client)
	ahead.now = func() time.Time { return s.now().Add(5 * time.Hour) }
	if err := ahead.SweepCaps(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g := s.mustLease(t, claim)[0]; g != 0 {
		t.Errorf("%d more clicks of the same hour were leased, and the cap is 1", g)
	}
}
