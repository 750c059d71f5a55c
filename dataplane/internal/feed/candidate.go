package feed

import (
	"context"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// keepWithin is how long a state waits to be in the file, at most, until it is live
// all the same. Ten million links take 3.4 s on a busy machine, and a disk that takes
// longer delays a new state by no more than a connection that is lost may (MaxBackoff).
const keepWithin = 5 * time.Second

// candidate is a verified state that takes the place of another one, and is live, and
// acknowledged, once the file has it: a node that is killed meanwhile has served
// nothing that its next start lacks. Until then the node serves, reports and takes
// down as before.
type candidate struct {
	table    *table.Table
	unserved unserved
	due      context.Context // is done when it may be live
	settle   context.CancelFunc
}

// propose has a state kept before it is live. From here on, nothing else takes the
// place of the live one: the file may be ahead of it, and a journal that followed the
// live one would not follow the file.
func (a *applier) propose(t *table.Table, left unserved) {
	a.leave(t.Version()) // no start may take the file for a reason to go back
	c := &candidate{table: t, unserved: left}
	c.due, c.settle = context.WithTimeout(context.Background(), keepWithin)
	a.next = c
	a.keeper.next.Store(c)
	a.keeper.changed(directly)
}

// goLive makes the candidate live. What was taken down meanwhile was what the process
// was at; from here on it is this.
func (a *applier) goLive() outcome {
	c := a.next
	defer c.settle()
	defer a.wire.done()
	_ = a.wire.arm(c.table.Version()) // it was admitted
	a.publish(c.table)
	a.next = nil
	a.keeper.next.Store(nil) // behind it: the keeper never finds what was live before
	return outcome{kind: kindSnapshot, applied: c.table, unserved: c.unserved, write: inTime}
}

// message receives the next message. A candidate is live, and acknowledged, as soon as
// it may be, also where nothing comes.
func (s *session) message(frame *rawFrame) error {
	c := s.applier.next
	if c == nil {
		return s.stream.RecvMsg(frame)
	}
	received := make(chan error, 1)
	go func() { received <- s.stream.RecvMsg(frame) }()
	select {
	case err := <-received:
		return err
	case <-c.due.Done():
		_ = s.handle(s.applier.goLive()) // receiving says why
		return <-received
	}
}

// finish waits for a candidate to be live when its stream is over: the next one begins
// with what the node holds. The end of the process does not wait: the candidate is
// written, and the next start begins with it.
func (s *session) finish(ctx context.Context) {
	c := s.applier.next
	if c == nil {
		return
	}
	select {
	case <-c.due.Done():
		_ = s.handle(s.applier.goLive()) // nobody hears the answer
	case <-ctx.Done():
	}
}
