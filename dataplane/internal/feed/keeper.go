package feed

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/link"
)

// The files in the folder.
const (
	currentName  = "state.aff"
	previousName = "state.aff.prev"
	journalName  = "state.aff.log"    // see journal
	noteName     = "state.aff.try"    // see tripwire
	epochsName   = "state.aff.epochs" // see epochs
	downsName    = "state.aff.downs"  // see downLog
)

// touchInterval is how often an unchanged file is marked as still the newest.
const touchInterval = 30 * time.Second

// keeper keeps the last known good state on disk. boot is called before run, run once,
// and close behind it; changed may be called from any goroutine.
type keeper struct {
	dir      string
	interval time.Duration
	live     *table.Live
	metrics  *metrics
	log      *slog.Logger

	tail *journal // of the file; set by boot
	kept *downLog // likewise

	next atomic.Pointer[candidate] // to be written before it is live; nil: none

	dirty chan struct{} // holds one
	soon  chan struct{} // likewise
	now   chan struct{} // likewise
	rest  time.Time     // until then nothing is written that can wait

	saved     table.Version // what the current file holds
	savedHash link.SetHash
	before    table.Version // what the previous file holds; zero: there is none that can be read
	keep      bool          // the current file is whole: it may become the previous one
	failed    time.Time     // when the log was told that the file cannot be written; zero: it can
}

func newKeeper(dir string, interval time.Duration, live *table.Live, m *metrics, log *slog.Logger) *keeper {
	return &keeper{
		dir: dir, interval: interval, live: live, metrics: m, log: log, tail: &journal{}, kept: &downLog{},
		dirty: make(chan struct{}, 1), soon: make(chan struct{}, 1), now: make(chan struct{}, 1),
	}
}

func (k *keeper) current() string  { return filepath.Join(k.dir, currentName) }
func (k *keeper) journal() string  { return filepath.Join(k.dir, journalName) }
func (k *keeper) note() string     { return filepath.Join(k.dir, noteName) }
func (k *keeper) epochs() string   { return filepath.Join(k.dir, epochsName) }
func (k *keeper) downs() string    { return filepath.Join(k.dir, downsName) }
func (k *keeper) previous() string { return filepath.Join(k.dir, previousName) }

// boot gives the state of the newest good file to the applier, without what was taken
// down, and says whether there is one.
func (k *keeper) boot(a *applier) (held bool) {
	k.tail = &journal{path: k.journal(), log: k.log}
	k.kept = &downLog{path: k.downs(), log: k.log}
	a.tail, a.kept, a.keeper = k.tail, k.kept, k
	k.tail.follows(k.current())
	k.before = stateVersion(k.previous())
	shown := a.live
	a.live = &table.Live{} // nobody is answered by it until all is known
	held = k.load(a)
	k.kept.read(a)
	if held {
		shown.Store(a.live.Load())
	}
	a.live = shown
	return held
}

// load is boot but for what was taken down.
func (k *keeper) load(a *applier) bool {
	defer a.wire.done()
	for _, path := range []string{k.current(), k.previous()} {
		t, _, err := readStateFile(path, &a.guard, a.wire.armFile)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			k.log.Error("last known good state is not used", "file", path, "reason", err,
				"hint", "the previous one is tried, then a control plane")
			continue
		}
		if path == k.current() {
			k.saved, k.savedHash, k.keep = t.Version(), t.Hash(), true
		}
		t, files := k.withJournal(t, path, a)
		// A file's time is when its state was last known to be the newest.
		var at time.Time
		for _, path := range files {
			if info, err := os.Stat(path); err == nil && info.ModTime().After(at) {
				at = info.ModTime()
			}
		}
		k.metrics.confirmed.Store(at.UnixNano())
		stale := max(time.Since(at), 0)
		a.publish(t)
		k.log.Info("serving the state of "+stale.Round(time.Second).String()+" ago, from its file", "file", path,
			"revision", t.Version().Revision, "entries", t.Len(), "unserved", t.Unserved())
		return true
	}
	return false
}

// withJournal gives the state that follows from that of a file with what the
// journal has, and the files that it is of.
func (k *keeper) withJournal(t *table.Table, path string, a *applier) (*table.Table, []string) {
	newest, err := k.tail.read(t, a.guard)
	switch {
	case newest == t && path != k.current():
		// It follows the file that was refused. What follows the previous one is
		// there if the node ended before it was cut.
		k.tail.forget()
	case err != nil:
		k.log.Error("journal of the last known good state is used in part", "file", k.journal(), "reason", err,
			"records", len(k.tail.records), "revision", newest.Version().Revision)
	}
	if newest == t {
		return t, []string{path}
	}
	if err := a.wire.armFile(newest.Version()); err != nil {
		k.log.Error("journal of the last known good state is not used", "file", k.journal(), "reason", err)
		k.tail.forget()
		return t, []string{path}
	}
	k.changed(inTime)
	return newest, []string{path, k.journal()}
}

// urgency is when a live state is to be written.
type urgency uint8

const (
	inTime   urgency = iota // the journal has it
	soon                    // the journal lacks something, or grows too long
	directly                // no file leads to it
)

// changed notes that another state is live.
func (k *keeper) changed(write urgency) {
	if write == directly {
		raise(k.now) // alone: what comes while it is written waits for the pause
		return
	}
	raise(k.dirty)
	if write == soon {
		raise(k.soon)
	}
}

func raise(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run writes what is live until ctx ends. It waits for:
//
//   - another live state, which is written, and then a pause;
//   - one that is to be written soon: the pause is what writing has to have
//     between one time and the next;
//   - one that is to be written at once;
//   - the time to mark the file as still the newest, or to write it if that
//     has failed or it is gone;
//   - the end.
func (k *keeper) run(ctx context.Context) {
	touch := time.NewTicker(touchInterval)
	defer touch.Stop()
	dirty := k.dirty
	var pause <-chan time.Time
	write := func() {
		start := time.Now()
		if k.save() {
			k.rest = time.Now().Add(19 * time.Since(start))
			dirty, pause = nil, time.After(max(k.interval, time.Until(k.rest)))
		}
	}
	for {
		select {
		case <-dirty:
			write()
		case <-k.soon:
			if dirty == nil {
				pause = time.After(time.Until(k.rest))
			}
		case <-k.now:
			write()
		case <-pause:
			dirty, pause = k.dirty, nil
		case <-touch.C:
			if !k.failed.IsZero() || !k.touch() {
				k.changed(soon)
			}
		case <-ctx.Done():
			return
		}
	}
}

// close writes the candidate, or what is live, once more, when run has ended and nothing
// changes any more.
func (k *keeper) close() {
	k.save()
	if !k.touch() {
		k.save()
	}
}

// save writes the candidate, or what is live where there is none, unless the file holds
// that, and says whether there was something to write.
func (k *keeper) save() bool {
	var t *table.Table
	at := k.metrics.confirmedAt()
	if c := k.next.Load(); c != nil {
		defer c.settle()
		t, at = c.table, time.Now() // it has just come
	} else {
		t = verified(k.live) // which a candidate is before it is none any more
	}
	if t == nil || t.Version() == k.saved && t.Hash() == k.savedHash {
		return false
	}
	previous := ""
	if k.keep {
		previous = k.previous()
	}
	err := os.MkdirAll(k.dir, 0o700)
	if err == nil {
		err = writeStateFile(k.current(), previous, t, at)
	}
	if err != nil {
		k.metrics.saveFailures.Add(1)
		if time.Since(k.failed) > tellEvery {
			k.failed = time.Now()
			k.log.Error("last known good state is not written", "err", err)
		}
		return true
	}
	if !k.failed.IsZero() {
		k.failed = time.Time{}
		k.log.Info("last known good state is written again", "revision", t.Version().Revision)
	}
	if k.tail.saved(t.Version()) {
		raise(k.soon)
	}
	k.tail.follows(k.current())
	if k.keep {
		k.before = k.saved
	}
	k.saved, k.savedHash, k.keep = t.Version(), t.Hash(), true
	k.kept.saved(k.before, k.saved)
	k.metrics.saves.Add(1) // of the file with its journal
	return true
}

// touch sets the file's time to when its state was last known to be the newest, and
// says whether the file is there.
func (k *keeper) touch() bool {
	t, at := k.live.Load(), k.metrics.confirmed.Load()
	if t == nil || at == 0 || t.Version() != k.saved {
		return true
	}
	if err := os.Chtimes(k.current(), time.Time{}, time.Unix(0, at)); err != nil {
		k.saved, k.keep = table.Version{}, false // somebody has removed it
		return false
	}
	return true
}
