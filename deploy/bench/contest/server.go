package contest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
)

// fixed is the label of what answers nothing that could be checked.
const fixed = "fixed"

// server is what takes part. It sleeps (frozen) when it is not its turn.
type server struct {
	name  string
	label string // for the chart
	addr  string
	admin string // affnode's
	// process is what was started; a worker, if there is one, is measured in
	// its place.
	process  *processes.Process
	worker   bool
	restarts bool     // for each turn: what it keeps in memory must not pile up
	clicks   bool     // published
	flags    []string // affnode's, beside those that all have
	loaded   float64
	samples  []sample // of the rounds
	more     []sample // latencies alone
}

// pid is the process that is measured.
func (c *server) pid() int {
	if c.worker {
		if workers := childrenOf(c.process.PID()); len(workers) > 0 {
			return workers[len(workers)-1]
		}
	}
	return c.process.PID()
}

// wait waits until the server answers, with all links.
func (c *server) wait(s *stage) error {
	last := set.Link(s.cfg.Links - 1)
	var got string
	if !processes.Eventually(func() bool {
		got = ask(c.addr, last.GetPath())
		return got == last.GetDestination() || c.label == fixed && got != ""
	}) {
		return fmt.Errorf("%s is answered with %q\n%s", last.GetPath(), got, c.process.Output())
	}
	return nil
}

// asker opens a connection for each request.
var asker = &http.Client{
	Timeout:       5 * time.Second,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask gives the Location that a server answers a path with, empty if none.
func ask(addr, path string) string {
	r, err := http.NewRequest(http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return ""
	}
	r.Host = linkset.Domain
	resp, err := asker.Do(r)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		return ""
	}
	return resp.Header.Get("Location")
}

// check compares answers with what they should be.
func (c *server) check(s *stage) error {
	if err := c.begin(s); err != nil {
		return err
	}
	for i := 0; i < s.cfg.Links && c.label != fixed; i += max(1, s.cfg.Links/1000) {
		l := set.Link(i)
		if got := ask(c.addr, l.GetPath()); got != l.GetDestination() {
			return fmt.Errorf("%s is answered with %q, want %q", l.GetPath(), got, l.GetDestination())
		}
	}
	return c.end()
}

// log is what the server says of itself.
func (c *server) log() string {
	file, _ := os.ReadFile(filepath.Join(c.process.Dir, "error.log")) // nginx's; others have none
	return c.process.Output() + string(file)
}

// begin wakes the server up.
func (c *server) begin(s *stage) error {
	if c.restarts {
		c.process.Kill()
		if err := c.process.Restart(); err != nil {
			return err
		}
		if err := c.wait(s); err != nil {
			return err
		}
		return c.rest()
	}
	if err := thaw(c.pid()); err != nil {
		return err
	}
	time.Sleep(settle)
	return nil
}

const (
	restTime = time.Second // for which a server must do next to nothing
	restWork = 2 * proc.Tick
	restless = 30 * time.Second
)

// rest waits until the server has nothing left to do of its own accord: it has
// loaded, has given back what that took, and has written its state file.
func (c *server) rest() error {
	for deadline := time.Now().Add(restless); ; {
		before, err := cpuOf(c.pid())
		if err != nil {
			return err
		}
		time.Sleep(restTime)
		now, err := cpuOf(c.pid())
		if err != nil {
			return err
		}
		if now-before <= restWork {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is busy %v after it was started, and nobody has asked it anything", c.name, restless)
		}
	}
}

// end lets it sleep.
func (c *server) end() error { return freeze(c.pid()) }

// ledger is affnode's account of its clicks; zero for others.
type ledger struct{ answered, recorded, published, open, dropped uint64 }

func (c *server) ledger() (l ledger, err error) {
	if c.admin == "" {
		return l, nil
	}
	resp, err := http.Get("http://" + c.admin + "/metrics")
	if err != nil {
		return l, err
	}
	defer resp.Body.Close()
	return readLedger(resp.Body)
}

// readLedger reads what concerns clicks from the metrics.
func readLedger(metrics io.Reader) (l ledger, err error) {
	lines := bufio.NewScanner(metrics)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		family, labels, _ := strings.Cut(name, "{")
		var to *uint64
		switch family {
		case "aff_redirect_requests_total":
			to = &l.answered
			for _, page := range []string{"_page", "unavailable"} {
				if strings.Contains(labels, page) {
					to = nil
				}
			}
		case "aff_clicks_recorded_total":
			to = &l.recorded
		case "aff_clicks_published_total":
			to = &l.published
		case "aff_clicks_unacknowledged":
			to = &l.open
		case "aff_clicks_dropped_total":
			to = &l.dropped
		}
		if to == nil {
			continue
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return l, fmt.Errorf("metric %s: %w", name, err)
		}
		*to += uint64(v)
	}
	return l, lines.Err()
}

// closes says whether all requests since before were recorded as clicks, and
// whether all of these were published. What was under way when the load ended
// was answered, but the load did not count it.
func (c *server) closes(before ledger, requests uint64) error {
	if c.admin == "" {
		return nil
	}
	now, err := c.ledger()
	if err != nil {
		return err
	}
	answered, recorded := now.answered-before.answered, now.recorded-before.recorded
	switch {
	case now.dropped > 0:
		return fmt.Errorf("%d clicks were dropped", now.dropped)
	case answered != recorded:
		return fmt.Errorf("%d redirects and %d clicks", answered, recorded)
	case recorded < requests || recorded > requests+connections:
		return fmt.Errorf("%d requests and %d clicks", requests, recorded)
	case c.clicks && now.published != now.recorded:
		return fmt.Errorf("%d clicks recorded and %d published", now.recorded, now.published)
	case c.clicks && now.open > 0:
		return errors.New("not all clicks are acknowledged")
	}
	return nil
}
