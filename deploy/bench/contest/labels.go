package contest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/processes"
	"github.com/affleet/affleet/proto/link"
)

// Labels is the result of RunLabels: CPU per redirect of a node that labels, and
// of one that does not.
type Labels struct {
	With, Without []float64 // µs, by round
	Ratio         []float64
	Foreign       []float64 // share of a core that others took
}

// RunLabels measures what labels cost the whole node: a node with all labels and
// one with none, by turns the first, on the same links and the same requests,
// which name a client each. Every click is published. Config.Open is not used.
func RunLabels(ctx context.Context, cfg Config) (*Labels, error) {
	if err := repin(os.Getpid()); err != nil {
		return nil, err
	}
	proxied := []string{"--trusted-proxies", "127.0.0.0/8", "--forwarded-header", "x-forwarded-for"}
	var all []string
	for l := range link.NumLabels {
		all = append(all, l.String())
	}
	s := &stage{cfg: cfg, servers: []*server{
		{name: "with labels", label: "affnode", clicks: true, flags: proxied},
		{name: "without labels", label: "affnode", clicks: true, flags: append(proxied[:len(proxied):len(proxied)], "--label-off", strings.Join(all, ","))},
	}}
	s.stayAwake()
	plain := &decisions[0] // plain links
	var err error
	if s.script, err = s.writeScript("requests", plain.requests(cfg.Links)); err != nil {
		return nil, err
	}
	if s.fleet, err = processes.New(cfg.Bin, cfg.Dir, 1, len(s.servers)); err != nil {
		return nil, err
	}
	for i, c := range s.servers {
		c.addr = s.fleet.NodeAddr[i]
	}
	defer s.close()
	if err := s.load(ctx, func(w io.Writer) error { return s.writeKinds(w, decisions[:1]) }); err != nil {
		return nil, err
	}
	last := plain.link(cfg.Links - 1).GetPath()
	for i, c := range s.servers {
		if err := s.start(i, c); err != nil {
			return nil, err
		}
		if !processes.Eventually(func() bool { return ask(c.addr, last) != "" }) {
			return nil, fmt.Errorf("%s of %s is not answered\n%s", last, linkset.Domain, c.log())
		}
		if err := errors.Join(c.rest(), c.end()); err != nil {
			return nil, err
		}
	}
	r := new(Labels)
	for round := range cfg.Rounds {
		var cost [2]float64
		for i := range s.servers {
			i = (i + round) % 2 // nobody is always the first
			got, err := s.closedTurn(ctx, s.servers[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", s.servers[i].name, err, s.servers[i].log())
			}
			cost[i] = got.cpu
			r.Foreign = append(r.Foreign, got.foreign)
		}
		progress("round %d: %.2f µs with labels, %.2f without", round+1, cost[0], cost[1])
		r.With, r.Without, r.Ratio = append(r.With, cost[0]), append(r.Without, cost[1]), append(r.Ratio, cost[0]/cost[1])
	}
	return r, nil
}
