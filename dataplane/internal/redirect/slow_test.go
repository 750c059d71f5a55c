//go:build linux

package redirect

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowly keeps connections open that send a byte of a head now and then, as a
// slow-request attack does: those that the server closes are opened again. It
// gives a function that ends them.
func slowly(t testing.TB, n *node, conns int, every time.Duration) (end func()) {
	t.Helper()
	done := make(chan struct{})
	var clients sync.WaitGroup
	opened := make(chan struct{}, conns)
	for i := range conns {
		clients.Go(func() {
			for first := true; ; first = false {
				nc, err := net.Dial("tcp", n.addr)
				if err != nil {
					t.Error(err)
					return
				}
				if first {
					opened <- struct{}{}
				}
				wait := time.NewTimer(every * time.Duration(i) / time.Duration(conns)) // not all at once
				_, err = io.WriteString(nc, "GET /a HTTP/1.1\r\nHost: x\r\nX: ")
				for err == nil {
					select {
					case <-wait.C:
						wait.Reset(every)
						_, err = io.WriteString(nc, "y")
					case <-done:
						_ = nc.Close()
						return
					}
				}
				_ = nc.Close()
			}
		})
	}
	for range conns {
		<-opened
	}
	return func() {
		close(done)
		clients.Wait()
	}
}

func TestSlowConnectionsDoNotHoldUpTheOthers(t *testing.T) {
	n := startNode(t, time.Second, func(c *Config) {
		c.HeadTimeout, c.MaxConnsPerAddr = 200*time.Millisecond, 10_000
	})
	const slow = 300
	end := slowly(t, n, slow, 20*time.Millisecond)
	defer end()
	c := n.dial(t)
	for n.Stats().HeadTimeouts < 2*slow { // each was closed twice
		c.send(getA)
		c.expect(302)
	}
	fresh := n.dial(t)
	fresh.send(getLast)
	fresh.expect(302)
	fresh.expectEnd()
	if st := n.Stats(); st.OverLimit != 0 || st.OverAddrLimit != 0 || st.Panics != 0 {
		t.Errorf("got %+v", st)
	}
}

// slowVariable names the address that a process with it is to attack.
const slowVariable = "AFF_TEST_SLOWLY"

// TestMain is the process that attacks, when it is started as such.
func TestMain(m *testing.M) {
	if addr := os.Getenv(slowVariable); addr != "" {
		attack(addr)
		return
	}
	os.Exit(runTwice(m))
}

// attack keeps about 5,000 connections open until its input ends, on the last
// core alone. They are opened over five seconds, as they are closed after five;
// it takes up to two more until one notices that, so that there are more.
func attack(addr string) {
	var set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	for _, task := range tasks() {
		_ = unix.SchedSetaffinity(task, &set)
	}
	const conns = 6250
	for i := range conns {
		go func() {
			time.Sleep(5 * time.Second * time.Duration(i) / conns)
			if i == conns-1 {
				fmt.Println("all are open")
			}
			for {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				_, err = io.WriteString(nc, "GET /a HTTP/1.1\r\nHost: x\r\nX: ")
				for err == nil {
					time.Sleep(time.Second)
					_, err = io.WriteString(nc, "y")
				}
				_ = nc.Close()
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// tasks are the threads of this process.
func tasks() (ids []int) {
	entries, _ := os.ReadDir("/proc/self/task")
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// BenchmarkBesideSlowConnections gives the latencies of requests, alone and
// beside about 5,000 connections of another process that send a byte a second
// and are opened again when they are closed after five: of one connection that
// sends a request each millisecond, and of 20 of those. For figures that mean
// something, keep this process off the core of the other: taskset -c 0.
func BenchmarkBesideSlowConnections(b *testing.B) {
	for _, conns := range []int{1, 20} {
		for _, slow := range []bool{false, true} {
			b.Run(fmt.Sprintf("conns=%d/slow=%v", conns, slow), func(b *testing.B) {
				n := benchNode(b, func(c *Config) { c.MaxConns, c.MaxConnsPerAddr = 15_000, 15_000 })
				if slow {
					defer startAttack(b, n)()
				}
				took := measure(b, n, conns)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(n.Stats().Open-conns), "slow")
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}

// measure gives the latencies of b.N requests over so many connections, in
// order of length.
func measure(b *testing.B, n *node, conns int) []time.Duration {
	var clients sync.WaitGroup
	took := make([]time.Duration, (b.N+conns-1)/conns*conns)
	for i := range conns {
		trip, mine := roundTrips(b, n, browser), took[i*len(took)/conns:(i+1)*len(took)/conns]
		clients.Go(func() {
			time.Sleep(time.Millisecond * time.Duration(i) / time.Duration(conns))
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for k := range mine {
				<-tick.C
				start := time.Now()
				trip()
				mine[k] = time.Since(start)
			}
		})
	}
	clients.Wait()
	slices.Sort(took)
	return took
}

// startAttack starts the process that attacks, waits until all its connections
// were open, and gives a function that ends it.
func startAttack(b *testing.B, n *node) (end func()) {
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), slowVariable+"="+n.addr)
	input, err := other.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	output, err := other.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := other.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := output.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	return func() {
		_ = input.Close()
		_ = other.Wait()
	}
}
