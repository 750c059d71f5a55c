package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maskFile has the cores, as hexadecimal bits, on which the kernel runs work that is bound
// to none: what writes files out, for one (workqueue.rst of the kernel's documentation).
const maskFile = "/sys/devices/virtual/workqueue/cpumask"

// Others says in a report where all runs that was there before the benchmark.
func Others(moved bool) string {
	if moved {
		return "All else that ran on the machine, and the kernel's own threads (those that write out the files of all, look for memory that nobody uses, and the like), are kept to the other core as far as they may be moved: while the kernel works for one of them it does not let a server run, for up to 8 ms."
	}
	return "What else runs on the machine, the kernel's own threads included, may do so on either core: while the kernel works for one of them it does not let a server run, for up to 8 ms."
}

// MoveOthers lets all threads of the machine but those of this process, also the kernel's
// own, run only on one core until it is released, with what they start meanwhile. What the
// kernel has bound to a core stays there. It needs root, and a process that is killed
// releases nothing.
func MoveOthers(core string) (release func() error, err error) {
	failed := func(err error) error { return fmt.Errorf("move what else runs to one core: %w", err) }
	n, err := strconv.Atoi(core)
	if err != nil {
		return nil, failed(err)
	}
	before, err := os.ReadFile(maskFile)
	if err != nil {
		return nil, failed(err)
	}
	if err := os.WriteFile(maskFile, fmt.Appendf(nil, "%x", 1<<n), 0); err != nil {
		return nil, failed(err)
	}
	m := mover{from: make(map[int]unix.CPUSet)}
	m.to.Set(n)
	for m.move() { // what was started by what had not been moved yet
	}
	return func() error {
		m.back()
		return os.WriteFile(maskFile, bytes.TrimSpace(before), 0)
	}, nil
}

// mover moves threads to a core, and back.
type mover struct {
	to   unix.CPUSet
	from map[int]unix.CPUSet // by thread
}

// move says whether there was a thread to be moved.
func (m *mover) move() (moved bool) {
	for _, tid := range others() {
		var cores unix.CPUSet
		if unix.SchedGetaffinity(tid, &cores) == nil && cores != m.to && unix.SchedSetaffinity(tid, &m.to) == nil { // the kernel may have bound it
			m.from[tid], moved = cores, true
		}
	}
	return moved
}

// back lets all threads run where they did, and those that were started meanwhile where
// any of the others did.
func (m *mover) back() {
	var all unix.CPUSet
	for tid, cores := range m.from {
		for i := range all {
			all[i] |= cores[i]
		}
		_ = unix.SchedSetaffinity(tid, &cores) // fails only for one that is gone
	}
	for _, tid := range others() {
		var cores unix.CPUSet
		if _, known := m.from[tid]; !known && unix.SchedGetaffinity(tid, &cores) == nil && cores == m.to {
			_ = unix.SchedSetaffinity(tid, &all) // the kernel may have bound it
		}
	}
}

// others are all threads of the machine but those of this process.
func others() (tids []int) {
	own := fmt.Sprintf("/proc/%d/", os.Getpid())
	threads, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*") // the pattern is right
	for _, path := range threads {
		if tid, err := strconv.Atoi(filepath.Base(path)); err == nil && !strings.HasPrefix(path, own) {
			tids = append(tids, tid)
		}
	}
	return tids
}
