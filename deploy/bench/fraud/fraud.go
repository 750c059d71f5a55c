package fraud

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/fraud/verdict"
)

// Seeds of the evaluation: detectors are tuned with the former, and nothing but
// the report is made with the latter. They have also been tuned with 1 to 3, 2001 to
// 2003, 3001 to 3003, 4001 to 4003, 5001 to 5003, 7001 to 7003 and 8001 to 8007.
var (
	TuningSeeds = []uint64{1001, 1002, 1003}
	HeldSeeds   = []uint64{6001, 6002, 6003}
)

// Config is a run's.
type Config struct {
	Bin    string // folder of the fleet's programs
	Dir    string // an empty folder
	Parts  []string
	Rounds int
	Quick  bool
	// Truncate lets the nodes of the evaluation record addresses as /24 and /48.
	Truncate bool
	Made     string   // how the figures come about, a sentence for the report
	Tuning   []uint64 // default: TuningSeeds
	Held     []uint64 // default: HeldSeeds
	// Judge runs the benchmark of dataplane/internal/label, which is private to it.
	Judge func(ctx context.Context) (Judge, error)
}

// part is one of the measurements.
type part struct {
	name string
	run  func(ctx context.Context, cfg *Config, r *Result) error
}

var parts = []part{
	{"held", runHeld},
	{"truncated", runTruncated},
	{"tuned", runTuned},
	{"live", runLive},
	{"capacity", runCapacity},
	{"node", runNode},
	{"labels", runLabels},
}

// Parts are the names of the measurements.
func Parts() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// Result is a run's.
type Result struct {
	Parts     map[string]PartRun
	Held      *evaluation `json:",omitempty"`
	Truncated *evaluation `json:",omitempty"`
	Tuned     *evaluation `json:",omitempty"`
	Live      *live       `json:",omitempty"`
	Capacity  *capacity   `json:",omitempty"`
	Node      *node       `json:",omitempty"`
	Labels    *labels     `json:",omitempty"`
}

// PartRun says how a part came about.
type PartRun struct {
	Made string
	Took time.Duration
}

// Merge takes what newer has measured, in place of what was before.
func (r *Result) Merge(newer *Result) {
	if r.Parts == nil {
		r.Parts = make(map[string]PartRun)
	}
	maps.Copy(r.Parts, newer.Parts)
	r.Held, r.Tuned = cmp.Or(newer.Held, r.Held), cmp.Or(newer.Tuned, r.Tuned)
	r.Truncated = cmp.Or(newer.Truncated, r.Truncated)
	r.Live, r.Capacity = cmp.Or(newer.Live, r.Live), cmp.Or(newer.Capacity, r.Capacity)
	r.Node, r.Labels = cmp.Or(newer.Node, r.Node), cmp.Or(newer.Labels, r.Labels)
}

func (c *Config) rounds() int {
	if c.Quick {
		return 1
	}
	return min(c.Rounds, 5)
}

// Run measures.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if len(cfg.Parts) == 0 {
		cfg.Parts = Parts()
	}
	for _, name := range cfg.Parts {
		if !slices.Contains(Parts(), name) {
			return nil, fmt.Errorf("there is no part %q of the measurement; there are %s", name, strings.Join(Parts(), ", "))
		}
	}
	if cfg.Held == nil {
		cfg.Held = HeldSeeds
	}
	if cfg.Tuning == nil {
		cfg.Tuning = TuningSeeds
	}
	if err := build(ctx, cfg.Bin); err != nil {
		return nil, err
	}
	r := &Result{Parts: make(map[string]PartRun)}
	for _, p := range parts {
		if !slices.Contains(cfg.Parts, p.name) {
			continue
		}
		from := time.Now()
		if err := p.run(ctx, &cfg, r); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		r.Parts[p.name] = PartRun{cfg.Made, time.Since(from)}
		progress("%s took %.0f s", p.name, time.Since(from).Seconds())
	}
	return r, nil
}

func build(ctx context.Context, bin string) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, "affguard"), "github.com/affleet/affleet/dataplane/cmd/affguard").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build affguard: %w\n%s", err, out)
	}
	return nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func runHeld(ctx context.Context, cfg *Config, r *Result) error {
	r.Held = &evaluation{What: "Held out", Seeds: cfg.Held}
	return r.Held.run(ctx, cfg)
}

func runTruncated(ctx context.Context, cfg *Config, r *Result) error {
	r.Truncated = &evaluation{What: "Held out, with addresses as nodes record them by default: as /24 and /48", Seeds: cfg.Held, Truncate: true}
	return r.Truncated.run(ctx, cfg)
}

func runTuned(ctx context.Context, cfg *Config, r *Result) error {
	r.Tuned = &evaluation{What: "Tuned with", Seeds: cfg.Tuning}
	return r.Tuned.run(ctx, cfg)
}

// run evaluates the seeds, two at a time.
func (e *evaluation) run(ctx context.Context, cfg *Config) error {
	runs := make([]*verdict.Jury, len(e.Seeds))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i, seed := range e.Seeds {
		group.Go(func() (err error) {
			begin := time.Now()
			shape := traffic.Default(seed)
			if cfg.Quick {
				shape.Baseline, shape.Attacks = 7*24*time.Hour, 4
			}
			if runs[i], err = Evaluate(ctx, cfg.Bin, shape, traffic.Batching{Truncate: cfg.Truncate || e.Truncate}); err != nil {
				return fmt.Errorf("seed %d: %w", seed, err)
			}
			progress("seed %d: %.1f s", seed, time.Since(begin).Seconds())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	e.Score = verdict.Sum(runs)
	e.details(func(format string, args ...any) { fmt.Fprintf(os.Stderr, format, args...) })
	return nil
}
