// Package proc reads from /proc what processes use. It is for benchmarks on
// Linux. All of it may be called from any goroutine.
package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Tick is the unit of times in /proc: USER_HZ, on every machine that matters.
const Tick = 10 * time.Millisecond

// CPU is the user and system time of a process, all threads.
func CPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	user, err := strconv.Atoi(string(fields[11]))
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(string(fields[12]))
	return time.Duration(user+system) * Tick, err
}

// Stolen is for how long the machine's hypervisor has let others have cores that this
// one wanted, all cores together.
func Stolen() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	ticks, err := strconv.Atoi(fields[8])
	return time.Duration(ticks) * Tick, err
}

// Memory is how much of a process is in memory, now and at most so far, in MB.
func Memory(pid int) (now, peak float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kB); n == 1 {
			now = kB * 1024 / 1e6
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kB); n == 1 {
			peak = kB * 1024 / 1e6
		}
	}
	if now == 0 {
		return 0, 0, fmt.Errorf("process %d has no VmRSS", pid)
	}
	return now, peak, nil
}

// ForgetPeak lets the most that a process was in memory begin at what is now.
func ForgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// Load is the machine's load average; empty where there is none to read.
func Load() string {
	text, _ := os.ReadFile("/proc/loadavg") // the file is there on Linux
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
