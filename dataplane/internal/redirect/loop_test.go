package redirect

import (
	"fmt"
	"os"
	"runtime"
	"testing"
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
