package clickstream

import "fmt"

// Ledger is a node's account since its boot: Answered = Recorded + all of
// Dropped. When Final is true, the boot has ended and nothing follows.
type Ledger struct {
	Answered uint64            `json:"answered"`
	Recorded uint64            `json:"recorded"`
	Dropped  map[string]uint64 `json:"dropped,omitempty"` // by reason: "spool_full"
	Final    bool              `json:"final,omitempty"`
}

// spoolFull is why clicks are dropped that never had a sequence.
const spoolFull = "spool_full"

var dropReasons = [...]string{"unspecified", spoolFull, "too_large", "corrupt", "lost_memory"}

func (l *Ledger) decode(s string) error {
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch {
		case f.number == 3 && f.wire == wireBytes:
			if err := l.drop(f.bytes); err != nil {
				return err
			}
		case f.number > 0 && f.number <= 4 && (f.number == 3 || f.wire != wireVarint):
			return errWire
		case f.number == 1:
			l.Answered = f.value
		case f.number == 2:
			l.Recorded = f.value
		case f.number == 4:
			l.Final = f.value != 0
		}
	}
	return nil
}

func (l *Ledger) drop(s string) error {
	var reason, clicks uint64
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.wire != wireVarint && (f.number == 1 || f.number == 2) {
			return errWire
		}
		switch f.number {
		case 1:
			reason = f.value
		case 2:
			clicks = f.value
		}
	}
	name := fmt.Sprintf("reason_%d", reason)
	if reason < uint64(len(dropReasons)) {
		name = dropReasons[reason]
	}
	if l.Dropped == nil {
		l.Dropped = make(map[string]uint64)
	}
	l.Dropped[name] += clicks
	return nil
}
