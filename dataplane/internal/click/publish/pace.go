package publish

import "time"

const (
	// drainRate is by how many clicks a second a backlog shrinks at most, or by as many
	// as come where that is more, while there are redirects: what is published takes
	// core and caches from them.
	drainRate = 365_000
	// paceEvery is how often it is looked at how many clicks come.
	paceEvery = 100 * time.Millisecond
	// late is how much of the time that a batch was sent too late the next ones make up.
	late = 10 * time.Millisecond
	// nobody is for how long no click comes where there is nobody to spare.
	nobody = time.Second
)

// pace spreads what is published of a backlog over the time. Without one it holds up
// nothing: then no more is sent than comes.
type pace struct {
	drain float64   // least that a backlog shrinks by, clicks per second
	due   time.Time // of the next batch
	rate  float64   // clicks that come, per second
	came  time.Time // until when some came

	last uint64    // sequence that was given out
	at   time.Time // when that was looked at
}

// look notes how far the running boot has come, which reached tells.
func (p *pace) look(now time.Time, reached func() uint64) {
	if past := now.Sub(p.at); past >= paceEvery {
		last := reached() // waits for a segment that is being sealed
		p.rate = float64(last-p.last) / past.Seconds()
		if last != p.last {
			p.came = now
		}
		p.last, p.at = last, now
	}
}

// wait is for how long nothing is to be sent.
func (p *pace) wait(now time.Time) time.Duration {
	if now.Sub(p.came) > nobody {
		return 0
	}
	return max(0, p.due.Sub(now))
}

// sent notes what is published.
func (p *pace) sent(now time.Time, clicks uint64) {
	switch earliest := now.Add(-late); {
	case p.due.Before(earliest):
		p.due = earliest
	case p.due.After(now): // it hurried
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(clicks) / (p.rate + max(p.drain, p.rate)) * float64(time.Second)))
}
