package dataplane

import (
	"testing"

	"github.com/affleet/affleet/dataplane/internal/click"
)

func TestAClickThatIsLostInTheSpoolDoesNotMakeItsBacklogNegative(t *testing.T) {
	r, err := click.Open(click.Config{Level: click.Memory, Node: "n", Boot: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := &Node{clicks: r}
	for range 3 {
		r.Record(&click.Event{Status: 302})
	}
	r.Log().Lose(click.TooLarge, 1)
	for acknowledged, want := range []int64{3, 2, 1, 0} {
		r.Log().Acknowledge(uint64(acknowledged))
		if s := n.status(); s.SpoolClicks != want || s.Answered != 3 || s.DroppedClicks != 1 {
			t.Errorf("%d are acknowledged: %v", acknowledged, s)
		}
	}
}
