package redirect

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"testing"

	"github.com/affleet/affleet/dataplane/internal/race"
)

// testLoops is how many event loops the servers of the tests have.
var testLoops int

// runTwice runs all tests with a goroutine for each connection, and then with
// event loops, which are to make no difference.
func runTwice(m *testing.M) int {
	code := m.Run()
	if code != 0 || runtime.GOOS != "linux" {
		return code
	}
	testLoops = 2
	if code = m.Run(); code != 0 {
		fmt.Fprintln(os.Stderr, "(with event loops)")
	}
	return code
}

// allocateNothing makes 2,000 round trips, and looks at the allocations of all the
// process, which tests before this one may still add to: what a request allocates is
// in each of three counts. The race detector empties the pools, so that it only looks
// for races; make test runs these tests without it, too.
func allocateNothing(t *testing.T, name string, trip func()) {
	t.Helper()
	least := math.Inf(1)
	for range 3 {
		if least = min(least, allocsPerTrip(2000, trip)); least == 0 || race.Enabled {
			return
		}
	}
	t.Errorf("%s: %v allocations per round trip, want none", name, least)
}

// allocsPerTrip is testing.AllocsPerRun, which has one P for all: with loops, that
// is not enough.
func allocsPerTrip(trips int, trip func()) float64 {
	if testLoops == 0 {
		return testing.AllocsPerRun(trips, trip)
	}
	trip()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range trips {
		trip()
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / uint64(trips)) //nolint:gosec // positive
}
