package controlplane

import (
	"fmt"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/proto/link"
)

// gate keeps writes out that must not be made: to an etcd that went back to
// before what was served, and to a fleet that is full. A nil gate is open.
type gate struct {
	log *snapshot.Log
	// The most resources, and bytes of their keys and values. 0: no limit.
	maxEntries, maxBytes int64
}

// pass says whether a write may be made now; grows, whether it may add to what
// there is. It gives what wrote has to know.
func (g *gate) pass(grows bool) (began *snapshot.View, err error) {
	if g == nil {
		return nil, nil
	}
	if revision, seen, back := g.log.WentBack(); back {
		return nil, wentBack(revision, seen, "")
	}
	began = g.log.View()
	entries, bytes := began.Size()
	switch {
	case grows && g.maxEntries > 0 && entries >= g.maxEntries:
		return nil, &link.Error{
			Kind: link.ResourceExhausted, Message: fmt.Sprintf("the fleet has %d resources, and %d are allowed", entries, g.maxEntries),
			Hint: "delete some, or raise --max-entries of every affcontrol and affnode",
		}
	case grows && g.maxBytes > 0 && bytes >= g.maxBytes:
		return nil, &link.Error{
			Kind: link.ResourceExhausted, Message: fmt.Sprintf("the fleet has %d bytes of resources, and %d are allowed", bytes, g.maxBytes),
			Hint: "delete some, or raise --max-bytes of every affcontrol and affnode",
		}
	}
	return began, nil
}

// wrote says what is wrong with the revision at which etcd answered a write.
func (g *gate) wrote(revision int64, began *snapshot.View) error {
	if g == nil || g.log.Wrote(revision, began) == nil {
		return nil
	}
	_, seen, _ := g.log.WentBack()
	return wentBack(revision, seen, "; what was being written is in the restored etcd, and no node will serve it")
}

func wentBack(revision, seen int64, more string) *link.Error {
	return &link.Error{
		Kind:    link.FailedPrecondition,
		Message: fmt.Sprintf("etcd is at revision %d, before %d that was served: it was restored from a backup%s", revision, seen, more),
		Hint:    "if the backup is what is meant to be served: affctl fleet new-epoch",
	}
}
