package publish

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	if dir := os.Getenv("PUBLISH_STEP_DIR"); dir != "" {
		if err := stepChild(dir, os.Getenv("PUBLISH_STEP_URL"), os.Getenv("PUBLISH_STEP_AT")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestAServerThatIsKilledUnderLoadHasEveryClickOnceInTheEnd(t *testing.T) {
	s := natstest.StartProcess(t)
	r := openRecorder(t)
	p, _ := start(t, s.URL(), r, func(c *Config) { c.Timeout = time.Second })
	const n = 20000
	var wait sync.WaitGroup
	wait.Go(func() {
		for i := range n {
			r.Record(event(i))
			if i%20 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	for round := range 3 {
		want := uint64((round + 1) * n / 5)
		for deadline := time.Now().Add(20 * time.Second); p.published.Load() < want && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		s.Kill()
		s.Restart()
	}
	wait.Wait()
	r.Record(event(n)) // that the end waits for, and so for NATS
	flush(t, p)
	clicks, account := consumed(t, s.JetStream(), r.Log().Identity().Boot)
	if len(clicks) != n+1 || account.Answered != n+1 || account.Recorded != n+1 {
		t.Fatalf("%d clicks, %+v", len(clicks), account)
	}
}
