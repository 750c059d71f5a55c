package natstest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	envStore = "NATSTEST_STORE"
	envPort  = "NATSTEST_PORT"
)

// Main is called first by the TestMain of a package that uses StartProcess: the
// test binary is the server's program too. In the server it never returns.
func Main() {
	store := os.Getenv(envStore)
	if store == "" {
		return
	}
	port, err := strconv.Atoi(os.Getenv(envPort))
	if err == nil {
		err = serve(store, port)
	}
	fmt.Fprintln(os.Stderr, "NATS server:", err)
	os.Exit(1)
}

func serve(store string, port int) error {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true, JetStream: true, StoreDir: store,
	})
	if err != nil {
		return err
	}
	go s.Start()
	if !s.ReadyForConnections(patience) {
		return fmt.Errorf("not ready after %v", patience)
	}
	fmt.Println(s.ClientURL())
	select {} // until it is killed
}

// Process is a server in a process of its own, which can be killed and started
// again on the same port and with the same store.
type Process struct {
	t     testing.TB
	store string
	port  string
	url   string
	cmd   *exec.Cmd
}

// StartProcess starts a server on a free port. It ends with the test.
func StartProcess(t testing.TB) *Process {
	t.Helper()
	p := &Process{t: t, store: t.TempDir(), port: strconv.Itoa(server.RANDOM_PORT)}
	p.Restart()
	t.Cleanup(p.Kill)
	return p
}

// Restart starts the server after Kill.
func (p *Process) Restart() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envStore+"="+p.store, envPort+"="+p.port)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start NATS server: %v", err)
	}
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.t.Fatalf("NATS server did not start: %v", err)
	}
	p.url = strings.TrimSpace(url)
	p.port = p.url[strings.LastIndexByte(p.url, ':')+1:]
}

// Kill ends the server with SIGKILL. It may be called twice.
func (p *Process) Kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // it was killed
		p.cmd = nil
	}
}

// URL is where clients connect; it stays the same over a restart.
func (p *Process) URL() string { return p.url }

// JetStream is a client of the server that closes with the test.
func (p *Process) JetStream() jetstream.JetStream {
	p.t.Helper()
	return client(p.t, p.url)
}
