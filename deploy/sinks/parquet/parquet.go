// Package parquet is the sink that writes clicks into Parquet files, one for
// each hour (UTC) of clicks:
//
//	FOLDER/date=2026-11-21/hour=05/clicks-000001.parquet
//
// What has come is saved in parts below FOLDER/.parts, and state.json there
// says which parts count and what the place in the stream is: it is replaced
// atomically. When an hour is over, its parts become one file, which appears
// under its name when it is complete. Clicks that come later make another file
// of that hour. Each click is in the files exactly once.
//
// A Sink belongs to the goroutine of clickstream.Consume.
package parquet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/clickstream/clickparquet"
)

// Sink writes into one folder, whose only writer it is.
type Sink struct {
	dir   string
	grace time.Duration
	log   *slog.Logger

	lock   *os.File
	saved  manifest
	open   map[string]*part // by hour, not saved yet
	failed error            // a part may hold half a batch: nothing is saved before Load
}

// manifest is what state.json holds.
type manifest struct {
	State clickstream.State `json:"state"`
	// Parts of hours that have no file yet, in order, as "2026-11-21T05".
	Parts map[string][]int `json:"parts"`
	Next  int              `json:"next"` // number of the next part
}

// part is a file that is being written.
type part struct {
	number int
	file   *os.File
	w      *clickparquet.Writer
}

const hourForm = "2006-01-02T15"

// New checks the folder. grace is how long after the end of an hour its file is
// made, in the time of the stream. Nothing is opened before Load.
func New(dir string, grace time.Duration, log *slog.Logger) (*Sink, error) {
	if dir == "" {
		return nil, errors.New("folder: it must not be empty")
	}
	if grace < 0 {
		return nil, errors.New("grace: it must not be negative")
	}
	return &Sink{dir: dir, grace: grace, log: log}, nil
}

func (s *Sink) parts() string { return filepath.Join(s.dir, ".parts") }

func (s *Sink) partPath(number int) string {
	return filepath.Join(s.parts(), fmt.Sprintf("%06d.parquet", number))
}

func (s *Sink) manifestPath() string { return filepath.Join(s.parts(), "state.json") }

// Load locks the folder, and removes what was written and not saved.
func (s *Sink) Load(context.Context) (clickstream.State, error) {
	s.discard()
	if err := os.MkdirAll(s.parts(), 0o755); err != nil {
		return clickstream.State{}, err
	}
	if err := s.acquire(); err != nil {
		return clickstream.State{}, err
	}
	s.saved = manifest{Parts: map[string][]int{}, Next: 1}
	text, err := os.ReadFile(s.manifestPath())
	if err == nil {
		err = json.Unmarshal(text, &s.saved)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return clickstream.State{}, fmt.Errorf("read what was saved: %w", err)
	}
	return s.saved.State, s.sweep()
}

// acquire makes sure that no other process writes into the folder.
func (s *Sink) acquire() error {
	if s.lock != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(s.parts(), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another process writes into %s: %w", s.dir, err), f.Close())
	}
	s.lock = f
	return nil
}

// sweep removes parts that do not count.
func (s *Sink) sweep() error {
	counts := map[string]bool{}
	for _, numbers := range s.saved.Parts {
		for _, n := range numbers {
			counts[s.partPath(n)] = true
		}
	}
	all, err := filepath.Glob(filepath.Join(s.parts(), "*.parquet"))
	if err != nil {
		return err
	}
	for _, path := range all {
		if counts[path] {
			delete(counts, path)
		} else if err := os.Remove(path); err != nil {
			return err
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "date=*", "hour=*", ".tmp-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for path := range counts {
		return fmt.Errorf("%s is missing, and with it clicks that were saved: restore it, or remove %s to begin anew", path, s.parts())
	}
	return nil
}

// Collect writes into parts that do not count before Save.
func (s *Sink) Collect(_ context.Context, b *clickstream.Batch) error {
	s.failed = s.collect(b.Clicks)
	return s.failed
}

func (s *Sink) collect(clicks []clickstream.Click) error {
	for len(clicks) > 0 {
		hour := clicks[0].Time.Format(hourForm)
		n := 1
		for n < len(clicks) && clicks[n].Time.Format(hourForm) == hour {
			n++
		}
		p, err := s.part(hour)
		if err != nil {
			return err
		}
		if err := p.w.Write(clicks[:n]); err != nil {
			return err
		}
		clicks = clicks[n:]
	}
	return nil
}

// part is the open part of an hour.
func (s *Sink) part(hour string) (*part, error) {
	if p := s.open[hour]; p != nil {
		return p, nil
	}
	number := s.saved.Next + len(s.open)
	f, err := os.Create(s.partPath(number))
	if err != nil {
		return nil, err
	}
	p := &part{number, f, clickparquet.NewWriter(f)}
	s.open[hour] = p
	return p, nil
}

// Save makes the open parts durable, and then the state that says so. Then it
// makes the files of the hours that are over.
func (s *Sink) Save(_ context.Context, state clickstream.State) error {
	if s.failed != nil {
		return s.failed
	}
	next := manifest{State: state, Parts: maps.Clone(s.saved.Parts), Next: s.saved.Next + len(s.open)}
	for hour, p := range s.open {
		if p.w != nil {
			if err := errors.Join(p.w.Close(), p.file.Sync(), p.file.Close()); err != nil {
				return err
			}
			p.w = nil // Save may come again
		}
		next.Parts[hour] = append(slices.Clone(next.Parts[hour]), p.number)
	}
	if err := s.write(&next); err != nil {
		return err
	}
	s.open = map[string]*part{}
	return s.finish()
}

// write replaces the manifest.
func (s *Sink) write(m *manifest) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := syncFolder(s.parts()); err != nil { // the parts are there before it names them
		return err
	}
	if err := replace(s.manifestPath(), func(f *os.File) error {
		_, err := f.Write(text)
		return err
	}); err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	s.saved = *m
	return nil
}

// finish makes the files of the hours that are over. When it is interrupted,
// the same parts make the same file again.
func (s *Sink) finish() error {
	for _, hour := range slices.Sorted(maps.Keys(s.saved.Parts)) {
		begin, err := time.Parse(hourForm, hour)
		if err != nil {
			return fmt.Errorf("%s holds %q, which is no hour", s.manifestPath(), hour)
		}
		if s.saved.State.Stored.Before(begin.Add(time.Hour + s.grace)) {
			continue
		}
		numbers := s.saved.Parts[hour]
		day, h, _ := strings.Cut(hour, "T")
		dir := filepath.Join(s.dir, "date="+day, "hour="+h)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		var paths []string
		for _, n := range numbers {
			paths = append(paths, s.partPath(n))
		}
		path := filepath.Join(dir, fmt.Sprintf("clicks-%06d.parquet", numbers[0]))
		if err := replace(path, func(f *os.File) error { return clickparquet.Join(f, paths) }); err != nil {
			return err
		}
		next := s.saved
		next.Parts = maps.Clone(s.saved.Parts)
		delete(next.Parts, hour)
		if err := errors.Join(syncFolder(s.dir), syncFolder(filepath.Dir(dir)), s.write(&next)); err != nil {
			return err
		}
		s.log.Info("an hour of clicks is complete", "file", path, "parts", len(paths))
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// replace writes a file that appears under its name when it is durable.
func replace(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// discard forgets the open parts; Load removes their files.
func (s *Sink) discard() {
	for _, p := range s.open {
		if p.w != nil {
			_ = p.file.Close() // it does not count
		}
	}
	s.open, s.failed = map[string]*part{}, nil
}

// Close gives the folder free. What was not saved does not count.
func (s *Sink) Close() {
	s.discard()
	if s.lock != nil {
		_ = s.lock.Close() // and with it the lock goes
		s.lock = nil
	}
}
