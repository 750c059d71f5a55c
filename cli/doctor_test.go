package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func TestDoctorSaysOfNodesWhatIsWrongWithThemNow(t *testing.T) {
	head := &linkv1.Version{Epoch: 1, Revision: 9}
	node := func(revision int64) *adminv1.Node {
		return &adminv1.Node{Version: &linkv1.Version{Epoch: 1, Revision: revision}, LagRevisions: 9 - revision, SetHashMatch: true}
	}
	behind, rejects, rejected, unserved := node(7), node(7), node(9), node(9)
	behind.Lag = durationpb.New(time.Minute)
	rejects.LastRejection, rejected.LastRejection = "revision 8: too few links", "revision 8: too few links"
	unserved.UnservedEntries = 2
	for want, n := range map[string]*adminv1.Node{
		"has been behind for 60s":                                behind,
		"rejected an update, and serves what it had: revision 8": rejects,
		"cannot serve 2 resources that it holds":                 unserved,
	} {
		if got := nodeTrouble(n, &adminv1.ListNodesResponse{Head: head}); !strings.HasPrefix(got, want) {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
	if got := nodeTrouble(rejected, &adminv1.ListNodesResponse{Head: head}); got != "" {
		t.Errorf("of a node that has taken what it had rejected, or what followed, it says %q", got)
	}
}
