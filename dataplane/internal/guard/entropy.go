package guard

import (
	"fmt"
	"math"
)

// EntropySettings are of the detector of the entropy of an affiliate's user
// agents, networks and referrers.
//
// Shannon's entropy says how varied they are, in bits; attacks that are made with
// few machines, or with many under one user agent, lower it, as Lakhina et al.
// ("Mining Anomalies Using Traffic Feature Distributions", SIGCOMM 2005) found for
// networks. It is taken over windows of 128 clicks in 64 classes of a hash, so
// that all windows compare, however fast clicks come, and compared with the
// affiliate's own windows, of three days at least: one afternoon may be all of one
// kind.
//
// Confidence: 0.96 when two windows in a row are that far off, 0.99 when by twice
// as much. Referrers alone never speak: a link that goes viral has one. Nor does
// entropy that is higher than usual: the apps in which it goes viral have many
// user agents.
type EntropySettings struct {
	// How many bits lower than usual, of user agents and of networks. Default: 0.8,
	// 1.5.
	Agents, Networks float64
	// And how many standard deviations. Default: 5.
	Score float64
	// How many windows the affiliate must have had, each of another hour, and on how
	// many days: what goes viral lasts for hours, and would be all that is known of
	// an affiliate after its first day. Default: 6, 3.
	Windows, Days uint16
}

func (d *EntropySettings) setDefaults() {
	setDefault(&d.Agents, 0.8)
	setDefault(&d.Networks, 1.5)
	setDefault(&d.Score, 5)
	setDefault(&d.Windows, 6)
	setDefault(&d.Days, 3)
}

const (
	entropyClicks  = 128
	entropyClasses = 64

	entropyAgents    = 0
	entropyNetworks  = 1
	entropyReferrers = 2
)

// entropies are the window that is open and what was usual before.
type entropies struct {
	begin   int64 // µs
	n       uint16
	windows uint16
	low     uint16 // windows in a row
	learned uint32 // the hour of the last one that was learned from
	days    uint16 // on which one was
	classes [3][entropyClasses]uint8
	mean    [3]float32
	spread  [3]float32 // variance
}

// add counts a click, and says whether the window is full.
func (w *entropies) add(ev *event) bool {
	if w.n == 0 {
		w.begin = ev.at
	}
	w.n++
	w.classes[entropyAgents][ev.agent.key>>32%entropyClasses]++
	w.classes[entropyNetworks][ev.prefixKey[kindNetwork]>>32%entropyClasses]++
	w.classes[entropyReferrers][ev.referrer.key>>32%entropyClasses]++
	return w.n == entropyClicks
}

func (w *entropies) open(at int64) {
	w.n, w.begin = 0, at
	w.classes = [3][entropyClasses]uint8{}
}

func entropy(classes *[entropyClasses]uint8) (bits float64) {
	for _, n := range classes {
		if n > 0 {
			p := float64(n) / entropyClicks
			bits -= p * math.Log2(p)
		}
	}
	return bits
}

// close judges a full window, and learns from it unless it is out of the usual.
func (w *entropies) close(d *EntropySettings, hour uint32) (v verdict) {
	var now [3]float64
	var off, score [3]float64
	for i := range now {
		now[i] = entropy(&w.classes[i])
		off[i] = float64(w.mean[i]) - now[i]
		score[i] = off[i] / math.Sqrt(float64(w.spread[i])+0.15*0.15)
	}
	known := w.windows >= d.Windows && w.days >= d.Days
	agents := off[entropyAgents] / d.Agents
	networks := off[entropyNetworks] / d.Networks
	if score[entropyAgents] < d.Score {
		agents = 0
	}
	if score[entropyNetworks] < d.Score {
		networks = 0
	}
	worst := max(agents, networks)
	if off[entropyReferrers] < -1.5 {
		worst = 0 // from many more places than usual: nothing is alike
	}
	if !known || worst < 1 {
		w.low = 0
		part := 1.0 / 16
		if known && -off[entropyAgents] > d.Agents/2 {
			part = 1.0 / 256 // apps' browsers, while something goes viral
		}
		if hour != w.learned { // what goes viral has many windows, and all of one kind
			if w.days == 0 || hour/24 != w.learned/24 {
				w.days++
			}
			w.learned = hour
			w.learn(&now, part)
		}
		return v
	}
	for i := range now { // what stays for long is usual in the end
		w.mean[i] -= float32(off[i] / 256)
	}
	if w.low++; w.low < 2 {
		return v
	}
	v.begin, v.clicks = w.begin, entropyClicks
	v.confidence = 0.96
	if worst >= 2 {
		v.confidence = 0.99
	}
	v.summary = fmt.Sprintf("got clicks that are alike: the entropy of %d clicks is %.1f bits of user agents (%.1f are usual), %.1f of networks (%.1f) and %.1f of referrers (%.1f)",
		entropyClicks, now[0], w.mean[0], now[1], w.mean[1], now[2], w.mean[2])
	for i, name := range []string{"agent_bits", "network_bits", "referrer_bits"} {
		threshold := 0.0
		switch i {
		case entropyAgents:
			threshold = float64(w.mean[i]) - d.Agents
		case entropyNetworks:
			threshold = float64(w.mean[i]) - d.Networks
		}
		v.figures = append(v.figures, figure(name, now[i], float64(w.mean[i]), threshold))
	}
	return v
}

// learn moves what is usual toward a window.
func (w *entropies) learn(now *[3]float64, part float64) {
	if w.windows == 0 {
		for i := range now {
			w.mean[i] = float32(now[i])
		}
	}
	part = max(part, min(1/float64(w.windows+1), 16*part))
	for i := range now {
		delta := now[i] - float64(w.mean[i])
		w.mean[i] += float32(part * delta)
		w.spread[i] = float32((1 - part) * (float64(w.spread[i]) + part*delta*delta))
	}
	if w.windows < 1<<16-1 {
		w.windows++
	}
}
