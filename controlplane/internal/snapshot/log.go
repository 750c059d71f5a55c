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
	// Epochs gives the current epoch, which is never 0, and those before it.
	Epochs(ctx context.Context) (store.Epochs, error)
	// Load reads everything at the revision that it returns.
	Load(ctx context.Context, opts store.LoadOptions, each func(store.Object) error) (revision int64, err error)
	// Watch gives everything after a revision, whole revisions in order. It
	// ends with an error, which is store.ErrCompacted when the revisions
	// asked for are gone.
	Watch(ctx context.Context, after int64) iter.Seq2[store.Batch, error]
	// Revision gives the newest revision, linearizably.
	Revision(ctx context.Context) (int64, error)
	Releases
	Rewinds
}

// Releases are what replicas tell each other about their guards.
type Releases interface {
	// ReleasedAt reads what was released in an epoch at a revision.
	ReleasedAt(ctx context.Context, epoch uint64, revision int64) (store.Release, error)
	// Hold notes that a revision is held back, for replicas that start later.
	Hold(ctx context.Context, epoch uint64, revision int64) error
	// Held gives the first revision that is noted so and not released; 0: none.
	Held(ctx context.Context, epoch uint64) (int64, error)
	// Touch makes a revision that changes nothing.
	Touch(ctx context.Context) error
}

// Rewinds are what replicas tell each other about a restore of the source.
type Rewinds interface {
	// Rewind notes that the source went back, until the epoch ends.
	Rewind(ctx context.Context, r store.Rewind) error
	// Rewound reads whether it did in an epoch.
	Rewound(ctx context.Context, epoch uint64) (store.Rewind, error)
}

// Config is how a Log works. The zero value works.
type Config struct {
	// Memory that records may take, in bytes. Default: 256 MB.
	LogBytes int64
	// The largest delta that is sent, in bytes; what is larger is sent in
	// several, as are several revisions of more than 4 MB, or as a snapshot.
	// Default: 16 MB.
	MaxDelta int64
	// About how many bytes of entries are compressed into one message of a
	// snapshot. Default: 1 MB.
	ChunkBytes int
	// What a revision may do without an operator's word.
	Guard Guard
	// About how often everything is compared with the source. Default: 1
	// minute; negative: never.
	AuditInterval time.Duration
	// Waiting times after a failure of the source: the first, doubled each
	// time up to the last. Default: 100 ms, 5 s.
	MinBackoff, MaxBackoff time.Duration
	// Asks the source to say soon, by a batch without changes, up to where
	// its watch is complete. Called every ProgressInterval, and when somebody
	// waits for a revision. Where no such batch comes, the source is asked for
	// its revision: etcd makes none for a watch from the next revision on, until
	// that is written. Default: the source does so by itself.
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

	view   atomic.Pointer[View]
	ready  chan struct{}
	nudge  chan struct{} // holds one: ask for progress now
	resync chan struct{} // holds one: read everything anew
	note   chan struct{} // holds one: tell the source what is held back
	doubt  chan struct{} // holds one: ask the source whether it went back

	mu     sync.Mutex // what the writer changes together with view
	state  *state     // everything up to View.seen
	served *state     // what View.Head serves; the same one unless something is held back
	guard  watchman
	ahead  ahead // while something is held back
	lane   lane
	forced int64 // the revision that another replica holds back; 0: none

	alarm  alarm
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
	if cfg.AuditInterval == 0 {
		cfg.AuditInterval = time.Minute
	}
	cfg.Guard.setDefaults()
	l := &Log{
		src: src, cfg: cfg, ready: make(chan struct{}),
		nudge: make(chan struct{}, 1), resync: make(chan struct{}, 1), note: make(chan struct{}, 1), doubt: make(chan struct{}, 1),
		state: newState(), guard: watchman{Guard: cfg.Guard},
	}
	l.served = l.state
	l.view.Store(&View{changed: make(chan struct{}), downed: make(chan struct{}), advanced: make(chan struct{})})
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

// Known is what the log holds of a resource, whether it is served or held back,
// for writes. It knows nothing before it has read everything, and of a source
// that may have gone back.
func (l *Log) Known(name string) (store.Known, bool) {
	if _, _, back := l.WentBack(); back || l.View().epoch == 0 {
		return store.Known{}, false
	}
	l.mu.Lock()
	e := l.state.get(name)
	l.mu.Unlock()
	return e.known(), true
}

// tellEvery is how often an outage is logged that goes on.
const tellEvery = time.Minute

// Run follows the source until ctx ends, and returns nil then. While the source
// fails the log keeps what it has, and Run tries again.
func (l *Log) Run(ctx context.Context) error {
	var auditing sync.WaitGroup
	defer auditing.Wait()
	if l.cfg.AuditInterval > 0 {
		auditing.Go(func() { l.audits(ctx) })
	}
	wait := l.cfg.MinBackoff
	var told time.Time
	for {
		before := l.View().seen
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return nil // that is how it ends
		}
		if l.View().seen != before {
			wait = l.cfg.MinBackoff
		}
		if err == nil || errors.Is(err, errAnother) {
			continue // it watches from where it has read to, or reads the other epoch
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

// errResync ends a watch because the state is not the source's.
var errResync = errors.New("what is held is not what the source holds")

// follow reads what is missing and watches until something fails. Without an
// error it has read everything anew, because the watch could not go on, or has
// to begin with another epoch.
func (l *Log) follow(ctx context.Context) error {
	epochs, err := l.src.Epochs(ctx)
	if err != nil {
		return fmt.Errorf("read epoch: %w", err)
	}
	read := l.meet
	if l.View().epoch != epochs.Current {
		read = l.load
	}
	if err := read(ctx, epochs); err != nil {
		return err
	}
	watching, cancel := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel(nil)
	l.heard()
	asking.Go(func() { l.attend(watching, cancel) })
	if l.cfg.Progress != nil {
		asking.Go(func() { l.askForProgress(watching) })
	}
	err = l.watch(watching)
	switch {
	case err == nil, errors.Is(context.Cause(watching), errAnother):
		return nil
	case errors.Is(err, store.ErrCompacted):
		l.cfg.Logger.Warn("revisions are compacted away, reading everything again", "after", l.View().seen)
		return l.load(ctx, epochs)
	case errors.Is(context.Cause(watching), errResync):
		l.cfg.Logger.Warn("reading everything again", "why", errResync)
		if err := l.src.Touch(ctx); err != nil { // what is mended needs a revision of its own
			return fmt.Errorf("make a revision: %w", err)
		}
		return l.load(ctx, epochs)
	}
	return fmt.Errorf("watch: %w", err)
}

// watch takes in what the source gives, until it fails or has another epoch. Of
// a source that went back it takes nothing: that would not follow what is held.
func (l *Log) watch(ctx context.Context) error {
	if l.View().apart {
		<-ctx.Done()
		return ctx.Err()
	}
	var low time.Time // since when the source says that it is behind
	for batch, err := range l.src.Watch(ctx, l.View().seen) {
		if err != nil {
			return err
		}
		l.heard()
		switch seen := l.View().seen; {
		case batch.Revision >= seen:
			low = time.Time{}
			l.alarm.caughtUp(batch.Revision)
		case low.IsZero():
			low = time.Now() // a member may be behind for a moment
		case time.Since(low) > 3*l.cfg.ProgressInterval:
			return l.wentBack(batch.Revision, seen)
		}
		l.apply(batch)
		if batch.Epoch {
			return nil
		}
	}
	return errors.New("ended")
}

// errAnother ends a reading or a watch because there is nothing more to wait for
// in it.
var errAnother = errors.New("the fleet has another epoch, or etcd another history")

// attend does, until ctx ends, what others ask for while the source is watched:
// it ends the watch to have everything read anew, notes what is held back, and
// that the source went back. It also looks for what ends that alarm: a watch
// from a revision that the source does not have gives nothing.
func (l *Log) attend(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(l.cfg.ProgressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, _, back := l.WentBack(); back && l.another(ctx) {
				end(errAnother)
				return
			}
		case <-l.doubt:
			apart := l.View().apart
			l.ask(ctx)
			if !apart && l.View().apart {
				end(errAnother)
				return
			}
		case <-l.resync:
			end(errResync)
			return
		case <-l.note:
			v := l.View()
			if v.hold == nil {
				continue
			}
			if err := l.src.Hold(ctx, v.epoch, v.hold.From); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Warn("what is held back is not noted in etcd, a replica that starts now would serve it", "revision", v.hold.Revision, "err", err)
				pause(ctx, l.cfg.ProgressInterval)
				poke(l.note)
			}
		}
	}
}

// poke leaves one wake in a channel.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for a time or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
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
			if l.View().apart {
				continue // nothing is watched
			}
			silent := time.Since(time.Unix(0, l.metrics.heard.Load()))
			if silent > 3*l.cfg.ProgressInterval && l.metrics.following.Swap(false) {
				l.cfg.Logger.Warn("etcd is silent, nodes keep their state", "for", silent, "revision", l.View().seen)
			}
		}
		call, cancel := context.WithTimeout(ctx, l.cfg.ProgressInterval)
		err := l.cfg.Progress(call)
		if err == nil && time.Since(time.Unix(0, l.metrics.heard.Load())) > l.cfg.ProgressInterval {
			var revision int64
			if revision, err = l.src.Revision(call); err == nil && revision == l.View().seen {
				l.heard() // there is nothing to hear of
			}
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Debug("store does not answer", "err", err)
		}
	}
}

// Nudge asks the source, without waiting, how far it is: for who waits until
// Seen reaches a revision at which perhaps nothing changed.
func (l *Log) Nudge() { poke(l.nudge) }
