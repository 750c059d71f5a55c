package click

// A boot is forgotten when there is nothing left to tell of it: not before its last
// account is in the stream, also where that has no click to go with, since a consumer
// that has not heard of clicks that were dropped cannot know of them. Until then its
// folder stays, if only with the boot's file, and the next start tells what is in it.

// Tell notes that the stream has an account of the log, with so many clicks lost. Only
// one goroutine may call it, before it acknowledges what the account came with.
func (l *Log) Tell(lost uint64, final bool) {
	if lost <= l.boot.told.Load() && (!final || l.boot.toldEnd.Load() != 0) {
		return
	}
	l.boot.mark(func() {
		l.boot.told.Store(max(lost, l.boot.told.Load()))
		if final {
			l.boot.toldEnd.Store(1)
		}
	})
	l.wake() // the folder may go
}

// Told says whether the stream has the account of an earlier boot, as far as that is
// known. What is not acknowledged brings another.
func (l *Log) Told() bool { return l.told(l.last) }

// told is Told for a log that ends with a sequence.
func (l *Log) told(last uint64) bool {
	_, dropped := l.account(last + 1)
	lost := l.tail
	for _, n := range dropped {
		lost += n
	}
	if last == 0 && lost == 0 {
		return true // it has answered nothing
	}
	return l.boot.told.Load() >= lost && (!l.Ended() || l.boot.toldEnd.Load() != 0)
}

// KeepsAccount says whether the account of the running boot outlives the process, in
// the boot's file, so that the next start in the folder tells what is not told.
func (r *Recorder) KeepsAccount() bool {
	b := r.log.boot
	return b.dir != "" && !b.apart() && b.present()
}
