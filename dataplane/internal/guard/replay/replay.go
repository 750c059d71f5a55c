// Package replay runs the detectors and a policy over clicks of the past, and
// prints what would have been found and decided. Nothing is published or blocked.
package replay

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Replay is one pass over clicks. It belongs to one goroutine.
type Replay struct {
	engine *guard.Engine
	policy *policy.Policy
	judge  policy.Judge
	out    *bufio.Writer
	err    error // of writing

	began     time.Time
	batches   uint64
	malformed uint64
	verdicts  map[string]uint64
}

// New prints to out, a JSON object a line: {"finding": ...}, {"decision": ...}.
func New(settings guard.Settings, p *policy.Policy, out io.Writer) (*Replay, error) {
	r := &Replay{policy: p, out: bufio.NewWriter(out), began: time.Now(), verdicts: make(map[string]uint64)}
	var err error
	r.engine, err = guard.NewEngine(settings, r.found)
	return r, err
}

// Add looks at a batch.
func (r *Replay) Add(b *clickstream.Batch) error {
	r.batches++
	r.engine.Add(b)
	return r.err
}

// found prints a finding, and what the policy makes of it at the time of its
// last click.
func (r *Replay) found(f *clickv1.Finding) {
	r.print(&clickv1.Report{Report: &clickv1.Report_Finding{Finding: f}})
	v := r.judge.Decide(r.policy, f, f.GetTo().AsTime())
	r.verdicts[v.Decision.GetVerdict().String()]++
	r.print(&clickv1.Report{Report: &clickv1.Report_Decision{Decision: v.Decision}})
}

func (r *Replay) print(report *clickv1.Report) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(report)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return
	}
	var line bytes.Buffer
	_ = json.Compact(&line, text) // it is JSON
	line.WriteByte('\n')
	if _, err := r.out.Write(line.Bytes()); err != nil && r.err == nil {
		r.err = err
	}
}

// Read looks at all batches of a file: each is an aff.click.v1.Batch with its
// length before it, a varint, as protobuf's writeDelimitedTo has it. What is no
// batch is counted and passed over.
func (r *Replay) Read(in io.Reader) error {
	reader := NewReader(in)
	for {
		data, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := clickstream.Decode(data)
		if err != nil {
			r.malformed++
			continue
		}
		if err := r.Add(b); err != nil {
			return err
		}
	}
}

// Stats are the figures of a pass.
type Stats struct {
	Clicks             uint64            `json:"clicks"`
	Robots             uint64            `json:"robots"`
	Batches            uint64            `json:"batches"`
	Malformed          uint64            `json:"malformed"`
	Findings           map[string]uint64 `json:"findings"`
	Decisions          map[string]uint64 `json:"decisions"`
	Evicted            uint64            `json:"evicted"`
	StateBytes         int64             `json:"state_bytes"`
	Seconds            float64           `json:"seconds"`
	CPUSeconds         float64           `json:"cpu_seconds"`
	ClicksPerSecond    float64           `json:"clicks_per_second"`
	ClicksPerCPUSecond float64           `json:"clicks_per_cpu_second"`
	RSSBytes           int64             `json:"rss_bytes"`
	MaxRSSBytes        int64             `json:"max_rss_bytes"`
}

// Close writes what is left; with stats, a last line {"stats": ...}.
func (r *Replay) Close(stats bool) error {
	if stats {
		text, err := json.Marshal(map[string]Stats{"stats": r.stats()})
		if err != nil {
			return err
		}
		if _, err := r.out.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	return errors.Join(r.err, r.out.Flush())
}

func (r *Replay) stats() Stats {
	e := r.engine.Stats()
	s := Stats{
		Clicks: e.Clicks, Robots: e.Robots, Batches: r.batches, Malformed: r.malformed, Findings: e.Findings,
		Decisions: r.verdicts, Evicted: e.Evicted, StateBytes: e.Bytes, Seconds: time.Since(r.began).Seconds(),
	}
	var cpu time.Duration
	cpu, s.RSSBytes, s.MaxRSSBytes = usage()
	s.CPUSeconds = cpu.Seconds()
	s.ClicksPerSecond = float64(s.Clicks) / max(s.Seconds, 1e-9)
	if s.CPUSeconds > 0 {
		s.ClicksPerCPUSecond = float64(s.Clicks) / s.CPUSeconds
	}
	return s
}

// Reader takes messages off a file.
type Reader struct {
	in     *bufio.Reader
	buf    []byte
	offset int64
}

// maxMessage is the most bytes of a message: a node's has some 64 KiB.
const maxMessage = 16 << 20

// NewReader reads messages that have their length before them.
func NewReader(in io.Reader) *Reader { return &Reader{in: bufio.NewReaderSize(in, 1<<18)} }

// Next gives the next message; it is good until the next call. io.EOF at the end.
func (r *Reader) Next() ([]byte, error) {
	at := r.offset
	var n uint64
	for i := 0; ; i++ {
		b, err := r.in.ReadByte()
		if err == io.EOF && i > 0 {
			return nil, fmt.Errorf("message at byte %d: the file ends in its length", at)
		}
		if err != nil {
			return nil, err
		}
		r.offset++
		if n |= uint64(b&0x7f) << (7 * i); b < 0x80 {
			break
		}
		if i == 4 {
			return nil, fmt.Errorf("message at byte %d: its length is none of a message", at)
		}
	}
	if n > maxMessage {
		return nil, fmt.Errorf("message at byte %d: it has %d bytes, and at most %d are allowed", at, n, maxMessage)
	}
	if int(n) > cap(r.buf) {
		r.buf = make([]byte, n, 2*n)
	}
	r.buf = r.buf[:n]
	got, err := io.ReadFull(r.in, r.buf)
	r.offset += int64(got)
	if err != nil {
		return nil, fmt.Errorf("message at byte %d: the file ends after %d of its %d bytes", at, got, n)
	}
	return r.buf, nil
}
