package redirect

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// slowly keeps connections open that send a byte of a head now and then, as a
// slow-request attack does: those that the server closes are opened again. It
// gives a function that ends them.
func slowly(t testing.TB, n *node, conns int, every time.Duration) (end func()) {
	t.Helper()
	done := make(chan struct{})
	var clients sync.WaitGroup
	opened := make(chan struct{}, conns)
	for i := range conns {
		clients.Go(func() {
			for first := true; ; first = false {
				nc, err := net.Dial("tcp", n.addr)
				if err != nil {
					t.Error(err)
					return
				}
				if first {
					opened <- struct{}{}
				}
				wait := time.NewTimer(every * time.Duration(i) / time.Duration(conns)) // not all at once
				_, err = io.WriteString(nc, "GET /a HTTP/1.1\r\nHost: x\r\nX: ")
				for err == nil {
					select {
					case <-wait.C:
						wait.Reset(every)
						_, err = io.WriteString(nc, "y")
					case <-done:
						_ = nc.Close()
						return
					}
				}
				_ = nc.Close()
			}
		})
	}
	for range conns {
		<-opened
	}
	return func() {
		close(done)
		clients.Wait()
	}
}

func TestSlowConnectionsDoNotHoldUpTheOthers(t *testing.T) {
	n := startNode(t, time.Second, func(c *Config) {
		c.HeadTimeout, c.MaxConnsPerAddr = 200*time.Millisecond, 10_000
	})
	const slow = 300
	end := slowly(t, n, slow, 20*time.Millisecond)
	defer end()
	c := n.dial(t)
	for n.Stats().HeadTimeouts < 2*slow { // each was closed twice
		c.send(getA)
		c.expect(302)
	}
	fresh := n.dial(t)
	fresh.send(getLast)
	fresh.expect(302)
	fresh.expectEnd()
	if st := n.Stats(); st.OverLimit != 0 || st.OverAddrLimit != 0 || st.Panics != 0 {
		t.Errorf("got %+v", st)
	}
}

// BenchmarkBesideSlowConnections gives the p99 of one connection's requests,
// one each millisecond, alone and beside slow connections that send a byte a
// second and are closed after five. The server and all clients share the
// machine's cores, so that it is worse here than between machines.
func BenchmarkBesideSlowConnections(b *testing.B) {
	for _, slow := range []int{0, 5000} {
		b.Run(fmt.Sprint(slow), func(b *testing.B) {
			n := benchNode(b, func(c *Config) { c.MaxConns, c.MaxConnsPerAddr = 10_000, 10_000 })
			defer slowly(b, n, slow, time.Second)()
			trip := roundTrips(b, n, browser)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			var took []time.Duration
			for b.Loop() {
				<-tick.C
				start := time.Now()
				trip()
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
