package verdict

import (
	"maps"
	"slices"
	"time"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
)

// Score is what several runs give together.
type Score struct {
	Runs    int
	Classes []ClassScore
	// Confusion says how many attacks of a class a detector accused; of an honest
	// class, how many subjects.
	Confusion map[traffic.Class]map[string]int
	Detectors []string // that accused, by name
	Right     map[string]int
	Wrong     map[string]int
	// Clicks of each class, and those under blocks and accusations.
	Clicks, Blocked, Accused [traffic.NumClasses]int
	Findings, NotSure        int
	Hurt                     []*Accusation `json:"-"` // wrong ones
	Spiked                   []*Accusation `json:"-"` // whose blocks viral spikes fell under
	Missed                   []*Attack     `json:"-"`
}

// ClassScore is that of one class of attacks.
type ClassScore struct {
	Class          traffic.Class
	Attacks, Found int
	By             []string // the detectors that stand for it
	RightOnes, All int      // subjects that these accused
	Clicks         int
	After, Under   int
	UnderBlock     int
	AttackUnder    int           // of attacks, of Blocked
	Blocked        int           // clicks under blocks of the detectors that stand for it
	Delay          time.Duration // median, from the first click to the first accusation
	Before         int           // median of clicks until then
}

// Recall is the share of attacks that were found.
func (c *ClassScore) Recall() float64 { return ratio(c.Found, c.Attacks) }

// Precision is the share of right ones of the subjects accused.
func (c *ClassScore) Precision() float64 { return ratio(c.RightOnes, c.All) }

// ClickRecall is the share of clicks under accusations from the first one on.
func (c *ClassScore) ClickRecall() float64 { return ratio(c.Under, c.After) }

// ClickPrecision is the share of clicks of attacks of those under blocks; 1 when
// there are none.
func (c *ClassScore) ClickPrecision() float64 { return ratio(c.AttackUnder, c.Blocked) }

func ratio(n, of int) float64 {
	if of == 0 {
		return 1
	}
	return float64(n) / float64(of)
}

// Sum scores runs together.
func Sum(runs []*Jury) *Score {
	s := &Score{Runs: len(runs), Confusion: make(map[traffic.Class]map[string]int), Right: make(map[string]int), Wrong: make(map[string]int)}
	attackUnder, under := make(map[string]int), make(map[string]int)
	for _, j := range runs {
		s.Findings += j.Reports.Findings
		s.NotSure += j.Reports.NotSure
		for c := range j.Clicks {
			s.Clicks[c] += j.Clicks[c]
			s.Blocked[c] += j.Blocked[c]
			s.Accused[c] += j.Accused[c]
		}
		wrong := j.Reports.Wrong()
		s.Hurt = append(s.Hurt, wrong...)
		s.Spiked = append(s.Spiked, j.Reports.Spiked()...)
		for _, a := range wrong {
			s.Wrong[a.Detector]++
			s.confuse(a.Honest, a.Detector)
		}
		right := make(map[[2]string]bool)
		for _, a := range j.Reports.Accusations {
			attackUnder[a.Detector] += a.attack
			under[a.Detector] += a.attack + a.honest
			if key := [2]string{a.Detector, a.Subject}; a.Right && !right[key] {
				right[key] = true
				s.Right[a.Detector]++
			}
		}
		for _, a := range j.Attacks {
			if a == nil {
				continue
			}
			for d := range a.Detectors {
				s.confuse(a.Class, d)
			}
			if !a.Found {
				s.Missed = append(s.Missed, a)
			}
		}
	}
	all := maps.Clone(s.Right)
	maps.Copy(all, s.Wrong)
	s.Detectors = slices.Sorted(maps.Keys(all))
	for _, class := range traffic.Attacks() {
		c := ClassScore{Class: class}
		c.sum(runs)
		for _, d := range c.By {
			c.RightOnes += s.Right[d]
			c.All += s.Right[d] + s.Wrong[d]
			c.AttackUnder += attackUnder[d]
			c.Blocked += under[d]
		}
		if c.Attacks > 0 {
			s.Classes = append(s.Classes, c)
		}
	}
	return s
}

func (s *Score) confuse(c traffic.Class, detector string) {
	if s.Confusion[c] == nil {
		s.Confusion[c] = make(map[string]int)
	}
	s.Confusion[c][detector]++
}

func (c *ClassScore) sum(runs []*Jury) {
	by := make(map[string]bool)
	var delays, before []int64
	for _, j := range runs {
		for _, a := range j.Attacks {
			if a == nil || a.Class != c.Class {
				continue
			}
			c.Attacks++
			c.Clicks += a.Clicks
			c.After += a.After
			c.Under += a.Under
			c.UnderBlock += a.UnderBlock
			if a.Accused > 0 {
				by[a.By] = true
			}
			if a.Found {
				c.Found++
				delays, before = append(delays, a.Accused-a.First), append(before, int64(a.Clicks-a.After))
			}
		}
	}
	c.By = slices.Sorted(maps.Keys(by))
	c.Delay, c.Before = time.Duration(middle(delays))*time.Microsecond, int(middle(before))
}

func middle(v []int64) int64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
