package guard

import (
	"fmt"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// detector is one of the detectors.
type detector int

const (
	detectFlood detector = iota
	detectLowAndSlow
	detectEntropy
	detectTiming
	detectBursts
	detectAgents
	detectLabelled
	detectCountry
	numDetectors
)

var detectorNames = [numDetectors]string{
	link.DetectorFlood, link.DetectorLowAndSlow, link.DetectorEntropy, link.DetectorTiming,
	link.DetectorBursts, link.DetectorManyAgents, link.DetectorLabelledShare, link.DetectorCountryMix,
}

// String is the detector's name in findings and policies.
func (d detector) String() string { return detectorNames[d] }

// detectorVersion is of the rules: it changes when they would find something
// else in the same clicks.
const detectorVersion = 4

// Settings of an engine. The zero value works.
type Settings struct {
	// How many of each are kept in memory; rounded up to a power of two. What has
	// the fewest clicks goes first. Default: 32,768, 65,536, 8,192, 4,096, 16,384.
	Addresses, Networks, Agents, ASNs, Affiliates int

	// Again is the time of the stream after which the same is said again of a
	// subject, if it goes on. Default: 50 min, so that a block of an hour is renewed
	// before it ends.
	Again time.Duration

	Flood      FloodSettings
	LowAndSlow LowAndSlowSettings
	Entropy    EntropySettings
	Timing     TimingSettings
	Bursts     BurstSettings
	ManyAgents AgentsSettings
	Labelled   LabelledSettings
	Country    CountrySettings
}

func (s *Settings) setDefaults() {
	setDefault(&s.Addresses, 1<<15)
	setDefault(&s.Networks, 1<<16)
	setDefault(&s.Agents, 1<<13)
	setDefault(&s.ASNs, 1<<12)
	setDefault(&s.Affiliates, 1<<14)
	setDefault(&s.Again, 50*time.Minute)
	s.Flood.setDefaults()
	s.LowAndSlow.setDefaults()
	s.Entropy.setDefaults()
	s.Timing.setDefaults()
	s.Bursts.setDefaults()
	s.ManyAgents.setDefaults()
	s.Labelled.setDefaults()
	s.Country.setDefaults()
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (s *Settings) validate() error {
	for name, n := range map[string]int{"addresses": s.Addresses, "networks": s.Networks, "user agents": s.Agents, "autonomous systems": s.ASNs, "affiliates": s.Affiliates} {
		if n < ways || n > 1<<24 {
			return fmt.Errorf("guard: %d %s to keep: it is %d to %d", n, name, ways, 1<<24)
		}
	}
	if s.Again < time.Minute {
		return fmt.Errorf("guard: the same again after %s: at least a minute", s.Again)
	}
	return nil
}
