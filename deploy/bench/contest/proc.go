package contest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/affleet/affleet/deploy/bench/proc"
)

// cpuOf is the user and system time of a process, all threads.
func cpuOf(pid int) (time.Duration, error) { return proc.CPU(pid) }

// resident is a process's memory in MB.
func resident(pid int) (float64, error) {
	now, _, err := proc.Memory(pid)
	return now, err
}

// coresBusy is the time that the two cores have worked since the start.
func coresBusy() (busy [2]time.Duration) {
	stat, _ := os.ReadFile("/proc/stat") // Missing has seen that this is Linux
	for line := range strings.Lines(string(stat)) {
		var core, user, nice, system, idle, wait, irq, softirq, steal int
		if n, _ := fmt.Sscanf(line, "cpu%d %d %d %d %d %d %d %d %d", &core, &user, &nice, &system, &idle, &wait, &irq, &softirq, &steal); n == 9 && core < 2 {
			busy[core] = time.Duration(user+nice+system+steal) * proc.Tick
		}
	}
	return busy
}

// childrenOf are the children of a process.
func childrenOf(pid int) (children []int) {
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // none if it is gone
	for _, field := range strings.Fields(string(list)) {
		if child, err := strconv.Atoi(field); err == nil {
			children = append(children, child)
		}
	}
	return children
}

// pinned are the arguments of taskset that run a program on one core.
func pinned(core, program string, args ...string) []string {
	return append([]string{"-c", core, program}, args...)
}

// repin moves a process that runs to the generator's core, with all its threads.
func repin(pid int) error { return proc.Pin(pid, generatorCore) }

// freeze and thaw keep a process from running meanwhile.
func freeze(pid int) error { return syscall.Kill(pid, syscall.SIGSTOP) }
func thaw(pid int) error   { return syscall.Kill(pid, syscall.SIGCONT) }

// load is the machine's load average.
func load() string { return proc.Load() }

// versions names what is compared and what compares.
func versions(ctx context.Context) string {
	line := func(program, flag string) string {
		out, _ := exec.CommandContext(ctx, program, flag).CombinedOutput() // wrk's exit code is 1
		first, _, _ := strings.Cut(string(out), "\n")
		first, _, _ = strings.Cut(first, " [")
		return strings.TrimPrefix(strings.TrimSpace(first), "nginx version: ")
	}
	return strings.Join([]string{line("nginx", "-v"), line("wrk", "-v"), "Linux " + line("uname", "-r")}, ", ")
}

// childrenCPU is the time of this process, and of its children that have
// ended.
func childrenCPU() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_CHILDREN, syscall.RUSAGE_SELF} {
		var used syscall.Rusage
		_ = syscall.Getrusage(who, &used) // it fails only for a bad argument
		sum += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return sum
}
