package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
	"github.com/affleet/affleet/proto/link"
)

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
	if r := l.View().rewind; r.Seen != 0 {
		return append(all, fmt.Sprintf("etcd had revision %d when %d had been served: it was restored from a backup; nothing is written, and nodes keep what they have, until: affctl fleet new-epoch", r.Revision, r.Seen))
	}
	if revision, seen, back := l.WentBack(); back {
		all = append(all, fmt.Sprintf("etcd is at revision %d, before %d that was served: it was restored from a backup; if that is meant: affctl fleet new-epoch", revision, seen))
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
