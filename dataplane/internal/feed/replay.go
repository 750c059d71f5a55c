package feed

import (
	"errors"
	"io"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// replayBytes is about how much of a journal is put into one table, in bytes.
// The states in between are nobody's. An import leaves a journal as large as the
// file, and with a table for each of its records a start took a quarter longer.
const replayBytes = 1 << 20

// replay applies record after record to the state of the file, and notes them.
func (j *journal) replay(r io.Reader, t *table.Table, guard Guard) (*table.Table, error) {
	guard.setDefaults()
	for {
		piece, end := readPiece(r)
		next, ok := atOnce(t, piece, &guard)
		if ok {
			for _, d := range piece {
				j.note(d)
			}
		} else {
			var err error
			if next, err = j.oneByOne(t, piece, guard); err != nil {
				return next, err
			}
		}
		t = next
		if errors.Is(end, io.EOF) {
			return t, nil
		}
		if end != nil {
			return t, end
		}
	}
}

// logged is a delta of the journal.
type logged struct {
	delta
	message []byte
}

// after says whether a delta has something that a state lacks: those that are
// older than the file are passed over.
func (d *logged) after(held table.Version) bool { return d.to != held && !later(held, d.to) }

// note notes a record that was read.
func (j *journal) note(d logged) {
	j.size += int64(recordHead + len(d.message))
	j.records = append(j.records, record{d.to, j.size})
}

// readPiece reads as many records as are applied at once, and why there are no
// more: io.EOF at the end, nil if there may be.
func readPiece(r io.Reader) (piece []logged, end error) {
	for size := 0; size < replayBytes; {
		var own []byte // of the record: the piece keeps it
		b, err := readRecord(r, &own)
		if err != nil {
			return piece, err
		}
		d, err := decodeDelta(b)
		if err != nil {
			return piece, err
		}
		piece = append(piece, logged{d, b})
		size += len(b)
	}
	return piece, nil
}

// atOnce gives the state that follows from a piece, unless something about it is
// wrong. Each delta has been live; what counts is that they follow each other,
// and that the set hash after the last one is right.
func atOnce(t *table.Table, piece []logged, guard *Guard) (*table.Table, bool) {
	builder, at := t.Edit(), t.Version()
	var last *logged
	var puts []pair
	put := func() bool {
		var left unserved
		err := holdable(puts)
		if err == nil {
			err = putAll(builder, puts, guard.MaxEntryBytes, &left)
		}
		puts = puts[:0]
		return err == nil
	}
	for i := range piece {
		d := &piece[i]
		if !d.after(at) {
			continue
		}
		if d.from != at || !later(d.to, at) {
			return nil, false
		}
		var c changes
		if c.read(d.message) != nil {
			return nil, false
		}
		if len(c.deletes) > 0 && !put() {
			return nil, false
		}
		for _, key := range c.deletes {
			if !builder.Delete(key) {
				return nil, false
			}
		}
		puts = append(puts, c.puts...)
		at, last = d.to, d
	}
	if last == nil {
		return t, true
	}
	if !put() || int64(builder.Len()) != last.entries || builder.Hash() != last.hash || guard.size(int64(builder.Len()), int64(builder.Size())) != nil {
		return nil, false
	}
	return builder.Build(at), true
}

// oneByOne applies delta after delta, as when they came. On error it gives the
// state before the one that is wrong.
func (j *journal) oneByOne(t *table.Table, piece []logged, guard Guard) (*table.Table, error) {
	live := &table.Live{}
	live.Store(t)
	a := newApplier(live, guard)
	for _, d := range piece {
		if d.after(live.Load().Version()) {
			if o := a.delta(d.message); o.applied == nil {
				return live.Load(), errors.New(o.rejection.reason)
			}
		}
		j.note(d)
	}
	return live.Load(), nil
}
