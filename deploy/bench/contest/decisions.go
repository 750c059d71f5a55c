package contest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
)

// Decisions is the result of RunDecisions.
type Decisions struct {
	Config   Config
	Load     [2]string
	Versions string

	turns []*decisionTurns
	awake bool // the cores did not halt
}

// decisionTurns are the turns of one kind of link.
type decisionTurns struct {
	decision
	script      string
	node, nginx server // what the samples are of
	shareA      [2]float64
}

// RunDecisions measures what the decisions of links cost a node, each kind of
// link beside nginx doing the same where it can. Config.Links is the number of
// each kind; there is no open loop.
func RunDecisions(ctx context.Context, cfg Config) (*Decisions, error) {
	r := &Decisions{Config: cfg, Load: [2]string{load()}, Versions: versions(ctx)}
	if err := repin(os.Getpid()); err != nil {
		return nil, err
	}
	s, err := r.newStage()
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.load(ctx, s.writeDecisions); err != nil {
		return nil, err
	}
	for i, c := range s.servers {
		if err := s.start(i, c); err != nil {
			return nil, fmt.Errorf("start %s: %w", c.name, err)
		}
		if err := errors.Join(r.wait(c), c.rest()); err != nil {
			return nil, fmt.Errorf("start %s: %w", c.name, err)
		}
	}
	for _, t := range r.turns {
		if err := t.compare(s); err != nil {
			return nil, fmt.Errorf("%s: %w", t.what, err)
		}
	}
	for _, c := range s.servers {
		if err := c.end(); err != nil {
			return nil, err
		}
	}
	for round := range cfg.Rounds {
		for _, t := range r.turns {
			if err := t.round(ctx, s, round); err != nil {
				return nil, fmt.Errorf("%s: %w", t.what, err)
			}
		}
	}
	r.Load[1], r.awake = load(), s.awake
	return r, nil
}

func (r *Decisions) newStage() (*stage, error) {
	cfg := r.Config
	places := filepath.Join(cfg.Dir, "places.mmdb")
	if err := writeFile(places, writeGeoIP); err != nil {
		return nil, err
	}
	s := &stage{cfg: cfg, servers: []*server{
		{name: "affnode", label: "affnode", clicks: true, flags: []string{
			"--geoip", places, "--trusted-proxies", "127.0.0.0/8", "--forwarded-header", "x-forwarded-for",
		}},
		{name: "nginx", label: deciding, worker: true},
	}}
	s.node, s.nginx = s.servers[0], s.servers[1]
	s.stayAwake()
	for _, d := range decisions {
		t := &decisionTurns{decision: d}
		var err error
		if t.script, err = s.writeScript("requests-"+d.prefix[1:], d.requests(cfg.Links)); err != nil {
			return nil, err
		}
		r.turns = append(r.turns, t)
	}
	var err error
	if s.fleet, err = processes.New(cfg.Bin, cfg.Dir, 1, len(s.servers)); err != nil {
		return nil, err
	}
	for i, c := range s.servers {
		c.addr = s.fleet.NodeAddr[i]
	}
	return s, nil
}

// wait waits until the server has all links.
func (r *Decisions) wait(c *server) error {
	for _, t := range r.turns {
		path := t.link(r.Config.Links - 1).GetPath()
		if c.label == deciding && !t.both {
			continue
		}
		if !processes.Eventually(func() bool { return ask(c.addr, path) != "" }) {
			return fmt.Errorf("%s is not answered\n%s", path, c.log())
		}
	}
	return nil
}

// compared is how many answers of the two servers are compared.
const compared = 3000

// compare sees to it that both servers do the same: the same Locations, but that
// a variant of one may be the other variant of the other, whose hash is another.
// Variants must have their shares.
func (t *decisionTurns) compare(s *stage) error {
	node, shareA, err := t.answers(s.node.addr, s.cfg.Links)
	if err != nil {
		return fmt.Errorf("affnode: %w", err)
	}
	if !t.both {
		return nil
	}
	nginx, shareAToo, err := t.answers(s.nginx.addr, s.cfg.Links)
	if err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	t.shareA = [2]float64{shareA, shareAToo}
	for i := range node {
		if node[i] != nginx[i] {
			return fmt.Errorf("affnode sends to %s and nginx to %s", node[i], nginx[i])
		}
	}
	for _, share := range t.shareA {
		if share != 0 && (share < 0.6 || share > 0.8) {
			return fmt.Errorf("a variant of 70 %% has %.0f %%", 100*share)
		}
	}
	return nil
}

// answers gives the Locations of the first requests, the second variant as the
// first, and the share of the first.
func (t *decisionTurns) answers(addr string, links int) (all []string, shareA float64, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(processes.Patience)); err != nil {
		return nil, 0, err
	}
	in := bufio.NewReader(conn)
	var a, b float64
	for request := range t.requests(links) {
		if len(all) == compared {
			break
		}
		if _, err := conn.Write(request); err != nil {
			return nil, 0, err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return nil, 0, err
		}
		_ = resp.Body.Close() // nginx's is a page, which the next answer comes behind
		to := resp.Header.Get("Location")
		if resp.StatusCode != http.StatusFound || to == "" {
			return nil, 0, fmt.Errorf("%s is answered with %s", request, resp.Status)
		}
		switch {
		case strings.HasPrefix(to, variantA):
			a++
		case strings.HasPrefix(to, variantB):
			b++
			to = variantA + to[len(variantB):]
		}
		all = append(all, to)
	}
	if len(all) < compared {
		return nil, 0, errors.New("there are too few requests")
	}
	return all, a / max(1, a+b), nil
}

// round measures the kind once, with each server.
func (t *decisionTurns) round(ctx context.Context, s *stage, round int) error {
	s.script = t.script
	turns := []struct{ by, to *server }{{s.node, &t.node}, {s.nginx, &t.nginx}}
	if round%2 == 1 { // nobody is always the first
		turns[0], turns[1] = turns[1], turns[0]
	}
	for _, turn := range turns {
		if turn.by == s.nginx && !t.both {
			continue
		}
		got, err := s.closedTurn(ctx, turn.by)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", turn.by.name, err, turn.by.log())
		}
		progress("round %d  %-8s %-8s %5.2f µs  %6.0f/s  busy %3.0f%%  others %.1f%%", round+1, t.prefix, turn.by.name, got.cpu, got.rps, 100*got.busy, 100*got.foreign)
		turn.to.samples = append(turn.to.samples, got)
	}
	return nil
}

// closedTurn lets a server run alone, in a closed loop; again if others
// disturbed it.
func (s *stage) closedTurn(ctx context.Context, c *server) (best sample, err error) {
	for try := range tries {
		if err := awaitQuiet(ctx, 2*glance); err != nil {
			return best, err
		}
		if err := c.begin(s); err != nil {
			return best, err
		}
		// On a machine that is overloaded, no answer at all may come in that time.
		if _, err := s.measure(c, func() (uint64, error) { return s.wrk(ctx, c.addr, s.cfg.Warm) }); err != nil && ctx.Err() == nil {
			progress("%s: warm-up: %v", c.name, err)
		}
		m, err := s.measure(c, func() (uint64, error) { return s.wrk(ctx, c.addr, s.cfg.Closed) })
		if err != nil {
			return best, err
		}
		got := sample{
			cpu: m.cpu.Seconds() * 1e6 / float64(m.requests), rps: float64(m.requests) / m.wall.Seconds(),
			busy: m.cpu.Seconds() / m.wall.Seconds(), foreign: m.foreign,
		}
		if err := c.end(); err != nil {
			return best, err
		}
		if try == 0 || got.foreign < best.foreign {
			best = got
		}
		if best.foreign <= quiet {
			break
		}
	}
	return best, nil
}

// Markdown is the report. Made says how it came about, in one sentence.
func (r *Decisions) Markdown(made string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Decisions: affnode beside nginx\n\n%s %s. Load average at the start: %s; at the end: %s.\n\n", made, r.Versions, r.Load[0], r.Load[1])
	p("CPU per redirect on the whole node, every click published, and the same done by nginx with its log off: median of %d rounds (quartiles); the ratio is of the rounds in pairs.\n\n"+
		"| links | affnode, µs | nginx, µs | ratio | goal | | affnode to a plain link, µs |\n|---|---|---|---|---|---|---|\n", r.Config.Rounds)
	plain := spreadOf(r.turns[0].node.of(cpu)).median
	for _, t := range r.turns {
		node := spreadOf(t.node.of(cpu))
		nginx, to, goal, mark := "-", "-", "-", ""
		if t.both {
			times := ratio(&t.node, &t.nginx, cpu)
			nginx, to = spreadOf(t.nginx.of(cpu)).show(2), times.show(2)
			if t.limit > 0 {
				goal, mark = fmt.Sprintf("at most %.2f", t.limit), "reached"
				if times.median > t.limit {
					mark = "**not reached**"
				}
			}
		}
		p("| %s | %s | %s | %s | %s | %s | %+.2f |\n", t.what, node.show(2), nginx, to, goal, mark, node.median-plain)
	}
	p("\n%s\n", r.disturbed())
	p("\n## Method\n\n%s", r.method())
	return b.String()
}

// disturbed says how much other programs ran meanwhile.
func (r *Decisions) disturbed() string {
	var others []float64
	for _, t := range r.turns {
		for _, got := range append(t.node.of(foreign), t.nginx.of(foreign)...) {
			others = append(others, 100*got)
		}
	}
	s := spreadOf(others)
	said := fmt.Sprintf("Other programs took %.0f%% of a core (%.0f%% - %.0f%%).", s.median, s.low, s.high)
	if s.median > 100*quiet {
		said += " **The machine was not quiet, and not equally so for both: these figures need to be measured again.**"
	}
	return said
}

func foreign(s sample) float64 { return s.foreign }

func (r *Decisions) method() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, "- "+format+"\n", args...) }
	c := r.Config
	p("Made with `go run ./deploy/bench --only decisions`. Each server has core %s for itself; wrk, the broker and the control plane have core %s. The server whose turn it is not is stopped (SIGSTOP). A round: for each kind of links both servers, by turns the first, %v of warm-up and %v of closed loop with %d connections. A turn in which other programs took more than %.0f%% of a core is repeated, once, and the quieter one counts. %s", serverCore, generatorCore, c.Warm, c.Closed, connections, 100*quiet, proc.Halting(r.awake))
	p("%d links of each kind, all in one node and in one nginx; each has a product number of its own, which is in all its Locations. %d different requests for random ones, with the heads that browsers send, of 521 user agents, and an address of one of %d networks in X-Forwarded-For, which both believe. The GeoIP file (MaxMind format) of affnode and the `geo` block of nginx have the same networks.", c.Links, distinct, networks)
	p("nginx: `map $uri` for the product, `geo $http_x_forwarded_for` for the country, `map $http_user_agent` with two regular expressions for the device (`pcre_jit on`; affnode also looks at client hints, and at 1500 patterns of bots when an agent is new), `split_clients` by address and user agent for the variant, and a `map` of country and device for the destination. It decides for all links alike, where affnode takes the rules of each link; it neither records a click nor has macros.")
	for _, t := range r.turns {
		if t.shareA[0] > 0 {
			p("%s: variant a of 70%% had %.1f%% with affnode and %.1f%% with nginx.", t.prefix, 100*t.shareA[0], 100*t.shareA[1])
		}
	}
	p("Before the rounds, the answers to the first %d requests of each kind are compared: the Locations are the same, but that a visitor may have the other variant. After each load affnode's ledger must close: redirects answered = clicks recorded = clicks acknowledged by JetStream, none dropped.", compared)
	p("CPU is the user and system time of the server's process (/proc/PID/stat) from the start of the closed loop until all its clicks are published, divided by the answers that wrk counts.")
	return b.String()
}
