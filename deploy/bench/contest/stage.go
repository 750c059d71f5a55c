package contest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
)

// stage is all that runs: the servers, and what they need.
type stage struct {
	cfg     Config
	fleet   *processes.Fleet // etcd, NATS and a control plane; its node addresses are the servers'
	servers []*server
	script  string

	nginx, node *server // whose edits are compared
	nginxMap    string  // file

	deltas     *deltas // in place of the control plane, in the end
	stopDeltas func()

	awake   bool // the cores do not halt
	release func()
}

func newStage(ctx context.Context, cfg Config) (*stage, error) {
	for _, program := range []string{"openloop", "peer", "slow"} {
		out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(cfg.Bin, program), "github.com/affleet/affleet/deploy/bench/"+program).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", program, err, out)
		}
	}
	s := &stage{cfg: cfg, servers: servers()}
	s.node, s.nginx = s.servers[0], s.servers[2]
	s.stayAwake()
	var err error
	if s.fleet, err = processes.New(cfg.Bin, cfg.Dir, 1, len(s.servers)); err != nil {
		return nil, err
	}
	for i, c := range s.servers {
		c.addr = s.fleet.NodeAddr[i]
	}
	return s, s.writeRequests()
}

// servers are those that take part, in the order of the report, which compares
// the first two with the third.
func servers() []*server {
	return []*server{
		{name: "affnode, every click published", label: "affnode", clicks: true},
		{name: "affnode, clicks in memory, no broker", label: "affnode, memory", restarts: true},
		{name: "nginx `map`, access log off", label: "nginx", worker: true},
		{name: "nginx `map`, access log buffered", label: "nginx, log", worker: true},
		{name: "fasthttp, Go map", label: "fasthttp"},
		{name: "net/http, Go map", label: "net/http"},
		{name: "fixed answer, nothing parsed (floor)", label: fixed},
	}
}

// stayAwake keeps the cores from halting, if it may.
func (s *stage) stayAwake() {
	release, err := proc.StayAwake()
	if err != nil {
		progress("%v; what is measured has the time in it that waking takes", err)
		release = func() {}
	}
	s.awake, s.release = err == nil, release
}

// close ends everything.
func (s *stage) close() {
	defer s.release()
	for _, c := range s.servers {
		if c.process == nil {
			continue
		}
		if c.worker { // its children would stay behind
			_ = thaw(c.pid())
			_, _ = c.process.Stop()
		}
		c.process.Kill()
	}
	s.fleet.Kill()
	if s.stopDeltas != nil {
		s.stopDeltas()
	}
}

// open loads the links into the control plane, and starts the servers.
func (s *stage) open(ctx context.Context) error {
	if err := s.load(ctx, func(w io.Writer) error { return set.WriteNDJSON(w, s.cfg.Links) }); err != nil {
		return err
	}
	for i, c := range s.servers {
		if err := s.start(i, c); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		if err := c.wait(s); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		var err error
		if err = c.rest(); err != nil {
			return err
		}
		if c.loaded, err = resident(c.pid()); err != nil {
			return err
		}
		progress("%-38s %4.0f MB with %d links", c.name, c.loaded, s.cfg.Links)
		if err := c.end(); err != nil {
			return err
		}
	}
	return nil
}

// load starts what the nodes need, and imports affiliates and links.
func (s *stage) load(ctx context.Context, links func(io.Writer) error) error {
	f := s.fleet
	if err := errors.Join(f.StartEtcd(), f.StartNATS()); err != nil {
		return err
	}
	if err := f.StartControl(0); err != nil {
		return err
	}
	begin := time.Now()
	for file, write := range map[string]func(io.Writer) error{"1-affiliates.ndjson": linkset.WriteAffiliates, "2-links.ndjson": links} {
		if err := writeFile(filepath.Join(s.cfg.Dir, file), write); err != nil {
			return err
		}
	}
	if !processes.Eventually(func() bool { return processes.Get(f.ControlAdmin[0], "/readyz").Status == 200 }) {
		return fmt.Errorf("the control plane does not get ready:\n%s", f.Control[0].Output())
	}
	for _, file := range []string{"1-affiliates.ndjson", "2-links.ndjson"} {
		if out, code := f.Affctl(ctx, "import", "ndjson", filepath.Join(s.cfg.Dir, file)); code != 0 {
			return fmt.Errorf("affctl import: exit code %d\n%s", code, out)
		}
	}
	progress("links imported in %.1f s", time.Since(begin).Seconds())
	for _, p := range f.Processes() {
		if err := repin(p.PID()); err != nil {
			return err
		}
	}
	return nil
}

// start starts a server on its core.
func (s *stage) start(i int, c *server) error {
	dir := filepath.Join(s.cfg.Dir, strconv.Itoa(i))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var program string
	var args []string
	switch c.label {
	case "affnode", "affnode, memory":
		c.admin = s.fleet.NodeAdmin[i]
		program, args = filepath.Join(s.cfg.Bin, "affnode"), []string{
			"--control", s.fleet.ControlAddr[0], "--listen", c.addr, "--admin", c.admin,
			"--node", "node-" + strconv.Itoa(i), "--data-dir", "data", "--log-level", "warn",
			"--max-conns-per-addr", "10000",
		}
		if c.clicks {
			args = append(args, "--click-level", "process", "--nats", "nats://"+s.fleet.NATSAddr)
		} else {
			args = append(args, "--click-level", "memory", "--nats", nobody)
		}
		args = append(args, c.flags...)
	case "nginx", "nginx, log":
		if err := s.writeNginx(dir, c); err != nil {
			return err
		}
		program, args = "nginx", []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}
	case deciding:
		if err := s.writeDeciding(dir, c); err != nil {
			return err
		}
		program, args = "nginx", []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}
	default:
		links := s.cfg.Links
		if c.label == fixed {
			links = 0
		}
		program, args = filepath.Join(s.cfg.Bin, "peer"), []string{c.label, c.addr, strconv.Itoa(links)}
	}
	var err error
	c.process, err = processes.Start(dir, "taskset", pinned(serverCore, program, args...)...)
	return err
}

// nobody is an address where no broker is.
const nobody = "nats://127.0.0.1:9"

// nginxConf is what a team that tunes nginx for this would write. Its answer to
// a path without a link is left out, which favours it.
const nginxConf = `daemon off;
worker_processes 1;
worker_rlimit_nofile 30000;
pid nginx.pid;
error_log error.log notice;
events { worker_connections 20000; }
http {
  map_hash_max_size %d;
  map_hash_bucket_size 256;
  include links.map;
  access_log %s;
  keepalive_requests 1000000000;
  client_header_timeout ` + headTimeout + `;
  server_tokens off;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server {
    listen %s;
    location / {
      add_header Cache-Control no-store;
      return 302 $target;
    }
  }
}
`

func (s *stage) writeNginx(dir string, c *server) error {
	access := "off"
	if c.label == "nginx, log" {
		access = "access.log combined buffer=64k flush=1s"
	}
	links := filepath.Join(dir, "links.map")
	if c == s.nginx {
		s.nginxMap = links
	}
	return errors.Join(
		writeFile(links, func(w io.Writer) error { return set.WriteNginxMap(w, s.cfg.Links) }),
		os.WriteFile(filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, nginxConf, 2*s.cfg.Links, access, c.addr), 0o644))
}

func writeFile(file string, write func(io.Writer) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(out), out.Close())
}

// driving is the time that what drives the servers has used: those that run,
// and those that have ended.
func (s *stage) driving() time.Duration {
	sum := childrenCPU()
	for _, p := range s.fleet.Processes() {
		used, _ := cpuOf(p.PID()) // 0 if it is gone, which is noticed elsewhere
		sum += used
	}
	return sum
}
