package publish

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// breath is how long a yield takes at least, in ns. A timer that is over before
// it is waited for, as one of 5 µs, is no yield at all.
const breath = 25_000

// newYield gives a function that lets redirects go first, and what ends it.
//
// runtime.Gosched is not enough on a node with one core: the scheduler does not
// look for requests that have arrived as long as any goroutine can run, so that
// they would wait up to 10 ms behind a backlog. A timer of the runtime's would
// take a millisecond when there is nothing else to do. So this waits for the
// kernel's timer, as redirects wait for their sockets, unless the kernel says that
// none of these has anything to read.
func newYield() (yield, end func()) {
	if runtime.GOMAXPROCS(0) > 1 {
		return runtime.Gosched, func() {} // another core looks
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return runtime.Gosched, func() {}
	}
	file := os.NewFile(uintptr(fd), "timer")
	soon := unix.ItimerSpec{Value: unix.Timespec{Nsec: breath}}
	var expired [8]byte
	waits := someoneWaits(fd)
	yield = func() {
		runtime.Gosched() // who can run already
		if !waits() {
			return
		}
		if unix.TimerfdSettime(fd, 0, &soon, nil) != nil {
			runtime.Gosched()
			return
		}
		_, _ = file.Read(expired[:]) // what fails is a shorter yield
	}
	return yield, func() { _ = file.Close() }
}

// someoneWaits gives a function that says whether there is input for any goroutine
// that waits for some. It asks the runtime's own epoll descriptor, which can be
// polled as any other: it is the one that watches the file fd.
func someoneWaits(fd int) func() bool {
	const folder = "/proc/self/fd"
	entries, err := os.ReadDir(folder)
	if err != nil {
		return func() bool { return true }
	}
	watches := regexp.MustCompile(fmt.Sprintf(`(?m)^tfd: +%d `, fd))
	for _, entry := range entries {
		if target, err := os.Readlink(folder + "/" + entry.Name()); err != nil || target != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + entry.Name())
		number, numberErr := strconv.Atoi(entry.Name())
		if err != nil || numberErr != nil || !watches.Match(info) {
			continue
		}
		ask := []unix.PollFd{{Fd: int32(number), Events: unix.POLLIN}}
		return func() bool {
			n, err := unix.Poll(ask, 0)
			return n > 0 || err != nil
		}
	}
	return func() bool { return true }
}
