package fraud

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/fraud/verdict"
)

// Goals of the evaluation.
const (
	leastRecall    = 0.95
	leastPrecision = 0.99
)

// evaluation is the truth about what affguard said, for some seeds.
type evaluation struct {
	What     string
	Seeds    []uint64
	Truncate bool // addresses are
	Score    *verdict.Score
}

func (e *evaluation) markdown(p func(string, ...any)) {
	s := e.Score
	honest, attacks := e.clicks()
	p("\n### %s: seeds %s\n\n%d clicks, %d of them of %d attacks; %d findings, of which %d were not sure enough for the policy.\n\n", e.What, list(e.Seeds), honest+attacks, attacks, e.attacks(), s.Findings, s.NotSure)
	p("| attack | attacks | found | recall | precision | by clicks: recall | precision | under blocks | found after, median | detectors that stand for it | |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range s.Classes {
		c := &s.Classes[i]
		p("| %s | %d | %d | **%.3f** | **%.3f** | %.3f | %.4f | %.0f%% | %s, %d clicks | %s | %s |\n", c.Class, c.Attacks, c.Found, c.Recall(), c.Precision(),
			c.ClickRecall(), c.ClickPrecision(), 100*share(c.UnderBlock, c.After), short(c.Delay), c.Before, cmp.Or(strings.Join(c.By, ", "), "-"), mark(classReached(c)))
	}
	p("\nHonest clicks that fell under blocks and accusations:\n\n| class | clicks | under blocks | share | under accusations, also without a block |\n|---|---|---|---|---|\n")
	for c := traffic.Class(0); !c.Attack(); c++ {
		p("| %s | %d | %d | %.4f%% | %d |\n", c, s.Clicks[c], s.Blocked[c], 100*share(s.Blocked[c], s.Clicks[c]), s.Accused[c])
	}
	p("\nThe confusion matrix: attacks of each class that a detector accused, and of honest classes the subjects that it accused wrongly.\n\n| |")
	for _, d := range s.Detectors {
		p(" %s |", d)
	}
	p("\n|---|%s\n", strings.Repeat("---|", len(s.Detectors)))
	for c := traffic.Class(0); c < traffic.NumClasses; c++ {
		name := c.String()
		if !c.Attack() {
			name = "*" + name + "*"
		}
		p("| %s |", name)
		for _, d := range s.Detectors {
			cell := ""
			if n := s.Confusion[c][d]; n > 0 {
				cell = fmt.Sprint(n)
			}
			p(" %s |", cell)
		}
		p("\n")
	}
}

func (e *evaluation) attacks() (n int) {
	for i := range e.Score.Classes {
		n += e.Score.Classes[i].Attacks
	}
	return n
}

func (e *evaluation) clicks() (honest, attacks int) {
	for c, n := range e.Score.Clicks {
		if traffic.Class(c).Attack() {
			attacks += n
		} else {
			honest += n
		}
	}
	return honest, attacks
}

func classReached(c *verdict.ClassScore) bool {
	return c.Recall() >= leastRecall && c.Precision() >= leastPrecision
}

// details are what was missed and who was hurt, for those who work on detectors.
func (e *evaluation) details(p func(string, ...any)) {
	for _, a := range e.Score.Missed {
		when := "never accused"
		if a.Accused > 0 {
			when = fmt.Sprintf("accused by %s after %d of %d clicks; then %d of %d under accusations", a.By, a.Clicks-a.After, a.Clicks, a.Under, a.After)
		}
		p("missed: %s of affiliate %d: %s\n", a.Name(a.ID), a.Affiliate, when)
	}
	for _, a := range e.Score.Spiked {
		p("hit: %d clicks of viral spikes under a block of %s by %s: %s\n", a.Spike, a.Subject, a.Detector, a.Summary)
	}
	shown := make(map[string]int)
	for _, a := range e.Score.Hurt {
		if shown[a.Detector]++; shown[a.Detector] > 12 {
			continue
		}
		p("hurt: %s: %s (%.3f, block %v) at %s: %s\n", a.Whom(), a.Detector, a.Confidence, a.Block, time.UnixMicro(a.At).UTC().Format("Mon 15:04:05"), a.Summary)
	}
}

func mark(reached bool) string {
	if reached {
		return "reached"
	}
	return "**not reached**"
}

func share(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

func list(seeds []uint64) string {
	var text []string
	for _, s := range seeds {
		text = append(text, fmt.Sprint(s))
	}
	return strings.Join(text, ", ")
}

// short writes a duration for people.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	case d >= time.Minute:
		return fmt.Sprintf("%.1f min", d.Minutes())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
