package publish

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
)

// resume is what the stream has of a log behind what it is known to have: the
// batches whose acknowledgement did not arrive. The server's own memory of
// message ids, which would notice them, is short; an outage can be long.
type resume struct {
	log     *click.Log
	subject string
	found   []arrival // in the order of their first sequences
}

type arrival struct {
	id          string
	position    uint64
	first, last uint64 // of the clicks; first is above last when there are none
}

// look asks the stream's leader for the log's messages from the log's position
// on. last is the stream's last sequence.
func (r *resume) look(ctx context.Context, nc *nats.Conn, last uint64) error {
	at := r.log.Position()
	if at == 0 {
		return nil // none was ever sent
	}
	if at > last+1 {
		at = 1 // another stream, or one that has lost its end
	}
	for {
		m, err := get(ctx, nc, getMessage{Sequence: at, NextFor: r.subject})
		if err != nil {
			return err
		}
		if m == nil {
			break
		}
		at = m.Sequence + 1
		b, err := clickstream.Decode(m.Data)
		if err != nil {
			return fmt.Errorf("message %d of the stream: %w", m.Sequence, err)
		}
		if uint64(b.Boot) == r.log.Identity().Boot {
			r.found = append(r.found, arrival{m.id(), m.Sequence, b.First, b.First + uint64(len(b.Clicks)) - 1})
		}
	}
	slices.SortFunc(r.found, func(a, b arrival) int { return cmp.Compare(a.first, b.first) })
	return nil
}

// covered is up to which sequence all clicks from the given one on are in the
// stream.
func (r *resume) covered(from uint64) uint64 {
	for _, a := range r.found {
		if a.first > from {
			break
		}
		from = max(from, a.last+1)
	}
	return from - 1
}

// position is where the stream has a batch, 0 when it has not.
func (r *resume) position(b *batch) uint64 {
	for _, a := range r.found {
		if a.id == b.id || b.clicks > 0 && a.first <= b.first && a.last >= b.first && r.covered(b.first) >= b.last {
			return a.position
		}
	}
	return 0
}

// goOn takes what the stream turned out to have.
func (p *Publisher) goOn(s setup) {
	moved := false
	for _, r := range s.resumes {
		if r.log.Position() == 0 {
			r.log.SetPosition(s.last + 1)
		}
		for _, b := range p.inFlight {
			if position := r.position(b); b.log == r.log && !b.acked && position != 0 {
				b.acked, b.position = true, position
			}
		}
		if len(p.inFlight) > 0 {
			continue
		}
		if last := r.covered(r.log.Acknowledged() + 1); last > r.log.Acknowledged() {
			p.published.Add(last - r.log.Acknowledged())
			r.log.Acknowledge(last)
			moved = true
		}
	}
	p.advance()
	if moved && !p.final { // nothing is cut yet
		p.closeSources()
		p.openSources()
	}
}
