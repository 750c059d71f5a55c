package publish

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// connect makes the connection, which may come up much later.
func (p *Publisher) connect() error {
	notify := func() {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	options := append([]nats.Option{
		nats.Name("affleet clicks " + p.config.Recorder.Log().Identity().Node),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials can be put right while we wait
		nats.ReconnectBufSize(-1),   // the spool is the buffer
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			wait := min(maxDelay, 100*time.Millisecond<<min(attempts, 6))
			return wait/2 + rand.N(wait)
		}),
		nats.Timeout(dialTimeout),
		nats.SetCustomDialer(dialer{p.config.Beside}),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(p.config.Timeout),
		nats.ConnectHandler(func(nc *nats.Conn) {
			p.log.Info("connected to NATS", "url", clickstream.RedactURLs(nc.ConnectedUrl()))
			notify()
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			p.log.Info("connected to NATS again", "url", clickstream.RedactURLs(nc.ConnectedUrl()))
			notify()
		}),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() { // by this node, at its end
				p.log.Warn("NATS is away: clicks stay in the spool", "error", err)
			}
			notify()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if last := p.reported.Swap(err.Error()); last != err.Error() { // it may come with each batch
				p.log.Warn("NATS reports an error", "error", err)
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { notify() }),
	}, p.config.Options...)
	nc, err := nats.Connect(p.config.URL, options...)
	if err != nil {
		return err
	}
	if !nc.IsConnected() {
		p.log.Warn("NATS does not answer yet: clicks stay in the spool", "url", clickstream.RedactURLs(p.config.URL))
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return err
	}
	p.nc, p.js, p.inbox = nc, js, nats.NewInbox()
	if _, err := nc.ChanSubscribe(p.inbox+".*", p.acks); err != nil {
		nc.Close()
		return err
	}
	return nil
}

// reconnected forgets what it believed about the server and what is under way.
func (p *Publisher) reconnected() {
	p.turns++
	p.ready = false
	p.checkedAt = time.Time{}
	p.pauseEnd = time.Time{}
	for _, b := range p.inFlight {
		b.sent = time.Time{}
	}
}

// settle looks for the stream, beside the loop: the answer can take long.
func (p *Publisher) settle(ctx context.Context) {
	p.settling = true
	check, known := p.checkedAt.IsZero(), p.known()
	known.from = 0 // it is seen by its end
	var resumes []*resume
	for _, s := range p.sources {
		resumes = append(resumes, &resume{log: s.log, subject: s.subject})
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
		defer cancel()
		s := ensureStream(ctx, p.nc, p.js, p.config.Stream)
		if check && s.err == nil {
			// Before anything new is published, which would look like the end.
			s.checked = p.findLost(ctx, known)
			for _, r := range resumes {
				if err := r.look(ctx, p.nc, s.last); err != nil {
					p.log.Warn("the stream does not say what it has: clicks may be in it twice, which consumers notice", "error", err)
					break
				}
			}
			s.resumes = resumes
		}
		s.turn = known.turn
		p.setups <- s
	}()
}

func (p *Publisher) settled(s setup) {
	p.settling = false
	if s.created {
		p.log.Info("stream created", "stream", s.config.Name, "max_bytes", s.config.MaxBytes, "replicas", s.config.Replicas)
	}
	for _, warning := range s.warnings {
		if !p.warned[warning] { // once, however often NATS comes and goes
			p.warned[warning] = true
			p.log.Warn(warning, "stream", s.config.Name)
		}
	}
	if s.turn != p.turns {
		return // it may have lost something since: it is looked for once more
	}
	if s.err != nil {
		p.refuse("no stream for clicks: they stay in the spool", s.err)
		return
	}
	limit := min(maxBatchBytes, int(p.nc.MaxPayload())-headRoom)
	if s.config.MaxMsgSize > 0 {
		limit = min(limit, int(s.config.MaxMsgSize)-headRoom)
	}
	if limit = max(limit, headRoom); limit != p.limit {
		p.recut(limit)
	}
	p.ready = true
	if p.checkedAt.IsZero() {
		p.checkedAt = time.Now()
		if s.checked.err != nil {
			s.checked.from = 1 // what is published from now on hides where it ends: all is looked for
		}
		p.checked(s.checked)
		p.goOn(s)
	}
}
