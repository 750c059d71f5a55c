//go:build unix

package replay

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// usage is the CPU time of the process, and its memory now and at most.
func usage() (cpu time.Duration, rss, most int64) {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0, 0, 0
	}
	most = int64(u.Maxrss)       //nolint:unconvert // it has 32 bits elsewhere
	if runtime.GOOS == "linux" { // others say bytes
		most <<= 10
	}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := bytes.Fields(data); len(f) > 1 {
			pages, _ := strconv.ParseInt(string(f[1]), 10, 64) // the kernel's own
			rss = pages * int64(os.Getpagesize())
		}
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), rss, most
}
