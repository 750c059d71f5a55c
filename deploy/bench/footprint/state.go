package footprint

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/affleet/affleet/deploy/bench/linkset"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/statefile"
)

// set is the links.
var set = linkset.Set{Seed: 1}

// epoch is of the state that files hold.
const epoch = 1

// state is a state file, and what a control plane says of such a state.
type state struct {
	path    string
	links   int
	entries int64
	bytes   int64 // of keys and values
	hash    link.SetHash
}

// writeState writes a state file of the first links of the set, with their
// affiliates.
func writeState(path string, links int) (s *state, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			s, err = nil, fmt.Errorf("write state: %w", err)
		}
	}()
	s = &state{path: path, links: links}
	// What the header says is known in the end.
	w, err := statefile.NewWriter(f, statefile.Header{})
	if err != nil {
		return s, err
	}
	if err := errors.Join(s.addAll(w), w.Close()); err != nil {
		return s, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return s, err
	}
	_, err = statefile.NewWriter(f, statefile.Header{Epoch: epoch, Revision: 1, Entries: s.entries, Hash: s.hash})
	return s, err
}

func (s *state) addAll(w *statefile.Writer) error {
	add := func(key string, r *linkv1.Resource) error {
		value, err := link.Encode(r)
		if err != nil {
			return err
		}
		s.entries++
		s.bytes += int64(len(key) + len(value))
		s.hash = s.hash.Add(link.HashEntry([]byte(key), value))
		return w.Add([]byte(key), value)
	}
	for i := range linkset.Affiliates {
		id := fmt.Sprintf("aff_%04d", i)
		if err := add(link.Affiliates.Prefix()+id, &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id}}}); err != nil {
			return err
		}
	}
	for l := range set.Links(s.links) {
		if err := add(link.LinkName(l.GetDomain(), l.GetPath()), &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}); err != nil {
			return err
		}
	}
	return nil
}
