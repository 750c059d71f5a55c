package link

import (
	"slices"
	"strings"
)

// The detectors of affguard, by the names that policies and findings have.
const (
	DetectorFlood         = "flood"          // many clicks of one affiliate, against what is usual for it
	DetectorLowAndSlow    = "low_and_slow"   // few clicks each on many links, from one network
	DetectorEntropy       = "entropy"        // too little variety of user agents, addresses and referrers
	DetectorTiming        = "timing"         // regular intervals, no night
	DetectorBursts        = "bursts"         // many clicks of one link within moments
	DetectorManyAgents    = "many_agents"    // one address under many user agents
	DetectorLabelledShare = "labelled_share" // too many clicks that nodes have labelled
	DetectorCountryMix    = "country_mix"    // the clicks come from other countries than usual
)

// Detectors lists the names of all detectors.
func Detectors() []string { return slices.Clone(detectors) }

var detectors = []string{
	DetectorFlood, DetectorLowAndSlow, DetectorEntropy, DetectorTiming,
	DetectorBursts, DetectorManyAgents, DetectorLabelledShare, DetectorCountryMix,
}

// CheckDetector says whether there is a detector of a name. For an unknown one
// the hint says which there are, and which is the nearest.
func CheckDetector(name string) (hint string, ok bool) {
	if slices.Contains(detectors, name) {
		return "", true
	}
	return "do you mean " + nearest(name, detectors) + "? Detectors are " + strings.Join(detectors, ", "), false
}
