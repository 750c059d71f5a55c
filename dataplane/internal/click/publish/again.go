package publish

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
)

// checkEvery is how often the stream is asked whether it still has what it
// acknowledged last. It is asked after each reconnect too.
const checkEvery = 30 * time.Second

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

// lost gives what the stream has acknowledged and has no more, out of what is
// kept. from is where the stream was seen to go on a second time; when it is 0,
// it is the end of what is kept that is missing, if anything.
//
// What the stream has removed at its beginning it was told to remove, by its
// limits or by a person.
func lost(ctx context.Context, nc *nats.Conn, state jetstream.StreamState, sent []click.Sent, from uint64) (missing []click.Sent, err error) {
	has := func(s *click.Sent) bool {
		if err != nil {
			return true
		}
		if s.Position < state.FirstSeq && s.Position <= state.LastSeq {
			return true
		}
		var m *stored
		m, err = get(ctx, nc, getMessage{Sequence: s.Position})
		return m != nil && m.id() == s.ID
	}
	if from == 0 {
		if len(sent) == 0 || has(&sent[len(sent)-1]) {
			return nil, err
		}
		at := sort.Search(len(sent), func(i int) bool { return !has(&sent[i]) })
		if err != nil {
			return nil, err
		}
		return sent[at:], nil
	}
	for i := range sent {
		if sent[i].Position >= from && !has(&sent[i]) {
			missing = append(missing, sent[i])
		}
	}
	return missing, err
}

// check is what came of asking the stream what it has lost.
type check struct {
	missing []click.Sent
	err     error
}

// checkLost asks the stream, beside the loop.
func (p *Publisher) checkLost(ctx context.Context, now time.Time) {
	p.checking, p.checkedAt = true, now
	from := p.wentBack
	p.wentBack = 0
	go func() {
		ctx, cancel := context.WithTimeout(ctx, max(p.config.Timeout, checkEvery))
		defer cancel()
		p.checks <- p.findLost(ctx, from)
	}()
}

func (p *Publisher) findLost(ctx context.Context, from uint64) (c check) {
	stream, err := p.js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		return check{err: err}
	}
	c.missing, c.err = lost(ctx, p.nc, stream.CachedInfo().State, p.config.Recorder.Sent(), from)
	return c
}

// checked takes what the stream has lost.
func (p *Publisher) checked(c check) {
	p.checking = false
	if c.err != nil || len(c.missing) == 0 {
		return // asked again in a while, or after the reconnect
	}
	clicks := uint64(0)
	for _, s := range c.missing {
		clicks += s.Last + 1 - s.First
	}
	p.log.Warn("the stream has lost clicks that it had acknowledged: they are published again", "clicks", clicks, "messages", len(c.missing))
	p.again = append(p.again, c.missing...)
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
	b.id = fmt.Sprintf("%s-again-%d", b.again.ID, b.again.Position)
	b.sent = time.Time{}
}
