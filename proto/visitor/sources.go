package visitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// Config names the files that facts come from.
type Config struct {
	Geo  []string // MaxMind databases; of several, the first that knows a fact says it
	Bots string   // a list of bots: a regular expression per line. Default: the one that comes with the program

	// Lists of the networks of data centres: an address or a prefix in CIDR form
	// per line, IPv4 or IPv6.
	Datacenters []string
}

// Sources is where facts about requests come from.
type Sources struct {
	every time.Duration
	geo   []*source[database]
	bots  *source[agentCache] // nil: the list that comes with the program
	lists []*source[networks]

	agents    atomic.Pointer[agentCache]
	centres   atomic.Pointer[centres] // of all lists; nil: there is none
	languages *cache[Languages]
	referrers *cache[string]
	places    *cache[link.Place] // of what proxies say

	loads, loadErrors, lookupErrors atomic.Uint64
}

// Open reads the files. It fails if one of them cannot be used.
func Open(cfg Config) (*Sources, error) {
	s := &Sources{
		every:     5 * time.Second,
		languages: newCache[Languages](languageSlots),
		referrers: newCache[string](referrerSlots),
		places:    newCache[link.Place](languageSlots),
	}
	for _, path := range cfg.Geo {
		s.geo = append(s.geo, &source[database]{path: path, limit: maxDatabase, parse: func(name string, data []byte) (*database, error) {
			return openDatabase(name, data, &s.lookupErrors)
		}})
	}
	if cfg.Bots != "" {
		s.bots = &source[agentCache]{path: cfg.Bots, limit: maxBotsBytes, parse: func(name string, data []byte) (*agentCache, error) {
			b, err := parseBots(name, data)
			if err != nil {
				return nil, err
			}
			return newAgentCache(b), nil
		}}
	} else {
		s.agents.Store(newAgentCache(loadBuiltinBots()))
	}
	if len(cfg.Datacenters) > MaxDatacenters {
		return nil, fmt.Errorf("%d lists of data centres: at most %d are allowed", len(cfg.Datacenters), MaxDatacenters)
	}
	for _, path := range cfg.Datacenters {
		s.lists = append(s.lists, &source[networks]{path: path, limit: maxNetworksBytes, parse: parseNetworks})
	}
	if errs := s.read(); errs != nil {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// maxDatabase bounds a database, which is held in memory, in bytes.
const maxDatabase = 2 << 30

// Watch reads what is replaced until ctx ends, and reports each file that cannot
// be used, once: what was read before stays in use.
func (s *Sources) Watch(ctx context.Context, report func(error)) {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			for _, err := range s.read() {
				report(err)
			}
		}
	}
}

// read reads the files that have changed, and gives what went wrong.
func (s *Sources) read() (errs []error) {
	note := func(loaded bool, err error) {
		if loaded {
			s.loads.Add(1)
		}
		if err != nil {
			s.loadErrors.Add(1)
			errs = append(errs, err)
		}
	}
	for _, g := range s.geo {
		note(g.read())
	}
	if s.bots != nil {
		loaded, err := s.bots.read()
		note(loaded, err)
		if loaded {
			s.agents.Store(s.bots.current.Load())
		}
	}
	changed := false
	for _, l := range s.lists {
		loaded, err := l.read()
		note(loaded, err)
		changed = changed || loaded
	}
	if changed {
		s.centres.Store(joinNetworks(s.lists))
	}
	return errs
}

// Stats is how the sources fare.
type Stats struct {
	Files        int       // that are read
	Broken       int       // of these: what they hold now cannot be used
	Loads        uint64    // of files, the first ones included
	LoadErrors   uint64    // of files, each state of one once
	LookupErrors uint64    // addresses whose record could not be read
	BotPatterns  int       // that are in use
	Oldest       time.Time // when the oldest database in use was built; zero: there is none
	Lists        []List    // that requests are labelled by
}

// List is a list that requests are labelled by.
type List struct {
	Label   link.Label
	Name    string // with its version
	Entries int    // patterns, words or prefixes
	Broken  bool   // what the file holds now cannot be used: this is what it held before
}

// Stats sums up.
func (s *Sources) Stats() Stats {
	st := Stats{
		Loads: s.loads.Load(), LoadErrors: s.loadErrors.Load(), LookupErrors: s.lookupErrors.Load(),
		BotPatterns: s.agents.Load().bots.patterns,
	}
	for _, g := range s.geo {
		st.Files++
		if g.broken.Load() {
			st.Broken++
		}
		if built := g.current.Load().reader.Metadata.BuildTime(); st.Oldest.IsZero() || built.Before(st.Oldest) {
			st.Oldest = built
		}
	}
	bots := List{link.LabelBot, s.agents.Load().bots.name, st.BotPatterns, false}
	if s.bots != nil {
		st.Files++
		if bots.Broken = s.bots.broken.Load(); bots.Broken {
			st.Broken++
		}
	}
	st.Lists = append(st.Lists, bots, List{link.LabelPreview, previews().name, len(previews().words), false})
	for _, l := range s.lists {
		st.Files++
		n := l.current.Load()
		if n == nil {
			continue // New has failed
		}
		list := List{link.LabelDatacenter, n.name, len(n.prefixes), l.broken.Load()}
		if list.Broken {
			st.Broken++
		}
		st.Lists = append(st.Lists, list)
	}
	return st
}

// HasGeo says whether there is a database.
func (s *Sources) HasGeo() bool { return len(s.geo) > 0 }

// Place gives what the databases know about an address.
func (s *Sources) Place(addr netip.Addr) (p link.Place) {
	if !addr.IsValid() {
		return p
	}
	addr = addr.Unmap().WithZone("")
	for _, g := range s.geo {
		if found := g.current.Load().lookup(addr); found != nil {
			merge(&p, found)
		}
		if complete(&p) {
			break
		}
	}
	return p
}

// PlaceFrom gives what a trusted proxy says, and what the databases know about
// an address where it says nothing.
func (s *Sources) PlaceFrom(said *GeoValues, addr netip.Addr) link.Place {
	var buf [4 * (maxGeoValue + 1)]byte
	key := said.key(buf[:0])
	p := *s.places.get(key, parseGeoValues)
	if len(s.geo) > 0 && !complete(&p) {
		known := s.Place(addr)
		merge(&p, &known)
	}
	return p
}

// Agent gives what a User-Agent header and client hints say.
func (s *Sources) Agent(agent []byte, hints *Hints) link.Agent {
	a := s.agents.Load().get(agent).Agent
	hints.apply(&a)
	return a
}

// Languages gives what an Accept-Language header says. The slice is shared and
// must not be changed.
func (s *Sources) Languages(header []byte) []string {
	if len(header) == 0 {
		return nil
	}
	if len(header) > maxLanguageHeader {
		header = header[:max(0, bytes.LastIndexByte(header[:maxLanguageHeader], ','))]
	}
	return *s.languages.get(header, parseLanguages)
}

// ReferrerDomain gives the host of a Referer header, as ReferrerDomain does.
func (s *Sources) ReferrerDomain(referrer []byte) string {
	if len(referrer) == 0 {
		return ""
	}
	return *s.referrers.get(referrerOrigin(referrer), ReferrerDomain)
}

// referrerOrigin cuts a URL where its path begins.
func referrerOrigin(referrer []byte) []byte {
	referrer = referrer[:min(len(referrer), maxReferrer)]
	slashes := 0
	for i, c := range referrer {
		if c == '/' {
			slashes++
		}
		if slashes == 3 || c == '?' || c == '#' {
			return referrer[:i]
		}
	}
	return referrer
}

// source is a file that is read again when it is replaced. It is read by one
// goroutine.
type source[V any] struct {
	path    string
	limit   int64
	parse   func(name string, data []byte) (*V, error)
	current atomic.Pointer[V]
	broken  atomic.Bool

	tried bool
	seen  os.FileInfo // when it was tried last; nil: it was missing
}

// read reads the file if it is another than before. It is looked at first, so
// that what is written meanwhile is seen the next time.
func (f *source[V]) read() (loaded bool, err error) {
	now, err := os.Stat(f.path)
	if f.tried && sameFile(now, f.seen) {
		return false, nil
	}
	f.tried, f.seen = true, now
	if err == nil && now.Size() > f.limit {
		err = fmt.Errorf("%s: takes %d bytes, and at most %d are allowed", f.path, now.Size(), f.limit)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(f.path)
	}
	var v *V
	if err == nil {
		v, err = f.parse(f.path, data)
	}
	if f.broken.Store(err != nil); err != nil {
		return false, err
	}
	f.current.Store(v)
	return true, nil
}

// sameFile compares two states of a file; nil: it is missing.
func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
