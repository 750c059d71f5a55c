package snapshot

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// After a restore the source is at a lower revision, of the same epoch, than was
// served. Nodes that hold more must keep it until an operator has said what is
// meant, also when the source has passed their revision again: what it says from
// there on is another history. So that the source went back is noted in it, by
// whoever finds a proof, and stands until the epoch ends:
//
//   - a write was answered at a revision that was known before it began;
//   - the source itself, read linearizably, is at a lower revision than this log
//     or a node has seen.
//
// A watch that says less than before is only a reason to ask: the member that it
// comes from may be behind.

// alarm is what was noticed of a source that went back. It may be used from any
// goroutine.
type alarm struct {
	mu       sync.Mutex
	revision int64        // where the source seems to be
	seen     int64        // what was known of it before; 0: it did not go back
	doubted  Version      // a version that somebody holds, and the source may not have
	proof    store.Rewind // what is to be noted; the zero value: nothing
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

// caughtUp ends the alarm when the source is at a revision: it was a member that
// was behind. It ends no Rewind.
func (a *alarm) caughtUp(revision int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if revision >= a.seen {
		a.seen = 0
	}
}

// clear ends the alarm: another epoch begins.
func (a *alarm) clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen, a.doubted, a.proof = 0, Version{}, store.Rewind{}
}

// WentBack says whether the source is at a lower revision than it was, as after
// a restore of a backup: where it is, or was when that was found out, and where
// it had been.
func (l *Log) WentBack() (revision, seen int64, back bool) {
	if r := l.View().rewind; r.Seen != 0 {
		return r.Revision, r.Seen, true
	}
	l.alarm.mu.Lock()
	defer l.alarm.mu.Unlock()
	return l.alarm.revision, l.alarm.seen, l.alarm.seen != 0
}

// Wrote tells the log at which revision the source answered a write that began
// when the log had seen another: one that is not higher means that the source
// went back.
func (l *Log) Wrote(revision int64, began *View) error {
	if began.epoch == 0 || revision > began.seen {
		return nil
	}
	err := l.wentBack(revision, began.seen)
	l.alarm.mu.Lock()
	l.alarm.proof = store.Rewind{Epoch: began.epoch, Revision: revision, Seen: began.seen}
	l.alarm.mu.Unlock()
	poke(l.doubt)
	return err
}

// NodeAhead tells the log that a node holds a version of its epoch which it has
// not seen: it asks the source whether it has it.
func (l *Log) NodeAhead(held Version) {
	if v := l.View(); held.Epoch == v.epoch && held.Revision > max(v.seen, v.rewind.Seen) {
		l.suspect(held)
	}
}

// suspect has the source asked whether it has a version.
func (l *Log) suspect(held Version) {
	l.alarm.mu.Lock()
	if was := l.alarm.doubted; was.Epoch != held.Epoch || was.Revision < held.Revision {
		l.alarm.doubted = held
	}
	l.alarm.mu.Unlock()
	poke(l.doubt)
}

// wentBack is the error for a source that says less than before, and raises the
// alarm. To watch it would mean to miss what is written until it is not.
func (l *Log) wentBack(revision, seen int64) error {
	if l.alarm.wentBack(revision, seen) {
		l.cfg.Logger.Error("etcd has gone back: nothing is written or sent until it is restored to what it was, or: affctl fleet new-epoch",
			"revision", revision, "served", seen)
	}
	l.suspect(Version{l.View().epoch, seen})
	return fmt.Errorf("the store is at revision %d, before %d that was served: it was restored from a backup, or answers from a member that is behind", revision, seen)
}

// ask proves that the source went back, or that it did not; what fails is tried
// again.
func (l *Log) ask(ctx context.Context) {
	err := l.prove(ctx)
	if err == nil {
		return
	}
	if ctx.Err() == nil {
		l.cfg.Logger.Debug("whether etcd has gone back is not known, or not noted", "err", err)
		pause(ctx, l.cfg.ProgressInterval)
	}
	poke(l.doubt)
}

// prove asks the source whether it has what is doubted, and notes it when it has
// not.
func (l *Log) prove(ctx context.Context) error {
	l.alarm.mu.Lock()
	doubted, proof := l.alarm.doubted, l.alarm.proof
	l.alarm.mu.Unlock()
	v := l.View()
	if proof == (store.Rewind{}) && doubted.Epoch == v.epoch && doubted.Revision > v.rewind.Seen {
		call, cancel := context.WithTimeout(ctx, l.cfg.ProgressInterval)
		defer cancel()
		revision, err := l.src.Revision(call)
		if err != nil {
			return fmt.Errorf("ask for the revision: %w", err)
		}
		if revision < doubted.Revision {
			proof = store.Rewind{Epoch: v.epoch, Revision: revision, Seen: doubted.Revision}
		}
	}
	if proof.Seen != 0 && proof.Epoch == v.epoch {
		if v.rewind.Seen != 0 {
			proof.Revision = min(proof.Revision, v.rewind.Revision)
			proof.Seen = max(proof.Seen, v.rewind.Seen)
		}
		if err := l.src.Rewind(ctx, proof); err != nil {
			return fmt.Errorf("note that etcd went back: %w", err)
		}
		l.rewound(proof, v.seen > proof.Revision)
	}
	l.alarm.mu.Lock()
	defer l.alarm.mu.Unlock()
	if l.alarm.doubted == doubted {
		l.alarm.doubted = Version{}
	}
	l.alarm.proof = store.Rewind{}
	return nil
}

// rewound notes that the source went back, if it did, and says whether what is
// held is of before that. before: it is if this is new.
func (l *Log) rewound(r store.Rewind, before bool) (apart bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.view.Load()
	if r.Seen == 0 || r.Epoch != held.epoch {
		return false
	}
	if r == held.rewind {
		return held.apart
	}
	next := *held
	next.rewind, next.apart = r, held.apart || held.rewind.Seen == 0 && before
	l.tellRewind(&next)
	l.publish(&next)
	return next.apart
}

// tellRewind logs what a view that is being made says.
func (l *Log) tellRewind(next *View) {
	l.cfg.Logger.Error("etcd was restored from a backup: nothing is written, and nodes keep what they have, until: affctl fleet new-epoch",
		"revision", next.rewind.Revision, "served", next.rewind.Seen)
}

// meet takes over whether the source, which is about to be followed, went back.
// It reads everything anew where it is the one from before the restore again.
func (l *Log) meet(ctx context.Context, epochs store.Epochs) error {
	found, err := l.src.Rewound(ctx, epochs.Current)
	if err != nil {
		return fmt.Errorf("read whether etcd went back: %w", err)
	}
	v := l.View()
	if v.rewind.Seen != 0 && found.Seen == 0 {
		return l.load(ctx, epochs)
	}
	l.rewound(found, v.seen > found.Revision)
	return nil
}

// another says whether there is what ends the alarm that the source went back:
// another epoch, or the source as it was before.
func (l *Log) another(ctx context.Context) bool {
	v := l.View()
	epochs, err := l.src.Epochs(ctx)
	if err != nil {
		return false
	}
	if v.apart {
		l.heard() // nothing is watched
	}
	if epochs.Current != v.epoch || v.rewind.Seen == 0 {
		return epochs.Current != v.epoch
	}
	found, err := l.src.Rewound(ctx, v.epoch)
	return err == nil && found.Seen == 0
}
