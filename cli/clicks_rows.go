package cli

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/clickstream/clickparquet"
)

// rowFile is a file of clicks that is being written.
type rowFile interface {
	write([]clickstream.Click) error
	// save makes durable what was written, and notes it.
	save(*resumeFile) error
	// pace is how often it is worth while: after a time, after some clicks.
	pace() (time.Duration, int)
	// finish gives the complete file its name.
	finish() error
	close()
}

// textFile is one of lines: an interrupted one is cut at its last saved line.
type textFile struct {
	path string   // empty: stdout
	file *os.File // nil: stdout
	buf  *bufio.Writer
	row  func(*clickstream.Click) error
	csv  *csv.Writer
}

func newTextFile(format exportFormat, w io.Writer) *textFile {
	f := &textFile{buf: bufio.NewWriterSize(w, 1<<18)}
	if format == "csv" {
		f.csv = csv.NewWriter(f.buf)
		f.row = func(c *clickstream.Click) error { return f.csv.Write(csvRow(c)) }
		_ = f.csv.Write(csvHeader) // into the buffer
		return f
	}
	enc := json.NewEncoder(f.buf)
	enc.SetEscapeHTML(false)
	f.row = func(c *clickstream.Click) error { return enc.Encode(c) }
	return f
}

// openText begins a file, or goes on with one behind what is saved.
func openText(path string, saved *resumeFile) (*textFile, error) {
	if saved.Complete && exists(path) && !exists(path+".partial") { // it has its name
		return newTextFile(saved.Format, io.Discard), nil
	}
	file, err := os.OpenFile(path+".partial", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Size() < saved.Size {
		err = &failure{
			code: codeError, message: fmt.Sprintf("%s is shorter than it was", file.Name()),
			hint: fmt.Sprintf("remove %s.resume to begin anew", path),
		}
	}
	if err == nil {
		err = file.Truncate(saved.Size)
	}
	if err == nil {
		_, err = file.Seek(saved.Size, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	f := newTextFile(saved.Format, file)
	f.path, f.file = path, file
	if saved.Size > 0 { // it has its header
		f.buf.Reset(file)
		if f.csv != nil {
			f.csv = csv.NewWriter(f.buf) // without the header that the first one holds
		}
	}
	return f, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (f *textFile) write(clicks []clickstream.Click) error {
	for i := range clicks {
		if err := f.row(&clicks[i]); err != nil {
			return err
		}
	}
	return nil
}

func (f *textFile) flush() error {
	if f.csv != nil {
		f.csv.Flush()
		if err := f.csv.Error(); err != nil {
			return err
		}
	}
	return f.buf.Flush()
}

func (f *textFile) save(saved *resumeFile) error {
	if err := f.flush(); err != nil {
		return err
	}
	if err := f.file.Sync(); err != nil {
		return err
	}
	size, err := f.file.Seek(0, io.SeekCurrent)
	saved.Size = size
	return err
}

func (f *textFile) pace() (time.Duration, int) { return time.Second, 200_000 }

func (f *textFile) finish() error {
	if err := f.flush(); err != nil || f.file == nil {
		return err
	}
	if err := errors.Join(f.file.Sync(), f.file.Close()); err != nil {
		return err
	}
	return os.Rename(f.file.Name(), f.path)
}

func (f *textFile) close() {
	if f.file != nil {
		_ = f.file.Close() // after finish, or what was saved counts
	}
}

var csvHeader = []string{
	"node", "boot", "sequence", "region", "time", "epoch", "revision", "link", "affiliate", "campaign", "variant", "rule", "destination",
	"status", "method", "outcome", "address", "user_agent", "referrer", "languages", "host", "path", "parameters", "labels", "country", "asn",
}

// csvRow has parameters and labels as "name=value&name=value"; "%", "&" and "="
// in them stand as "%25", "%26" and "%3D".
func csvRow(c *clickstream.Click) []string {
	var parameters, labels []string
	for _, p := range c.Parameters {
		parameters = append(parameters, pairCell(p.Name, p.Value))
	}
	for _, l := range c.Labels {
		labels = append(labels, pairCell(l.Name, l.Reason))
	}
	return []string{
		c.Node, c.Boot.String(), strconv.FormatUint(c.Sequence, 10), c.Region, c.Time.Format("2006-01-02T15:04:05.000000Z"), c.Epoch.String(),
		strconv.FormatInt(c.Revision, 10), c.Link, c.Affiliate, c.Campaign, c.Variant, strconv.FormatUint(uint64(c.Rule), 10), c.Destination,
		strconv.Itoa(c.Status), c.Method, c.Outcome.String(), c.Address.String(), c.UserAgent, c.Referrer, c.Languages, c.Host, c.Path,
		strings.Join(parameters, "&"), strings.Join(labels, "&"), c.Country, strconv.FormatUint(uint64(c.ASN), 10),
	}
}

var pairEscaper = strings.NewReplacer("%", "%25", "&", "%26", "=", "%3D")

func pairCell(name, value string) string {
	if value == "" {
		return pairEscaper.Replace(name)
	}
	return pairEscaper.Replace(name) + "=" + pairEscaper.Replace(value)
}

// parquetFile is one in parts, as a Parquet file cannot be gone on with. At
// the end they are joined.
type parquetFile struct {
	path  string
	parts int
	named bool // they were joined before, and some may be gone
	file  *os.File
	w     *clickparquet.Writer // nil: no part is open
}

func openParquet(path string, saved *resumeFile) (*parquetFile, error) {
	f := &parquetFile{path: path, parts: saved.Parts}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, err
	}
	for n := range saved.Parts {
		_, err := os.Stat(f.part(n))
		if f.named = err != nil && saved.Complete && exists(path); f.named {
			break
		}
		if err != nil {
			return nil, &failure{code: codeError, message: err.Error(), hint: fmt.Sprintf("remove %s.resume to begin anew", path)}
		}
	}
	return f, nil
}

func (f *parquetFile) part(n int) string { return fmt.Sprintf("%s.partial.%d", f.path, n) }

func (f *parquetFile) write(clicks []clickstream.Click) (err error) {
	if f.w == nil {
		if f.file, err = os.Create(f.part(f.parts)); err != nil {
			return err
		}
		f.w = clickparquet.NewWriter(f.file)
	}
	return f.w.Write(clicks)
}

func (f *parquetFile) save(saved *resumeFile) error {
	if f.w == nil {
		return nil
	}
	if err := errors.Join(f.w.Close(), f.file.Sync(), f.file.Close()); err != nil {
		return err
	}
	f.w = nil
	f.parts++
	saved.Parts = f.parts
	return nil
}

func (f *parquetFile) pace() (time.Duration, int) { return time.Minute, 1 << 19 }

func (f *parquetFile) finish() error {
	if !f.named {
		if err := f.join(); err != nil {
			return err
		}
	}
	for n := range f.parts {
		if err := os.Remove(f.part(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (f *parquetFile) join() error {
	out, err := createAtomic(f.path)
	if err != nil {
		return err
	}
	defer out.discard()
	var paths []string
	for n := range f.parts {
		paths = append(paths, f.part(n))
	}
	if err := clickparquet.Join(out, paths); err != nil {
		return err
	}
	return out.commit()
}

func (f *parquetFile) close() {
	if f.w != nil {
		_ = f.file.Close() // the part was not saved
		_ = os.Remove(f.file.Name())
	}
}
