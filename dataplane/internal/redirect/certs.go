package redirect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Certs are the certificates of a folder: pairs of NAME.crt (PEM, the chain in
// order) and NAME.key. What a certificate is for, it says itself; NAME only
// sorts the pairs. A client that names no host, or one that no certificate is
// for, gets the first. Names that begin with a dot are passed over.
//
// The folder is looked at again every two seconds while a server serves with
// it. Files may be written in place, renamed over or reached through symbolic
// links that are swapped, as Kubernetes does it. A pair that cannot be loaded
// keeps what was loaded last; a pair that is gone is forgotten, unless it is
// the last one.
//
// Its exported functions may be called from any goroutine; it may serve one
// listener.
type Certs struct {
	dir     string
	every   time.Duration
	current atomic.Pointer[certSet]
	errors  atomic.Uint64 // pairs and folders that could not be loaded, each state of them once

	pairs  map[string]*pair // of OpenCerts, then of watch
	folder string           // what was wrong with it last
}

// certSet is what is served, in order.
type certSet struct {
	all    []*tls.Certificate
	byName map[string][]*tls.Certificate // in lower case; wildcards as "*.example.com"
	broken int                           // pairs that could not be loaded
	first  time.Time                     // when the first of all ends
}

// pair is a NAME.crt and its NAME.key.
type pair struct {
	tried bool
	seen  [2]os.FileInfo   // when they were tried last; nil: missing
	cert  *tls.Certificate // nil: none was good so far
	fault string           // why cert is not what the files hold now; empty: it is
}

var extensions = [2]string{".crt", ".key"}

// OpenCerts loads the certificates of a folder. It fails when none is good;
// what is wrong with others is reported when a server begins to serve.
func OpenCerts(dir string) (*Certs, error) {
	c := &Certs{dir: dir, every: 2 * time.Second, pairs: map[string]*pair{}}
	errs := c.read()
	if c.current.Load() == nil {
		if len(errs) == 0 {
			errs = []error{errors.New("it has no pair of NAME.crt and NAME.key")}
		}
		return nil, fmt.Errorf("no certificate in %s: %w", dir, errors.Join(errs...))
	}
	// Whoever watches reports them.
	for _, p := range c.pairs {
		p.tried = p.fault == ""
	}
	c.errors.Store(0)
	return c, nil
}

// watch keeps the certificates up to date until ctx ends.
func (c *Certs) watch(ctx context.Context, report func(error)) {
	ticker := time.NewTicker(c.every)
	defer ticker.Stop()
	for {
		for _, err := range c.read() {
			report(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// read looks at the folder, loads what has changed, and gives what went wrong
// for the first time.
func (c *Certs) read() (errs []error) {
	names, err := pairNames(c.dir)
	if err == nil && len(names) == 0 && len(c.pairs) > 0 {
		err = fmt.Errorf("read certificates: %s is empty; what it had stays in use", c.dir)
	}
	if err != nil {
		if err.Error() != c.folder {
			c.folder = err.Error()
			c.errors.Add(1)
			errs = append(errs, err)
		}
		return errs
	}
	c.folder = ""
	changed := c.current.Load() == nil
	for _, name := range names {
		p := c.pairs[name]
		if p == nil {
			p = &pair{}
			c.pairs[name] = p
		}
		loaded, err := p.load(filepath.Join(c.dir, name))
		if err != nil {
			c.errors.Add(1)
			errs = append(errs, fmt.Errorf("load certificate %s: %w", name, err))
		}
		changed = changed || loaded || err != nil
	}
	for name := range c.pairs {
		if !slices.Contains(names, name) {
			delete(c.pairs, name)
			changed = true
		}
	}
	if changed {
		c.publish()
	}
	return errs
}

// pairNames gives the names of which there is a .crt or a .key, in order.
func pairNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if ext != "" && slices.Contains(extensions[:], ext) && e.Name()[0] != '.' {
			names[strings.TrimSuffix(e.Name(), ext)] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// load loads a pair if its files are others than before, or could not be loaded: it
// may be that this process was allowed to read them since. It fails once for each
// fault. The files are looked at first, so that what is written meanwhile is seen the
// next time.
func (p *pair) load(path string) (loaded bool, err error) {
	var now [2]os.FileInfo
	same := p.tried
	for i, ext := range extensions {
		now[i], _ = os.Stat(path + ext) // loading it says what is wrong
		same = same && sameFile(now[i], p.seen[i])
	}
	if same && p.fault == "" {
		return false, nil
	}
	p.tried, p.seen = true, now
	cert, err := tls.LoadX509KeyPair(path+extensions[0], path+extensions[1])
	if err == nil {
		p.cert, p.fault = &cert, ""
		return true, nil
	}
	if same && err.Error() == p.fault {
		return false, nil
	}
	p.fault = err.Error()
	return false, err
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// publish makes the good certificates those that are served.
func (c *Certs) publish() {
	s := &certSet{byName: map[string][]*tls.Certificate{}}
	for _, name := range slices.Sorted(maps.Keys(c.pairs)) {
		p := c.pairs[name]
		if p.fault != "" {
			s.broken++
		}
		if p.cert == nil {
			continue
		}
		s.all = append(s.all, p.cert)
		if end := p.cert.Leaf.NotAfter; s.first.IsZero() || end.Before(s.first) {
			s.first = end
		}
		for _, host := range p.cert.Leaf.DNSNames {
			host = strings.ToLower(host)
			s.byName[host] = append(s.byName[host], p.cert)
		}
	}
	if len(s.all) > 0 {
		c.current.Store(s)
	}
}

// choose gives the certificate for a handshake: for the very name, else for
// its wildcard, else the first; of several, the first that the client can use.
func (c *Certs) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := c.current.Load()
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	_, parent, _ := strings.Cut(name, ".")
	for _, candidates := range [][]*tls.Certificate{s.byName[name], s.byName["*."+parent]} {
		for _, cert := range candidates {
			if hello.SupportsCertificate(cert) == nil {
				return cert, nil
			}
		}
	}
	return s.all[0], nil
}
