package cli

import (
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress is a bar on stderr while stderr is a terminal, and lines above it.
// It may be used by several goroutines.
type progress struct {
	mu  sync.Mutex
	w   io.Writer
	bar *progressbar.ProgressBar // nil: stderr is no terminal
}

// progress starts a bar of total units, -1 when that is not known.
func (a *app) progress(what string, total int64, bytes bool) *progress {
	if bytes {
		return a.progressOf(what, total, "")
	}
	return a.progressOf(what, total, "rows")
}

// progressOf is progress of units with a name; those without are bytes.
func (a *app) progressOf(what string, total int64, units string) *progress {
	p := &progress{w: a.stderr}
	if !terminal(a.stderr) {
		return p
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSetWidth(24),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionSetPredictTime(total > 0),
	}
	if units == "" {
		options = append(options, progressbar.OptionShowBytes(true))
	} else {
		options = append(options, progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(units))
	}
	p.bar = progressbar.NewOptions64(total, options...)
	return p
}

// set moves the bar to n units.
func (p *progress) set(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Set64(n) // a bar that cannot be drawn is no reason to stop
	}
}

// line prints a line above the bar.
func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear() // a bar that cannot be cleared is no reason to stop
	}
	_, _ = io.WriteString(p.w, text+"\n") // stderr is where errors would go
}

// end removes the bar.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
		p.bar = nil
	}
}
