package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// Each burst of clicks is acknowledged before the next one.
const (
	stepBursts = 4
	stepBurst  = 100
)

// stepChild is a node that kills itself behind a step of its publisher: at is
// "<step>|<how often>".
func stepChild(dir, url, at string) error {
	name, count, _ := strings.Cut(at, "|")
	left, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var burst sync.Mutex // who is killed within one would not have said what it recorded
	step = func(done string) {
		if done != name {
			return
		}
		if left--; left <= 0 {
			burst.Lock()
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // until it arrives
		}
	}
	r, err := click.Open(click.Config{Dir: dir, Node: "node-1", Region: "eu", Boot: 5})
	if err != nil {
		return err
	}
	p, err := New(Config{URL: url, Recorder: r, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return err
	}
	go func() { _ = p.Run(context.Background()) }() // it is killed
	for range stepBursts {
		burst.Lock()
		for i := range stepBurst {
			r.Record(event(i))
		}
		fmt.Println("recorded")
		burst.Unlock()
		for r.Unacknowledged() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return errors.New("it has come to no end")
}

// The stream loses what it has acknowledged last, at the moment of the kill.
func TestANodeKilledAtAnyStepOfAnAcknowledgementLosesAndDoublesNothing(t *testing.T) {
	for _, name := range []string{"kept", "placed", "told", "acknowledged"} {
		for _, lost := range []uint64{0, 1} {
			t.Run(fmt.Sprintf("%s, %d messages lost", name, lost), func(t *testing.T) {
				s := natstest.Start(t)
				dir := t.TempDir()
				child := exec.Command(os.Args[0])
				child.Env = append(os.Environ(), "PUBLISH_STEP_DIR="+dir, "PUBLISH_STEP_URL="+s.URL(), "PUBLISH_STEP_AT="+name+"|3")
				out, err := child.Output()
				if err == nil || child.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the child: %v\n%s", err, out)
				}
				recorded := stepBurst * strings.Count(string(out), "recorded")
				if recorded == 0 {
					t.Fatal("nothing was recorded")
				}
				js := s.JetStream()
				deleteLast(t, js, lost)
				r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 6 })
				p, _ := start(t, s.URL(), r)
				flush(t, p)
				waitInStream(t, js, 5, recorded)
				if a := audit(t, js, 6)[5]; a.Answered != uint64(recorded) || a.Clicks != uint64(recorded) || len(a.Missing) > 0 {
					t.Errorf("%d were recorded: %+v", recorded, a)
				}
			})
		}
	}
}
