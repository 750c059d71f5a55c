package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/click"
)

// ack is what the stream answers.
type ack struct {
	Stream    string              `json:"stream"`
	Seq       uint64              `json:"seq"`
	Duplicate bool                `json:"duplicate"`
	Error     *jetstream.APIError `json:"error"`
}

// answered takes the answer to one batch.
func (p *Publisher) answered(m *nats.Msg) {
	token, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, p.inbox+"."), 10, 64)
	if err != nil || token < p.token || token-p.token >= uint64(len(p.inFlight)) {
		return // acknowledged before
	}
	b := p.inFlight[token-p.token]
	if b.acked {
		return
	}
	if len(m.Data) == 0 { // no responders
		b.sent = time.Time{}
		p.ready = false
		p.refuse("no stream takes clicks: they stay in the spool", nats.ErrNoResponders)
		return
	}
	var a ack
	if err := json.Unmarshal(m.Data, &a); err == nil && a.Error != nil {
		err = a.Error
		if a.Error.ErrorCode == messageTooLarge && p.tooLarge(b, "max_msg_size of the stream", p.limit/2) {
			return
		}
		b.sent = time.Time{}
		p.ready = false
		p.refuse("the stream refuses clicks: they stay in the spool (full? raise its limits or let it forget sooner)", err)
		return
	} else if err != nil || a.Stream == "" {
		return // not an answer: as if it were lost
	}
	if b.again != nil && a.Duplicate && b.id == b.again.ID {
		b.rename()
		return
	}
	b.acked, b.position = true, a.Seq
	p.last = &click.Sent{ID: b.id, Position: a.Seq}
	if !a.Duplicate {
		if a.Seq <= p.highest {
			p.suspect(a.Seq)
		}
		p.highest = a.Seq
	}
	if p.refused {
		p.refused = false
		p.log.Info("the stream takes clicks again")
	}
	p.pause = minPause
	p.advance()
}

// messageTooLarge is the server's code for a message above the stream's max_msg_size.
const messageTooLarge jetstream.ErrorCode = 10054

// tooLarge cuts a batch again that is larger than something takes, with so many bytes
// as the limit, or gives up what cannot be cut: one click, or what was published
// before. It gives false when smaller batches would not do either.
func (p *Publisher) tooLarge(b *batch, than string, limit int) bool {
	switch {
	case b.again != nil:
		p.fail("clicks that the stream has lost cannot be published again", fmt.Errorf("%d bytes are more than %s: raise it", len(b.data), than))
	case b.clicks == 1:
		p.log.Error("a click is lost: it is too large", "bytes", len(b.data), "cure", "raise "+than)
		b.log.Lose(click.TooLarge, 1)
	case b.clicks > 1 && p.limit > headRoom:
		p.recut(max(headRoom, limit))
		return true
	default:
		return false
	}
	b.sent, b.acked, b.clicks = time.Now(), true, 0
	p.advance()
	return true
}

// advance acknowledges to the spool what is acknowledged without a hole.
func (p *Publisher) advance() {
	n := 0
	for n < len(p.inFlight) && p.inFlight[n].acked {
		b := p.inFlight[n]
		// Kept first: a process that dies in between publishes it once more.
		if b.position != 0 {
			p.keep(b)
			stepped("kept")
			p.breathe() // many may be acknowledged at once
		}
		if b.again != nil {
			p.republished.Add(b.clicks)
		} else {
			if b.position != 0 {
				b.log.SetPosition(b.position + 1)
				stepped("placed")
				b.log.Tell(b.lost, b.final)
				stepped("told")
			}
			b.log.Acknowledge(b.last)
			stepped("acknowledged")
			p.published.Add(b.clicks)
		}
		p.free = append(p.free, b.data)
		p.inFlight[n] = nil
		n++
	}
	p.token += uint64(n)
	p.inFlight = p.inFlight[n:]
	p.finish()
}

// breathe lets redirects go first.
func (p *Publisher) breathe() {
	if p.yield != nil {
		p.yield()
	}
}

// keep holds on to a batch that is acknowledged.
func (p *Publisher) keep(b *batch) {
	err := p.config.Recorder.Keep(&click.Sent{
		Subject: b.subject, ID: b.id, First: b.first, Last: b.last, Position: b.position, At: time.Now().UnixMicro(),
	}, b.data, p.breathe)
	if failed := err != nil; failed != p.unkept {
		p.unkept = failed
		if failed {
			p.log.Warn("clicks that were sent cannot be kept: what the stream loses is not published again", "error", err)
		}
	}
}

// finish tells who waits in Flush that all is done.
func (p *Publisher) finish() {
	if p.final && len(p.inFlight) == 0 && len(p.again) == 0 {
		p.release(nil)
	}
}

// leaveAccount lets who waits in Flush go when NATS is away and all that is left is an
// account that the next start tells: there is no click in danger that waiting could save.
func (p *Publisher) leaveAccount(now time.Time) {
	if p.nc.IsConnected() {
		p.awayFrom = time.Time{}
		return
	}
	if p.awayFrom.IsZero() {
		p.awayFrom = now
	}
	if len(p.flush) == 0 || now.Sub(p.awayFrom) < away || p.repeating() {
		return
	}
	if r := p.config.Recorder; r.Unacknowledged() == 0 && r.KeepsAccount() {
		p.release(errors.New("NATS is away"))
	}
}

// release tells who waits in Flush what came of it.
func (p *Publisher) release(result error) {
	for _, done := range p.flush {
		done <- result // has room
	}
	p.flush = nil
}

// buffer gives storage for a batch.
func (p *Publisher) buffer() []byte {
	if n := len(p.free); n > 0 {
		buf := p.free[n-1]
		p.free = p.free[:n-1]
		return buf
	}
	return make([]byte, 0, maxBatchBytes+maxBatchBytes/8)
}
