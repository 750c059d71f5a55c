package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// MaxWrites is how many writes one transaction may hold.
const MaxWrites = 100

// maxGets is how many keys are read in one transaction beside the guard: etcd
// allows 128 operations by default.
const maxGets = 120

// Verb is what a write does.
type Verb uint8

// The verbs.
const (
	Create Verb = iota + 1 // AlreadyExists if there is one
	Update                 // NotFound if there is none, unless AllowMissing
	Put                    // whether there is one or not
	Delete                 // NotFound if there is none, unless AllowMissing
)

// Write is one write of a transaction.
type Write struct {
	Verb         Verb
	Name         string           // for Delete; the others take it from the resource
	Resource     *linkv1.Resource // not changed
	Mask         []string         // Update: only these fields; empty: all
	Etag         string           // Aborted when it is not the stored one's; empty: any
	AllowMissing bool             // Update: create it, without the mask; Delete: not an error
}

// Outcome is what became of a write.
type Outcome uint8

// The outcomes; of a row of an import, 0 is a failure.
const (
	Created Outcome = iota + 1
	Updated
	Unchanged // the stored content is the same: nothing was written
	Deleted
)

// Result is what a write did.
type Result struct {
	Name     string
	Resource *linkv1.Resource // with its read-only fields; nil when it is deleted
	Revision int64            // of the resource's last write; 0 when it is deleted or was only checked
	Outcome  Outcome
}

// Etag is what a later write names the state by that a revision left.
func Etag(revision int64) string { return strconv.FormatInt(revision, 10) }

// WriteOptions says how a transaction is made.
type WriteOptions struct {
	DryRun bool // check everything, write nothing
	// The transaction passes the guards of this epoch, however much it removes.
	AllowShrink uint64
}

// Write makes up to 100 writes of different resources in one transaction and
// one revision: all or none. who is recorded. It gives the revision at which
// all of them are in effect. With dryRun everything is checked and nothing
// written. All problems found are joined.
func (s *Store) Write(ctx context.Context, who string, writes []Write, dryRun bool) ([]Result, int64, error) {
	return s.WriteWith(ctx, who, writes, WriteOptions{DryRun: dryRun})
}

// WriteWith is Write with options.
func (s *Store) WriteWith(ctx context.Context, who string, writes []Write, opts WriteOptions) ([]Result, int64, error) {
	t, err := newTransaction(s, who, writes, opts)
	if err != nil {
		return nil, 0, err
	}
	defer func() { s.release(ctx, t.held) }()
	if results, revision, err := t.tryKnown(ctx); err == nil || !errors.Is(err, errRaced) {
		return results, revision, err
	}
	deadline := time.Now().Add(s.patience)
	for try := range 1 << 30 {
		results, revision, err := t.try(ctx)
		if err == nil || !errors.Is(err, errRaced) {
			return results, revision, err
		}
		if time.Now().After(deadline) {
			break
		}
		if err := backOff(ctx, try); err != nil {
			return nil, 0, err
		}
	}
	e := &link.Error{Kind: link.Aborted, Resource: t.changes[0].name, Message: "others write in between all the time", Hint: "try again"}
	if t.waits {
		e.Message, e.Hint = "another affiliate is being deleted", "try again in a minute"
	}
	return nil, 0, e
}

// errRaced says that somebody else wrote in between: read again.
var errRaced = errors.New("raced")

// backOff waits a random while that grows with the number of tries, up to
// 20 ms; not at all at first.
func backOff(ctx context.Context, try int) error {
	if try < 2 {
		return nil
	}
	wait := time.NewTimer(rand.N(min(time.Duration(try)*time.Millisecond, 20*time.Millisecond)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("write: %w", ctx.Err())
	}
}

// transaction is a call of Write over its tries.
type transaction struct {
	s       *Store
	who     string
	dryRun  bool
	shrinks uint64 // the epoch whose guards it passes; 0: it is guarded
	changes []change
	index   map[string]int // of changes, by name
	held    *hold          // the guard, while affiliates are being deleted
	waits   bool           // for somebody else who holds the guard

	// Of the last read: which of the affiliates that the writes name exist, and the guard.
	affiliates map[string]bool
	guarded    guard
}

// change is one write: what is asked, what was there, and what comes of it.
type change struct {
	Write
	name    string
	kind    link.Kind
	old     stored
	next    *linkv1.Resource // nil: deleted
	value   []byte           // of next
	outcome Outcome
}

func newTransaction(s *Store, who string, writes []Write, opts WriteOptions) (*transaction, error) {
	if len(writes) == 0 || len(writes) > MaxWrites {
		return nil, &link.Error{
			Kind: link.Invalid, Field: "writes",
			Message: fmt.Sprintf("has %d writes, and 1 to %d are allowed", len(writes), MaxWrites), Hint: "import any number of resources",
		}
	}
	t := &transaction{s: s, who: who, dryRun: opts.DryRun, shrinks: opts.AllowShrink, index: make(map[string]int, len(writes))}
	var problems []error
	for i, w := range writes {
		c := change{Write: w}
		err := c.identify()
		if first, twice := t.index[c.name]; err == nil && twice {
			err = &link.Error{Kind: link.Invalid, Resource: c.name, Message: fmt.Sprintf("is written twice, by writes %d and %d", first, i)}
		}
		if err != nil {
			problems = append(problems, err)
		}
		t.index[c.name] = i
		t.changes = append(t.changes, c)
	}
	return t, errors.Join(problems...)
}

// identify finds the name and the kind, and checks all that can be checked
// before the stored state is known.
func (c *change) identify() (err error) {
	c.name = c.Name
	if c.Verb != Delete {
		if len(c.Mask) == 0 {
			if err := link.Validate(c.Resource); err != nil {
				return err // with what is wrong with its name, if something is
			}
		}
		if c.name, err = link.Name(c.Resource); err != nil {
			return err
		}
	}
	c.kind, _, err = link.ParseName(c.name)
	return err
}

// try reads what is stored, works out what comes of the writes, and commits
// that if nobody has written in between; else it gives errRaced.
func (t *transaction) try(ctx context.Context) ([]Result, int64, error) {
	revision, err := t.read(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := t.workOut(t.s.now()); err != nil {
		return nil, 0, err
	}
	compares, ops, err := t.guard(ctx)
	if err != nil {
		return nil, 0, err
	}
	if t.dryRun {
		return t.results(0, nil), revision, nil
	}
	return t.commit(ctx, revision, compares, ops)
}

// commit writes what was worked out at a revision, if that still holds and the
// compares do, together with ops.
func (t *transaction) commit(ctx context.Context, read int64, compares []clientv3.Cmp, ops []clientv3.Op) ([]Result, int64, error) {
	record := linkv1.Record{UpdateTime: timestamppb.New(t.s.now().Truncate(time.Millisecond)), UpdatedBy: t.who}
	held := leases{s: t.s}
	for i := range t.changes {
		c := &t.changes[i]
		compares = append(compares, unchangedSince(resources+c.name, c.old.revision))
		if c.outcome == Unchanged {
			continue
		}
		op, err := c.op(ctx, &record, &held)
		if err != nil {
			held.done(ctx, false, nil)
			return nil, 0, err
		}
		ops = append(ops, op)
	}
	if len(ops) == 0 {
		return t.results(0, nil), t.inEffectSince(read), nil
	}
	if t.shrinks != 0 {
		ops = append(ops, allowShrink(t.shrinks))
	}
	got, err := t.s.txn(ctx, compares, ops, nil)
	held.done(ctx, err == nil && got.Succeeded, err)
	if leaseGone(err) || err == nil && !got.Succeeded {
		return nil, 0, errRaced
	}
	if err != nil {
		return nil, 0, err
	}
	if t.held != nil && len(t.deletedAffiliates()) > 0 {
		t.held.over = true // that was part of the transaction
	}
	return t.results(got.Header.Revision, &record), got.Header.Revision, nil
}

// read reads the state of every resource that is written and, in the same round
// trip where there is room, the affiliates that links are to have.
func (t *transaction) read(ctx context.Context) (int64, error) {
	ops := make([]clientv3.Op, 0, len(t.changes))
	for i := range t.changes {
		ops = append(ops, clientv3.OpGet(resources+t.changes[i].name))
	}
	ids := t.namedAffiliates()
	if len(ids) == 0 || len(ops)+len(ids) > maxGets {
		ids = nil
	} else {
		ops = append(ops, existingGets(ids)...)
	}
	got, err := t.s.txn(ctx, nil, ops, nil)
	if err != nil {
		return 0, err
	}
	for i := range t.changes {
		t.changes[i].old = storedFrom(got.Responses[i].GetResponseRange().Kvs)
	}
	t.affiliates = nil
	if len(ids) > 0 {
		t.affiliates, t.guarded = existingFrom(got, len(t.changes), ids)
	}
	return got.Header.Revision, nil
}

// workOut finds what comes of each write, and all problems.
func (t *transaction) workOut(now time.Time) error {
	var problems []error
	for i := range t.changes {
		if err := t.changes[i].workOut(now, t.s.limit); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func (c *change) workOut(now time.Time, most limit) error {
	if err := c.checkState(); err != nil {
		return err
	}
	if c.Verb == Delete {
		c.next, c.value, c.outcome = nil, nil, Deleted
		if !c.old.exists() {
			c.outcome = Unchanged
		}
		return nil
	}
	c.next, c.outcome = c.Resource, Created
	if c.old.exists() {
		c.outcome = Updated
	}
	if len(c.Mask) > 0 && c.old.exists() {
		old, err := link.Unmarshal(c.name, c.old.value)
		if err != nil {
			return &link.Error{Kind: link.Internal, Resource: c.name, Message: "is stored in a form that cannot be read", Err: err}
		}
		if c.next, err = merge(c.kind, old, c.Resource, c.Mask); err != nil {
			return err
		}
	}
	if len(c.Mask) > 0 {
		if err := link.Validate(c.next); err != nil {
			return err
		}
	}
	var err error
	if c.next, err = due(c.next, c.old, now); err != nil {
		return err
	}
	if c.value, err = link.Marshal(c.next); err != nil {
		return err
	}
	if c.old.exists() && bytes.Equal(c.value, c.old.value) {
		c.outcome = Unchanged
	}
	return most.check(c.name, c.value, c.next)
}

// checkState checks what the verb and the etag ask of the stored state.
func (c *change) checkState() error {
	exists := c.old.exists()
	switch {
	case c.Verb == Create && exists:
		return alreadyExists(c.name)
	case (c.Verb == Update || c.Verb == Delete) && !exists && !c.AllowMissing:
		return notFound(c.name)
	case c.Etag == "" || c.Verb == Create:
		return nil
	case !exists:
		return &link.Error{Kind: link.Aborted, Resource: c.name, Message: fmt.Sprintf("the etag %s is stale: the resource does not exist any more", c.Etag)}
	}
	if current := Etag(c.old.revision); c.Etag != current {
		return &link.Error{
			Kind: link.Aborted, Resource: c.name, Etag: current,
			Message: fmt.Sprintf("the etag %s is stale, the current one is %s", c.Etag, current),
			Hint:    "get the resource again, and make the change to what it is now",
		}
	}
	return nil
}

func alreadyExists(name string) *link.Error {
	return &link.Error{
		Kind: link.AlreadyExists, Resource: name, Message: "exists already",
		Hint: "update it, or apply it to have it either way",
	}
}

// op is the change as an operation of etcd; record has the time and who.
func (c *change) op(ctx context.Context, record *linkv1.Record, held *leases) (clientv3.Op, error) {
	if c.outcome == Deleted {
		held.leave(c.old)
		return clientv3.OpDelete(resources + c.name), nil
	}
	record.CreateTime = c.old.createTime(record.UpdateTime)
	record.Resource = c.value
	b, err := proto.Marshal(record)
	if err != nil {
		return clientv3.Op{}, &link.Error{Kind: link.Invalid, Field: "updated_by", Message: "is not valid UTF-8", Err: err}
	}
	return held.put(ctx, resources+c.name, string(b), c.old, c.next.GetBlock().GetExpireTime())
}
