package click

import "testing"

// End, held up while the spool goes round once, tries to seal the segment that it had
// found to be the current one, and that is about to be so again. If it got that, what it
// has sealed would become current, and all who record would wait for who goes on.
func TestASegmentIsOverUntilItIsTheCurrentOneAgain(t *testing.T) {
	r := filled(t, Process)
	r.Log().Acknowledge(r.Last()) // from here on, segments are used again
	tries := 0
	step = func(name string) {
		if name != "rotate: next in use" {
			return
		}
		for _, s := range all(r.log) {
			if s == r.current.Load() {
				continue
			}
			tries++
			if _, _, p := s.place(int(s.size) + 1); p != closed {
				t.Errorf("segment %d can be sealed, and is about to be the current one", s.number)
				s.state.Store(segmentHead) // the test ends all the same
			}
		}
	}
	defer func() { step = nil }()
	for range 10 {
		recordTimes(r, 0, 200)
		r.refill()
	}
	if tries == 0 {
		t.Error("no segment came to be the current one")
	}
}
