package contest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// edits are the times of edits, in ms.
type edits struct {
	nginx      []float64 // from the signal to reload until only new workers answer
	node       []float64 // from the call that writes until the node serves it
	acked      []float64 // from the answer to that call
	pairs      []float64 // nginx against the median of node, of each round
	ackedPairs []float64
	edited     int
}

// nodeEdits is how often a round edits by way of the control plane.
const nodeEdits = 50

// edit measures a round.
func (s *stage) edit(ctx context.Context, e *edits) error {
	if err := s.node.begin(s); err != nil {
		return err
	}
	whole, acked, err := s.editNode(ctx, e)
	if err != nil {
		return fmt.Errorf("affnode: %w", err)
	}
	if err := s.node.end(); err != nil {
		return err
	}
	if err := s.nginx.begin(s); err != nil {
		return err
	}
	reload, err := s.editNginx(e)
	if err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	if err := s.nginx.end(); err != nil {
		return err
	}
	w, a := spreadOf(whole).median, spreadOf(acked).median
	progress("edit: affnode %.2f ms (%.2f ms after its acknowledgement), nginx %.0f ms", w, a, reload)
	e.nginx, e.node, e.acked = append(e.nginx, reload), append(e.node, w), append(e.acked, a)
	e.pairs, e.ackedPairs = append(e.pairs, reload/w), append(e.ackedPairs, reload/a)
	return nil
}

// editNode edits the first link again and again.
func (s *stage) editNode(ctx context.Context, e *edits) (whole, acked []float64, err error) {
	conn, err := grpc.NewClient(s.fleet.ControlAddr[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	admin := adminv1.NewLinkServiceClient(conn)
	for i := range nodeEdits + 1 {
		link := set.Link(0)
		e.edited++
		link.Destination = fmt.Sprintf("https://edited.example/%d", e.edited)
		probe, err := dialProbe(s.node.addr, link.GetPath())
		if err != nil {
			return nil, nil, err
		}
		seen := make(chan error, 1)
		var at time.Time
		go func() {
			err := probe.until(link.GetDestination(), 30*time.Second)
			at = time.Now()
			seen <- err
		}()
		begin := time.Now()
		_, err = admin.Update(ctx, &adminv1.UpdateRequest{Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: link}}})
		answered := time.Now()
		if err := errors.Join(err, <-seen, probe.nc.Close()); err != nil {
			return nil, nil, err
		}
		if i == 0 { // the node was frozen, and may have had to find its control plane again
			continue
		}
		whole = append(whole, millis(at.Sub(begin)))
		acked = append(acked, max(resolution, millis(at.Sub(answered))))
	}
	return whole, acked, nil
}

// probePause is between two requests of a probe: it shares its core with what writes,
// and one that asks without a pause holds that up.
const probePause = 50 * time.Microsecond

// resolution is the time of one request of a probe with its pause, in ms. What is
// served before its write is acknowledged counts as this.
const resolution = 0.1

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// probe asks for one path on one connection.
type probe struct {
	nc      net.Conn
	in      *bufio.Reader
	request []byte
}

func dialProbe(addr, path string) (*probe, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &probe{nc, bufio.NewReader(nc), []byte("GET " + path + " HTTP/1.1\r\nHost: " + linkset.Domain + "\r\n\r\n")}, nil
}

// until asks until it is sent to a destination.
func (p *probe) until(destination string, patience time.Duration) error {
	if err := p.nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for {
		if _, err := p.nc.Write(p.request); err != nil {
			return err
		}
		resp, err := http.ReadResponse(p.in, nil)
		if err != nil {
			return err
		}
		_ = resp.Body.Close() // a redirect of the node has none
		if resp.Header.Get("Location") == destination {
			return nil
		}
		time.Sleep(probePause)
	}
}

// editNginx changes the first link in the file and reloads. Writing the file is
// not counted, nor what checks the configuration before a reload.
func (s *stage) editNginx(e *edits) (float64, error) {
	link := set.Link(0)
	file, err := os.ReadFile(s.nginxMap)
	if err != nil {
		return 0, err
	}
	line := []byte("    " + link.GetPath() + " ")
	from := bytes.Index(file, line)
	if from < 0 {
		return 0, fmt.Errorf("%s is not in the map", link.GetPath())
	}
	from += len(line)
	to := from + bytes.IndexByte(file[from:], ';')
	destination := fmt.Sprintf("https://edited.example/%d", e.edited)
	if err := os.WriteFile(s.nginxMap, bytes.Join([][]byte{file[:from], []byte(destination), file[to:]}, nil), 0o644); err != nil {
		return 0, err
	}
	master, old := s.nginx.process.PID(), s.nginx.pid()
	begin := time.Now()
	if err := syscall.Kill(master, syscall.SIGHUP); err != nil {
		return 0, err
	}
	var last string
	if !processes.Eventually(func() bool {
		last = ask(s.nginx.addr, link.GetPath())
		return last == destination
	}) {
		return 0, fmt.Errorf("it still answers %q\n%s", last, s.nginx.process.Output())
	}
	if !processes.Eventually(func() bool { return gone(old) }) {
		return 0, fmt.Errorf("worker %d does not end", old)
	}
	return millis(time.Since(begin)), nil
}

// gone says whether a process has ended.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}
