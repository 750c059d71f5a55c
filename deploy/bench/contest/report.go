package contest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/affleet/affleet/deploy/bench/proc"
)

// spread is the middle of samples: median and quartiles.
type spread struct{ low, median, high float64 }

func spreadOf(samples []float64) spread {
	s := slices.Sorted(slices.Values(samples))
	at := func(share float64) float64 { // between the two nearest
		place := share * float64(len(s)-1)
		i := int(place)
		if i+1 >= len(s) {
			return s[len(s)-1]
		}
		return s[i] + (place-float64(i))*(s[i+1]-s[i])
	}
	return spread{at(0.25), at(0.5), at(0.75)}
}

// show formats the spread with so many decimals.
func (s spread) show(decimals int) string {
	return fmt.Sprintf("**%.*f** (%.*f - %.*f)", decimals, s.median, decimals, s.low, decimals, s.high)
}

// of gives one figure of each round.
func (c *server) of(figure func(sample) float64) []float64 { return figures(c.samples, figure) }

// timed gives a latency of each round and each turn behind them.
func (c *server) timed(figure func(sample) float64) []float64 {
	return figures(slices.Concat(c.samples, c.more), figure)
}

func figures(samples []sample, figure func(sample) float64) (all []float64) {
	for _, s := range samples {
		all = append(all, figure(s))
	}
	return all
}

// ratio compares the rounds of two servers in pairs.
func ratio(c, to *server, figure func(sample) float64) spread {
	return pairs(c.of(figure), to.of(figure))
}

// timedRatio does so with latencies, and with those of the turns that both have had.
func timedRatio(c, to *server, figure func(sample) float64) spread {
	return pairs(c.timed(figure), to.timed(figure))
}

func pairs(a, to []float64) spread {
	for i := range a {
		a[i] /= to[i]
	}
	return spreadOf(a)
}

func cpu(s sample) float64      { return s.cpu }
func rps(s sample) float64      { return s.rps }
func p50(s sample) float64      { return s.p50 }
func p99(s sample) float64      { return s.p99 }
func sliceP99(s sample) float64 { return s.sliceP99 }
func p999(s sample) float64     { return s.p999 }

// keepsUp says whether the server takes the offered rate: if not, its latencies
// grow for as long as it is asked.
func (r *Result) keepsUp(c *server) bool { return spreadOf(c.of(perCore)).median > r.Rate }

// perCore is what the server would take if its core were full.
func perCore(s sample) float64 { return 1e6 / s.cpu }

// goal is a figure to be reached.
type goal struct {
	what    string
	limit   float64
	atLeast bool
	got     spread
}

func (g goal) reached() bool {
	if g.atLeast {
		return g.got.median >= g.limit
	}
	return g.got.median <= g.limit
}

// goals compares affnode with nginx whose log is off.
func (r *Result) goals() []goal {
	node, memory, nginx := r.servers[0], r.servers[1], r.servers[2]
	loaded := node.loaded / nginx.loaded
	return []goal{
		{"CPU per redirect, every click recorded and published", 1, false, ratio(node, nginx, cpu)},
		{"CPU per redirect, click level `memory`, no broker", 0.85, false, ratio(memory, nginx, cpu)},
		{"requests per second of a full core", 1, true, ratio(node, nginx, perCore)},
		{"requests per second, as the generator and the broker on the other core could take them", 1, true, ratio(node, nginx, rps)},
		{"p99 at the same offered rate", 1, false, timedRatio(node, nginx, p99)},
		{"the same, typically: median over slices of 100 ms", 1, false, timedRatio(node, nginx, sliceP99)},
		{"resident memory with the links loaded", 0.6, false, spread{loaded, loaded, loaded}},
		{fmt.Sprintf("typical p99 beside %d slow connections, to that without", slowConnections), 1.2, false, r.besides[0].ratio(loopSlice)},
		{"the same, to that beside as many to another process on the generator's core", 1.2, false, ratios(r.besides[0].with, r.besides[0].other, loopSlice)},
		{fmt.Sprintf("p99.9 beside %d deltas a second, to that without", deltaRate), 2, false, r.besides[3].ratio(loopP999)},
		{"an edit: how many times sooner, from the call that writes it", 500, true, spreadOf(r.edits.pairs)},
		{"an edit: how many times sooner, from the write's acknowledgement", 500, true, spreadOf(r.edits.ackedPairs)},
	}
}

// Markdown is the report. Made says how it came about, in one sentence.
func (r *Result) Markdown(made string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Redirects: affnode beside nginx\n\n%s %s. Load average at the start: %s; at the end: %s.\n\n![CPU and p99 of each server](redirect.svg)\n", made, r.Versions, r.Load[0], r.Load[1])
	p("\n## Goals\n\nRatios of affnode to nginx with its log off, in the same round: median of %d rounds (quartiles), of %d turns for p99.\n\n| what | goal | ratio | |\n|---|---|---|---|\n", r.Config.Rounds, len(r.servers[0].timed(p99)))
	for _, g := range r.goals() {
		sign, mark, decimals := "at most", "reached", 2
		if g.atLeast {
			sign = "at least"
		}
		if g.limit >= 100 {
			decimals = 0
		}
		if !g.reached() {
			mark = "**not reached**"
		}
		p("| %s | %s %.*f | %s | %s |\n", g.what, sign, decimals, g.limit, g.got.show(decimals), mark)
	}
	r.tables(p)
	r.besideTable(p)
	p("\n## Method\n\n%s", r.method())
	return b.String()
}

// tables are the figures of all servers.
func (r *Result) tables(p func(string, ...any)) {
	nginx := r.servers[2]
	p("\n## CPU and throughput\n\nClosed loop: %d connections, as many requests as are answered.\n\n"+
		"| server | CPU µs per request | to nginx | requests/s | to nginx | its core busy | requests per CPU second |\n|---|---|---|---|---|---|---|\n", connections)
	for _, c := range r.servers {
		p("| %s | %s | %s | %s | %s | %.0f%% | %.0f |\n", c.name, spreadOf(c.of(cpu)).show(2), ratio(c, nginx, cpu).show(2),
			spreadOf(c.of(rps)).show(0), ratio(c, nginx, rps).show(2), 100*spreadOf(c.of(func(s sample) float64 { return s.busy })).median,
			spreadOf(c.of(perCore)).median)
	}
	p("\n## Latency\n\nOpen loop: %.0f requests/s, half of what a full core of nginx takes; µs from the moment at which a request was due.\n\n"+
		"| server | p50 | to nginx | typical p99 | to nginx | p99 | to nginx | p99.9 | to nginx |\n|---|---|---|---|---|---|---|---|---|\n", r.Rate)
	for _, c := range r.servers {
		if !r.keepsUp(c) {
			p("| %s | does not take this rate | - | - | - | - | - | - | - |\n", c.name)
			continue
		}
		p("| %s |", c.name)
		for _, latency := range []func(sample) float64{p50, sliceP99, p99, p999} {
			p(" %s | %s |", spreadOf(c.timed(latency)).show(0), timedRatio(c, nginx, latency).show(2))
		}
		p("\n")
	}
	p("\n## Memory\n\nVmRSS in MB; of nginx that of the worker. While it reloads, two workers hold a map each.\n\n"+
		"| server | %d links loaded | to nginx | after the rounds |\n|---|---|---|---|\n", r.Config.Links)
	for _, c := range r.servers {
		p("| %s | %.0f | %.2f | %.0f |\n", c.name, c.loaded, c.loaded/nginx.loaded, c.samples[len(c.samples)-1].resident)
	}
	p("\n## An edit with %d links\n\n| | ms |\n|---|---|\n", r.Config.Links)
	p("| nginx: reload until only new workers answer | %s |\n", spreadOf(r.edits.nginx).show(0))
	p("| affnode: from the call that writes until served | %s |\n", spreadOf(r.edits.node).show(2))
	p("| affnode: from the write's acknowledgement until served | %s |\n", spreadOf(r.edits.acked).show(2))
}

func (r *Result) method() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, "- "+format+"\n", args...) }
	c := r.Config
	p("Each server has core %s for itself, the load generator core %s. etcd, the control plane and nats-server are on core %s too: what the broker costs is not the node's, but it is there. All servers are started and loaded once and are stopped (SIGSTOP) when it is not their turn; affnode with clicks in memory is started anew for each turn, which begins when it has nothing to do any more. %s", serverCore, generatorCore, generatorCore, proc.Halting(r.awake))
	p("%d links (deploy/bench/linkset); %d different requests for random ones of them, with the heads that browsers send, 656 bytes on average, of 521 user agents (deploy/bench/browser). No pipelining, keep-alive, answers checked: any that is not a redirect fails the run.", c.Links, distinct)
	p("%d rounds; in each, all servers in turn, each round beginning with another one. A turn: %v of warm-up, %v of closed loop (`wrk -t1 -c%d`), 1 s of warm-up and %v of open loop. Before a turn, the machine must be quiet for half a second, but for at most %v; a turn in which other programs took more than %.0f%% of a core is repeated, once, and the quieter one counts. Then affnode, every click published, and nginx, log off, take the open loop alone, in %d turns, now one and now the other first.", c.Rounds, c.Warm, c.Closed, connections, c.Open, patience, 100*quiet, len(r.servers[0].more))
	p("CPU is the user and system time of the server's process (/proc/PID/stat) from the start of the closed loop until all its clicks are published, divided by the answers that wrk counts.")
	p("After each load affnode's ledger must close: redirects answered = clicks recorded = clicks acknowledged by JetStream, and none dropped. Otherwise the run fails. With clicks in memory and no broker, recorded = answered, and none dropped.")
	priority := "has real-time priority"
	if !r.realTime {
		priority = "has no real-time priority here"
	}
	p("The open loop (deploy/bench/openloop) has a fixed schedule, in beats of 100 µs, over %d connections; a latency counts from the schedule (no coordinated omission). The typical p99 is the median over slices of 100 ms: other work on the machine comes in bursts. The generator %s, used %.0f%% of its core, and was kept from running for %.1f ms of a run. Its own floor is the row of the fixed answer.", connections, priority, 100*r.generator, r.stalls)
	p("requests/s are what wrk could drive on the other core; where the server's core is not fully busy, wrk was the limit. Requests per CPU second say what the server could do.")
	p("An edit of nginx: one line of the map file is changed, SIGHUP to the master, until a new connection has the new answer and the old worker has ended. Of affnode: Update in the admin API (etcd with fsync), while a connection asks for the link again and again, with a pause of %v; median of %d per round.", probePause, nodeEdits)
	p("Slow connections (deploy/bench/slow): %d that send the beginning of a head and then a byte each %v, evenly spread, within a millisecond; the server closes them after %s, and they are opened again, about %d a second. Deltas, at the end of all, while a quarter of the rate is asked for: what sends them takes the place of the control plane, since etcd with a million keys takes more than the generator's core for that many revisions a second. Each changes one link and is a revision of its own; the next one is sent when the node has applied it and its time has come.", slowConnections, slowEvery, headTimeout, slowConnections/5)
	p("nginx: `map_hash_max_size` %d, `map_hash_bucket_size` 256, `return 302 $target`, no check for a path without a link, `keepalive_requests` without limit; log: `buffer=64k flush=1s`. It does not tell hosts apart here; affnode does.", 2*c.Links)
	return b.String()
}
