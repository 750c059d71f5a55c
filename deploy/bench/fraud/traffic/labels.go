package traffic

import (
	"maps"
	"net/netip"
	"strings"

	"github.com/affleet/affleet/proto/link"
)

// What a node's rates, duplicates and replays are by default, see
// dataplane/internal/label.
const (
	rateWindow      = minute
	ratePerAddress  = 600
	ratePerLink     = 120
	duplicateWindow = 30 * second
	replayWindow    = 2 * second
)

// seen labels clicks as nodes do: by the request itself, and by what the node has
// seen of its address lately, exactly here where a node has sketches.
type seen struct {
	rates [Nodes]window[netip.Addr]
	links [Nodes]window[linkRate]
	last  [Nodes]map[once]lastClick
}

type linkRate struct {
	address netip.Addr
	link    int32
}

type lastClick struct {
	at                  int64
	referrer, languages string
}

// once is what makes a click a duplicate when it comes again.
type once struct {
	address netip.Addr
	agent   string
	link    int32
}

// window counts keys in this and the last span of time.
type window[K comparable] struct {
	length   int64
	from     int64
	now, old map[K]int
}

func (w *window[K]) count(k K, at int64) int {
	if at-w.from >= w.length {
		w.old, w.now = w.now, make(map[K]int)
		if at-w.from >= 2*w.length {
			w.old = nil
		}
		w.from = at - at%w.length
	}
	w.now[k]++
	past := float64(at-w.from) / float64(w.length)
	return w.now[k] + int(float64(w.old[k])*(1-past))
}

func newSeen() *seen {
	s := new(seen)
	for i := range s.rates {
		s.rates[i].length, s.links[i].length = rateWindow, rateWindow
		s.last[i] = make(map[once]lastClick)
	}
	return s
}

// counted is an address as nodes count it: IPv6 by /64.
func counted(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, _ := a.Prefix(64) // 64 bits are in each
		return p.Addr()
	}
	return a
}

func (s *seen) label(c *Click) (bits uint16) {
	set := func(l link.Label, is bool) {
		if is {
			bits |= 1 << l
		}
	}
	address := counted(c.Address)
	preview := isPreviewer(c.Agent)
	set(link.LabelBot, c.Class == Crawler)
	set(link.LabelPreview, preview)
	set(link.LabelDatacenter, c.datacenter)
	set(link.LabelHead, c.head)
	set(link.LabelNoUserAgent, c.Agent == "")
	set(link.LabelOddHeaders, c.odd)
	all, one := s.rates[c.Node].count(address, c.Time), s.links[c.Node].count(linkRate{address, c.Link}, c.Time)
	set(link.LabelRate, all > ratePerAddress || one > ratePerLink)
	if c.Class == Crawler || preview || c.head {
		return bits // no click of a person's, and so no second one
	}
	last, now := s.last[c.Node], lastClick{c.Time, c.Referrer, c.Languages}
	if before, ok := last[once{address, c.Agent, c.Link}]; ok {
		set(link.LabelDuplicate, c.Time-before.at < duplicateWindow)
		set(link.LabelReplay, c.Time-before.at < replayWindow && before.referrer == c.Referrer && before.languages == c.Languages)
	}
	if len(last) > 100_000 {
		maps.DeleteFunc(last, func(_ once, b lastClick) bool { return c.Time-b.at > duplicateWindow })
	}
	last[once{address, c.Agent, c.Link}] = now
	return bits
}

func isPreviewer(agent string) bool {
	for _, p := range previewers {
		if agent == p {
			return true
		}
	}
	return false
}

// LabelNames are the names of a click's labels.
func (c *Click) LabelNames() (names []string) {
	for l := link.Label(0); l < link.NumLabels; l++ {
		if c.Labels&(1<<l) != 0 {
			names = append(names, l.String())
		}
	}
	return names
}

// claimsBrowser says that the user agent is a browser's.
func claimsBrowser(agent string) bool {
	return strings.HasPrefix(agent, "Mozilla/5.0 (") && !strings.Contains(agent, "compatible;")
}
