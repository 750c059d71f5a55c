package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// The test binary is the guard's program too: processes are killed and stopped.
const (
	envNATS    = "GUARDTEST_NATS"
	envControl = "GUARDTEST_CONTROL"
	envName    = "GUARDTEST_NAME"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envNATS); url != "" {
		p, err := New(config(os.Getenv(envName), url, os.Getenv(envControl)))
		if err == nil {
			err = p.Run(context.Background())
		}
		fmt.Fprintln(os.Stderr, "guard:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// process starts a guard as a process.
func (w *world) process(name string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envNATS+"="+w.url, envControl+"="+w.admin.addr, envName+"="+name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// leader waits until a guard of one of the names leads.
func (w *world) leader(names ...string) (name string) {
	w.t.Helper()
	w.eventually("a leader of "+strings.Join(names, ", "), func() bool {
		kv, err := w.js.KeyValue(w.t.Context(), leaseBucket)
		if err != nil {
			return false
		}
		entry, err := kv.Get(w.t.Context(), leaseKey)
		if err != nil {
			return false
		}
		name = string(entry.Value())
		return slices.Contains(names, name)
	})
	return name
}

// checkpointed makes a flood and waits until it is decided and in a checkpoint.
func (w *world) checkpointed() {
	w.t.Helper()
	w.flood(9000)
	w.decided(1)
	w.eventually("a checkpoint", func() bool {
		store, err := w.js.ObjectStore(w.t.Context(), stateBucket)
		if err != nil {
			return false
		}
		_, err = store.GetInfo(w.t.Context(), stateObject)
		return err == nil
	})
}

func TestALeaderThatIsKilledIsFollowedByAnotherThatSaysNothingTwice(t *testing.T) {
	w := newWorld(t)
	guards := map[string]*exec.Cmd{"a": w.process("a"), "b": w.process("b")}
	w.checkpointed()
	n := 1
	for range 3 {
		var names []string
		for name := range guards {
			names = append(names, name)
		}
		leader := w.leader(names...)
		w.flood(250*n, 250*(n+1))
		n += 2
		w.decided(n - 1) // in the middle of its work
		if err := guards[leader].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = guards[leader].Wait()
		w.flood(250 * n) // while nobody leads
		n++
		guards[leader+"'"] = w.process(leader + "'")
		delete(guards, leader)
	}
	if v := w.decided(n); v["blocked"] != n {
		t.Fatal(v)
	}
	f, _ := w.reports()
	if len(f) != n {
		t.Fatalf("%d findings of %d floods: %v", len(f), n, f)
	}
}

func TestALeaderThatWasStoppedDecidesNothingWhenItGoesOn(t *testing.T) {
	w := newWorld(t)
	a := w.process("a")
	w.leader("a")
	its := w.admin // the control plane of the first
	w.checkpointed()
	if err := a.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.flood(250, 500) // both will see these
	w.admin = startAdmin(t)
	w.process("b")
	w.leader("b")
	w.decided(3)
	if err := a.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.flood(750)
	if v := w.decided(4); v["blocked"] != 4 {
		t.Fatal(v)
	}
	its.mu.Lock()
	defer its.mu.Unlock()
	if its.writes != 1 || len(w.admin.made()) != 3 {
		t.Errorf("the one that was stopped has written %d blocks, the other has made %d", its.writes, len(w.admin.made()))
	}
}

// The findings of guards that were killed again and again are those of one that
// read the stream at once, to the byte.
func TestInterruptedGuardsFindWhatOneFindsThatIsNot(t *testing.T) {
	w := newWorld(t)
	read := func(js jetstream.JetStream) (all []string) {
		err := clickstream.Reports(t.Context(), js, clickstream.ReportOptions{Findings: true}, func(r *clickstream.Report) error {
			data, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Report)
			all = append(all, string(data))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	first := w.process("first")
	w.checkpointed()
	_ = first.Process.Kill()
	_ = first.Wait()
	n := 1
	for range 3 {
		cmd := w.process(fmt.Sprint("p", n))
		for range 5 {
			w.flood(250 * n)
			n++
		}
		w.eventually("half of its findings", func() bool { return len(read(w.js)) >= n-2 })
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	w.run("last")
	w.decided(n)
	got := read(w.js)

	// The same stream, and an engine that nobody interrupts.
	var want []string
	e, err := guard.NewEngine(config("", w.url, w.admin.addr).Engine, func(f *clickv1.Finding) {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&clickv1.Report{Report: &clickv1.Report_Finding{Finding: f}})
		if err != nil {
			t.Error(err)
		}
		want = append(want, string(data))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = clickstream.Consume(t.Context(), w.js, clickstream.Options{Until: time.Now(), Log: slog.New(slog.DiscardHandler)}, func(_ context.Context, b *clickstream.Batch) error {
		e.Add(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d findings, not the same as %d", len(got), len(want))
	}
}

// What a guard has said last may be of clicks from long before those that were
// stored in the meantime: it was killed while it caught up, before it had a
// checkpoint.
func TestAGuardThatWasKilledBeforeItsFirstCheckpointLeavesNothingUnsaid(t *testing.T) {
	w := newWorld(t)
	first := w.process("first")
	w.flood(1)
	w.decided(1)
	_ = first.Process.Kill()
	_ = first.Wait()
	if err := w.js.DeleteObjectStore(t.Context(), stateBucket); err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) && !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatal(err)
	}
	w.flood(300)
	var late *clickv1.Report
	if err := clickstream.Reports(t.Context(), w.js, clickstream.ReportOptions{Findings: true}, func(r *clickstream.Report) error {
		late = proto.CloneOf(r.Report)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	late.GetFinding().Id += "-late"
	data, err := proto.Marshal(late)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.Publish(t.Context(), clickstream.FindingSubject(late.GetFinding().GetDetector()), data); err != nil {
		t.Fatal(err)
	}
	w.run("second")
	w.decided(3)
}

func TestADamagedCheckpointIsThrownAway(t *testing.T) {
	w := newWorld(t)
	_, stop := w.run("a")
	w.flood(1)
	w.decided(1)
	stop()
	store, err := w.js.ObjectStore(t.Context(), stateBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutBytes(t.Context(), stateObject, []byte("this is none")); err != nil {
		t.Fatal(err)
	}
	w.run("b")
	w.flood(300)
	if v := w.decided(2); v["blocked"] != 2 {
		t.Fatal(v)
	}
}
