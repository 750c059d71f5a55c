package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// How much one call to etcd reads: as many keys as make about pageBytes,
// within limits.
const (
	pageBytes = 4 << 20
	firstPage = 500
	minPage   = 50
	maxPage   = 5000
)

// scan reads a range of keys page by page, in order, all at one revision.
type scan struct {
	s        *Store
	from     string
	end      string
	revision int64 // 0 until the first page is read: what is current then
	limit    int64 // of the next page
	done     bool  // there is no further page
	paced    bool  // each pauses between pages
}

// scan reads all keys with a prefix; revision 0 is the current one.
func (s *Store) scan(prefix string, revision int64) *scan {
	return &scan{s: s, from: prefix, end: clientv3.GetPrefixRangeEnd(prefix), revision: revision, limit: firstPage}
}

// next reads the next page, which may be empty only if it is the last.
func (c *scan) next(ctx context.Context) ([]*mvccpb.KeyValue, error) {
	got, err := c.s.get(ctx, c.from, clientv3.WithRange(c.end), clientv3.WithRev(c.revision), clientv3.WithLimit(c.limit))
	if err != nil {
		return nil, err
	}
	if c.revision == 0 {
		c.revision = got.Header.Revision
	}
	c.done = !got.More
	if n := len(got.Kvs); n > 0 {
		c.from = string(got.Kvs[n-1].Key) + "\x00"
		bytes := 0
		for _, kv := range got.Kvs {
			bytes += len(kv.Key) + len(kv.Value)
		}
		c.limit = min(max(int64(pageBytes/(bytes/n+1)), minPage), maxPage)
	}
	return got.Kvs, nil
}

// each hands every object to fn, reading the next page meanwhile.
func (c *scan) each(ctx context.Context, fn func(Object) error) error {
	type page struct {
		kvs  []*mvccpb.KeyValue
		last bool
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	pages := make(chan page)
	stopped := make(chan struct{})
	defer func() { cancel(); <-stopped }()
	go func() {
		defer close(stopped)
		for last := false; !last; {
			start := time.Now()
			kvs, err := c.next(ctx)
			last = c.done || err != nil
			if c.paced && !last {
				pause(ctx, 3*time.Since(start))
			}
			select {
			case pages <- page{kvs, last, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var p page
		select {
		case p = <-pages:
		case <-stopped:
			return ctx.Err()
		}
		if p.err != nil {
			return p.err
		}
		for _, kv := range p.kvs {
			if o := object(kv); o.Value != nil {
				if err := fn(o); err != nil {
					return err
				}
			}
		}
		if p.last {
			return nil
		}
	}
}

// LoadOptions says how everything is read. The zero value is a reading of the
// current revision, as fast as can be.
type LoadOptions struct {
	At    int64 // the revision; 0: the current one
	Paced bool  // leave etcd more time for others than it takes
}

// Load hands every resource to each, in order of their names, as they are at
// the revision that it gives. It stops at each's first error and gives that;
// ErrCompacted when etcd has forgotten the revision. Records that cannot be
// read are left out, as Watch leaves them out.
func (s *Store) Load(ctx context.Context, opts LoadOptions, each func(Object) error) (int64, error) {
	c := s.scan(resources, opts.At)
	c.paced = opts.Paced
	err := c.each(ctx, each)
	if errors.Is(err, rpctypes.ErrCompacted) {
		err = ErrCompacted
	}
	return c.revision, err
}

// Scan hands every resource that matches to each, as Load does, at a revision;
// 0 is the current one.
func (s *Store) Scan(ctx context.Context, f Filter, revision int64, each func(Object) error) (int64, error) {
	prefix, err := f.prefix()
	if err != nil {
		return 0, err
	}
	c := s.scan(resources+prefix, revision)
	err = c.each(ctx, func(o Object) error {
		if !f.Match(&o) {
			return nil
		}
		return each(o)
	})
	return c.revision, err
}

// Count gives how many resources have names that match, at a revision; 0 is
// the current one. It does not look at affiliates and labels.
func (s *Store) Count(ctx context.Context, f Filter, revision int64) (int64, error) {
	prefix, err := f.prefix()
	if err != nil {
		return 0, err
	}
	got, err := s.get(ctx, resources+prefix, clientv3.WithPrefix(), clientv3.WithRev(revision), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return got.Count, nil
}

// pause waits for a time or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}
