package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/proto/link"
)

// policy checks whether what policies and blocks say is done.
func (d *doctor) policy(ctx context.Context) {
	r, err := d.a.maybe(ctx, link.Policies.Prefix()+link.AnyHost)
	p := r.GetPolicy()
	switch {
	case err != nil:
		d.say("fraud", levelUnknown, "whether the kill switch is pulled: %s", describe(err).lines[0])
	case p.GetOff():
		d.say("fraud", levelWarning, "what policies and blocks say is switched off since %s, by %s: they only label, and affguard blocks nothing (affctl fraud policy set --on)",
			p.GetUpdateTime().AsTime().Local().Format(time.DateTime), p.GetUpdatedBy())
	default:
		d.say("fraud", levelOK, "what policies and blocks say is done")
	}
}

// findings checks the stream of findings.
func (d *doctor) findings(ctx context.Context, js jetstream.JetStream) {
	ctx, cancel := d.a.limit(ctx)
	defer cancel()
	s, err := js.Stream(ctx, clickstream.FindingsStreamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		d.say("findings", levelUnknown, "there is no stream %s: no affguard has run here", clickstream.FindingsStreamName)
		return
	case err != nil:
		d.say("findings", levelUnknown, "%s", err)
		return
	}
	info := s.CachedInfo()
	text := fmt.Sprintf("%s holds %s in %s", clickstream.FindingsStreamName, count(int64(info.State.Msgs), "report"), size(info.State.Bytes))
	if info.State.Msgs > 0 {
		text += ", the last of " + age(d.a.now().Sub(info.State.LastTime)) + " ago"
	}
	d.say("findings", levelOK, "%s", text)
	if c := info.Config; c.Storage == jetstream.MemoryStorage {
		d.say("findings", levelWarning, "the stream is in memory: a restart of its server loses what was found, and why it was blocked")
	} else if c.Discard == jetstream.DiscardNew {
		d.say("findings", levelWarning, "the stream discards new reports when it is full: affguard then goes on without saying what it does")
	}
}
