package publish

import (
	"runtime"
	"testing"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestABacklogIsPublishedOnOneCore(t *testing.T) {
	s := natstest.StartProcess(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := openRecorder(t)
	const n = 20000
	for i := range n {
		r.Record(event(i))
	}
	p, _ := start(t, s.URL(), r)
	flush(t, p)
	if got := inStream(t, s.JetStream(), r.Log().Identity().Boot); got != n {
		t.Errorf("the stream has %d of %d clicks", got, n)
	}
}
