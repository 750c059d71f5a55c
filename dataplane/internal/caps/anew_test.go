package caps

import (
	"testing"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// byHand is a node that leases when it is told to, and its account.
type byHand struct {
	*Leases
	*account
	limit link.Cap
	t     *testing.T
}

// newByHand has an account of which one click was sent on.
func newByHand(t *testing.T, addr string, clicks uint64) *byHand {
	t.Helper()
	n := &byHand{Leases: newIdle(t, addr), limit: link.Cap{Clicks: clicks, Period: link.PerLife}, t: t}
	if !n.take() {
		t.Fatal("the first click is refused")
	}
	n.account = <-n.due
	return n
}

func (n *byHand) take() bool { return n.Take(host, []byte("/a"), n.limit, now(), true) }

// send sends clicks on until one is refused, at most that many.
func (n *byHand) send(most int) (sent int) {
	for sent < most && n.take() {
		sent++
	}
	return sent
}

// bring brings a claim to the control plane.
func (n *byHand) bring(c *claim) {
	n.t.Helper()
	if !n.lease(n.t.Context(), []*claim{c}) {
		n.t.Fatal("the control plane does not answer")
	}
}

// sendAll sends on all that the cap has room for.
func (n *byHand) sendAll() (sent int) {
	for {
		n.bring(n.claim(time.Now()))
		some := n.send(1 << 30)
		if sent += some; some == 0 {
			return sent
		}
	}
}

func TestWhatWasLeasedOfADeletedLinkIsNotSentOnForTheOneMadeAnew(t *testing.T) {
	const clicks = 4000
	l, addr := serve(t, clicks)
	node := newByHand(t, addr, clicks)
	node.bring(node.claim(time.Now()))
	if got := node.left.Load(); got < 2 {
		t.Fatalf("the node holds %d clicks of the old link", got)
	}
	l.remake()
	if sent := node.sendAll(); sent != clicks {
		t.Errorf("%d clicks were sent on for the new link, and its cap is %d", sent, clicks)
	}
	// What is sent on while a node asks, and learns that the link was made anew,
	// counts for the new one.
	l.remake()
	node.bring(node.claim(time.Now()))
	l.remake()
	claim := node.claim(time.Now())
	sent := node.send(5)
	if sent != 5 {
		t.Fatalf("%d clicks were sent on while the node asked", sent)
	}
	node.bring(claim)
	if sent += node.sendAll(); sent != clicks {
		t.Errorf("%d clicks were sent on for the third link, and its cap is %d", sent, clicks)
	}
	if got := l.total(); got != clicks {
		t.Errorf("the ledger says %d, and %d were sent on", got, sent)
	}
}

func TestWhatIsGivenBackOfADeletedLinkIsOfThatOne(t *testing.T) {
	l, addr := serve(t, 400)
	node := newByHand(t, addr, 400)
	node.bring(node.claim(time.Now()))
	l.remake()
	other := newByHand(t, addr, 400)
	other.bring(other.claim(time.Now()))
	used := l.total()
	claim := node.account.giveBack(1)
	if claim == nil || claim.returned != 1 {
		t.Fatalf("given back is %+v", claim)
	}
	node.bring(claim)
	if got := l.total(); got != used {
		t.Errorf("the ledger says %d, and %d before the other link's clicks were given back", got, used)
	}
	// The node knows now that it holds nothing, and asks at once: no click of the
	// new link is refused for that.
	if got := node.left.Load(); got != 0 {
		t.Errorf("%d clicks of the old link are held", got)
	}
	select {
	case a := <-node.due:
		node.bring(a.claim(time.Now()))
	default:
		t.Fatal("the node does not ask for clicks of the new link")
	}
	if !node.take() {
		t.Error("the first click of the new link is refused")
	}
}

// TestAControlPlaneOfAnEarlierReleaseSaysNothingOfCreations: all is as it was.
func TestAControlPlaneOfAnEarlierReleaseSaysNothingOfCreations(t *testing.T) {
	const clicks = 400
	l, addr := serve(t, clicks)
	l.anew = -1 // so that creations are 0
	node := newByHand(t, addr, clicks)
	if sent := 1 + node.sendAll(); sent != clicks {
		t.Errorf("%d clicks were sent on, and the cap is %d", sent, clicks)
	}
	if node.creation != 0 {
		t.Errorf("the creation is %d", node.creation)
	}
	l.remake() // one of this release, and its first grant
	if node.bring(node.claim(time.Now())); node.creation != 1 {
		t.Errorf("the creation is %d", node.creation)
	}
	l.mu.Lock()
	l.anew = -1
	l.mu.Unlock()
	if node.bring(node.claim(time.Now())); node.creation != 1 || node.left.Load() < 2 {
		t.Errorf("the creation is %d and %d clicks are held, after an answer without one", node.creation, node.left.Load())
	}
}
