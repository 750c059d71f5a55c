package fraud

import (
	"fmt"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
)

// goal is a row of the first table.
type goal struct {
	what, limit, got string
	reached          bool
}

// goals are the figures that were measured, against what they should be.
func (r *Result) goals() (all []goal) {
	if l := r.Live; l != nil {
		p99 := l.percentile(99)
		all = append(all, goal{"from the first click of a flood to its Block served by every node, p99", "at most 5 s", short(p99), p99 <= mostUntilServed})
	}
	for _, e := range []*evaluation{r.Held, r.Truncated} {
		if e == nil {
			continue
		}
		of := ""
		if e.Truncate {
			of = ", addresses as /24 and /48"
		}
		recall, precision := e.worst()
		all = append(all,
			goal{"recall of each attack class, the worst" + of, "at least 0.95", fmt.Sprintf("%.3f", recall), recall >= leastRecall},
			goal{"precision of each attack class, the worst" + of, "at least 0.99", fmt.Sprintf("%.3f", precision), precision >= leastPrecision},
			goal{"clicks of viral spikes under a block" + of, "none", fmt.Sprint(e.Score.Blocked[traffic.Viral]), e.Score.Blocked[traffic.Viral] == 0},
			goal{"clicks of people behind NAT under a block" + of, "none", fmt.Sprint(e.Score.Blocked[traffic.NAT]), e.Score.Blocked[traffic.NAT] == 0})
	}
	if c := r.Capacity; c != nil {
		rate, memory := spreadOf(c.rates()).median, spreadOf(c.peaks()).high
		all = append(all,
			goal{"`affguard` on one core, clicks/s", "at least 300,000", fmt.Sprintf("%.0f", rate), rate >= leastClicksPerSecond},
			goal{fmt.Sprintf("its memory at %d addresses and %d affiliates, peak MB", c.Load.Addresses, c.Load.Affiliates), "at most 300", fmt.Sprintf("%.0f", memory), memory <= mostMemory})
	}
	if n := r.Node; n != nil {
		more := n.With.Peak - n.Without.Peak
		all = append(all, goal{fmt.Sprintf("the node's memory for labelling after %d addresses, MB", n.Addresses), "at most 64", fmt.Sprintf("%.0f", more), more <= mostLabelMemory})
	}
	if l := r.Labels; l != nil {
		judge := spreadOf(l.Judge.Cold).median
		all = append(all, goal{"all labels of one request, ns (allocations)", "at most 500 (0)", fmt.Sprintf("%.0f (%.0f)", judge, l.Judge.Allocs), judge <= mostJudge && l.Judge.Allocs == 0})
	}
	return all
}

// worst is the lowest recall and precision of any class.
func (e *evaluation) worst() (recall, precision float64) {
	recall, precision = 1, 1
	for i := range e.Score.Classes {
		c := &e.Score.Classes[i]
		recall, precision = min(recall, c.Recall()), min(precision, c.Precision())
	}
	return recall, precision
}

// made says how each part came about.
func (r *Result) made() string {
	var b strings.Builder
	took := time.Duration(0)
	for _, p := range parts {
		if run, ok := r.Parts[p.name]; ok {
			took += run.Took
			fmt.Fprintf(&b, "- %s: %s It took %s.\n", p.name, run.Made, short(run.Took))
		}
	}
	return fmt.Sprintf("`make bench-fraud` repeats it; it takes %s.\n\n%s", short(took), b.String())
}

// Markdown is the report.
func (r *Result) Markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Fraud\n\n%s\n![Recall and precision of each class of attacks, and how soon a flood is blocked everywhere](fraud.svg)\n", r.made())
	p("\n## Goals\n\n| what | goal | figure | |\n|---|---|---|---|\n")
	for _, g := range r.goals() {
		p("| %s | %s | **%s** | %s |\n", g.what, g.limit, g.got, mark(g.reached))
	}
	if r.Held != nil || r.Tuned != nil {
		p("\n## What is found, and who is hurt\n\n%s", counted)
	}
	if r.Held != nil {
		r.Held.markdown(p)
	}
	if r.Truncated != nil {
		r.Truncated.markdown(p)
	}
	if r.Tuned != nil {
		r.Tuned.markdown(p)
	}
	if r.Live != nil {
		r.Live.markdown(p)
	}
	if r.Capacity != nil {
		r.Capacity.markdown(p)
	}
	if r.Node != nil {
		r.Node.markdown(p)
	}
	if r.Labels != nil {
		r.Labels.markdown(p)
	}
	return b.String()
}

// counted says what the figures of the evaluation are.
const counted = `The traffic is made by deploy/bench/fraud/traffic, where each distribution is stated: 16 days of event time, the last two
with attacks, over 300 affiliates. ` + "`affguard replay`" + ` reads it as the batches of three nodes, with the default policy. The detectors were
tuned with one set of seeds; the figures that count are those of the other, of which nothing was looked at before.

- An accusation is a finding with the confidence that the default policy asks for (0.95). It holds until its block ends, or
  for an hour where the policy blocks nothing (affiliates, autonomous systems).
- An accusation is right when at least half of its subject's clicks in its span are an attack's; of an affiliate, when ten clicks
  of an attack that it earns from are in the span.
- An attack is found when an accusation about it is made before its last click, and from then on at least half of its clicks are
  under accusations. Recall: attacks found, of all.
- Precision: right ones of all subjects accused by the detectors that stand for the class, which are those that were the first
  to accuse an attack of it. One detector's mistake counts for each class that it stands for.
- By clicks: recall is the share of an attack's clicks under accusations from the first one on; precision the share of attacks'
  clicks of all under blocks of these detectors. "Under blocks" is the share of an attack's clicks, likewise, that would be blocked.
`

func (l *live) percentile(p int) time.Duration {
	var all []time.Duration
	for i := range l.Floods {
		all = append(all, l.Floods[i].every())
	}
	return percentile(all, p)
}

func (l *live) markdown(p func(string, ...any)) {
	p("\n## How soon a flood is blocked\n\nReal processes on loopback: etcd, NATS, a control plane, three nodes and `affguard`. %d floods, one every %v, each from an address of "+
		"its own in `X-Forwarded-For` of a trusted proxy, %d to %d clicks a second over the three nodes in turn (log-uniform); beside them %.0f ordinary clicks a second, "+
		"as the generator makes them. The policy refuses floods, so that each click of a flood is its own probe: a node serves the block from its first 403 on. "+
		"The time counts from the flood's first click to the last node's first 403.\n\n", len(l.Floods), floodGap, floodSlow, floodFast, l.Rate)
	p("| | p50 | p99 | most |\n|---|---|---|---|\n| served by every node | %s | **%s** | %s |\n", short(l.percentile(50)), short(l.percentile(99)), short(l.percentile(100)))
	for _, half := range []struct {
		name string
		of   func(rate float64) bool
	}{{"of the slower half of the range", func(v float64) bool { return v < 24.5 }}, {"of the faster half", func(v float64) bool { return v >= 24.5 }}} {
		var times []time.Duration
		for i := range l.Floods {
			if half.of(l.Floods[i].Rate) {
				times = append(times, l.Floods[i].every())
			}
		}
		if len(times) > 0 {
			p("| %s (%d floods) | %s | %s | %s |\n", half.name, len(times), short(percentile(times, 50)), short(percentile(times, 99)), short(percentile(times, 100)))
		}
	}
	p("\nOf %d ordinary clicks, %d were refused. A flood that is slower takes longer: `affguard` speaks from a dozen clicks on.\n", l.Ordinary, l.Refused)
}

func (c *capacity) rates() (all []float64) {
	for _, g := range c.Guard {
		all = append(all, g.perSecond(c.Load.Clicks))
	}
	return all
}

func (c *capacity) peaks() (all []float64) {
	for _, g := range c.Guard {
		all = append(all, g.Peak)
	}
	return all
}

func (c *capacity) markdown(p func(string, ...any)) {
	var nanos, state []float64
	for _, g := range c.Guard {
		nanos, state = append(nanos, g.nanos(c.Load.Clicks)), append(state, g.State)
	}
	p("\n## What affguard takes\n\n`affguard replay --input FILE` on one core (taskset), from its start to its end; the file has %d clicks of %d addresses and %d affiliates, %.0f bytes each, "+
		"as batches of at most 50 ms. The floor decodes the same file on the same core with `clickstream.Decode`, and does nothing with it. Memory is VmHWM of the process.\n\n"+
		"| | median of %d rounds | lowest | highest |\n|---|---|---|---|\n", c.Load.Clicks, c.Load.Addresses, c.Load.Affiliates, float64(c.Load.Bytes)/float64(c.Load.Clicks), len(c.Guard))
	p("| clicks/s | %s |\n| CPU per click, ns | %s |\n| floor: decoding alone, clicks/s | %s |\n| peak memory, MB | %s |\n| of that, tables of the engine, MB | %s |\n",
		spreadOf(c.rates()).cells("%.0f"), spreadOf(nanos).cells("%.0f"), spreadOf(c.Decode).cells("%.0f"), spreadOf(c.peaks()).cells("%.0f"), spreadOf(state).cells("%.0f"))
}

func (n *node) markdown(p func(string, ...any)) {
	p("\n## The memory that labels take of a node\n\nOne request on behalf of each of %d addresses, VmRSS of `affnode` in MB, with labels as they are by default (--label-memory 16 MiB) and with none (--label-off). "+
		"Clicks go into a small spool without a broker, in both.\n\n| | ready | after | peak |\n|---|---|---|---|\n", n.Addresses)
	p("| with labels | %.0f | %.0f | %.0f |\n| without | %.0f | %.0f | %.0f |\n", n.With.Ready, n.With.After, n.With.Peak, n.Without.Ready, n.Without.After, n.Without.Peak)
}

func (l *labels) markdown(p func(string, ...any)) {
	p("\n## The time that labels take\n\nThe benchmark of dataplane/internal/label for all labels of one request, one address again and again (warm) or one of four million (cold), and the same loop without labels; "+
		"and the CPU of the whole node per redirect, every click published, in the harness of `bench-decisions`: with and without labels by turns the first, on the same requests of many addresses, over %d rounds.\n\n", len(l.Node.With))
	p("| | median | lowest | highest |\n|---|---|---|---|\n| all labels, cold, ns | %s |\n| all labels, warm, ns | %s |\n| the loop without, ns | %s |\n", spreadOf(l.Judge.Cold).cells("%.0f"), spreadOf(l.Judge.Warm).cells("%.0f"), spreadOf(l.Judge.Nothing).cells("%.0f"))
	p("| node with labels, µs of CPU per redirect | %s |\n| node without | %s |\n| with to without, in pairs | %s |\n", spreadOf(l.Node.With).cells("%.2f"), spreadOf(l.Node.Without).cells("%.2f"), spreadOf(l.Node.Ratio).cells("%.3f"))
	p("\nOther programs took %.0f%% of a core meanwhile (median).\n", 100*spreadOf(l.Node.Foreign).median)
}
