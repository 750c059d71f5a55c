package reach

import "testing"

func TestTheFloorOfSocketsIsMeasured(t *testing.T) {
	if err := Missing(); err != nil {
		t.Skip(err)
	}
	r := &runner{section: &Section{}}
	if err := r.sockets(20); err != nil {
		t.Fatal(err)
	}
	if f := r.section.Figures; len(f) != 1 || f[0].Samples[0] <= 0 || f[0].Samples[0] > 10_000 {
		t.Errorf("got %+v", f)
	}
}
