package redirect

import (
	"bytes"
	"io"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// script is a connection that brings its input in pieces of given sizes and
// keeps what is written.
type script struct {
	net.Conn
	in    []byte
	sizes []byte // of the pieces, in turn; none: as much as there is room for
	next  int
	out   bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if len(s.sizes) > 0 {
		n = min(n, 1+int(s.sizes[s.next%len(s.sizes)]))
		s.next++
	}
	n = copy(p[:n], s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

var dates = regexp.MustCompile(`Date: [^\r]*`)

// answersTo gives everything that is answered to the input, without dates.
func answersTo(t *testing.T, s *Server, in, sizes []byte) string {
	nc := &script{in: in, sizes: sizes}
	c := &conn{srv: s, group: &group{srv: s}, socket: nc, nc: nc}
	for c.end == open {
		if err := c.readBlocking(); err != nil {
			break
		}
		if len(c.rest) > s.cfg.MaxHead {
			t.Fatalf("%d bytes are kept", len(c.rest))
		}
	}
	return dates.ReplaceAllString(nc.out.String(), "Date: -")
}

// FuzzPieces checks that the answers do not depend on the pieces in which the
// requests arrive.
func FuzzPieces(f *testing.F) {
	cfg := Config{Live: &table.Live{}, Clicks: newRecorder(f), MaxHead: MinHead}
	cfg.Live.Store(samples(f))
	s, err := New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	for i, shape := range readShapes(f) {
		if len(shape.request) < 2*MinHead {
			f.Add([]byte(shape.request+getLast), []byte{byte(i), 0, 30})
		}
	}
	f.Fuzz(func(t *testing.T, in, sizes []byte) {
		in = append(in[:len(in):len(in)], "\n\n"...) // whatever is there, is over
		want := answersTo(t, s, in, nil)
		if got := answersTo(t, s, in, sizes); got != want {
			t.Errorf("%q in pieces of %v:\ngot  %q\nwant %q", in, sizes, got, want)
		}
	})
}

// What waits for input holds no buffer, and a work few, however long heads were.
func TestBuffersOfHeadsThatWereIncompleteAreKeptWithinLimits(t *testing.T) {
	s, err := New(Config{Live: &table.Live{}, Clicks: newRecorder(t)})
	if err != nil {
		t.Fatal(err)
	}
	w := s.newWork().(*work)
	w.begin(s)
	for _, tt := range []struct{ size, kept int }{{longRest / 2, mostRests}, {2 * longRest, 0}} {
		conns := make([]*conn, 2*mostRests)
		for i := range conns {
			conns[i] = &conn{srv: s, group: &group{srv: s}, nc: &script{}}
			conns[i].keep(w, tt.size)
			if len(conns[i].rest) != tt.size {
				t.Fatalf("%d of %d bytes are kept", len(conns[i].rest), tt.size)
			}
		}
		for _, c := range conns {
			if c.keep(w, 0); c.rest != nil {
				t.Fatal("a buffer stays with its connection")
			}
		}
		if len(w.rests) != tt.kept {
			t.Errorf("%d buffers of %d bytes are kept, want %d", len(w.rests), tt.size, tt.kept)
		}
	}
}
