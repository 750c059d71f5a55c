package redirect

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

// mayVar makes a process of the tests one that only gives its loops their share.
const mayVar = "AFFNODE_TEST_LOOPS_MAY"

// The nice value is of a whole process, so that it is another one.
func TestLoopsGoBeforeAllOtherThreads(t *testing.T) {
	if may := os.Getenv(mayVar); may != "" {
		fmt.Print(goBeforeInThisProcess(may == "yes"))
		os.Exit(0) // before the other runs of it
	}
	for may, want := range map[string]string{"yes": "loops -4 -4, others 0 0", "no": "loops 0 0, others 4 4"} {
		cmd := exec.Command(os.Args[0], "-test.run", t.Name())
		cmd.Env = append(os.Environ(), mayVar+"="+may)
		out, err := cmd.Output()
		switch got := string(out); {
		case err != nil:
			t.Fatalf("%v\n%s", err, out)
		case strings.HasPrefix(got, "not here"):
			t.Log(got)
		case got != want:
			t.Errorf("it may lower the nice value: %s. Want %s, got %s", may, want, got)
		}
	}
}

func goBeforeInThisProcess(may bool) string {
	runtime.LockOSThread()
	if was := niceOf(0); was != 0 {
		return fmt.Sprintf("not here: it begins with nice value %d", was)
	}
	if why := allow(may); why != "" {
		return why
	}
	threads, end := make(chan int), make(chan bool)
	defer close(end)
	thread := func() int {
		go func() {
			runtime.LockOSThread()
			threads <- unix.Gettid()
			<-end
		}()
		return <-threads
	}
	loops := []int{thread(), thread()}
	others := []int{thread()}
	if _, rises := goBefore(loops); rises != may {
		return fmt.Sprintf("loops may change their nice value: %t", rises)
	}
	others = append(others, thread()) // made by one that has stood back
	for _, tid := range others {
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil || turns() && (attr.Runtime != uint64(aside.Turn) || attr.Runtime <= uint64(aside.LoopTurn)) { // only longer ones are interrupted
			return fmt.Sprintf("thread %d asks for turns of %d ns: %v", tid, attr.Runtime, err)
		}
	}
	return fmt.Sprintf("loops %d %d, others %d %d", niceOf(loops[0]), niceOf(loops[1]), niceOf(others[0]), niceOf(others[1]))
}

// allow makes the calling thread one that may lower nice values, or not.
func allow(may bool) (problem string) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return err.Error()
	}
	if caps[0].Effective&(1<<unix.CAP_SYS_NICE) == 0 && may {
		return "not here: no CAP_SYS_NICE"
	}
	if !may {
		caps[0].Effective &^= 1 << unix.CAP_SYS_NICE
		if err := unix.Capset(&head, &caps[0]); err != nil {
			return err.Error()
		}
	}
	return ""
}

// A loop goes before others further as long as it leaves them room.
func TestLoopGoesFurtherBeforeOthersWhileItHasTimeToWait(t *testing.T) {
	runtime.LockOSThread() // which ends with the test
	if why := allow(true); why != "" {
		t.Skip(why)
	}
	base := niceOf(0)
	if base-farBehind < mostNice {
		t.Skipf("not here: it begins with nice value %d", base)
	}
	l := &loop{group: &group{srv: &Server{clock: newClock()}}}
	becomes := func(want int, turn func()) {
		t.Helper()
		for begin := time.Now(); niceOf(0) != want; l.weigh() {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("its nice value stays %d, want %d", niceOf(0), want)
			}
			turn()
		}
	}
	wait, compute := func() { time.Sleep(time.Millisecond) }, func() {
		for begin := time.Now(); time.Since(begin) < time.Millisecond; {
		}
	}
	for range 3 * weighTurns {
		wait()
		l.weigh()
	}
	if got := niceOf(0); got != base {
		t.Fatalf("it may not change its nice value, which was %d and is %d", base, got)
	}
	l.group.othersNice = base
	l.group.mayRise.Store(true)
	becomes(base-farBehind, wait)
	becomes(base-behind, compute)
	becomes(base-farBehind, wait)
}

// The loops of a listener do so.
func TestLoopsThatServeGoFurtherBeforeOthers(t *testing.T) {
	onlyLoops(t)
	base := niceOf(0)
	if base-farBehind < mostNice {
		t.Skipf("not here: it begins with nice value %d", base)
	}
	if why := allow(true); why != "" {
		t.Skip(why) // the threads of the tests would stand back for good
	}
	n := startNode(t, time.Second, oneLoop, func(c *Config) { c.LoopsFirst = true })
	c := n.dial(t)
	first := func(tid int) bool {
		attr, err := unix.SchedGetAttr(tid, 0)
		return err == nil && niceOf(tid) == base-farBehind && (!turns() || attr.Runtime == uint64(aside.LoopTurn))
	}
	for begin := time.Now(); !slices.ContainsFunc(threads(t), first); {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("nice values are %v, and none is %d of a loop that asks for shorter turns than others", nices(t), base-farBehind)
		}
		c.send(getA)
		c.expect(302)
	}
}

// nices are the nice values of the process's threads.
func nices(t *testing.T) (of []int) {
	t.Helper()
	for _, tid := range threads(t) {
		of = append(of, niceOf(tid))
	}
	return of
}

// threads are those of the process.
func threads(t *testing.T) (tids []int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// turns says whether this kernel has turns to be asked for.
func turns() bool {
	var name unix.Utsname
	var major, minor int
	if unix.Uname(&name) != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 12)
}
