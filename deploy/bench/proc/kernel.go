package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// maskFile has the cores, as hexadecimal bits, on which the kernel runs work that is bound
// to none: what writes files out, for one (workqueue.rst of the kernel's documentation).
const maskFile = "/sys/devices/virtual/workqueue/cpumask"

// kthreadd is the parent of the kernel's threads.
const kthreadd = "2"

// Kernel says in a report where the kernel's own threads run.
func Kernel(moved bool) string {
	if moved {
		return "The kernel's own threads that may be moved (those that write out the files of all, look for memory that nobody uses, and the like) run on the other core (" + maskFile + "): it cannot be interrupted in them, for up to 5 ms."
	}
	return "The kernel's own threads may run on either core; it cannot be interrupted in them, for up to 5 ms."
}

// MoveKernel lets the kernel's own threads, those that may be moved, run only on one core
// until it is released. It needs root.
func MoveKernel(core string) (release func() error, err error) {
	n, err := strconv.Atoi(core)
	if err != nil {
		return nil, fmt.Errorf("move the kernel's threads: %w", err)
	}
	before, err := os.ReadFile(maskFile)
	if err != nil {
		return nil, fmt.Errorf("move the kernel's threads: %w", err)
	}
	if err := os.WriteFile(maskFile, fmt.Appendf(nil, "%x", 1<<n), 0); err != nil {
		return nil, fmt.Errorf("move the kernel's threads: %w", err)
	}
	moved := make(map[int]string) // from which cores
	release = func() error {
		for tid, cores := range moved {
			_ = Pin(tid, cores) // fails only for one that is gone
		}
		return os.WriteFile(maskFile, bytes.TrimSpace(before), 0)
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, errors.Join(err, release())
	}
	for _, p := range processes {
		if tid, err := strconv.Atoi(p.Name()); err == nil {
			if cores, ours := kernelCores(tid); ours && Pin(tid, core) == nil { // some are bound to a core
				moved[tid] = cores
			}
		}
	}
	return release, nil
}

// kernelCores are those on which a thread of the kernel may run, as taskset names them;
// false for one that is not of the kernel.
func kernelCores(tid int) (cores string, is bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return "", false // it is gone
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch name {
		case "PPid":
			is = value == kthreadd
		case "Cpus_allowed_list":
			cores = value
		}
	}
	return cores, is
}
