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

// stepper is a recorder whose work is done step by step by one goroutine of a
// process that kills itself at a chosen one. It goes through the same steps in
// the same order as Record, rotate, maintain and trim, which have no hooks.
type stepper struct {
	r        *Recorder
	at       string // the step that is the last one
	left     int    // how often it is still to be done
	done     map[string]int
	answered *os.File // a line for each click whose response went out
	consumed *os.File // what the reader has brought away
	cursor   *Cursor
	next     int64
	spared   uint64
}

// step is called behind each step.
func (s *stepper) step(name string) {
	s.done[name]++
	if name != s.at {
		return
	}
	if s.left--; s.left <= 0 {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // until it arrives
	}
}

// stepChild is the process. at is "<step>|<how often>", or empty: then it tells
// how often there was each step.
func stepChild(dir, at string) error {
	name, count, _ := strings.Cut(at, "|")
	left, _ := strconv.Atoi(count)
	r, err := Open(Config{Dir: dir, Node: "victim", Boot: 5, SegmentBytes: minSegment, MaxBytes: 64 << 20, Retention: -1})
	if err != nil {
		return err
	}
	close(r.stop) // from here on, nothing happens by itself
	r.stopped.Wait()
	s := &stepper{r: r, at: name, left: left, done: make(map[string]int), cursor: r.Log().Cursor(0), spared: r.number}
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
		if err := s.prepare(); err != nil {
			return err
		}
		if round%3 == 2 { // a backlog comes and goes
			if err := s.acknowledge(); err != nil {
				return err
			}
		}
		if round%8 == 7 {
			if err := s.trim(); err != nil {
				return err
			}
		}
	}
	for step, times := range s.done {
		fmt.Printf("%s|%d\n", step, times)
	}
	return nil
}

// record is Record, and rotate when the click does not fit.
func (s *stepper) record(rnd *rand.Rand) error {
	r := s.r
	s.next++
	e := &Event{Time: s.next, UserAgent: randomBytes(rnd, 1000), Destination: make([]byte, 3000)}
	var l layout
	l.plan(e, r.policy)
	for {
		current := r.current.Load()
		pos, index, p := current.place(l.length)
		if p != placed {
			first := current.first.Load() + uint64(index)
			r.first.Store(first)
			s.step("rotate: over")
			next := <-r.spares
			if err := next.use(first); err != nil {
				return err
			}
			s.step("rotate: next in use")
			current.sealed.Store(int64(index) + 1)
			r.current.Store(next)
			s.step("rotate: done")
			continue
		}
		s.step("write: placed")
		record := current.bytes()[pos : pos+l.length : pos+l.length]
		l.write(record, index, e, r.policy)
		s.step("write: body")
		storeHead(record, 0, uint64(l.length)|uint64(checksum(current.salt, record[8:]))<<32)
		s.step("write: head")
		if _, err := fmt.Fprintf(s.answered, "%d\n", s.next); err != nil {
			return err
		}
		s.step("write: answered")
		return nil
	}
}

// prepare makes spare segments, of those that are over or new ones.
func (s *stepper) prepare() error {
	r := s.r
	for r.lacksSpare() {
		s.spared++
		spare := r.log.reuse(false)
		if spare != nil {
			s.step("reuse: taken")
			mem := spare.bytes()
			spare.markSpare(mem)
			s.step("reuse: marked")
			for part := range slices.Chunk(mem[segmentHead:], 10*stepBytes) {
				clear(part)
				s.step("reuse: wiping")
			}
			spare.number, spare.salt, spare.released = s.spared, rand.Uint32(), false
			spare.writeHead(mem, r.log.boot.Boot)
			s.step("reuse: done")
		} else {
			var err error
			if spare, err = newSegment(r.log.boot.dir, r.log.boot.Boot, s.spared, r.config.SegmentBytes, func() { s.step("create: on the way") }); err != nil {
				return err
			}
			r.log.segments = append(r.log.segments, spare)
			s.step("create: done")
		}
		r.spares <- spare
	}
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
			s.step("acknowledge: done")
		}
	}
	s.r.Log().Acknowledge(c.Sequence)
	s.step("acknowledge: all")
	return nil
}

// trim removes what a backlog has left.
func (s *stepper) trim() error {
	s.r.log.release(func() {})
	s.step("trim: released")
	_, err := s.r.log.trim(0, goneAtOnce, false, func() { s.step("trim: giving back") })
	s.step("trim: done")
	return err
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
	if len(steps) != 19 {
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
	all := append(clicks[:l.Acknowledged():l.Acknowledged()], readAll(t, l, l.Acknowledged())...)
	for i, c := range all {
		if c.Sequence != uint64(i+1) || c.Time != int64(i+1) {
			t.Fatalf("%s: place %d has sequence %d of click %d", when, i+1, c.Sequence, c.Time)
		}
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
