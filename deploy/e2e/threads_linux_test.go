package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// niceOfThreads counts the threads of a process by nice value.
func niceOfThreads(t *testing.T, pid int) map[int]int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[int]int)
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it is gone
		}
		_, fields, _ := strings.Cut(string(stat), ") ")
		nice, err := strconv.Atoi(strings.Fields(fields)[16]) // proc_pid_stat(5): field 19 of all
		if err != nil {
			t.Fatal(err)
		}
		count[nice]++
	}
	return count
}

func TestLoopsOfANodeGoBeforeAllElseThatItDoes(t *testing.T) {
	f := newFleet(t, 1, 1)
	f.NodeArgs = append(f.NodeArgs, "--loops", "2")
	f.must(f.StartAll())
	f.do("link", "create", "/a", "https://store.com/", "--wait")
	f.wantRedirect("/a", "https://store.com/")
	count := niceOfThreads(t, f.Nodes[0].PID())
	loops := slices.Min(slices.Collect(maps.Keys(count)))
	if count[loops] != 2 || len(count) != 2 || count[loops+4] == 0 {
		t.Errorf("threads by nice value: %v; want 2 with the lowest, and all others with 4 more", count)
	}
}
