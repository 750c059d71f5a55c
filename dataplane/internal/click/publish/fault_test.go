package publish

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
)

// lines is a log that several goroutines write.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// A page that the disk cannot give is, as one behind the end of its file, a fault of
// who reads it.
func TestASegmentThatCannotBeReadIsPassedAndToldOfOnce(t *testing.T) {
	s := natstest.Start(t)
	dir := t.TempDir()
	r := openRecorder(t, func(c *click.Config) { c.Dir, c.Boot = dir, 5 })
	const n, later = 1000, 500
	for i := range n {
		r.Record(event(i))
	}
	segments, err := filepath.Glob(filepath.Join(dir, "*5", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("%v, %v", segments, err)
	}
	if err := os.Truncate(segments[0], 64<<10); err != nil { // it holds them all
		t.Fatal(err)
	}
	var log lines
	p, _ := start(t, s.URL(), r, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for p.published.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for i := range later {
		r.Record(event(n + i))
	}
	flush(t, p)
	clicks, account := consumed(t, s.JetStream(), 5)
	lost := n + later - uint64(len(clicks))
	if account.Answered != n+later || account.Recorded != uint64(len(clicks)) || account.Dropped["corrupt"] != lost || lost == 0 || lost > n-100 {
		t.Errorf("%d clicks, %+v", len(clicks), account)
	}
	for sequence, revision := range clicks {
		if revision != int64(sequence-1) {
			t.Errorf("sequence %d is click %d", sequence, revision)
		}
	}
	for i := range uint64(later) {
		if _, there := clicks[n+1+i]; !there {
			t.Fatalf("click %d, which came later, is not published", n+1+i)
		}
	}
	if told := log.count("clicks are lost"); told != 1 {
		t.Errorf("the log says it %d times:\n%s", told, log.b.String())
	}
}

func TestTheLogSaysOnceThatClicksAreInMemoryAndThatTheyAreNotAnyMore(t *testing.T) {
	s := natstest.Start(t)
	dir := filepath.Join(t.TempDir(), "clicks")
	r := openRecorder(t, func(c *click.Config) { c.Dir, c.SegmentBytes = dir, 256<<10 })
	var log lines
	start(t, s.URL(), r, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	// Nothing can be made there. Segments are until then, and it is made anew.
	for deadline := time.Now().Add(20 * time.Second); os.RemoveAll(dir) != nil || os.WriteFile(dir, nil, 0o600) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the folder is not removed")
		}
	}
	waitForLine := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); log.count(text) == 0; time.Sleep(time.Millisecond) {
			for range 20 { // which needs segments
				r.Record(event(0))
			}
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say %q", text)
			}
		}
	}
	waitForLine("clicks are held in memory")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	waitForLine("in the folder of the spool again")
	if told := log.count("clicks are held in memory"); told != 1 {
		t.Errorf("the log says it %d times", told)
	}
}
