package feed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// StatePath is where a node's admin address gives its last known good state.
const StatePath = "/state"

// source is where a new node may take its first state from: a file or a URL, which
// may be that of a node.
type source struct {
	file, url string
	node      bool
}

// ParseBootstrap says what is wrong with a bootstrap setting.
func ParseBootstrap(s string) error {
	_, err := parseSource(s)
	return err
}

// parseSource reads FILE, an http or https URL, or host:port of a node's admin
// address.
func parseSource(s string) (source, error) {
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return source{}, fmt.Errorf("bootstrap: %w", err)
		case scheme != "http" && scheme != "https":
			return source{}, fmt.Errorf("bootstrap: %s: neither http nor https, nor a file, nor host:port", s)
		case u.Host == "":
			return source{}, fmt.Errorf("bootstrap: %s: no host", s)
		}
		return source{url: s}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if address := err == nil && !strings.ContainsAny(host, `/\`); !address {
		return source{file: s}, nil // as "state.aff", or "./a:1"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return source{}, fmt.Errorf("bootstrap: %s: not host:port of another node's admin address; a file of that name is ./%s", s, s)
	}
	return source{url: "http://" + s + StatePath, node: true}, nil
}

// download is how long a download may take. No control plane is asked meanwhile.
type download struct {
	first time.Duration // from the request to the head of the answer
	next  time.Duration // without a byte
	whole time.Duration // in all
}

var limits = download{10 * time.Second, 15 * time.Second, servingTime}

// How long a node without a state waits for the first answer of its control
// planes, all in all, and of each of them at least, before it takes the state of
// another place: who is there answers within a second, over an ocean and TLS as
// well, and an address at which nothing answers must not keep a node from what it
// could serve.
const firstAnswers, firstAnswer = 5 * time.Second, time.Second

// firstRound is how a node without a state asks its control planes before it takes
// that of another place: each of them once, one behind the other. A control plane
// has the newest state, and the other place may have one in which links still lead
// somewhere that were taken down long ago. It takes that when none of them has
// given it a state: those that do not answer, have none themselves, or send it
// away until later. The last may be for half a minute, and when many nodes start
// together, it is for nearly all of them: an older state is better than none, and
// what comes next is what has changed since, rather than a snapshot.
//
// What fails is tried again, after each further round.
type firstRound struct {
	client *Client
	n      int           // control planes asked in this round
	wait   time.Duration // until the next round, at least: some have said so
	again  bool          // the other place was of no use
}

// on says whether the node may still take the state of another place.
func (r *firstRound) on() bool {
	return r.client.cfg.Bootstrap != "" && r.client.cfg.Live.Load() == nil
}

// patience is how long the next control plane has for its first message; 0: as
// long as ever. It is short once only: where the other place is of no use, one that
// is slow is better than none.
func (r *firstRound) patience() time.Duration {
	if !r.on() || r.again {
		return 0
	}
	return max(firstAnswers/time.Duration(len(r.client.cfg.Targets)), firstAnswer)
}

// asked notes that another control plane was asked, which is to be waited for so
// long, and gives how long to wait before the next one: not at all within a round.
func (r *firstRound) asked(ctx context.Context, wait time.Duration) time.Duration {
	if !r.on() {
		return wait
	}
	r.n++
	r.wait = max(r.wait, wait)
	if r.n < len(r.client.cfg.Targets) {
		return 0
	}
	r.client.bootstrap(ctx)
	wait = r.wait
	r.n, r.wait, r.again = 0, 0, true
	return wait
}

// bootstrap takes the first state from where the settings say.
func (c *Client) bootstrap(ctx context.Context) {
	start := time.Now()
	t, at, err := c.fetch(ctx, limits)
	c.applier.wire.done()
	if err != nil {
		if _, ok := c.boots.due(tellEvery); ok {
			c.cfg.Log.Error("node cannot start from the state of another place, control planes are asked again", "bootstrap", c.cfg.Bootstrap, "err", err,
				"hint", "--bootstrap takes state.aff of a node's data folder, a URL of such a file, or host:port of the admin address of a node that is ready")
		}
		return
	}
	if !at.IsZero() {
		c.metrics.confirmed.Store(at.UnixNano())
	}
	c.applier.publish(t)
	c.cfg.Log.Info("no control plane has given a state: serving that of another place until one does", "bootstrap", c.cfg.Bootstrap,
		"revision", t.Version().Revision, "entries", t.Len(), "unserved", t.Unserved(),
		"took", time.Since(start).Round(time.Millisecond), "state_age", time.Duration(c.metrics.age()*float64(time.Second)).Round(time.Second))
	if c.keeper != nil {
		c.keeper.changed(directly)
	}
	c.holdsState()
}

// fetch reads and verifies the state of the place, and says when it was known to
// be the newest: a node says that itself, of another file its header does. What a
// file system or a server says may be when the file was copied, and counts only for
// one of a release that did not write the time.
func (c *Client) fetch(ctx context.Context, most download) (t *table.Table, at time.Time, err error) {
	from, err := parseSource(c.cfg.Bootstrap)
	if err != nil {
		return nil, at, err
	}
	admit := func(v table.Version) error {
		if c.applier.past.has(v.Epoch) {
			return fmt.Errorf("it is of epoch %016x, which the node has left", v.Epoch)
		}
		return c.applier.wire.arm(v)
	}
	if from.file != "" {
		t, at, err = readStateFile(from.file, &c.applier.guard, admit)
		if info, failed := os.Stat(from.file); failed == nil && at.IsZero() {
			at = info.ModTime()
		}
		return t, at, err
	}
	ctx, stop := context.WithTimeoutCause(ctx, most.whole, errors.New("it took too long"))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(most.first, func() { cancel(errors.New("nothing came for some time")) })
	defer silence.Stop()
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.url, nil)
	if err != nil {
		return nil, at, err
	}
	req.Header.Set("User-Agent", "affnode/"+c.cfg.Build)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, at, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return nil, at, fmt.Errorf("%s answers %s: %s", from.url, resp.Status, strings.TrimSpace(string(why)))
	}
	said, unsaid := http.ParseTime(resp.Header.Get("Last-Modified"))
	body := &watched{r: resp.Body, heard: func() { silence.Reset(most.next) }}
	t, at, err = readState(bufio.NewReaderSize(body, 1<<20), &c.applier.guard, admit)
	if unsaid == nil && (from.node || at.IsZero()) {
		at = said
	}
	return t, at, err
}

// watched calls heard whenever something was read.
type watched struct {
	r     io.Reader
	heard func()
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if n > 0 {
		w.heard()
	}
	return n, err
}

// Bounds of giving the state to others: at a time, and the time for each.
const (
	maxServing  = 4
	servingTime = 5 * time.Minute
)

// ServeState answers with the last-known-good file, for other nodes to start
// from. It may be some seconds older than what is served, or be what waits to be (candidate).
func (c *Client) ServeState(w http.ResponseWriter, r *http.Request) {
	unavailable := func(why string) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, why, http.StatusServiceUnavailable)
	}
	if c.keeper == nil {
		unavailable("this node keeps no state on disk")
		return
	}
	select {
	case c.serving <- struct{}{}:
		defer func() { <-c.serving }()
	default:
		unavailable("other nodes are being given the state")
		return
	}
	f, err := os.Open(c.keeper.current())
	if err != nil {
		unavailable("this node has no state on disk yet")
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		unavailable("the state cannot be read")
		return
	}
	// A reader that does not read must not keep the others out for ever.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(servingTime))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), f)
}
