package swarm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is one gRPC call over an HTTP/2 connection of its own. It does what a
// node's client does on the wire with a single goroutine and a buffer of a few
// kB, so that thousands fit into one process beside what is measured.
//
// receive is called by one goroutine; send by any.
type wire struct {
	conn  net.Conn
	pause func() // returns when what has been read may be taken in
	in    *bufio.Reader
	read  *http2.Framer

	mu    sync.Mutex // of what is sent
	out   *bufio.Writer
	write *http2.Framer
	room  [2]int64 // that the peer grants: of the connection, of the stream
	grant int64    // what the peer says a new stream gets
	more  sync.Cond

	partial []byte // received and not handed over yet
	owed    uint32 // received and not granted again yet
	failed  error
}

const (
	streamID      = 1
	defaultWindow = 65535
	// readBuffer holds a frame of one change; larger ones take several reads.
	readBuffer = 2 << 10
	// regrant is after how many bytes the peer may send as many more.
	regrant = 16 << 10
)

// dial connects and opens a call. While pause does not return, nothing is read.
func dial(ctx context.Context, address, method string, pause func()) (*wire, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, pause: pause, in: bufio.NewReaderSize(conn, readBuffer), out: bufio.NewWriterSize(conn, 512)}
	w.more.L = &w.mu
	w.room, w.grant = [2]int64{defaultWindow, defaultWindow}, defaultWindow
	w.read, w.write = http2.NewFramer(io.Discard, w.in), http2.NewFramer(w.out, nil)
	w.read.SetReuseFrames()
	w.read.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := w.open(address, method); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return w, nil
}

func (w *wire) open(address, method string) error {
	_, _ = w.out.WriteString(http2.ClientPreface) // the writer keeps its first error until Flush
	var block []byte
	buf := writerTo{&block}
	encoder := hpack.NewEncoder(buf)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: address},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	} {
		if err := encoder.WriteField(f); err != nil {
			return err
		}
	}
	return errors.Join(
		w.write.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
		w.write.WriteHeaders(http2.HeadersFrameParam{StreamID: streamID, BlockFragment: block, EndHeaders: true}),
		w.out.Flush(),
	)
}

type writerTo struct{ b *[]byte }

func (w writerTo) Write(p []byte) (int, error) {
	*w.b = append(*w.b, p...)
	return len(p), nil
}

// send sends a message.
func (w *wire) send(message []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	size := int64(len(message) + 5)
	for w.failed == nil && (w.room[0] < size || w.room[1] < size) {
		w.more.Wait()
	}
	if w.failed != nil {
		return w.failed
	}
	w.room[0] -= size
	w.room[1] -= size
	framed := make([]byte, 5, size)
	binary.BigEndian.PutUint32(framed[1:], uint32(len(message)))
	return errors.Join(w.write.WriteData(streamID, false, append(framed, message...)), w.out.Flush())
}

// receive gives the next message, which is valid until the next call.
func (w *wire) receive(message []byte) ([]byte, error) {
	for {
		if len(w.partial) >= 5 {
			n := 5 + int(binary.BigEndian.Uint32(w.partial[1:]))
			if w.partial[0] != 0 {
				return nil, errors.New("a compressed message")
			}
			if len(w.partial) >= n {
				message = append(message[:0], w.partial[5:n]...)
				w.partial = append(w.partial[:0], w.partial[n:]...)
				return message, nil
			}
		}
		if err := w.frame(); err != nil {
			return nil, err
		}
	}
}

// frame takes in one HTTP/2 frame.
func (w *wire) frame() error {
	f, err := w.read.ReadFrame()
	if err != nil {
		return err
	}
	w.pause()
	switch f := f.(type) {
	case *http2.DataFrame:
		w.partial = append(w.partial, f.Data()...)
		if w.owed += f.Length; w.owed < regrant {
			return nil
		}
		owed := w.owed
		w.owed = 0
		return w.reply(func() error {
			return errors.Join(w.write.WriteWindowUpdate(0, owed), w.write.WriteWindowUpdate(streamID, owed))
		})
	case *http2.WindowUpdateFrame:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.room[min(f.StreamID, 1)] += int64(f.Increment)
		w.more.Broadcast()
	case *http2.SettingsFrame:
		return w.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			return w.reply(func() error { return w.write.WritePing(true, f.Data) })
		}
	case *http2.MetaHeadersFrame:
		if f.StreamEnded() {
			return fmt.Errorf("the call ended: %s", fieldsOf(f))
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the call was reset: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the peer goes away: %v", f.ErrCode)
	}
	return nil
}

func (w *wire) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	window, ok := f.Value(http2.SettingInitialWindowSize)
	return w.reply(func() error {
		if ok {
			w.room[1] += int64(window) - w.grant
			w.grant = int64(window)
			w.more.Broadcast()
		}
		return w.write.WriteSettingsAck()
	})
}

// reply sends frames of the protocol itself.
func (w *wire) reply(write func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(write(), w.out.Flush())
}

// fieldsOf are the trailers of a call.
func fieldsOf(f *http2.MetaHeadersFrame) string {
	text := ""
	for _, field := range f.Fields {
		if field.Name == "grpc-status" || field.Name == "grpc-message" {
			text += field.Name + " " + field.Value + " "
		}
	}
	return text
}

// close ends the connection; whoever sends or receives gets an error.
func (w *wire) close(why error) {
	w.mu.Lock()
	if w.failed == nil {
		w.failed = why
	}
	w.more.Broadcast()
	w.mu.Unlock()
	_ = w.conn.Close()
}
