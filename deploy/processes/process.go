// Package processes runs a fleet as separate processes on loopback, as the
// end-to-end tests and the benchmarks do. Programs that serve users are started
// by systemd, Compose or Kubernetes.
//
// A Process and a Fleet belong to one goroutine; Output may be called from any.
package processes

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program that runs.
type Process struct {
	Path string
	Args []string
	Dir  string // working directory

	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
}

// Start starts a program.
func Start(dir, path string, args ...string) (*Process, error) {
	p := &Process{Path: path, Args: args, Dir: dir}
	return p, p.Restart()
}

// Restart starts it again, after it has ended.
func (p *Process) Restart() error {
	p.cmd = exec.Command(p.Path, p.Args...)
	p.cmd.Dir = p.Dir
	p.cmd.Stdout, p.cmd.Stderr = p, p
	// Whatever happens to this process, its children do not stay behind.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(p.Path), err)
	}
	return nil
}

// Write collects what the program prints.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output is what the program has printed.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// PID is the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// String is the command line.
func (p *Process) String() string {
	return filepath.Base(p.Path) + " " + strings.Join(p.Args, " ")
}

// Kill ends it with SIGKILL, if it has not ended.
func (p *Process) Kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// Stop ends it with SIGTERM and gives its exit code.
func (p *Process) Stop() (int, error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return -1, err
	}
	return p.Wait()
}

// Wait waits until it ends by itself and gives its exit code.
func (p *Process) Wait() (int, error) {
	done := make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // the exit code says it
		close(done)
	}()
	select {
	case <-done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(Patience):
		return -1, errors.New(p.String() + " does not end")
	}
}
