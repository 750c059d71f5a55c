package feed

import (
	"bufio"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// downLog keeps the overlay beside the journal, so that a node that starts anew
// goes on refusing what was taken down: the replica that told it may have started
// anew, too, and know nothing of it. A record is a SubscribeResponse as it came,
// in the journal's form; like a journal's it survives the end of the process. The
// zero value keeps nothing.
//
// It belongs to the goroutine that applies frames.
type downLog struct {
	path string // empty: nothing is kept
	log  *slog.Logger
	size int64 // of the records
	told pace
}

// sparse is how large a file may be, in bytes, before it is looked at whether it
// could be much smaller.
const sparse = 1 << 20

// read takes in what the file has, up to where it is damaged.
func (d *downLog) read(a *applier) {
	if d.path == "" {
		return
	}
	f, err := os.Open(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		defer f.Close()
		if err := a.wire.armTakenDown(); err != nil {
			aside := d.path + ".bad" // of the last time
			err = errors.Join(err, os.Rename(d.path, aside))
			d.log.Error("what was taken down is not used: links may be served again until a control plane answers", "file", d.path, "moved_to", aside, "reason", err)
			return
		}
		err = d.replay(f, a)
		a.wire.done()
	}
	if err != nil {
		d.log.Error("what was taken down is known in part: links may be served again until a control plane answers", "file", d.path, "reason", err)
	}
}

func (d *downLog) replay(f *os.File, a *applier) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	path, wire := d.path, a.wire
	d.path, a.wire = "", &tripwire{} // what is read need not be written, and is noted as a whole
	defer func() { d.path, a.wire = path, wire }()
	r := bufio.NewReader(f)
	var buf []byte
	for d.size < info.Size() {
		b, err := readRecord(r, &buf)
		if err != nil {
			return err
		}
		if o := a.take(b); o.kind != kindTakeDown || o.err != nil {
			return errors.New("a record is not a take-down")
		}
		d.size += int64(recordHead + len(b))
	}
	return nil
}

// add keeps a message that takes something down.
func (d *downLog) add(message []byte) {
	if d.path == "" {
		return
	}
	err := d.append(sealed(message))
	if err == nil {
		d.size += int64(recordHead + len(message))
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
	_, err = f.WriteAt(record, d.size)
	return errors.Join(err, f.Truncate(d.size+int64(len(record))), f.Close())
}

// dropped makes the file smaller when the overlay is.
func (d *downLog) dropped(o *overlay) {
	switch {
	case d.path == "" || d.size == 0:
		return
	case len(o.refusals) == 0:
		if err := os.Remove(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return // it says what the version says, and is tried again
		}
		d.size = 0
		return
	case d.size < sparse || d.size/4 < int64(o.size):
		return
	}
	var all []byte
	for _, m := range o.messages() {
		b, err := proto.Marshal(m)
		if err != nil {
			return
		}
		all = append(all, sealed(b)...)
	}
	if err := os.WriteFile(d.path+".tmp", all, 0o600); err != nil {
		return
	}
	if err := os.Rename(d.path+".tmp", d.path); err == nil {
		d.size = int64(len(all))
	}
}

// messages are the overlay as it would come from a control plane.
func (o *overlay) messages() (all []*feedv1.SubscribeResponse) {
	of := map[int64]*feedv1.TakeDown{} // by revision
	for key, r := range o.refusals {
		m := of[r.version.Revision]
		if m == nil {
			m = &feedv1.TakeDown{Version: versionProto(r.version)}
			of[r.version.Revision] = m
			all = append(all, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_TakeDown{TakeDown: m}})
		}
		m.Entries = append(m.Entries, &feedv1.Entry{Key: key, Value: r.value})
	}
	return all
}
