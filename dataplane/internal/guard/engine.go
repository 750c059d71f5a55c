package guard

import (
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Engine looks for fraud in clicks, in the order of the stream.
type Engine struct {
	settings Settings
	found    func(*clickv1.Finding)

	sources    [kinds]table
	affiliates affiliates
	fleet      fleet
	boots      boots

	clicks    uint64 // that were looked at
	robots    uint64 // of these, of declared robots
	watermark int64  // the latest time of a click, µs
	findings  [numDetectors]uint64
}

// NewEngine makes an engine that has seen nothing. What it finds it gives to
// found, from within Add.
func NewEngine(settings Settings, found func(*clickv1.Finding)) (*Engine, error) {
	settings.setDefaults()
	if err := settings.validate(); err != nil {
		return nil, err
	}
	e := &Engine{settings: settings, found: found}
	for k, slots := range [kinds]int{settings.Addresses, settings.Networks, settings.Agents, settings.ASNs} {
		e.sources[k].init(slots, kind(k) == kindAgent)
	}
	e.affiliates.init(settings.Affiliates)
	e.fleet.init()
	return e, nil
}

// Add looks at the clicks of one batch. It keeps nothing of the batch.
func (e *Engine) Add(b *clickstream.Batch) {
	if len(b.Clicks) == 0 {
		return
	}
	var ev event
	ev.boot = e.boots.number(b.Node, uint64(b.Boot))
	latest := int64(0)
	if !b.Stored.IsZero() {
		latest = b.Stored.UnixMicro()
	}
	for i := range b.Clicks {
		ev.read(&b.Clicks[i], latest)
		e.add(&ev)
	}
}

// add looks at one click.
func (e *Engine) add(ev *event) {
	e.clicks++
	e.watermark = max(e.watermark, ev.at)
	if ev.affiliate.key != 0 {
		e.affiliate(ev)
	}
	if ev.robot {
		// Who says that it is a robot is labelled by the node, and earns nothing.
		e.robots++
		return
	}
	ev.surprise = e.fleet.add(ev)
	for k := range kinds {
		if key := ev.key(k); key != 0 {
			e.source(k, key, ev)
		}
	}
}

// Stats say how the engine fares.
type Stats struct {
	Clicks    uint64            // looked at
	Robots    uint64            // of these, of declared robots
	Watermark time.Time         // the latest time of a click
	Findings  map[string]uint64 // by detector
	Bytes     int64             // of the state
	Evicted   uint64            // sources that had to go for others
}

// Stats gives the figures so far.
func (e *Engine) Stats() Stats {
	s := Stats{Clicks: e.clicks, Robots: e.robots, Findings: make(map[string]uint64, numDetectors)}
	if e.watermark > 0 {
		s.Watermark = time.UnixMicro(e.watermark).UTC()
	}
	for d := range numDetectors {
		s.Findings[d.String()] = e.findings[d]
	}
	for k := range e.sources {
		s.Bytes += e.sources[k].bytes()
		s.Evicted += e.sources[k].evicted
	}
	s.Bytes += e.affiliates.bytes() + e.fleet.bytes()
	return s
}

// boots numbers the boots of nodes, for samples. When the numbers are used up
// they begin anew: a sample is much younger than that.
type boots struct {
	Names   []bootName
	Next    uint32
	numbers map[bootName]uint32
}

type bootName struct {
	Node string
	Boot uint64
}

const maxBoots = 1 << 16

func (b *boots) number(node string, boot uint64) uint32 {
	name := bootName{node, boot}
	if n, ok := b.numbers[name]; ok {
		return n
	}
	if b.numbers == nil {
		b.numbers = make(map[bootName]uint32)
	}
	name.Node = string([]byte(node)) // the batch goes
	n := b.Next % maxBoots
	b.Next++
	if int(n) < len(b.Names) {
		delete(b.numbers, b.Names[n])
		b.Names[n] = name
	} else {
		b.Names = append(b.Names, name)
	}
	b.numbers[name] = n
	return n
}

func (b *boots) id(s sample) *clickv1.ClickId {
	if int(s.boot) >= len(b.Names) {
		return nil
	}
	name := b.Names[s.boot]
	return &clickv1.ClickId{Node: name.Node, Boot: name.Boot, Sequence: s.sequence}
}
