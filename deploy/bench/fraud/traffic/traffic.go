// Package traffic makes labelled clicks for the evaluation of the fraud
// detector: what people, previews, crawlers and attackers do on a fleet of three
// nodes, each click with the truth of who made it. Every distribution is stated
// where it is drawn from, with its parameters and its source or the reason for
// it.
//
// Its networks, affiliates and links are invented. It shows whether a detector
// finds what it says that it finds, and whom it would hurt; nothing about the
// share of fraud in real traffic can be learned from it.
//
// Clicks depend on the Config alone. A Traffic belongs to one goroutine.
package traffic

import (
	"cmp"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Nodes is how many the fleet has.
const Nodes = 3

// Class is who made a click.
type Class uint8

// The classes, those of honest clicks first.
const (
	Ordinary   Class = iota // a person
	NAT                     // a person behind an address that hundreds share
	Preview                 // a preview of a link that was shared
	Crawler                 // a search engine, a monitor
	Viral                   // a person, of thousands who follow one link in minutes
	Newsletter              // a person who got a mail, or what scans their mail

	Flood       // one address, many clicks a second
	Botnet      // each click from another home
	CookieCut   // one user agent, many addresses
	LowAndSlow  // one network, many links, a click now and then
	Regular     // by the clock, without a night
	Burst       // many addresses within a second
	ManyAgents  // one address, many user agents
	Labelled    // from data centres, without a user agent, with a browser's that it is not
	CountryMix  // from a country that the affiliate never had
	NumClasses  = iota
	firstAttack = Flood
)

var classNames = [NumClasses]string{
	"ordinary", "nat", "preview", "crawler", "viral", "newsletter",
	"flood", "botnet", "cookie_cutter", "low_and_slow", "regular", "burst", "many_agents", "labelled", "country_mix",
}

// String is the name: "low_and_slow".
func (c Class) String() string { return classNames[c] }

// Attack says that it is one.
func (c Class) Attack() bool { return c >= firstAttack }

// Attacks are the classes of attacks.
func Attacks() (all []Class) {
	for c := firstAttack; c < NumClasses; c++ {
		all = append(all, c)
	}
	return all
}

// Click is one, and the truth about it.
type Click struct {
	Time      int64 // µs since 1970
	Link      int32 // of Shop.Links
	Affiliate int32 // the link's
	Address   netip.Addr
	Country   string
	ASN       uint32
	Agent     string
	Referrer  string
	Languages string
	Labels    uint16 // a bit for each link.Label
	Node      uint8  // 0, 1, 2

	Class    Class
	Instance int32 // the attack or event, of Traffic.Instances; -1 for none

	odd, head, datacenter bool // what the node sees of the request besides
}

// Instance is one attack, or one honest event that looks like one.
type Instance struct {
	Class     Class
	Affiliate int32 // who earns from it; -1 when there is no such one
	Begin     int64 // µs since 1970
	Note      string
}

// Config says which traffic. The zero value of a field has no default: begin
// with Default.
type Config struct {
	Seed       uint64
	Affiliates int
	Rate       float64       // honest clicks a second, on average
	Begin      time.Time     // Monday, midnight
	Baseline   time.Duration // without attacks
	Length     time.Duration // with attacks, after the baseline
	Attacks    int           // of each class
	Only       []Class       // attacks of these classes only; empty: all
	Unlabelled bool          // clicks have no labels
}

// Default is what the report is made of: two weeks of baseline, so that each
// hour of the week was there twice, and two days with twelve attacks of each
// class. At 2 clicks/s the smallest of 300 affiliates have 7 an hour, as most
// affiliates of a network have: few detectors can rely on large numbers.
func Default(seed uint64) Config {
	return Config{
		Seed: seed, Affiliates: 300, Rate: 2,
		Begin:    time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC),
		Baseline: 14 * 24 * time.Hour, Length: 48 * time.Hour, Attacks: 12,
	}
}

// Traffic is all that is made from a Config.
type Traffic struct {
	Config    Config
	Shop      *Shop
	Instances []Instance

	world   *world
	sources []source
}

// source makes the clicks whose cause lies within a span of time; the clicks
// themselves may be later.
type source interface {
	emit(from, to int64, add func(Click))
}

const (
	second = int64(1_000_000) // in µs
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// New plans the traffic.
func New(cfg Config) *Traffic {
	t := &Traffic{Config: cfg, world: newWorld()}
	t.Shop = newShop(t.rand("shop", 0), cfg.Affiliates, t.world)
	t.addHonest()
	t.addAttacks()
	return t
}

// rand is the randomness of one source: another source more or less changes
// nothing of it.
func (t *Traffic) rand(name string, i int) *rand.Rand {
	h := uint64(14695981039346656037) // FNV-1a
	for _, c := range []byte(name) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(t.Config.Seed, h+uint64(i)))
}

func (t *Traffic) begin() int64 { return t.Config.Begin.UnixMicro() }

// attacksFrom is where the baseline ends.
func (t *Traffic) attacksFrom() int64 { return t.begin() + t.Config.Baseline.Microseconds() }

// End is the moment after the last cause of a click.
func (t *Traffic) End() int64 { return t.attacksFrom() + t.Config.Length.Microseconds() }

// slot is how much is made at once: about 30,000 clicks.
func (t *Traffic) slot() int64 {
	return min(hour, max(second, int64(30_000/t.Config.Rate)*second))
}

// Clicks gives the clicks in the order of their times, each good until the next.
// It may be called once.
func (t *Traffic) Clicks() iter.Seq[*Click] {
	return func(yield func(*Click) bool) {
		seen := newSeen()
		var waiting []Click
		var due []moment
		for from, end := t.begin(), t.End(); from < end; from += t.slot() {
			to := min(from+t.slot(), end)
			for _, s := range t.sources {
				s.emit(from, to, func(c Click) { waiting = append(waiting, c) })
			}
			due = due[:0]
			for i := range waiting {
				if at := waiting[i].Time; at < to {
					due = append(due, moment{at, i})
				}
			}
			slices.SortFunc(due, func(a, b moment) int {
				return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.click, b.click))
			})
			for _, m := range due {
				c := &waiting[m.click]
				c.Node = nodeOf(c.Address)
				if !t.Config.Unlabelled {
					c.Labels = seen.label(c)
				}
				if !yield(c) {
					return
				}
			}
			waiting = slices.DeleteFunc(waiting, func(c Click) bool { return c.Time < to })
		}
	}
}

// moment orders clicks.
type moment struct {
	at    int64
	click int
}

// nodeOf is the node that a client reaches: anycast and DNS take the same client
// to the same one.
func nodeOf(a netip.Addr) uint8 {
	h := uint32(2166136261) // FNV-1a
	for _, c := range a.As16() {
		h = (h ^ uint32(c)) * 16777619
	}
	return uint8((h >> 8) % Nodes)
}

// event is a source whose clicks are all made when its time comes.
type event struct {
	at     int64
	clicks func(add func(Click))
}

func (e *event) emit(from, to int64, add func(Click)) {
	if e.at >= from && e.at < to {
		e.clicks(add)
	}
}

// instance notes an attack or an event, and adds it as a source. Clicks is
// given what a click has from it.
func (t *Traffic) instance(in Instance, clicks func(add func(Click))) {
	id := int32(len(t.Instances))
	t.Instances = append(t.Instances, in)
	t.sources = append(t.sources, &event{in.Begin, func(add func(Click)) {
		clicks(func(c Click) {
			c.Instance, c.Class = id, in.Class
			add(c)
		})
	}})
}

// Name is how a report calls an instance.
func (in Instance) Name(id int) string { return fmt.Sprintf("%s %d (%s)", in.Class, id, in.Note) }
