package contest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/affleet/affleet/deploy/bench/browser"
)

// distinct requests of the closed loop.
const distinct = 1 << 16

// wrkScript lets wrk send requests that are made beforehand, and print its
// counts. They are separated by a zero byte.
const wrkScript = `local file = assert(io.open(%q, "rb"))
local all = file:read("*a")
file:close()
local requests, n, i = {}, 0, 0
for r in all:gmatch("[^%%z]+") do
  n = n + 1
  requests[n] = r
end
function request()
  i = i %% n + 1
  return requests[i]
end
function done(summary)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d\n", summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
`

// writeRequests writes wrk's script and its requests.
func (s *stage) writeRequests() error {
	var err error
	s.script, err = s.writeScript("requests", browser.Requests(set, s.cfg.Links, distinct, 1))
	return err
}

// writeScript writes requests, and gives the script of wrk that sends them.
func (s *stage) writeScript(name string, requests iter.Seq[[]byte]) (string, error) {
	var all []byte
	for r := range requests {
		all = append(append(all, r...), 0)
	}
	file := filepath.Join(s.cfg.Dir, name)
	if err := os.WriteFile(file, all, 0o644); err != nil {
		return "", err
	}
	return file + ".lua", os.WriteFile(file+".lua", fmt.Appendf(nil, wrkScript, file), 0o644)
}

var wrkResult = regexp.MustCompile(`RESULT (\d+) (\d+)`)

// wrk asks as fast as it is answered, and gives the number of answers. All must
// be good.
func (s *stage) wrk(ctx context.Context, addr string, d time.Duration) (uint64, error) {
	out, err := exec.CommandContext(ctx, "taskset", pinned(generatorCore, "wrk", "-t1", "-c"+strconv.Itoa(connections),
		"-d"+strconv.Itoa(int(d.Seconds()))+"s", "-s", s.script, "http://"+addr+"/")...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	found := wrkResult.FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("wrk gave no result:\n%s", out)
	}
	requests, _ := strconv.ParseUint(string(found[1]), 10, 64) // digits
	if bad := string(found[2]); bad != "0" || requests == 0 {
		return 0, fmt.Errorf("%s of %d requests failed:\n%s", bad, requests, out)
	}
	return requests, nil
}

// connections of both loops.
const connections = 64

// openLoop is what the program of that name prints.
type openLoop struct {
	Answered       uint64
	P50, P99, P999 int64
	SliceP99       int64
	CPU, Seconds   float64
	RealTime       bool
	Stalls         int64
}

func (s *stage) openLoop(ctx context.Context, addr string, rate float64) (openLoop, error) {
	var got openLoop
	out, err := exec.CommandContext(ctx, "taskset", pinned(generatorCore, filepath.Join(s.cfg.Bin, "openloop"), "--addr", addr,
		"--rate", fmt.Sprint(rate), "--duration", s.cfg.Open.String(), "--links", strconv.Itoa(s.cfg.Links),
		"--connections", strconv.Itoa(connections))...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return got, fmt.Errorf("openloop: %w", err)
	}
	return got, json.Unmarshal(out, &got)
}

// measured is what a load did to a server.
type measured struct {
	requests  uint64
	cpu, wall time.Duration
	foreign   float64 // share of the two cores that others used, the larger one
}

// settle is the time for what follows a load: a server may have to write or to
// publish what it gathered. It counts as the load's.
const settle = 200 * time.Millisecond

// measure gives what a load costs a server, and sees to it that none of its
// clicks is missing.
func (s *stage) measure(c *server, loadOf func() (uint64, error)) (m measured, err error) {
	ledger, err := c.ledger()
	if err != nil {
		return m, err
	}
	before, err := cpuOf(c.pid())
	if err != nil {
		return m, err
	}
	coresBefore, drivingBefore, begin := coresBusy(), s.driving(), time.Now()
	if m.requests, err = loadOf(); err != nil {
		return m, err
	}
	m.wall = time.Since(begin)
	cores, driving := coresBusy(), s.driving()
	now, err := cpuOf(c.pid())
	if err != nil {
		return m, err
	}
	m.foreign = max(0,
		(cores[0]-coresBefore[0]-(now-before)).Seconds(),
		(cores[1]-coresBefore[1]-(driving-drivingBefore)).Seconds()) / m.wall.Seconds()
	for deadline := time.Now().Add(10 * time.Second); ; {
		time.Sleep(settle)
		if now, err = cpuOf(c.pid()); err != nil {
			return m, err
		}
		m.cpu = now - before
		err := c.closes(ledger, m.requests)
		if err == nil || time.Now().After(deadline) {
			return m, err
		}
	}
}
