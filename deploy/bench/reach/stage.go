package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// The cores: the control plane and etcd have one, what drives them and the nodes
// the other.
const (
	serverCore = 0
	driverCore = 1
)

// set is the links.
var set = linkset.Set{Seed: 1}

// stage is what runs while a row is measured.
type stage struct {
	*processes.Fleet
	dir    string
	conn   *grpc.ClientConn
	links  adminv1.LinkServiceClient
	fleet  adminv1.FleetServiceClient
	pinned bool
}

// open starts etcd, NATS, a control plane and nodes. Pinned, etcd and the
// control plane have a core for themselves, and all else, this process too,
// shares the other one.
func (r *runner) open(nodes int, pinned bool) (s *stage, err error) {
	s = &stage{pinned: pinned}
	if s.dir, err = os.MkdirTemp(r.Dir, "fleet-"); err != nil {
		return nil, err
	}
	if s.Fleet, err = processes.New(r.Bin, s.dir, 1, nodes); err != nil {
		return nil, err
	}
	if pinned {
		if err := moveSelf(strconv.Itoa(driverCore), 1); err != nil {
			return nil, err
		}
	}
	if err := s.start(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) start() error {
	err := s.onServerCore(func() error { return errors.Join(s.StartEtcd(), s.StartControl(0)) })
	if err == nil {
		err = s.StartNATS()
	}
	for i := range s.Nodes {
		err = errors.Join(err, s.StartNode(i))
	}
	if err == nil {
		err = s.WaitReady()
	}
	if err != nil {
		return err
	}
	s.conn, err = grpc.NewClient(s.ControlAddr[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		s.links, s.fleet = adminv1.NewLinkServiceClient(s.conn), adminv1.NewFleetServiceClient(s.conn)
	}
	return err
}

// close ends everything.
func (s *stage) close() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.Kill()
	_ = os.RemoveAll(s.dir) // all of it goes with the run's folder in the end
	if s.pinned {
		_ = moveSelf(fmt.Sprintf("%d,%d", serverCore, driverCore), runtime.NumCPU()) // as it was
	}
}

// moveSelf moves this process, with all its threads.
func moveSelf(cores string, threads int) error {
	if out, err := exec.Command("taskset", "-a", "-c", "-p", cores, strconv.Itoa(os.Getpid())).CombinedOutput(); err != nil {
		return fmt.Errorf("taskset: %w\n%s", err, out)
	}
	runtime.GOMAXPROCS(threads)
	return nil
}

// onServerCore starts processes there, if cores are shared out: a process
// inherits the core of the thread that starts it.
func (s *stage) onServerCore(start func() error) error {
	if !s.pinned {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, server unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return err
	}
	server.Set(serverCore)
	if err := unix.SchedSetaffinity(0, &server); err != nil {
		return err
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &was))
}

// controlCPU is what the control plane has used so far.
func (s *stage) controlCPU() time.Duration {
	used, _ := proc.CPU(s.Control[0].PID()) // 0 if it is gone, which is noticed elsewhere
	return used
}

// controlMemory is how much of the control plane is in memory, now and at most
// so far, in MB.
func (s *stage) controlMemory() (now, peak float64) {
	now, peak, _ = proc.Memory(s.Control[0].PID()) // as above
	return now, peak
}

// load imports the set's links and their affiliates.
func (s *stage) load(ctx context.Context, n int) error {
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{"affiliates.ndjson", linkset.WriteAffiliates},
		{"links.ndjson", func(w io.Writer) error { return set.WriteNDJSON(w, n) }},
	} {
		file := filepath.Join(s.dir, f.name)
		if err := writeFile(file, f.write); err != nil {
			return err
		}
		if out, code := s.Affctl(ctx, "import", "ndjson", file); code != 0 {
			return fmt.Errorf("affctl import: exit code %d\n%s", code, out)
		}
	}
	return nil
}

func writeFile(file string, write func(io.Writer) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(out), out.Close())
}

// update writes a link and gives its revision.
func (s *stage) update(ctx context.Context, l *linkv1.Link) (int64, error) {
	w, err := s.links.Update(ctx, &adminv1.UpdateRequest{Resource: resource(l), AllowMissing: true})
	return w.GetVersion().GetRevision(), err
}

func resource(l *linkv1.Link) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
}

// waitFor waits as affctl does with --wait.
func (s *stage) waitFor(ctx context.Context, revision int64, nodes int) error {
	_, err := s.fleet.WaitForVersion(ctx, &adminv1.WaitForVersionRequest{Version: &linkv1.Version{Revision: revision}, MinNodes: int32(nodes)})
	return err
}

// profile records a CPU profile of the control plane until the function that it
// gives is called, if that is wanted.
func (r *runner) profile(s *stage, name string) (stop func()) {
	if r.Profile == "" {
		return func() {}
	}
	file := filepath.Join(r.Profile, name+".perf")
	cmd := exec.Command("perf", "record", "-q", "-F", "499", "-g", "-o", file, "-p", strconv.Itoa(s.Control[0].PID()))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "no profile:", err)
		return func() {}
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it ends by the signal
	}
}
