package snapshot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// Source is where the state comes from. *store.Store is one.
type Source interface {
	// Epoch is never 0.
	Epoch(ctx context.Context) (uint64, error)
	// Load reads everything at the revision that it returns.
	Load(ctx context.Context, each func(store.Object) error) (revision int64, err error)
	// Watch gives everything after a revision, whole revisions in order. It
	// ends with an error, which is store.ErrCompacted when the revisions
	// asked for are gone.
	Watch(ctx context.Context, after int64) iter.Seq2[store.Batch, error]
}

// Config is how a Log works. The zero value works.
type Config struct {
	// Memory that records may take, in bytes. Default: 256 MB.
	LogBytes int64
	// The largest delta that is sent, in bytes; what is larger is sent in
	// several or as a snapshot. Default: 16 MB.
	MaxDelta int64
	// About how many bytes of entries are compressed into one message of a
	// snapshot. Default: 1 MB.
	ChunkBytes int
	// Waiting times after a failure of the source: the first, doubled each
	// time up to the last. Default: 100 ms, 5 s.
	MinBackoff, MaxBackoff time.Duration
	// Asks the source to say soon, by a batch without changes, up to where
	// its watch is complete. Called every ProgressInterval, and when somebody
	// waits for a revision. Default: the source does so by itself.
	Progress func(ctx context.Context) error
	// Default: 2 s. When nothing is heard for three of them, the source is
	// taken to be down.
	ProgressInterval time.Duration
	// Default: slog.Default().
	Logger *slog.Logger
	// Default: none.
	Registerer prometheus.Registerer
}

// Log is the shared delta log of a replica.
type Log struct {
	src     Source
	cfg     Config
	metrics *metrics

	view  atomic.Pointer[View]
	ready chan struct{}
	nudge chan struct{} // holds one: ask for progress now

	mu    sync.Mutex // what the writer changes together with view
	state *state

	shared shared
}

// New makes a Log that has no state before Run has read one.
func New(src Source, cfg Config) *Log {
	if cfg.LogBytes <= 0 {
		cfg.LogBytes = 256 << 20
	}
	if cfg.MaxDelta <= 0 {
		cfg.MaxDelta = 16 << 20
	}
	if cfg.ChunkBytes <= 0 {
		cfg.ChunkBytes = 1 << 20
	}
	if cfg.MinBackoff <= 0 {
		cfg.MinBackoff = 100 * time.Millisecond
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = 5 * time.Second
	}
	if cfg.ProgressInterval <= 0 {
		cfg.ProgressInterval = 2 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	l := &Log{src: src, cfg: cfg, ready: make(chan struct{}), nudge: make(chan struct{}, 1), state: newState()}
	l.view.Store(&View{changed: make(chan struct{}), advanced: make(chan struct{})})
	l.metrics = newMetrics(l, cfg.Registerer)
	return l
}

// Ready is closed when the log holds a state.
func (l *Log) Ready() <-chan struct{} { return l.ready }

// View is what the log holds now. It is never nil.
func (l *Log) View() *View { return l.view.Load() }

// Head is View().Head().
func (l *Log) Head() Version { return l.view.Load().Head() }

// Changed is View().Changed(). Taken before a Next that finds nothing, it is
// closed when there is something.
func (l *Log) Changed() <-chan struct{} { return l.view.Load().changed }

// tellEvery is how often an outage is logged that goes on.
const tellEvery = time.Minute

// Run follows the source until ctx ends, and returns nil then. While the source
// fails the log keeps what it has, and Run tries again.
func (l *Log) Run(ctx context.Context) error {
	wait := l.cfg.MinBackoff
	var told time.Time
	for {
		before := l.View().seen
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // that is how it ends
		}
		if l.View().seen != before {
			wait = l.cfg.MinBackoff
		}
		if err == nil {
			continue // it watches from where it has read to
		}
		level := slog.LevelDebug
		if l.metrics.following.Swap(false) || time.Since(told) > tellEvery {
			level, told = slog.LevelWarn, time.Now()
		}
		l.metrics.failures.Add(1)
		l.cfg.Logger.Log(ctx, level, "etcd is not followed, nodes keep their state",
			"err", err, "revision", l.View().seen, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, l.cfg.MaxBackoff)
	}
}

// follow reads what is missing and watches until something fails. Without an
// error it has read everything anew, because the watch could not go on.
func (l *Log) follow(ctx context.Context) error {
	epoch, err := l.src.Epoch(ctx)
	if err != nil {
		return fmt.Errorf("read epoch: %w", err)
	}
	if l.View().epoch != epoch {
		if err := l.load(ctx, epoch); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	l.heard()
	if l.cfg.Progress != nil {
		asking.Go(func() { l.askForProgress(ctx) })
	}
	var low time.Time // since when the source says that it is behind
	for batch, err := range l.src.Watch(ctx, l.View().seen) {
		if errors.Is(err, store.ErrCompacted) {
			l.cfg.Logger.Warn("revisions are compacted away, reading everything again", "after", l.View().seen)
			return l.load(ctx, epoch)
		}
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		l.heard()
		switch seen := l.View().seen; {
		case batch.Revision >= seen:
			low = time.Time{}
		case low.IsZero():
			low = time.Now() // a member may be behind for a moment
		case time.Since(low) > 3*l.cfg.ProgressInterval:
			return fmt.Errorf("watch: %w", wentBack(batch.Revision, seen))
		}
		l.apply(batch)
	}
	return errors.New("watch: ended")
}

// wentBack is the error for a source that is at a lower revision than was
// served. To watch it would mean to miss what is written until it is not.
func wentBack(revision, seen int64) error {
	return fmt.Errorf("the store is at revision %d, before %d that was served: it was restored from a backup, or answers from a member that is behind", revision, seen)
}

// heard notes that the source lives.
func (l *Log) heard() {
	l.metrics.heard.Store(time.Now().UnixNano())
	if !l.metrics.following.Swap(true) {
		l.cfg.Logger.Info("etcd is followed", "revision", l.View().seen)
	}
}

// askForProgress keeps Seen moving while nothing changes, and notices a source
// that has gone silent.
func (l *Log) askForProgress(ctx context.Context) {
	tick := time.NewTicker(l.cfg.ProgressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.nudge:
		case <-tick.C:
			silent := time.Since(time.Unix(0, l.metrics.heard.Load()))
			if silent > 3*l.cfg.ProgressInterval && l.metrics.following.Swap(false) {
				l.cfg.Logger.Warn("etcd is silent, nodes keep their state", "for", silent, "revision", l.View().seen)
			}
		}
		call, cancel := context.WithTimeout(ctx, l.cfg.ProgressInterval)
		err := l.cfg.Progress(call)
		cancel()
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Debug("store does not answer", "err", err)
		}
	}
}

// Nudge asks the source, without waiting, how far it is: for who waits until
// Seen reaches a revision at which perhaps nothing changed.
func (l *Log) Nudge() {
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// load reads everything. What is new against the held state becomes one record,
// deletes included; another epoch begins anew.
func (l *Log) load(ctx context.Context, epoch uint64) error {
	held := l.View()
	keep := held.epoch == epoch
	old, fresh := l.state, newState() // only this goroutine changes l.state
	var changes []change
	revision, err := l.src.Load(ctx, func(o store.Object) error {
		if o.Value == nil {
			return nil // counts as deleted, as in a watch
		}
		e := makeEntry(o.Name, o.Value)
		if keep {
			was := old.get(o.Name)
			if was == e {
				e = was // one copy in memory
			} else {
				changes = append(changes, change{key: e.key(), entry: e, had: was != ""})
			}
		}
		fresh.set(e.key(), e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	if keep && revision < held.seen {
		return fmt.Errorf("read everything: %w", wentBack(revision, held.seen))
	}
	if keep {
		for _, sh := range old.shards {
			if sh == nil {
				continue
			}
			for key := range sh.m {
				if fresh.get(key) == "" {
					changes = append(changes, change{key: key, had: true})
				}
			}
		}
	}
	l.replace(epoch, revision, fresh, changes, keep)
	return nil
}

// replace makes fresh the state at revision.
func (l *Log) replace(epoch uint64, revision int64, fresh *state, changes []change, keep bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.view.Load()
	l.state = fresh
	if keep {
		l.commit(held, revision, changes)
		return
	}
	m := mark{revision: revision, hash: fresh.hash, entries: fresh.entries, at: time.Now()}
	l.publish(&View{epoch: epoch, base: m, seen: revision})
	if held.epoch == 0 {
		close(l.ready)
	} else {
		l.cfg.Logger.Error("the store has another epoch, starting anew", "held", held.epoch, "epoch", epoch)
	}
	l.cfg.Logger.Info("state is read", "revision", revision, "entries", fresh.entries)
}

// apply takes in one revision.
func (l *Log) apply(batch store.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.view.Load()
	if batch.Revision <= held.seen {
		return
	}
	var changes []change
	for _, c := range batch.Changes {
		var e entry
		key := c.Name
		if c.Value != nil {
			e = makeEntry(c.Name, c.Value)
			key = e.key()
		}
		if old := l.state.set(key, e); old != e {
			changes = append(changes, change{key: key, entry: e, had: old != ""})
		}
	}
	l.commit(held, batch.Revision, changes)
}

// commit publishes the state after changes. l.mu is held.
func (l *Log) commit(held *View, revision int64, changes []change) {
	if len(changes) == 0 {
		next := *held
		next.seen = revision
		l.publish(&next)
		return
	}
	head := held.head()
	r := &record{
		mark:    mark{revision: revision, hash: l.state.hash, entries: l.state.entries, at: time.Now()},
		from:    head.revision,
		changes: changes,
		memory:  changesMemory(changes),
	}
	if r.memory <= l.cfg.MaxDelta {
		r.frame = deltaFrame(held.epoch, r.from, r.mark, changes)
		r.memory += r.frame.Bytes
	}
	l.publish(held.append(r, l.cfg.LogBytes))
}

// publish makes next the view and wakes who waits. l.mu is held.
func (l *Log) publish(next *View) {
	held := l.view.Load()
	next.bytes = l.state.bytes
	next.advanced = make(chan struct{})
	next.changed = held.changed
	moved := next.Head() != held.Head()
	if moved {
		next.changed = make(chan struct{})
	}
	l.view.Store(next)
	if moved {
		close(held.changed)
	}
	close(held.advanced)
}

// deltaFrame encodes a delta.
func deltaFrame(epoch uint64, from int64, to mark, changes []change) *Frame {
	b := encodeDelta(epoch, from, to.revision, changes, to.hash, to.entries)
	return &Frame{
		Kind: Delta, To: Version{epoch, to.revision}, Hash: to.hash, Entries: to.entries,
		Messages: [][]byte{b}, Bytes: int64(len(b)), from: from,
	}
}
