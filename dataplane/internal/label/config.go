package label

import (
	"fmt"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// Config is a Judge's. The zero value works.
type Config struct {
	Memory int64         // bytes of all counts and marks, MinMemory to MaxMemory. Default: 16 MiB
	Off    link.LabelSet // labels that are never given; blocks that have one are passed over. Default: none

	RateWindow  time.Duration // of rate: 1 s to 1 h. Default: 1 min
	Rate        int           // requests of one address in that time, 1 to MaxRate. Default: 600
	RatePerLink int           // requests of one address for one link, likewise. Default: 120

	Duplicate time.Duration // how long after another a click is a duplicate: 1 s to 24 h. Default: 30 s
	Replay    time.Duration // how long after another the same click id is a replay: 1 s to 168 h. Default: 1 h
}

// Limits of the settings.
const (
	MinMemory = 1 << 20
	MaxMemory = 1 << 30
	MaxRate   = 60_000
)

// Validate says what is wrong with the settings, by the names of their flags.
func (c *Config) Validate() error {
	within := func(d, least, most time.Duration) bool { return d == 0 || d >= least && d <= most }
	switch {
	case c.Memory != 0 && (c.Memory < MinMemory || c.Memory > MaxMemory):
		return fmt.Errorf("label-memory: %d is not %d to %d bytes", c.Memory, MinMemory, MaxMemory)
	case !within(c.RateWindow, time.Second, time.Hour):
		return fmt.Errorf("label-rate-window: %v is not 1s to 1h", c.RateWindow)
	case c.Rate < 0 || c.Rate > MaxRate:
		return fmt.Errorf("label-rate: %d is not 1 to %d requests", c.Rate, MaxRate)
	case c.RatePerLink < 0 || c.RatePerLink > MaxRate:
		return fmt.Errorf("label-rate-per-link: %d is not 1 to %d requests", c.RatePerLink, MaxRate)
	case !within(c.Duplicate, time.Second, 24*time.Hour):
		return fmt.Errorf("label-duplicate: %v is not 1s to 24h", c.Duplicate)
	case !within(c.Replay, time.Second, 168*time.Hour):
		return fmt.Errorf("label-replay: %v is not 1s to 168h", c.Replay)
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.Memory == 0 {
		c.Memory = 16 << 20
	}
	if c.RateWindow == 0 {
		c.RateWindow = time.Minute
	}
	if c.Rate == 0 {
		c.Rate = 600
	}
	if c.RatePerLink == 0 {
		c.RatePerLink = 120
	}
	if c.Duplicate == 0 {
		c.Duplicate = 30 * time.Second
	}
	if c.Replay == 0 {
		c.Replay = time.Hour
	}
}
