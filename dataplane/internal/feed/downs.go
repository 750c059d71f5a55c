package feed

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// downLog keeps what was taken down beside the journal, so that a node that starts
// anew goes on refusing it: the replica that told it may have started anew, too, and
// know nothing of it. A record is a SubscribeResponse as it came, in the journal's
// form; like a journal's it survives the end of the process. It stays until there are two
// files that a start may begin with, and both are of versions that hold it: the newest may
// be torn, or be what ends the process, and what is live may be in no file yet. The zero
// value keeps nothing.
//
// read and add belong to the goroutine that applies frames; saved may be called from
// any goroutine.
type downLog struct {
	path string // empty: nothing is kept
	log  *slog.Logger
	told pace

	mu      sync.Mutex
	records []record
	size    int64 // of the records
}

// maxDowns is how large the file becomes, in bytes, where no state can be written:
// beyond it, nothing is added.
const maxDowns = maxTakenDownBytes

// read takes in what the file has, up to where it is damaged, and the state does not
// hold.
func (d *downLog) read(a *applier) {
	if d.path == "" {
		return
	}
	lacking, err := d.load(a)
	if errors.Is(err, errUnread) {
		d.setAside(err)
		return
	}
	if len(lacking) > 0 {
		if err := a.wire.armTakenDown(); err != nil {
			d.setAside(err)
			return
		}
		err = errors.Join(err, d.replay(lacking, a))
		a.wire.done()
	}
	if err != nil {
		d.log.Error("what was taken down is known in part: links may be served again until a control plane answers", "file", d.path, "reason", err)
	}
}

// errUnread says that nothing is known of what is in the file.
var errUnread = errors.New("it cannot be read")

// load reads the records, and gives those that the state does not hold. What was taken
// down in an epoch that was left for the one that is served is nobody's any more.
func (d *downLog) load(a *applier) (lacking [][]byte, err error) {
	f, err := os.Open(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnread, err)
	}
	defer f.Close()
	held := heldVersion(a.live)
	for r := bufio.NewReader(f); ; {
		var own []byte // of the record
		b, err := readRecord(r, &own)
		if errors.Is(err, io.EOF) {
			return lacking, nil
		}
		if err != nil {
			return lacking, err
		}
		var m feedv1.SubscribeResponse
		if err := proto.Unmarshal(b, &m); err != nil || m.GetTakeDown() == nil {
			return lacking, errors.New("a record is not a take-down")
		}
		v := versionOf(m.GetTakeDown().GetVersion())
		d.note(v, b)
		if v.Epoch == held.Epoch && later(v, held) || v.Epoch != held.Epoch && !a.past.has(v.Epoch) {
			lacking = append(lacking, b)
		}
	}
}

// note notes a record that is in the file.
func (d *downLog) note(v table.Version, message []byte) {
	d.size += int64(recordHead + len(message))
	d.records = append(d.records, record{v, d.size})
}

// setAside moves the file away, so that somebody can see what it was.
func (d *downLog) setAside(why error) {
	aside := d.path + ".bad" // of the last time
	why = errors.Join(why, os.Rename(d.path, aside))
	d.log.Error("what was taken down is not used: links may be served again until a control plane answers", "file", d.path, "moved_to", aside, "reason", why)
	d.records, d.size = nil, 0
}

// replay takes in messages of the file.
func (d *downLog) replay(messages [][]byte, a *applier) error {
	path, wire := d.path, a.wire
	d.path, a.wire = "", &tripwire{} // what is read need not be written, and is noted as a whole
	defer func() { d.path, a.wire = path, wire }()
	for _, b := range messages {
		if o := a.take(b); o.err != nil {
			return o.err
		}
	}
	return nil
}

// add keeps a message that takes something down.
func (d *downLog) add(v table.Version, message []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" {
		return
	}
	err := d.append(sealed(message))
	if err == nil {
		d.note(v, message)
		return
	}
	if _, ok := d.told.due(tellEvery); ok {
		d.log.Error("what was taken down is not written: if the node is killed before it serves the version, links may be served again until a control plane answers", "file", d.path, "err", err)
	}
}

// append writes a record behind those that are there. Take-downs are few: the file
// is not kept open for them.
func (d *downLog) append(record []byte) error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return errors.Join(err, f.Close())
	case info.Size() < d.size: // somebody has removed what was there
		d.records, d.size = nil, 0
	case d.size+int64(len(record)) > maxDowns:
		return errors.Join(fmt.Errorf("it has %d bytes, and no state was written since", d.size), f.Close())
	}
	_, err = f.WriteAt(record, d.size)
	return errors.Join(err, f.Truncate(d.size+int64(len(record))), f.Close())
}

// saved drops what all of the states hold that a start may begin with, and what is of
// an epoch of none of them. A state of another epoch than the newest take-down's, which
// may be where the node goes next, holds nothing of that one. One of the zero version
// holds nothing at all: a start that finds no file takes what any replica has.
func (d *downLog) saved(states ...table.Version) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" || len(d.records) == 0 {
		return
	}
	next := d.records[len(d.records)-1].to.Epoch
	var kept []record
	for _, r := range d.records {
		lacks := func(s table.Version) bool {
			return s == (table.Version{}) || later(r.to, s) || r.to.Epoch == next && s.Epoch != next
		}
		if slices.ContainsFunc(states, lacks) {
			kept = append(kept, r)
		}
	}
	if len(kept) < len(d.records) {
		_ = d.cut(kept) // it says what the states say, and is tried again
	}
}

// cut leaves some of the records.
func (d *downLog) cut(kept []record) error {
	if len(kept) == 0 {
		if err := os.Remove(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		d.records, d.size = nil, 0
		return nil
	}
	before, err := os.ReadFile(d.path)
	if err != nil {
		return err
	}
	if int64(len(before)) < d.size {
		return io.ErrUnexpectedEOF // somebody has removed it
	}
	var all []byte
	var rest []record
	from := int64(0)
	for _, r := range d.records {
		if len(rest) < len(kept) && r == kept[len(rest)] {
			all = append(all, before[from:r.end]...)
			rest = append(rest, record{r.to, int64(len(all))})
		}
		from = r.end
	}
	if err := os.WriteFile(d.path+".tmp", all, 0o600); err != nil {
		return err
	}
	if err := os.Rename(d.path+".tmp", d.path); err != nil {
		return err
	}
	d.records, d.size = rest, int64(len(all))
	return nil
}
