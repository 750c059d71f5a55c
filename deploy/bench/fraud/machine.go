package fraud

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// The cores: what is measured has one, what drives it the other.
const (
	guardCore = "0"
	driveCore = "1"
)

// Missing says what this machine lacks, and how to install it; nil if nothing.
func Missing() error {
	if runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		return fmt.Errorf("it needs Linux with at least 2 cores; this is %s with %d", runtime.GOOS, runtime.NumCPU())
	}
	var programs, packages []string
	for _, need := range []struct{ program, from string }{{"wrk", "wrk"}, {"taskset", "util-linux"}} {
		if _, err := exec.LookPath(need.program); err != nil {
			programs, packages = append(programs, need.program), append(packages, need.from)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	return fmt.Errorf("%s not found; install with: apt-get install %s", strings.Join(programs, ", "), strings.Join(packages, " "))
}

// spread is the median, the lowest and the highest.
type spread struct{ median, low, high float64 }

func spreadOf(samples []float64) spread {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	if n == 0 {
		return spread{}
	}
	return spread{(s[(n-1)/2] + s[n/2]) / 2, s[0], s[n-1]}
}

func (s spread) cells(format string) string {
	return fmt.Sprintf("**"+format+"** | "+format+" | "+format, s.median, s.low, s.high)
}

// floodAddress is the address of the n-th flood, in a network that nobody else has.
func floodAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{61, byte(n >> 8), byte(n), 7}) }

// numbered is the n-th of many addresses, 11.0.0.0 and on.
func numbered(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(11 + n>>24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// percentile of unsorted samples, by the nearest rank; p is 0 to 100.
func percentile(samples []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}
