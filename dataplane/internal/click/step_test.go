package click

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stepper is a recorder whose work is done by one goroutine of a process that kills
// itself at a chosen step.
type stepper struct {
	r        *Recorder
	at       string // the step that is the last one
	left     int    // how often it is still to be done
	done     map[string]int
	answered *os.File // a line for each click whose response went out
	consumed *os.File // what the reader has brought away
	cursor   *Cursor
	next     int64
	poison   []byte // nobody can read it
}

// step is called behind each step.
func (s *stepper) step(name string) {
	if s.r != nil && name == "rotate: next in use" && s.r.current.Load().sealed.Load() != 0 {
		panic("a segment is over, may be used again, and is the current one")
	}
	if s.last(name) {
		s.kill()
	}
}

// last counts a step, and says whether it is the last one.
func (s *stepper) last(name string) bool {
	s.done[name]++
	if name == s.at {
		s.left--
	}
	return name == s.at && s.left <= 0
}

func (s *stepper) kill() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // until it arrives
}

// stepChild is the process. at is "<step>|<how often>", or empty: then it tells
// how often there was each step.
func stepChild(dir, at string) error {
	name, count, _ := strings.Cut(at, "|")
	left, _ := strconv.Atoi(count)
	s := &stepper{at: name, left: left, done: make(map[string]int)}
	var err error
	if s.poison, err = unix.Mmap(-1, 0, pageSize, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return err
	}
	if s.r, err = Open(Config{Dir: dir, Node: "victim", Boot: 5, SegmentBytes: minSegment, MaxBytes: 64 << 20, Retention: -1}); err != nil {
		return err
	}
	close(s.r.stop) // from here on, nothing happens by itself
	s.r.stopped.Wait()
	step = s.step
	s.cursor = s.r.Log().Cursor(0)
	if s.answered, err = os.Create(filepath.Join(dir, "answered")); err != nil {
		return err
	}
	if s.consumed, err = os.Create(filepath.Join(dir, "consumed")); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 40 {
		for range 60 {
			if err := s.record(rnd); err != nil {
				return err
			}
		}
		s.r.refill()
		if round%5 == 4 { // a backlog comes and goes
			if err := s.acknowledge(); err != nil {
				return err
			}
		}
		if round%10 == 9 {
			s.r.removedAt = time.Time{} // however little time there was
			s.r.trim()
		}
	}
	for step, times := range s.done {
		fmt.Printf("%s|%d\n", step, times)
	}
	return nil
}

// record records a click. One that the process dies of while it is written has a field
// that cannot be read: the first that is written, or the last.
func (s *stepper) record(rnd *rand.Rand) error {
	s.next++
	e := &Event{Time: s.next, UserAgent: randomBytes(rnd, 1000), Destination: make([]byte, 3000)}
	switch {
	case s.last("write: placed"):
		e.LinkDomain = s.poison
	case s.last("write: body"):
		e.Host = s.poison[:MaxHost]
	}
	func() {
		defer func() {
			if p := recover(); p != nil {
				if !strings.HasPrefix(s.at, "write: ") {
					panic(p)
				}
				s.kill()
			}
		}()
		s.r.Record(e)
	}()
	s.step("write: done")
	if _, err := fmt.Fprintf(s.answered, "%d\n", s.next); err != nil {
		return err
	}
	s.step("write: answered")
	return nil
}

// acknowledge brings all that is there away, as the publisher does.
func (s *stepper) acknowledge() error {
	var c Click
	for {
		ok, err := s.cursor.Next(&c)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if _, err := fmt.Fprintf(s.consumed, "%d %d %d\n", c.Sequence, c.Time, 0); err != nil {
			return err
		}
		if c.Sequence%40 == 0 {
			s.step("acknowledge: consumed")
			s.r.Log().Acknowledge(c.Sequence)
		}
	}
	s.r.Log().Acknowledge(c.Sequence)
	return nil
}

// runStepper runs a child that is killed at a step, and gives what it has said;
// with an empty step, or one that it does not come to, it ends by itself.
func runStepper(t *testing.T, dir, at string) (said string, killed bool) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "CLICK_STEP_DIR="+dir, "CLICK_STEP_AT="+at)
	out, err := child.CombinedOutput()
	killed = err != nil && child.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if err != nil && (!killed || at == "") {
		t.Fatalf("the child: %v\n%s", err, out)
	}
	return string(out), killed
}

// countSteps reads how often a child that has ended came to each step.
func countSteps(said string) map[string]int {
	steps := make(map[string]int)
	for line := range strings.Lines(said) {
		name, count, _ := strings.Cut(strings.TrimSpace(line), "|")
		if n, err := strconv.Atoi(count); err == nil {
			steps[name] = n
		}
	}
	return steps
}

func TestANodeKilledAtAnyStepLosesAndDoublesNothing(t *testing.T) {
	said, _ := runStepper(t, t.TempDir(), "")
	steps := countSteps(said)
	if len(steps) != 20 {
		t.Fatalf("steps: %v", steps)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for step, count := range steps {
		times := []int{1, count, 1 + rnd.IntN(count), 1 + rnd.IntN(count)}
		if testing.Short() {
			times = times[2:3]
		}
		slices.Sort(times)
		for _, n := range slices.Compact(times) {
			killAt(t, step, n)
		}
	}
}

// killAt kills a child at the nth time that it comes to a step. Work that lets
// others go first is divided by time, so that another run may have some steps
// less often: it is then the last time that it comes to it.
func killAt(t *testing.T, step string, n int) {
	t.Helper()
	for range 10 {
		dir := t.TempDir()
		said, killed := runStepper(t, dir, fmt.Sprintf("%s|%d", step, n))
		if killed {
			checkStopped(t, dir, fmt.Sprintf("%s, time %d", step, n))
			return
		}
		had := countSteps(said)[step]
		if had == 0 || had >= n {
			t.Fatalf("%s, time %d: the child was not killed, and was there %d times", step, n, had)
		}
		n = had
	}
	t.Fatalf("%s: each child comes to it less often than the one before", step)
}

// checkStopped recovers what a process left that was killed.
func checkStopped(t *testing.T, dir, when string) {
	t.Helper()
	r, err := Open(Config{Dir: dir, Node: "victim", Boot: 6, SegmentBytes: minSegment, MaxBytes: 128 << 20, Retention: time.Hour})
	if err != nil {
		t.Fatalf("%s: the node does not start: %v", when, err)
	}
	defer r.Close()
	if len(r.Earlier()) != 1 || len(r.Warnings()) != 0 {
		t.Fatalf("%s: %d logs, %v", when, len(r.Earlier()), r.Warnings())
	}
	l := r.Earlier()[0]
	clicks := consumed(t, dir)
	if uint64(len(clicks)) < l.Acknowledged() {
		t.Fatalf("%s: %d clicks are acknowledged, %d were consumed", when, l.Acknowledged(), len(clicks))
	}
	cursor := l.Cursor(l.Acknowledged())
	defer cursor.Close()
	all := append(clicks[:l.Acknowledged():l.Acknowledged()], readOn(t, cursor)...)
	for i, c := range all {
		if c.Sequence != uint64(i+1) || c.Time != int64(i+1) {
			t.Fatalf("%s: place %d has sequence %d of click %d", when, i+1, c.Sequence, c.Time)
		}
	}
	if account := cursor.Ledger(); account.Lost() != 0 || account.Recorded != uint64(len(all)) || l.last != uint64(len(all)) {
		t.Fatalf("%s: %d clicks are there, the last is %d: %+v", when, len(all), l.last, account)
	}
	for i, c := range clicks { // what was read keeps its number
		if i >= len(all) || c.Time != all[i].Time {
			t.Fatalf("%s: click %d was consumed, and is gone", when, c.Time)
		}
	}
	file, err := os.Open(filepath.Join(dir, "answered"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	answered := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		answered++
	}
	if len(all) < answered || len(all) > answered+1 {
		t.Fatalf("%s: %d clicks were answered, %d are there", when, answered, len(all))
	}
}
