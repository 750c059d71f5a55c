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

// allocateNothing makes round trips of so many requests each, and looks at the
// allocations of all the process, which tests before this one may still add to, and
// so do segments of clicks: what a request allocates is in each of three counts, and
// what one in a hundred does is too much; testing.AllocsPerRun rounds down, and takes
// what every second one does for nothing. The race detector empties the pools, so that
// it only looks for races; make test runs these tests without it, too.
func allocateNothing(t *testing.T, name string, requests int, trip func()) {
	t.Helper()
	trips := max(50, 2000/requests)
	least, most := uint64(math.MaxUint64), uint64(trips*requests/100) //nolint:gosec // positive
	for range 3 {
		if least = min(least, allocations(trips, trip)); least < most || race.Enabled {
			return
		}
	}
	t.Errorf("%s: %d allocations by %d requests, want none", name, least, trips*requests)
}

// allocations are those of so many round trips, of all Ps: with loops, one is not
// enough.
func allocations(trips int, trip func()) uint64 {
	if testLoops == 0 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	trip()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range trips {
		trip()
	}
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}
