//go:build linux

// Command openloop sends requests at a fixed rate, whether or not they are
// answered in time, and prints how long the answers took, as JSON:
//
//	openloop --addr 127.0.0.1:8080 --rate 50000 --duration 6s
//
// Each request has its moment in a schedule that is fixed beforehand, and its
// latency counts from that moment, also when no connection was free: a server
// that stalls is charged for all that came meanwhile (no coordinated omission).
// Requests are not pipelined. What it reports contains its own delays; what
// those are, shows a run against a server that does nothing.
//
// It is one thread over epoll, and asks for real-time priority, so that what
// else runs on its core does not look like the server's latency. While answers
// are due it does not sleep at once: the server would pay for waking it, on a
// virtual machine up to 50 µs for each answer. Where others need the core,
// --watch 0 leaves it to them.
//
// Where others have its core nevertheless, with --own-pauses a latency counts from when
// the request was sent, the schedule stands still while it is not let run, and an answer
// counts as arrived when the kernel has it: what it measures is the server's alone. So
// answers need not wake it, either, which the server would pay for where its core is busy
// with something else: it looks for them when the next requests are due. The server still
// is charged, from the moment in the schedule on, for all that comes while no connection is
// free.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/deploy/bench/browser"
	"github.com/affleet/affleet/deploy/bench/linkset"
)

// Result is what is printed. Times are in ns.
type Result struct {
	Answered uint64 // all of them, with those of the warm-up
	Timed    int
	P50      int64
	P99      int64
	P999     int64
	SliceP99 int64 // median of the p99 of each slice
	Max      int64
	Late     int64   // p99 of how late requests were sent: the generator's own part, unless all connections waited
	CPU      float64 // seconds of its own
	Seconds  float64
	RealTime bool  // real-time priority was granted
	Stalls   int64 // ns for which it was not let run when it should have, in pieces of more than 1 ms
	Paused   int64 // ns for which the schedule stood still
}

// slice is the time over which the machine's other work does not change much:
// the median over slices tells what is typical where that work comes in bursts.
const slice = 100 * time.Millisecond

// distinct requests, sent one after the other, and then again.
const distinct = 1 << 16

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "openloop:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` of the server")
	rate := flag.Float64("rate", 10_000, "requests per second")
	duration := flag.Duration("duration", 5*time.Second, "`time` that is measured")
	beat := flag.Duration("beat", 100*time.Microsecond, "`time` for which requests are gathered, to come at once")
	warm := flag.Duration("warm", time.Second, "`time` before, at the same rate")
	connections := flag.Int("connections", 64, "`number` of connections")
	links := flag.Int("links", 1_000_000, "`number` of links of the set that are asked for")
	watch := flag.Duration("watch", 500*time.Microsecond, "`time` for which it looks for answers that are due before it sleeps")
	ownPauses := flag.Bool("own-pauses", false, "count latencies from when a request is sent, and let the schedule stand still while this program is not let run")
	flag.Parse()
	runtime.LockOSThread()
	g := &generator{interval: float64(time.Second) / *rate, beat: max(1, int64(*beat)), watch: *watch, ownPauses: *ownPauses}
	g.requests = slices.Collect(browser.Requests(linkset.Set{Seed: 1}, *links, distinct, 1))
	g.skip = int(*rate * warm.Seconds())
	g.total = g.skip + int(*rate*duration.Seconds())
	g.latencies, g.late = make([]int64, g.total-g.skip), make([]int64, g.total-g.skip)
	if err := g.connect(*addr, *connections); err != nil {
		return err
	}
	runtime.GC()
	debug.SetGCPercent(-1)
	realTime := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: 1}, 0) == nil
	begin, before := time.Now(), cpu()
	if err := g.run(); err != nil {
		return err
	}
	took, used := time.Since(begin), cpu()-before
	var inSlices []int64
	for s := range slices.Chunk(g.latencies, max(1, int(*rate*slice.Seconds()))) {
		inSlices = append(inSlices, percentile(s, 0.99))
	}
	return json.NewEncoder(os.Stdout).Encode(Result{
		Answered: g.answered, Timed: len(g.latencies),
		P50: percentile(g.latencies, 0.50), P99: percentile(g.latencies, 0.99), P999: percentile(g.latencies, 0.999), Max: slices.Max(g.latencies),
		SliceP99: percentile(inSlices, 0.50), Late: percentile(g.late, 0.99),
		CPU: used.Seconds(), Seconds: took.Seconds(), RealTime: realTime, Stalls: g.stalls, Paused: g.paused,
	})
}

// percentile of at least one latency, by the nearest rank.
func percentile(of []int64, share float64) int64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

// cpu is what the thread has used.
func cpu() time.Duration {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &used) // it fails only for a bad address
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// generator is the one thread's.
type generator struct {
	requests [][]byte
	interval float64 // ns between two requests
	beat     int64   // ns: requests come together in the first moment of it
	watch    time.Duration
	skip     int // requests that are not timed
	total    int

	ownPauses bool
	paused    int64 // ns for which the schedule stood still
	owed      int   // requests before this place that are not sent yet wait for a connection

	poll  int
	conns map[int32]*conn
	idle  []*conn // the one that was used last is the last

	start     time.Time
	stalls    int64 // ns
	next      int   // the next request's place in the schedule
	answered  uint64
	latencies []int64 // by place in the schedule
	late      []int64 // the same: until it was sent
	in        arrival
}

// conn is a connection with at most one request under way.
type conn struct {
	fd      int
	request int
	from    int64 // ns from the start: its latency counts from then on
	buf     [4096]byte
	n       int
}

func (g *generator) connect(addr string, n int) (err error) {
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	if g.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	g.conns = make(map[int32]*conn, n)
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}); err != nil {
			return os.NewSyscallError("connect", err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if g.ownPauses {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		if err := unix.EpollCtl(g.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
		c := &conn{fd: fd}
		g.conns[int32(fd)] = c
		g.idle = append(g.idle, c)
	}
	return nil
}

// due is a request's moment, in ns from the start.
func (g *generator) due(request int) int64 {
	moment := int64(float64(request) * g.interval)
	return moment - moment%g.beat + g.paused
}

func (g *generator) run() error {
	events := make([]unix.EpollEvent, len(g.conns))
	g.start = time.Now()
	for g.answered < uint64(g.total) {
		if err := g.send(); err != nil {
			return err
		}
		wait := time.Second // for answers
		if g.next < g.total && len(g.idle) > 0 {
			wait = max(0, time.Duration(g.due(g.next))-time.Since(g.start))
		}
		asleep := time.Now()
		n, err := g.await(events, wait)
		if err != nil {
			return err
		}
		if late := time.Since(asleep) - wait; late > time.Millisecond {
			g.stalls += int64(late)
		}
		if n == 0 && wait == time.Second {
			return fmt.Errorf("no answer for %v, with %d requests under way", wait, len(g.conns)-len(g.idle))
		}
		for _, e := range events[:max(n, 0)] {
			if err := g.receive(g.conns[e.Fd]); err != nil {
				return err
			}
		}
	}
	return nil
}

// await waits for answers, or until there is something to be sent.
func (g *generator) await(events []unix.EpollEvent, wait time.Duration) (int, error) {
	if g.ownPauses && g.next < g.total && len(g.idle) > 0 {
		if wait > 0 {
			sleep(wait)
		}
		return pollFor(g.poll, events, 0)
	}
	if g.watch == 0 || len(g.idle) == len(g.conns) { // no answer is due
		return pollFor(g.poll, events, wait)
	}
	begin := time.Now()
	for {
		n, err := pollFor(g.poll, events, 0)
		if n != 0 || err != nil {
			return n, err
		}
		switch looked := time.Since(begin); {
		case looked >= wait:
			return 0, nil
		case looked >= g.watch:
			return pollFor(g.poll, events, wait-looked)
		}
	}
}

// send sends what is due, as far as there are connections.
func (g *generator) send() error {
	for g.next < g.total && len(g.idle) > 0 {
		now := int64(time.Since(g.start))
		if g.due(g.next) > now {
			break
		}
		c := g.idle[len(g.idle)-1]
		g.idle = g.idle[:len(g.idle)-1]
		c.request, c.n = g.next, 0
		c.from = g.charge(now)
		if g.next >= g.skip {
			g.late[g.next-g.skip] = now - g.due(g.next)
		}
		g.next++
		r := g.requests[c.request%len(g.requests)]
		if n, err := write(c.fd, r); err != nil || n != len(r) {
			return fmt.Errorf("send request: %d of %d bytes: %w", n, len(r), err)
		}
	}
	if len(g.idle) == 0 {
		g.owe(int64(time.Since(g.start)))
	}
	return nil
}

// charge is from when on the server is charged for the next request, which is sent now.
func (g *generator) charge(now int64) int64 {
	due := g.due(g.next)
	if !g.ownPauses || g.next < g.owed {
		return due
	}
	if late := now - due; late > g.beat { // what was due meanwhile is not to come at once
		g.paused += late
	}
	return now
}

// owe notes that until a moment no connection was free.
func (g *generator) owe(until int64) {
	for g.owed = max(g.owed, g.next); g.owed < g.total && g.due(g.owed) <= until; g.owed++ {
	}
}

// receive reads what there is of the answer.
func (g *generator) receive(c *conn) error {
	n, err := g.in.read(c.fd, c.buf[c.n:])
	if err != nil || n == 0 {
		return fmt.Errorf("read answer: connection ended: %w", err)
	}
	c.n += n
	whole, err := complete(c.buf[:c.n])
	if err != nil || !whole {
		return err
	}
	g.answered++
	arrived := int64(time.Since(g.start))
	if at, ok := g.in.at(); ok {
		arrived = at.UnixNano() - g.start.UnixNano()
	}
	if c.request >= g.skip {
		g.latencies[c.request-g.skip] = arrived - c.from
	}
	if len(g.idle) == 0 {
		g.owe(arrived)
	}
	g.idle = append(g.idle, c)
	return nil
}
