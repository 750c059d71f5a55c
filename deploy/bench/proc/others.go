package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maskFile has the cores, as hexadecimal bits, on which the kernel runs work that is bound
// to none: what writes files out, for one (workqueue.rst of the kernel's documentation).
const maskFile = "/sys/devices/virtual/workqueue/cpumask"

// Others says in a report where all runs that was there before the benchmark.
func Others(moved bool) string {
	if moved {
		return "All else that ran on the machine, and the kernel's own threads (those that write out the files of all, look for memory that nobody uses, and the like), are kept to core 1 as far as they may be moved: while the kernel works for one of them it does not let a server run, for up to 8 ms."
	}
	return "What else runs on the machine, the kernel's own threads included, may do so on either core: while the kernel works for one of them it does not let a server run, for up to 8 ms."
}

// MoveOthers lets all threads of the machine but those of this process, also the kernel's
// own, run only on one core until it is released, with what they start. Threads that are
// bound to a core stay there. It needs root.
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
	moved := make(map[int]unix.CPUSet) // from which cores
	release = func() error {
		for tid, cores := range moved {
			_ = unix.SchedSetaffinity(tid, &cores) // fails only for one that is gone
		}
		return os.WriteFile(maskFile, bytes.TrimSpace(before), 0)
	}
	threads, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return nil, failed(errors.Join(err, release()))
	}
	var one unix.CPUSet
	one.Set(n)
	own := strconv.Itoa(os.Getpid())
	for _, path := range threads {
		task, name := filepath.Split(path)
		tid, err := strconv.Atoi(name)
		if err != nil || filepath.Base(filepath.Dir(filepath.Clean(task))) == own {
			continue
		}
		var cores unix.CPUSet
		if unix.SchedGetaffinity(tid, &cores) == nil && unix.SchedSetaffinity(tid, &one) == nil { // some are bound to a core
			moved[tid] = cores
		}
	}
	return release, nil
}
