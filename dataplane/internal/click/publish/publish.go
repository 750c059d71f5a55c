// Package publish brings recorded clicks from the spool to JetStream: in
// order, in batches, again and again until each is acknowledged.
//
// It is the only package of the node that knows NATS. Nothing here is on the
// way of a redirect: while NATS is away the spool grows, and that is all.
//
// # Identity of a message
//
// The Nats-Msg-Id of a batch is "<node>-<boot>-<first sequence>", the boot as
// 16 hex digits. Within one process a batch's range and bytes are fixed when
// it is first cut, so that the server's de-duplication is safe. A process that
// takes over an earlier boot's clicks cuts them anew, and appends
// "-<last sequence>" to the id: two messages with the same id always hold the
// same clicks, and what overlaps is for the consumer to drop, by sequence.
// Batches without clicks are told apart by the account that they carry.
//
// # Concurrency
//
// Run owns everything; it is called once. Flush may be called from another
// goroutine while Run runs. What Config.Beside runs for Run has everything while Run
// waits; what it runs for the NATS client, which may call it at the same time, has what is
// written alone.
package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/aside"
	"github.com/affleet/affleet/dataplane/internal/click"
)

// Config is the publisher's.
type Config struct {
	URL        string        // of NATS, several separated by commas. Required
	Options    []nats.Option // credentials, TLS and the like; they come last
	Recorder   *click.Recorder
	Stream     StreamLimits
	Timeout    time.Duration // after which a batch without an answer is sent again. Default: 5 s
	CheckEvery time.Duration // how often the stream is asked what it has lost, besides after a reconnect. Default: 30 s
	Log        *slog.Logger  // default: slog.Default
	Beside     Beside        // nil: all is done by the publisher's own goroutine, and the NATS client's
	Registerer prometheus.Registerer
}

// Beside runs work where it takes least from redirects, and returns when it is done;
// false when that is the caller's own goroutine, and nothing was done. Work calls look
// behind each piece, of some µs, and comes to an end once that gives false. It is called
// from several goroutines, and under the NATS client's lock, which look must not need.
type Beside func(work func(look func() bool)) bool

const (
	maxInFlight = 32                    // batches that wait for their acknowledgement
	tick        = 10 * time.Millisecond // how often the spool is looked at
	maxAge      = 25 * time.Millisecond // of a batch that is cut; with two ticks, under 50 ms when it is sent
	headRoom    = 1 << 10               // of a message, for its headers
	away        = 2 * time.Second       // after which NATS does not just restart
	maxDelay    = time.Second           // between two attempts to connect, give or take a half
	minPause    = 250 * time.Millisecond
	maxPause    = 5 * time.Second
)

// Publisher publishes what a recorder holds.
type Publisher struct {
	config Config
	log    *slog.Logger

	nc      *nats.Conn
	js      jetstream.JetStream
	inbox   string
	acks    chan *nats.Msg
	changed chan struct{} // the connection is up, or is not
	setups  chan setup    // what came of ensureStream
	flushes chan chan error

	yield      func()    // lets redirects go first; nil outside of Run
	limit      int       // bytes of a batch
	cutAnew    bool      // it was another one before
	encoder    *encoder  // of all sources
	sources    []*source // the first is being published, the last is the running boot's
	inFlight   []*batch  // oldest first
	token      uint64    // of inFlight[0]; the next ones follow
	free       [][]byte
	ready      bool      // the stream is there
	settling   bool      // ensureStream is running
	reconnects uint64    // of the connection, by its own count
	turns      int       // of the connection: what was asked before the last one says nothing
	awayFrom   time.Time // since when there is no connection; zero: there is one
	pace       pace
	pauseEnd   time.Time // nothing is sent before
	pause      time.Duration
	warned     map[string]bool // lines about the stream that were logged
	refused    bool            // the log says that clicks do not get into the stream
	flush      []chan error    // each is told when everything is published, or is not waited for
	final      bool            // the last batch is cut

	checks    chan check // what came of checkLost
	checking  bool       // checkLost is running
	checkedAt time.Time
	last      *click.Sent  // what was acknowledged last
	deleted   int          // messages that the stream lacked between its ends when it was asked
	made      time.Time    // when the stream was, by then
	wentBack  uint64       // lowest position that the stream gave out twice; 0: none
	highest   uint64       // position of what is acknowledged
	again     []click.Sent // to be published again
	unkept    bool         // the log says that what was sent cannot be kept
	damaged   bool         // the log says that part of the spool is damaged
	degraded  bool         // the log says that clicks are held in memory
	lookedAt  time.Time    // when that was looked at

	reported                       atomic.Value // string: the connection's last error
	published, errors, republished atomic.Uint64
}

type setup struct {
	turn     int // of the connection
	config   jetstream.StreamConfig
	created  bool
	warnings []string
	last     uint64 // sequence in the stream
	checked  check
	resumes  []*resume
	err      error
}

// New checks the configuration. Nothing is connected before Run.
func New(config Config) (*Publisher, error) {
	if config.Recorder == nil {
		return nil, errors.New("publish clicks: no recorder")
	}
	if config.URL == "" {
		return nil, errors.New("publish clicks: no NATS URL")
	}
	if err := clickstream.ValidateURLs(config.URL); err != nil {
		return nil, fmt.Errorf("publish clicks: %w", err)
	}
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Second
	}
	if config.CheckEvery == 0 {
		config.CheckEvery = 30 * time.Second
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	p := &Publisher{
		config:  config,
		log:     config.Log,
		acks:    make(chan *nats.Msg, 8*maxInFlight),
		changed: make(chan struct{}, 1),
		setups:  make(chan setup, 1),
		checks:  make(chan check, 1),
		flushes: make(chan chan error),
		limit:   maxBatchBytes,
		encoder: newEncoder(config.Recorder.Log().Identity()),
		pace:    pace{drain: drainRate},
		pause:   minPause,
		warned:  make(map[string]bool),
	}
	if r := config.Registerer; r != nil {
		counter := func(name, help string, v *atomic.Uint64) error {
			return r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
				func() float64 { return float64(v.Load()) }))
		}
		if err := errors.Join(
			counter("aff_clicks_published_total", "Clicks that JetStream has acknowledged.", &p.published),
			counter("aff_clicks_republished_total", "Clicks that were published again because the stream had lost them.", &p.republished),
			counter("aff_clicks_publish_errors_total", "Batches that were refused, or not answered in time.", &p.errors),
		); err != nil {
			return nil, fmt.Errorf("publish clicks: %w", err)
		}
	}
	return p, nil
}

// Run publishes until the context ends. It fails only when the configuration
// is refused; NATS may come and go.
func (p *Publisher) Run(ctx context.Context) error {
	for _, warning := range p.config.Recorder.Warnings() {
		p.log.Warn("part of the click spool cannot be read", "error", warning)
	}
	if err := p.connect(); err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer p.nc.Close()
	p.yield = aside.NewYield()
	p.openSources()
	defer p.closeSources()
	ctx, cancel := context.WithCancel(ctx)
	defer func() { // the goroutines of settle and checkLost are Run's own
		cancel()
		if p.settling {
			<-p.setups
		}
		if p.checking {
			<-p.checks
		}
	}()
	timer := time.NewTimer(tick)
	defer timer.Stop()
	for {
		now := time.Now()
		p.tellDegraded(now)
		p.pump(ctx, now)
		p.leaveAccount(now)
		timer.Reset(min(tick, cmp.Or(p.pace.wait(now), tick))) // sooner where pace has something sent then
		// One goroutine owns the state; it sleeps until one of these:
		//   the node stops; an answer from the stream; the connection changed;
		//   the stream was looked for, or asked what it has lost; someone waits
		//   for the end; time passed.
		select {
		case <-ctx.Done():
			return nil
		case m := <-p.acks:
			p.answered(m)
			for range len(p.acks) {
				p.answered(<-p.acks)
			}
		case <-p.changed:
			if p.nc.IsClosed() {
				return fmt.Errorf("connection to NATS was closed: %w", p.nc.LastError())
			}
		case s := <-p.setups:
			p.settled(s)
		case c := <-p.checks:
			p.looked(c)
		case done := <-p.flushes:
			p.flush = append(p.flush, done)
		case <-timer.C:
		}
	}
}

// Flush ends the recorder's log, publishes all that is left, tells the final
// account, and returns when JetStream has acknowledged it. Call it once the
// last request is answered, while Run still runs. When the context ends first,
// the error says how much stays in the spool; so does it, without waiting for that,
// when NATS has been away for 2 s and only an account is left, which the next start
// tells.
func (p *Publisher) Flush(ctx context.Context) error {
	p.config.Recorder.End()
	done := make(chan error, 1)
	select {
	case p.flushes <- done:
	case <-ctx.Done():
		return p.unflushed(ctx.Err())
	}
	select {
	case why := <-done:
		return p.unflushed(why)
	case <-ctx.Done():
		return p.unflushed(ctx.Err())
	}
}

// unflushed says what is left, and why; nil when nothing is.
func (p *Publisher) unflushed(why error) error {
	if why == nil {
		return nil
	}
	left := p.config.Recorder.Unacknowledged()
	if left == 0 {
		return fmt.Errorf("flush clicks: all are published, and the final account is not: %w", why)
	}
	return fmt.Errorf("flush clicks: %d are not published: %w", left, why)
}

// recut forgets the batches that are under way and cuts them again with
// another limit.
func (p *Publisher) recut(limit int) {
	p.limit = limit
	p.token += uint64(len(p.inFlight))
	var again []click.Sent
	for _, b := range p.inFlight {
		if b.again != nil && !b.acked {
			again = append(again, *b.again)
		}
	}
	p.again = append(again, p.again...)
	p.inFlight = nil
	p.final = false
	p.closeSources()
	p.cutAnew = true
	p.openSources()
}

// openSources lists what is to be published: what earlier boots have left, and
// then the running one's.
func (p *Publisher) openSources() {
	p.sources = nil
	p.encoder.limit = p.limit
	if p.yield != nil {
		p.encoder.yield = p.yield
	}
	for _, log := range append(p.config.Recorder.Earlier(), p.config.Recorder.Log()) {
		s := newSource(log, p.encoder, p.buffer)
		s.damaged = p.lose
		s.recut = s.recut || p.cutAnew
		s.beside = p.config.Beside
		if p.yield != nil {
			s.yield = p.yield
		}
		p.sources = append(p.sources, s)
	}
}

func (p *Publisher) closeSources() {
	for _, s := range p.sources {
		s.cursor.Close()
	}
}

// lose says once that there are clicks in the spool that cannot be read. How many, the
// ledger and the metric tell.
func (p *Publisher) lose(err error) {
	if !p.damaged {
		p.log.Error("clicks are lost: part of the click spool cannot be read or written", "error", err, "cure", "look at the disk")
		p.damaged = true
	}
}

// tellDegraded says when clicks begin to be held in memory, and when that is over. A
// folder may come and go: it is looked at once a second.
func (p *Publisher) tellDegraded(now time.Time) {
	if now.Sub(p.lookedAt) < time.Second {
		return
	}
	p.lookedAt = now
	err := p.config.Recorder.Degraded()
	if (err != nil) == p.degraded {
		return
	}
	if p.degraded = err != nil; p.degraded {
		p.log.Error("clicks are held in memory, and do not survive the process: the folder of the spool fails, or is slow", "error", err,
			"cure", "make room on its disk, make it writable, or take a faster one; it is tried again every second")
	} else {
		p.log.Info("clicks are held in the folder of the spool again")
	}
}

// fail notes that clicks do not get into the stream, and says so once.
func (p *Publisher) fail(what string, err error) {
	p.errors.Add(1)
	if !p.refused {
		p.log.Error(what, "error", err)
		p.refused = true
	}
}

// refuse is fail when sending makes no sense for a while.
func (p *Publisher) refuse(what string, err error) {
	p.fail(what, err)
	if now := time.Now(); now.After(p.pauseEnd) { // many batches may be refused at once
		p.pauseEnd = now.Add(p.pause/2 + rand.N(p.pause))
		p.pause = min(2*p.pause, maxPause)
	}
}

// pump sends what is to be sent.
func (p *Publisher) pump(ctx context.Context, now time.Time) {
	if now.Before(p.pauseEnd) || !p.nc.IsConnected() {
		return
	}
	if n := p.nc.Stats().Reconnects; n != p.reconnects { // before anything is sent: its handler may come late
		p.reconnects = n
		p.reconnected()
	}
	if !p.ready {
		if !p.settling {
			p.settle(ctx)
		}
		return
	}
	if len(p.inFlight) > 0 && !p.inFlight[0].sent.IsZero() && now.Sub(p.inFlight[0].sent) > p.config.Timeout {
		p.fail("no answer from the stream: clicks are sent again until there is one", fmt.Errorf("%d batches wait for it", len(p.inFlight)))
		p.ready = false // look for it, then send all that is not acknowledged
		for _, b := range p.inFlight {
			b.sent = time.Time{}
		}
		return
	}
	if !p.checking && !p.repeating() && (now.Sub(p.checkedAt) > p.config.CheckEvery || p.wentBack != 0 && now.Sub(p.checkedAt) > recheck) {
		p.checkLost(ctx, now)
	}
	for i, b := range p.inFlight {
		if !b.acked && b.sent.IsZero() && !p.send(i, b, now) {
			return
		}
	}
	p.pace.look(now, p.config.Recorder.Last)
	for len(p.inFlight) < maxInFlight && (p.pace.wait(now) == 0 || p.hurries()) {
		b := p.repeat()
		if b == nil {
			b = p.next(now)
		}
		if b == nil {
			break
		}
		p.pace.sent(now, b.clicks)
		p.inFlight = append(p.inFlight, b)
		if !p.send(len(p.inFlight)-1, b, now) {
			return
		}
	}
	p.finish()
}

// hurries says whether clicks are in danger, or the node waits for nothing else than that
// they are published.
func (p *Publisher) hurries() bool { return len(p.flush) > 0 || p.config.Recorder.InMemory() }

// next cuts the next batch, if there is one to be sent.
func (p *Publisher) next(now time.Time) *batch {
	s := p.sources[0]
	force := len(p.flush) > 0 || s.log.Recovered()
	b, err := s.fill(now, maxAge, force)
	if err != nil {
		p.refuse("the click spool cannot be read", err)
		return nil
	}
	if b != nil {
		return b
	}
	if s.log.Recovered() {
		if !s.closed { // the last word of that boot
			s.closed = true
			if b := s.lastWord(now); b != nil {
				return b
			}
		}
		s.cursor.Close()
		p.sources[0] = nil // there may be thousands
		p.sources = p.sources[1:]
		return p.next(now)
	}
	// The last word is the last message: behind all clicks, also those that were
	// refused at first.
	if len(p.flush) > 0 && !p.final && s.position() > p.config.Recorder.Last() && len(p.inFlight) == 0 {
		p.final = true
		return s.report(now, true)
	}
	if !p.final {
		return s.report(now, false)
	}
	return nil
}

// send publishes a batch; false when it makes no sense to go on.
func (p *Publisher) send(i int, b *batch, now time.Time) bool {
	err := p.nc.PublishMsg(&nats.Msg{
		Subject: b.subject,
		Reply:   p.inbox + "." + strconv.FormatUint(p.token+uint64(i), 10),
		Header: nats.Header{
			jetstream.MsgIDHeader:          {b.id},
			jetstream.ExpectedStreamHeader: {clickstream.StreamName},
		},
		Data: b.data,
	})
	switch {
	case err == nil:
		b.sent = now
		return true
	case errors.Is(err, nats.ErrMaxPayload) && p.tooLarge(b, "max_payload of NATS", min(p.limit/2, int(p.nc.MaxPayload())-headRoom)):
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting):
		// It was connected a moment ago; the handlers tell what follows.
	default:
		p.refuse("clicks cannot be sent", err)
	}
	return false
}
