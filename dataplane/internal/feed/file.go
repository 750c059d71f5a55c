package feed

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/affleet/affleet/dataplane/internal/aside"
	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/statefile"
)

// yieldEvery is how many entries are copied between two yields.
const yieldEvery = 32

// writeState writes a table, as package statefile says, in pieces between which
// it yields. at is when it was last known to be the newest.
func writeState(w io.Writer, t *table.Table, at time.Time, yield func()) error {
	v := t.Version()
	to, err := statefile.NewWriter(w, statefile.Header{Epoch: v.Epoch, Revision: v.Revision, Entries: int64(t.Len()), Hash: t.Hash(), Confirmed: at})
	if err != nil {
		return err
	}
	to.Between = yield
	n := 0
	for key, value := range t.All() {
		if n++; n%yieldEvery == 0 {
			yield()
		}
		if err := to.Add(key, value); err != nil {
			return err
		}
	}
	return to.Close()
}

// readState reads a table and verifies it whole. What cannot be served is held,
// as it is when it comes in a frame. Admit may refuse its version, when the
// header is read. It gives the time of the header too, also beside an error.
func readState(from io.Reader, guard *Guard, admit func(table.Version) error) (_ *table.Table, at time.Time, err error) {
	r, err := statefile.NewReader(from)
	if err != nil {
		return nil, at, err
	}
	h := r.Header()
	t, err := readTable(r, guard, admit)
	return t, h.Confirmed, err
}

// readTable reads what follows the header.
func readTable(r *statefile.Reader, guard *Guard, admit func(table.Version) error) (*table.Table, error) {
	h := r.Header()
	v := table.Version{Epoch: h.Epoch, Revision: h.Revision}
	err := guard.size(h.Entries, 0)
	if err == nil {
		err = admit(v)
	}
	if err != nil {
		return nil, err
	}
	builder := newBuilder(h.Entries)
	var left unserved
	for list, err := range batches(r) {
		if err == nil {
			err = holdable(list)
		}
		if err == nil {
			err = putAll(builder, list, guard.MaxEntryBytes, &left)
		}
		if err != nil {
			return nil, err
		}
		if int64(builder.Len()) > h.Entries {
			return nil, errors.New("it has more entries than its header says")
		}
		if err := guard.size(0, int64(builder.Size())); err != nil {
			return nil, err
		}
	}
	if err := h.Check(int64(builder.Len()), builder.Hash()); err != nil {
		return nil, err
	}
	return builder.Build(v), nil
}

// readStateFile reads the table of a file, and the time of its header.
func readStateFile(path string, guard *Guard, admit func(table.Version) error) (t *table.Table, at time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, at, err
	}
	defer f.Close()
	return readState(bufio.NewReaderSize(f, 1<<20), guard, admit)
}

// stateVersion gives the version that a file says to hold; zero where it says none.
func stateVersion(path string) (v table.Version) {
	f, err := os.Open(path)
	if err != nil {
		return v
	}
	defer f.Close()
	if r, err := statefile.NewReader(f); err == nil {
		v = table.Version{Epoch: r.Header().Epoch, Revision: r.Header().Revision}
	}
	return v
}

// writeStateFile writes a table to path. What path was becomes previous, if that
// is not empty. At every moment, also of a power loss, one of the two is whole.
func writeStateFile(path, previous string, t *table.Table, at time.Time) error {
	return writeFile(path, previous, func(f *os.File) error {
		yield := aside.NewYield()
		w := bufio.NewWriterSize(f, aside.Piece)
		if err := writeState(w, t, at, yield); err != nil {
			return err
		}
		return w.Flush()
	})
}

// writeFile is writeStateFile for any content.
func writeFile(path, previous string, write func(*os.File) error) (err error) {
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temporary)
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if previous != "" {
		if err := os.Rename(path, previous); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes renames in a folder last.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
