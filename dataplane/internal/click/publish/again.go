package publish

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
)

// recheck is after what time the stream is asked again when it seems to have
// lost something.
const recheck = time.Second

// getMessage asks the stream's leader for a message: other replicas may not
// have the newest.
type getMessage struct {
	Sequence uint64 `json:"seq,omitempty"`
	NextFor  string `json:"next_by_subj,omitempty"`
}

// stored is a message as the leader gives it.
type stored struct {
	Sequence uint64 `json:"seq"`
	Header   []byte `json:"hdrs"`
	Data     []byte `json:"data"`
}

// id is the message's own name.
func (s *stored) id() string {
	header, err := nats.DecodeHeadersMsg(s.Header)
	if err != nil {
		return ""
	}
	return header.Get(jetstream.MsgIDHeader)
}

// get gives nil when there is no such message.
func get(ctx context.Context, nc *nats.Conn, ask getMessage) (*stored, error) {
	request, err := json.Marshal(ask)
	if err != nil {
		return nil, fmt.Errorf("ask for a message: %w", err)
	}
	m, err := nc.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+"STREAM.MSG.GET."+clickstream.StreamName, request)
	if err != nil {
		return nil, fmt.Errorf("ask for a message: %w", err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *stored             `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, fmt.Errorf("ask for a message: %w", err)
	}
	if e := answer.Error; e != nil {
		if e.ErrorCode == jetstream.JSErrCodeMessageNotFound {
			return nil, nil
		}
		return nil, fmt.Errorf("ask for a message: %w", e)
	}
	return answer.Message, nil
}

// search looks for what the stream has acknowledged and has no more, out of what
// is kept.
//
// What the stream has removed at its beginning it was told to remove, by its
// limits or by a person.
type search struct {
	ctx   context.Context
	nc    *nats.Conn
	state jetstream.StreamState
	sent  []click.Sent
	err   error
}

// has says whether the stream still has a batch.
func (s *search) has(b *click.Sent) bool {
	if s.err != nil {
		return true
	}
	if b.Position < s.state.FirstSeq && b.Position <= s.state.LastSeq {
		return true
	}
	var m *stored
	m, s.err = get(s.ctx, s.nc, getMessage{Sequence: b.Position})
	return m != nil && m.id() == b.ID
}

// end is where what is kept ends in the stream: all behind it is lost.
func (s *search) end() int {
	if n := len(s.sent); n == 0 || s.has(&s.sent[n-1]) {
		return n
	}
	return sort.Search(len(s.sent), func(i int) bool { return !s.has(&s.sent[i]) })
}

// lost gives what is missing: behind the end, and of what is suspected.
func (s *search) lost(suspect func(*click.Sent) bool) (missing []click.Sent, err error) {
	end := s.end()
	for i := range s.sent {
		if b := &s.sent[i]; (i >= end || suspect(b)) && !s.has(b) {
			missing = append(missing, *b)
		}
	}
	return missing, s.err
}

// latest drops what was published again later on.
func latest(sent []click.Sent) []click.Sent {
	newest := make(map[string]int, len(sent))
	for i := range sent {
		newest[firstID(sent[i].ID)] = i
	}
	kept := sent[:0]
	for i := range sent {
		if newest[firstID(sent[i].ID)] == i {
			kept = append(kept, sent[i])
		}
	}
	return kept
}

// check is what came of asking the stream what it has lost.
type check struct {
	turn    int // of the connection
	missing []click.Sent
	from    uint64
	made    time.Time // when the stream was
	deleted int       // messages that the stream lacks between its ends
	err     error
}

// known is what the stream is compared with.
type known struct {
	turn    int         // of the connection
	from    uint64      // where the stream was seen to go on a second time; 0: it was not
	deleted int         // messages that it lacked between its ends the last time
	last    *click.Sent // what was acknowledged last; nil: that is not known
	made    time.Time   // when it was; zero: that is not known
}

func (p *Publisher) known() known {
	return known{turn: p.turns, from: p.wentBack, deleted: p.deleted, last: p.last, made: p.made}
}

// checkLost asks the stream, beside the loop.
func (p *Publisher) checkLost(ctx context.Context, now time.Time) {
	p.checking, p.checkedAt = true, now
	known := p.known()
	p.wentBack = 0
	go func() {
		ctx, cancel := context.WithTimeout(ctx, max(p.config.Timeout, p.config.CheckEvery))
		defer cancel()
		p.checks <- p.findLost(ctx, known)
	}()
}

// findLost asks the stream.
func (p *Publisher) findLost(ctx context.Context, k known) (c check) {
	c.turn, c.from = k.turn, k.from
	stream, err := p.js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		c.err = err
		return c
	}
	config, state := stream.CachedInfo().Config, stream.CachedInfo().State
	c.deleted, c.made = state.NumDeleted, stream.CachedInfo().Created
	if !k.made.IsZero() && !c.made.Equal(k.made) {
		c.from = 1 // another stream, whose positions say nothing about this one's
	}
	if config.Retention != jetstream.LimitsPolicy || config.MaxMsgsPerSubject > 0 {
		return c // it deletes by itself what is not at its beginning
	}
	s := search{ctx: ctx, nc: p.nc, state: state}
	if c.from == 0 && (c.deleted == k.deleted || c.deleted == 0) && k.last != nil && s.has(k.last) {
		c.err = s.err
		return c // as a rule: what is kept need not be listed
	}
	deletedAt := func(uint64) bool { return false }
	if c.deleted != k.deleted && c.deleted > 0 {
		if deletedAt, c.err = holes(ctx, stream, c.deleted); c.err != nil {
			return c
		}
	}
	s.sent = latest(p.config.Recorder.Sent())
	c.missing, c.err = s.lost(func(b *click.Sent) bool { return c.from > 0 && b.Position >= c.from || deletedAt(b.Position) })
	return c
}

// holes says of which sequences the stream may lack the message.
func holes(ctx context.Context, stream jetstream.Stream, deleted int) (func(sequence uint64) bool, error) {
	const listed = 20_000 // more would be a large answer
	if deleted > listed {
		return func(uint64) bool { return true }, nil
	}
	info, err := stream.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return nil, fmt.Errorf("ask what was deleted: %w", err)
	}
	return func(sequence uint64) bool {
		_, found := slices.BinarySearch(info.State.Deleted, sequence)
		return found
	}, nil
}

// suspect notes from which position on the stream may have lost what it had there before;
// 0: it has not.
func (p *Publisher) suspect(from uint64) {
	if from > 0 && (p.wentBack == 0 || from < p.wentBack) {
		p.wentBack = from
	}
}

// looked takes what came of checkLost.
func (p *Publisher) looked(c check) {
	p.checking = false
	p.checked(c)
}

// checked takes what the stream has lost.
func (p *Publisher) checked(c check) {
	if c.err != nil || c.turn != p.turns { // asked again in a while, or after the reconnect
		p.suspect(c.from)
		return
	}
	p.deleted, p.made = c.deleted, c.made
	if len(c.missing) == 0 {
		return
	}
	clicks := uint64(0)
	for _, s := range c.missing {
		clicks += s.Last + 1 - s.First
	}
	p.log.Warn("the stream has lost clicks that it had acknowledged: they are published again", "clicks", clicks, "messages", len(c.missing))
	p.again = append(p.again, c.missing...)
}

// repeating says whether something that the stream has lost is not there again yet: who
// looked for it now would miss it a second time.
func (p *Publisher) repeating() bool {
	return len(p.again) > 0 || slices.ContainsFunc(p.inFlight, func(b *batch) bool { return b.again != nil })
}

// repeat gives the next batch that is to be published again.
func (p *Publisher) repeat() *batch {
	for len(p.again) > 0 {
		s := p.again[0]
		p.again = p.again[1:]
		data, err := s.Data(p.buffer())
		if err != nil {
			p.fail("clicks that the stream has lost are not kept any more", err)
			continue
		}
		return &batch{again: &s, id: s.ID, subject: s.Subject, data: data, first: s.First, last: s.Last, clicks: s.Last + 1 - s.First}
	}
	return nil
}

// rename gives a batch that is published again another id, when the server
// knows the id of the message that it has lost.
func (b *batch) rename() {
	b.id = fmt.Sprintf("%s-again-%d", firstID(b.again.ID), b.again.Position)
	b.sent = time.Time{}
}

var again = regexp.MustCompile(`-again-[0-9]+$`)

// firstID is the id under which a batch was published the first time.
func firstID(id string) string {
	if at := again.FindStringIndex(id); at != nil {
		return id[:at[0]]
	}
	return id
}
