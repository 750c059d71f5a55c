package processes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Patience bounds every wait; each ends as soon as what it waits for is there.
const Patience = 60 * time.Second

// Build builds the fleet's programs, and etcd and nats-server from their
// modules, into a folder. It must be called from within this module.
func Build(bin string) error {
	const module = "github.com/affleet/affleet"
	for _, args := range [][]string{
		{"-o", filepath.Join(bin, "etcd"), "go.etcd.io/etcd/server/v3"},
		{"-o", filepath.Join(bin, "nats-server"), "github.com/nats-io/nats-server/v2"},
		{"-o", bin + "/", module + "/controlplane/cmd/affcontrol", module + "/dataplane/cmd/affnode", module + "/cli/cmd/affctl"},
	} {
		if out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// Fleet is a fleet of processes. What is not started is nil.
type Fleet struct {
	EtcdAddr, NATSAddr        string
	ControlAddr, ControlAdmin []string
	NodeAddr, NodeAdmin       []string
	GuardAdmin                string

	Etcd, NATS     *Process
	Guard          *Process
	Control, Nodes []*Process
	NodeArgs       []string // of nodes, beside those that all have

	bin, dir, etcdPeer string
}

// New lays out a fleet on free ports: programs from bin, data below dir.
// Nothing is started.
func New(bin, dir string, controls, nodes int) (*Fleet, error) {
	f := &Fleet{bin: bin, dir: dir, Control: make([]*Process, controls), Nodes: make([]*Process, nodes)}
	addrs, err := freeAddrs(4 + 2*controls + 2*nodes)
	if err != nil {
		return nil, err
	}
	take := func(n int) []string {
		some := addrs[:n]
		addrs = addrs[n:]
		return some
	}
	f.EtcdAddr, f.etcdPeer, f.NATSAddr, f.GuardAdmin = take(1)[0], take(1)[0], take(1)[0], take(1)[0]
	f.ControlAddr, f.ControlAdmin = take(controls), take(controls)
	f.NodeAddr, f.NodeAdmin = take(nodes), take(nodes)
	return f, nil
}

// freeAddrs gives addresses of loopback whose ports were free a moment ago.
func freeAddrs(n int) ([]string, error) {
	addrs := make([]string, n)
	for i := range addrs {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addrs[i] = ln.Addr().String()
	}
	return addrs, nil
}

// StartAll starts everything and waits until it is ready.
func (f *Fleet) StartAll() error {
	if err := errors.Join(f.StartEtcd(), f.StartNATS()); err != nil {
		return err
	}
	for i := range f.Control {
		if err := f.StartControl(i); err != nil {
			return err
		}
	}
	for i := range f.Nodes {
		if err := f.StartNode(i); err != nil {
			return err
		}
	}
	return f.WaitReady()
}

// Kill ends every process.
func (f *Fleet) Kill() {
	for _, p := range f.Processes() {
		p.Kill()
	}
}

// Processes are those that were started.
func (f *Fleet) Processes() (all []*Process) {
	for _, p := range append(append([]*Process{f.Etcd, f.NATS, f.Guard}, f.Control...), f.Nodes...) {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

func (f *Fleet) start(p **Process, name, program string, args ...string) error {
	dir := filepath.Join(f.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	started, err := Start(dir, filepath.Join(f.bin, program), args...)
	if err == nil {
		*p = started
	}
	return err
}

// StartEtcd starts a single member.
func (f *Fleet) StartEtcd() error {
	client, peer := "http://"+f.EtcdAddr, "http://"+f.etcdPeer
	return f.start(&f.Etcd, "etcd", "etcd", "--data-dir", "data", "--log-level", "error", "--name", "fleet", "--quota-backend-bytes", "8589934592",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "fleet="+peer)
}

// StartNATS starts a single server with JetStream.
func (f *Fleet) StartNATS() error {
	host, port, err := net.SplitHostPort(f.NATSAddr)
	if err != nil {
		return err
	}
	return f.start(&f.NATS, "nats", "nats-server", "--jetstream", "--store_dir", "data", "--addr", host, "--port", port)
}

// StartControl starts a replica of the control plane.
func (f *Fleet) StartControl(i int) error {
	return f.start(&f.Control[i], fmt.Sprintf("control-%d", i+1), "affcontrol",
		"--etcd", "http://"+f.EtcdAddr, "--listen", f.ControlAddr[i], "--admin", f.ControlAdmin[i])
}

// StartNode starts a node, named node-1 and so on, in region r0 or r1.
func (f *Fleet) StartNode(i int) error {
	name := fmt.Sprintf("node-%d", i+1)
	args := []string{
		"--control", strings.Join(f.ControlAddr, ","), "--nats", "nats://" + f.NATSAddr,
		"--listen", f.NodeAddr[i], "--admin", f.NodeAdmin[i],
		"--node", name, "--region", fmt.Sprintf("r%d", i%2), "--data-dir", "data",
	}
	return f.start(&f.Nodes[i], name, "affnode", append(args, f.NodeArgs...)...)
}

// StartGuard starts a fraud detector.
func (f *Fleet) StartGuard() error {
	return f.start(&f.Guard, "guard", "affguard",
		"--control", strings.Join(f.ControlAddr, ","), "--nats", "nats://"+f.NATSAddr, "--admin", f.GuardAdmin)
}

// WaitReady waits until every control plane and node says that it is ready.
func (f *Fleet) WaitReady() error {
	for _, admin := range append(append([]string{}, f.ControlAdmin...), f.NodeAdmin...) {
		var last Answer
		if !Eventually(func() bool {
			last = Get(admin, "/readyz")
			return last.Status == http.StatusOK
		}) {
			return fmt.Errorf("http://%s/readyz says %d %s", admin, last.Status, last.Body)
		}
	}
	return nil
}

// Eventually polls until is gives true, or patience ends and it gives false.
func Eventually(is func() bool) bool {
	for deadline := time.Now().Add(Patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Answer is what an address answered; status 0 stands for no answer, with the
// error as body.
type Answer struct {
	Status         int
	Location, Body string
}

var client = &http.Client{
	Timeout:       5 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Get asks one address for one path.
func Get(addr, path string) Answer {
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return Answer{Body: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{Body: err.Error()}
	}
	return Answer{resp.StatusCode, resp.Header.Get("Location"), string(body)}
}

// Affctl runs affctl against the last replica, and gives what it prints and its
// exit code.
func (f *Fleet) Affctl(ctx context.Context, args ...string) (string, int) {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, "affctl"), args...)
	cmd.Env = append(os.Environ(), "AFFCTL_SERVER="+f.ControlAddr[len(f.ControlAddr)-1], "AFFCTL_NATS=nats://"+f.NATSAddr,
		"AFFCTL_CONFIG="+filepath.Join(f.dir, "affctl.yaml"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return out.String(), cmd.ProcessState.ExitCode()
}
