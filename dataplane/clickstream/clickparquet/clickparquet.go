// Package clickparquet writes clicks as Apache Parquet: one row is one click,
// its columns are named as in the JSON of clickstream.Click. It is for files
// that are made from the stream; it reads nothing from it.
//
// A Writer belongs to one goroutine.
package clickparquet

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// Row is one click. Text that is not UTF-8 has U+FFFD where it is not.
type Row struct {
	Node        string      `parquet:"node,dict"`
	Boot        string      `parquet:"boot,dict"` // 16 hex digits
	Sequence    uint64      `parquet:"sequence,delta"`
	Region      string      `parquet:"region,dict"`
	Time        int64       `parquet:"time,delta,timestamp(microsecond)"` // UTC
	Epoch       string      `parquet:"epoch,dict"`
	Revision    int64       `parquet:"revision,delta"`
	Link        string      `parquet:"link,dict"`
	Affiliate   string      `parquet:"affiliate,dict"`
	Campaign    string      `parquet:"campaign,dict"`
	Variant     string      `parquet:"variant,dict"`
	Rule        uint32      `parquet:"rule"`
	Destination string      `parquet:"destination,dict"`
	Status      int32       `parquet:"status"`
	Method      string      `parquet:"method,dict"`
	Outcome     string      `parquet:"outcome,dict"`
	Address     string      `parquet:"address,dict"` // 203.0.113.9, 203.0.113.0/24, or a hash in hex
	UserAgent   string      `parquet:"user_agent,dict"`
	Referrer    string      `parquet:"referrer,dict"`
	Languages   string      `parquet:"languages,dict"`
	Host        string      `parquet:"host,dict"`
	Path        string      `parquet:"path,dict"`
	Parameters  []Parameter `parquet:"parameters,list"`
	Labels      []Label     `parquet:"labels,list"`
	Country     string      `parquet:"country,dict"`
	ASN         uint32      `parquet:"asn"`
}

// Parameter is a recorded parameter of the request.
type Parameter struct {
	Name  string `parquet:"name,dict"`
	Value string `parquet:"value,dict"`
}

// Label is what the node thought of the request.
type Label struct {
	Name   string `parquet:"name,dict"`
	Reason string `parquet:"reason,dict"`
}

// rowOf is a click as a row.
func rowOf(c *clickstream.Click) Row {
	r := Row{
		Node: text(c.Node), Boot: c.Boot.String(), Sequence: c.Sequence, Region: text(c.Region), Time: c.Time.UnixMicro(),
		Epoch: c.Epoch.String(), Revision: c.Revision, Link: text(c.Link), Affiliate: text(c.Affiliate), Campaign: text(c.Campaign),
		Variant: text(c.Variant), Rule: c.Rule, Destination: text(c.Destination), Status: int32(c.Status), Method: c.Method,
		Outcome: c.Outcome.String(), Address: c.Address.String(), UserAgent: text(c.UserAgent), Referrer: text(c.Referrer),
		Languages: text(c.Languages), Host: text(c.Host), Path: text(c.Path), Country: text(c.Country), ASN: c.ASN,
	}
	for _, p := range c.Parameters {
		r.Parameters = append(r.Parameters, Parameter{text(p.Name), text(p.Value)})
	}
	for _, l := range c.Labels {
		r.Labels = append(r.Labels, Label{text(l.Name), text(l.Reason)})
	}
	return r
}

func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Writer writes one file.
type Writer struct {
	w    *parquet.GenericWriter[Row]
	rows []Row
}

// groupRows is how many rows are held in memory, compressed, until they are
// written.
const groupRows = 1 << 19

func options() []parquet.WriterOption {
	return []parquet.WriterOption{
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}), parquet.MaxRowsPerRowGroup(groupRows),
		parquet.CreatedBy("affleet", "v1", ""),
	}
}

// NewWriter starts a file.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: parquet.NewGenericWriter[Row](w, options()...)}
}

// Write appends clicks.
func (w *Writer) Write(clicks []clickstream.Click) error {
	w.rows = w.rows[:0]
	for i := range clicks {
		w.rows = append(w.rows, rowOf(&clicks[i]))
	}
	_, err := w.w.Write(w.rows)
	return err
}

// Close writes what ends the file, which is no file before.
func (w *Writer) Close() error { return w.w.Close() }

// Join writes the rows of files that a Writer made, one after the other, into
// one file.
func Join(to io.Writer, paths []string) error {
	w := parquet.NewGenericWriter[Row](to, options()...)
	for _, path := range paths {
		if err := appendFile(w, path); err != nil {
			return fmt.Errorf("join %s: %w", path, err)
		}
	}
	return w.Close()
}

func appendFile(w *parquet.GenericWriter[Row], path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	part, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		return err
	}
	for _, group := range part.RowGroups() {
		if _, err := w.WriteRowGroup(group); err != nil {
			return err
		}
	}
	return nil
}
