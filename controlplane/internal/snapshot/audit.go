package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
	"github.com/affleet/affleet/proto/link"
)

// alarm is what an operator has to look at beside a Hold. It may be used from
// any goroutine.
type alarm struct {
	mu       sync.Mutex
	revision int64 // where the source is, or was when it was found out
	seen     int64 // what was known of it before: it went back from here; 0: it did not
	ahead    int64 // a node holds this revision, which the source does not have; 0: none
	audited  time.Time
}

// wentBack raises the alarm that the source is at a lower revision than was
// seen, and says whether that is new.
func (a *alarm) wentBack(revision, seen int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	fresh := a.seen == 0
	a.revision, a.seen = revision, max(seen, a.seen)
	return fresh
}

// nodeAhead raises the alarm that a node holds a revision that the source does
// not have.
func (a *alarm) nodeAhead(revision int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ahead = max(a.ahead, revision)
}

// caughtUp ends the alarms that were below a revision.
func (a *alarm) caughtUp(revision int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if revision >= a.seen {
		a.seen = 0
	}
	if revision >= a.ahead {
		a.ahead = 0
	}
}

// clear ends all alarms: another epoch begins.
func (a *alarm) clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen, a.ahead = 0, 0
}

// WentBack says whether the source is at a lower revision than it was, as after
// a restore of a backup: where it is, and where it was.
func (l *Log) WentBack() (revision, seen int64, back bool) {
	l.alarm.mu.Lock()
	defer l.alarm.mu.Unlock()
	return l.alarm.revision, l.alarm.seen, l.alarm.seen != 0
}

// Wrote tells the log at which revision the source answered a write that began
// when the log had seen another: a lower one means that the source went back.
func (l *Log) Wrote(revision int64, began *View) error {
	if began.epoch == 0 || revision > began.seen {
		return nil
	}
	return l.wentBack(revision, began.seen)
}

// NodeAhead tells the log that a node holds a version of its epoch which it has
// not seen, although it has asked the source how far it is.
func (l *Log) NodeAhead(held Version) {
	if v := l.View(); l.metrics.following.Load() && held.Epoch == v.epoch && held.Revision > v.seen {
		l.alarm.nodeAhead(held.Revision)
	}
}

// Following says whether the source is watched now.
func (l *Log) Following() bool { return l.metrics.following.Load() }

// Audited says when the log last found itself to be what the source is, and how
// often it was not.
func (l *Log) Audited() (last time.Time, mismatches uint64) {
	l.alarm.mu.Lock()
	defer l.alarm.mu.Unlock()
	return l.alarm.audited, l.metrics.auditMismatches.Load()
}

// Alarms are what an operator has to look at, with the cure.
func (l *Log) Alarms() (all []string) {
	if h := l.View().Hold(); h != nil {
		all = append(all, fmt.Sprintf("revision %d is held back: %s; look at what was written, and then: affctl fleet release --version %d", h.Revision, h.Reason, h.Revision))
	}
	l.alarm.mu.Lock()
	defer l.alarm.mu.Unlock()
	switch {
	case l.alarm.seen != 0:
		all = append(all, fmt.Sprintf("etcd is at revision %d, before %d that was served: it was restored from a backup; if that is meant: affctl fleet new-epoch", l.alarm.revision, l.alarm.seen))
	case l.alarm.ahead != 0:
		all = append(all, fmt.Sprintf("a node holds revision %d, which etcd does not have: if etcd was restored from a backup: affctl fleet new-epoch", l.alarm.ahead))
	}
	return all
}

// audits compares the state with the source again and again until ctx ends.
func (l *Log) audits(ctx context.Context) {
	for {
		every := l.cfg.AuditInterval
		pause(ctx, every/2+rand.N(every)) // so that replicas do not read all at once
		if ctx.Err() != nil {
			return
		}
		if err := l.Audit(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Debug("no audit", "err", err)
		}
	}
}

// Audit reads everything from the source, at one revision, and compares its set
// hash with that of the log. When they differ everything is read anew, and what
// differs becomes a revision like any other.
func (l *Log) Audit(ctx context.Context) error {
	start := l.View()
	var sum link.SetHash
	revision, err := l.src.Load(ctx, store.LoadOptions{Paced: true}, func(o store.Object) error {
		if o.Value != nil {
			sum = sum.Add(link.HashEntry(bytesOf(o.Name), o.Value))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, l.cfg.AuditInterval.Abs())
	defer cancel()
	v := l.View()
	for v.seen < revision && v.epoch == start.epoch {
		l.Nudge()
		select {
		case <-v.advanced:
		case <-limited.Done():
			return fmt.Errorf("wait for revision %d: %w", revision, limited.Err())
		}
		v = l.View()
	}
	known, ok := v.at(Version{start.epoch, revision})
	switch {
	case !ok || v.epoch != start.epoch || start.epoch == 0:
		return fmt.Errorf("revision %d is not in the log any more", revision)
	case known.hash == sum:
		l.metrics.audits.Add(1)
		l.alarm.mu.Lock()
		defer l.alarm.mu.Unlock()
		l.alarm.audited = time.Now()
		return nil
	}
	l.metrics.auditMismatches.Add(1)
	l.cfg.Logger.Error("the state is not what etcd holds, it is read again", "revision", revision,
		"set_hash", fmt.Sprintf("%016x%016x", known.hash.Hi, known.hash.Lo), "etcd", fmt.Sprintf("%016x%016x", sum.Hi, sum.Lo))
	poke(l.resync)
	return nil
}

// Builds counts the snapshots that were built.
func (l *Log) Builds() uint64 { return l.metrics.builds.Load() }
