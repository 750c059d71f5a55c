package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// place is where a row comes from.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// row is one resource on its way in. done is how far the input has been read
// behind it, in the units of the progress bar.
type row struct {
	resource *linkv1.Resource
	place    place
	done     int64
}

// batch is what one message holds.
type batch struct {
	rows    []row
	barrier bool // everything before must be written before it
}

// At most so many rows, and about so many bytes, make a batch: large enough
// that messages cost nothing, small enough for a server's limit of 4 MiB.
const (
	batchRows  = 1000
	batchBytes = 1 << 20
)

// importer sends rows to the control plane and keeps account of them. While
// rows are read and made, the batch before is sent and the answers are read.
type importer struct {
	a       *app
	options *adminv1.ImportOptions
	bar     *progress
	keys    *keyIndex // nil: duplicates are known not to be there
	// onError is told of each row that failed instead of printing it.
	onError func(place, *adminv1.RowError)

	batches chan *batch
	next    *batch // that is being filled
	bytes   int
	was     kindSet // kinds since the last barrier

	mu      sync.Mutex
	sent    []place                // of each row of the stream under way
	marks   []mark                 // of each batch of it
	totals  adminv1.ImportProgress // of the streams before, and of rows that failed here
	current adminv1.ImportProgress // of the stream under way

	unanswered int64 // rows of the last stream that were sent, and have no outcome
}

type mark struct{ rows, done int64 }

// kindSet says which kinds there were.
type kindSet struct{ referred, referring bool }

var errStopped = errors.New("stopped at the first row that failed")

// run imports what rows emits, and gives the account. rows calls emit for each
// row and reports those that cannot be read by imp.failed; it returns soon when
// its context ends. The error is that of the input or of the server; rows that
// failed are none.
func (imp *importer) run(ctx context.Context, rows func(ctx context.Context, emit func(row) error) error) (*adminv1.ImportProgress, error) {
	service, err := imp.a.links()
	if err != nil {
		return nil, err
	}
	imp.batches = make(chan *batch, 2)
	imp.next = &batch{}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(imp.batches)
		err := rows(ctx, func(r row) error { return imp.emit(ctx, r) })
		if err != nil && !errors.Is(err, errStopped) {
			return err
		}
		return imp.push(ctx) // what comes before the row that failed is written
	})
	group.Go(func() error {
		for b := <-imp.batches; b != nil; {
			var err error
			if b, err = imp.stream(ctx, service, b); err != nil {
				return err
			}
		}
		return nil
	})
	err = group.Wait()
	imp.bar.end()
	if errors.Is(err, errStopped) {
		err = nil
	}
	imp.fold()
	return &imp.totals, err
}

// emit takes a row into the next batch, and sends that when it is full.
func (imp *importer) emit(ctx context.Context, r row) error {
	if imp.keys != nil {
		twin, same := imp.keys.find(r.resource, r.place)
		switch {
		case same:
			return imp.failed(r.place, "", "%s is the key of line %d too, which is kept", keyOf(r.resource), twin.line)
		case twin.line > 0:
			imp.warn(r.place, "%s differs only in case from line %d", keyOf(r.resource), twin.line)
		}
	}
	_, referring := r.resource.GetKind().(*linkv1.Resource_Link)
	if referring && imp.was.referred || !referring && imp.was.referring {
		if err := imp.push(ctx); err != nil {
			return err
		}
		imp.next.barrier = true
		imp.was = kindSet{}
	}
	imp.was.referring = imp.was.referring || referring
	imp.was.referred = imp.was.referred || !referring
	imp.next.rows = append(imp.next.rows, r)
	if imp.bytes += proto.Size(r.resource); len(imp.next.rows) < batchRows && imp.bytes < batchBytes {
		return nil
	}
	return imp.push(ctx)
}

// push hands the batch that is being filled to the sender.
func (imp *importer) push(ctx context.Context) error {
	if len(imp.next.rows) == 0 {
		return nil
	}
	select {
	case imp.batches <- imp.next:
	case <-ctx.Done():
		return ctx.Err()
	}
	imp.next = &batch{rows: make([]row, 0, len(imp.next.rows))}
	imp.bytes = 0
	return nil
}

// stream imports batches up to the next barrier, and gives the batch there; nil
// at the end.
func (imp *importer) stream(ctx context.Context, service adminv1.LinkServiceClient, first *batch) (*batch, error) {
	imp.fold()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := service.Import(ctx)
	if err != nil {
		return nil, err
	}
	var next *batch
	complete := false
	var sender sync.WaitGroup
	sender.Go(func() { next, complete = imp.sendAll(ctx, stream, first) })
	err = imp.receive(stream)
	cancel() // what is not sent by now never will be
	sender.Wait()
	if err == nil && !complete {
		err = errors.New("the control plane ended the import early")
	}
	return next, err
}

// sendAll sends batches up to the next barrier, and gives the batch there. It
// is not complete if the stream ended before: Recv knows why.
func (imp *importer) sendAll(ctx context.Context, stream adminv1.LinkService_ImportClient, b *batch) (next *batch, complete bool) {
	for options := imp.options; ; options = nil {
		if err := imp.send(stream, options, b); err != nil {
			return nil, false
		}
		select {
		case b = <-imp.batches:
		case <-ctx.Done():
			return nil, false
		}
		if b == nil || b.barrier {
			return b, stream.CloseSend() == nil
		}
	}
}

func (imp *importer) send(stream adminv1.LinkService_ImportClient, options *adminv1.ImportOptions, b *batch) error {
	req := &adminv1.ImportRequest{Options: options, Resources: make([]*linkv1.Resource, len(b.rows))}
	imp.mu.Lock()
	for i, r := range b.rows {
		req.Resources[i] = r.resource
		imp.sent = append(imp.sent, r.place)
	}
	imp.marks = append(imp.marks, mark{rows: int64(len(imp.sent)), done: b.rows[len(b.rows)-1].done})
	imp.mu.Unlock()
	return stream.Send(req)
}

// receive reads the answers of one stream to its end.
func (imp *importer) receive(stream adminv1.LinkService_ImportClient) error {
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if imp.options.GetStopOnError() && imp.current.GetFailed() > 0 {
				return errStopped // err is that of the row, which has been told
			}
			return err
		}
		for _, e := range resp.GetErrors() {
			imp.rowError(e)
		}
		if p := resp.GetProgress(); p != nil {
			imp.progress(p)
		}
	}
}

func (imp *importer) progress(p *adminv1.ImportProgress) {
	imp.mu.Lock()
	defer imp.mu.Unlock()
	proto.Reset(&imp.current)
	proto.Merge(&imp.current, p)
	done := int64(-1)
	for len(imp.marks) > 0 && imp.marks[0].rows <= p.GetRows() {
		done = imp.marks[0].done
		imp.marks = imp.marks[1:]
	}
	if done >= 0 {
		imp.bar.set(done)
	}
}

// fold adds the account of the stream that ended to the totals.
func (imp *importer) fold() {
	imp.mu.Lock()
	defer imp.mu.Unlock()
	t, c := &imp.totals, &imp.current
	t.Rows += c.GetRows()
	t.Created += c.GetCreated()
	t.Updated += c.GetUpdated()
	t.Unchanged += c.GetUnchanged()
	t.Failed += c.GetFailed()
	if c.GetVersion() != nil {
		t.Version = proto.CloneOf(c.GetVersion())
	}
	imp.unanswered = int64(len(imp.sent)) - c.GetRows()
	proto.Reset(c)
	imp.sent, imp.marks = imp.sent[:0], imp.marks[:0]
}

// rowError reports a row that the control plane did not write.
func (imp *importer) rowError(e *adminv1.RowError) {
	imp.mu.Lock()
	var at place
	if i := e.GetRow(); i >= 0 && i < int64(len(imp.sent)) {
		at = imp.sent[i]
	}
	imp.mu.Unlock()
	if imp.onError != nil {
		imp.onError(at, e)
		return
	}
	imp.printRowError(at, e)
}

func (imp *importer) printRowError(at place, e *adminv1.RowError) {
	text := e.GetMessage()
	if e.GetName() != "" {
		text = strings.TrimPrefix(text, e.GetName()+": ")
	}
	if f := e.GetField(); f != "" && !strings.HasPrefix(text, f+": ") {
		text = f + ": " + text
	}
	if e.GetName() != "" {
		text = subject(e.GetName()) + ": " + text
	}
	imp.tell(at, text, e.GetHint())
}

// failed reports a row that was not sent.
func (imp *importer) failed(at place, hint, format string, args ...any) error {
	imp.mu.Lock()
	imp.totals.Rows++
	imp.totals.Failed++
	imp.mu.Unlock()
	imp.tell(at, fmt.Sprintf(format, args...), hint)
	if imp.options.GetStopOnError() {
		return errStopped
	}
	return nil
}

// warn reports something odd about a row that is sent all the same.
func (imp *importer) warn(at place, format string, args ...any) {
	imp.bar.line(at.String() + ": " + imp.a.paint(imp.a.stderr, amber, "warning:") + " " + fmt.Sprintf(format, args...))
}

func (imp *importer) tell(at place, text, hint string) {
	imp.bar.line(at.String() + ": " + imp.a.paint(imp.a.stderr, red, "error:") + " " + withHint(text, hint))
}

// withHint puts a hint behind a line.
func withHint(text, hint string) string {
	if hint == "" {
		return text
	}
	return text + " (" + hint + ")"
}

// accountOf tells the rows by outcome: 2 created, 1 unchanged.
func accountOf(t *adminv1.ImportProgress) []string {
	var parts []string
	for _, part := range []struct {
		n    int64
		what string
	}{{t.GetCreated(), "created"}, {t.GetUpdated(), "updated"}, {t.GetUnchanged(), "unchanged"}, {t.GetFailed(), "failed"}} {
		if part.n > 0 {
			parts = append(parts, thousands(part.n)+" "+part.what)
		}
	}
	return parts
}

// summary tells the account: imported 3 rows: 2 created, 1 unchanged (0.1s).
func (a *app) summary(t *adminv1.ImportProgress, took time.Duration, dryRun bool) {
	suffix := fmt.Sprintf(" (%s)", took.Round(10*time.Millisecond))
	if dryRun {
		suffix = " (dry run)"
	}
	a.printf("imported %s: %s%s\n", count(t.GetRows(), "row"), first(strings.Join(accountOf(t), ", "), "nothing to do"), suffix)
}

// finish tells the account of an import, waits for its version, and ends with
// the code for what failed. Rows that were written stay when err is set.
func (imp *importer) finish(ctx context.Context, t *adminv1.ImportProgress, err error, started time.Time, wait *waiting) error {
	a, dryRun := imp.a, imp.options.GetValidateOnly()
	if t != nil && (err == nil || t.GetRows() > 0) {
		a.summary(t, time.Since(started), dryRun)
	}
	if err != nil {
		imp.ended(t, err)
		return err
	}
	if !dryRun {
		if err := a.wait(ctx, wait, t.GetVersion()); err != nil {
			return err
		}
	}
	switch {
	case t.GetFailed() == 0:
		return nil
	case t.GetFailed() == t.GetRows():
		return silent(codeError)
	}
	return silent(codePartly)
}

// ended tells what became of the rows that were sent before an error, and what
// sending them again does: the control plane writes them in no particular order.
func (imp *importer) ended(t *adminv1.ImportProgress, err error) {
	written, perhaps := t.GetCreated()+t.GetUpdated(), imp.unanswered
	if st, ok := status.FromError(err); ok && st.Code() != codes.Canceled {
		perhaps = 0 // it is the control plane that says why, and what of these
	}
	if imp.options.GetValidateOnly() || written+perhaps == 0 {
		return
	}
	text, again := "written before that: "+count(written, "resource"), "counts as unchanged"
	if perhaps > 0 {
		text += ", and perhaps some of " + count(perhaps, "more row")
	}
	if imp.options.GetCreateOnly() {
		again = "fails as existing"
	}
	imp.a.notef("%s; done again, what is written %s", text, again)
}

// missingAffiliate says whether a row failed only because its affiliate does
// not exist.
func missingAffiliate(e *adminv1.RowError) bool {
	return codes.Code(e.GetCode()) == codes.FailedPrecondition && e.GetField() == "affiliate" //nolint:gosec // a gRPC code
}
