package controlplane

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/affleet/affleet/controlplane/internal/replica"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

// localKey marks a call of another replica: it is answered from the nodes of
// this one. Its value is what the asker already knows; see known.
const (
	localKey     = "aff-local"
	knowsNothing = "nothing"
)

// asLocal marks a call to another replica.
func asLocal(ctx context.Context, known string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, localKey, known)
}

// localOnly says whether another replica asks.
func localOnly(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, localKey)) > 0
}

// conns are connections to the other replicas, made when they are needed.
type conns struct {
	dial func(address string) (*grpc.ClientConn, error)

	mu       sync.Mutex
	byAddr   map[string]*grpc.ClientConn
	answered map[string]bool // addresses at which a replica has answered
}

// get gives the connection to an address.
func (c *conns) get(address string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.byAddr[address]; conn != nil {
		return conn, nil
	}
	conn, err := c.dial(address)
	if err != nil {
		return nil, err
	}
	if c.byAddr == nil {
		c.byAddr = make(map[string]*grpc.ClientConn)
	}
	c.byAddr[address] = conn
	return conn, nil
}

// heard notes that the replica at an address has answered.
func (c *conns) heard(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered == nil {
		c.answered = make(map[string]bool)
	}
	c.answered[address] = true
}

// hasAnswered says whether the replica at an address has answered before.
func (c *conns) hasAnswered(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered[address]
}

// keep closes the connections to all but these replicas.
func (c *conns) keep(peers []replica.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for address, conn := range c.byAddr {
		if !slices.ContainsFunc(peers, func(p replica.Peer) bool { return p.Address == address }) {
			_ = conn.Close()
			delete(c.byAddr, address)
			delete(c.answered, address)
		}
	}
}

// close closes the connections to other replicas.
func (f *fleet) close() { f.conns.keep(nil) }

// peers are the other replicas, and a channel that is closed when they change.
func (f *fleet) peers() ([]replica.Peer, <-chan struct{}) {
	if f.cfg.Peers == nil {
		return nil, nil
	}
	changed := f.cfg.Peers.Changed()
	peers := f.cfg.Peers.Peers()
	f.conns.keep(peers)
	return peers, changed
}

// peersAndLeft are the other replicas, so many of which are listed, and those that
// have left. One of these that answers has not stopped: its lease has ended because it
// does not reach etcd, and nobody else tells of it and of its nodes. One that does not
// is forgotten.
func (f *fleet) peersAndLeft() (all []replica.Peer, listed int) {
	if f.cfg.Peers == nil {
		return nil, 0
	}
	peers, left := f.cfg.Peers.PeersAndLeft()
	f.conns.keep(peers)
	return slices.Concat(peers, left), len(peers)
}

// refreshPeers makes peers all that are listed now. Without etcd they stay what
// is known.
func (f *fleet) refreshPeers(ctx context.Context) {
	if f.cfg.Peers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.PeerTimeout)
	defer cancel()
	if err := f.cfg.Peers.Refresh(ctx); err != nil {
		f.cfg.Logger.Debug("the list of replicas may be old", "err", err)
	}
}

// lacksPeers says whether a replica may be missing from peers that was listed
// when a revision was written.
func (f *fleet) lacksPeers(revision int64) bool {
	view := f.log.View()
	return f.cfg.Peers != nil && (view.Seen() < revision || f.cfg.Peers.Revision() < view.Replicas())
}

// peer gives another replica's FleetService.
func (f *fleet) peer(p replica.Peer) (adminv1.FleetServiceClient, error) {
	conn, err := f.conns.get(p.Address)
	if err != nil {
		return nil, err
	}
	return adminv1.NewFleetServiceClient(conn), nil
}

// ask gives the FleetService of one of peersAndLeft until done is called. One that has
// left has a connection for the one call: that its address has answered counts no more.
func (f *fleet) ask(p replica.Peer, listed bool) (client adminv1.FleetServiceClient, done func(), err error) {
	if listed {
		client, err = f.peer(p)
		return client, func() {}, err
	}
	conn, err := f.cfg.Dial(p.Address)
	if err != nil {
		return nil, func() {}, err
	}
	return adminv1.NewFleetServiceClient(conn), func() { _ = conn.Close() }, nil
}

// silent notes that one of peersAndLeft has not answered, unless who asks has gone.
func (f *fleet) silent(ctx context.Context, p replica.Peer, listed bool, err error) {
	switch {
	case ctx.Err() != nil:
	case listed:
		f.skip(ctx, p, err)
	default:
		f.cfg.Peers.Forget(p)
	}
}

// skip logs that a replica is silent.
func (f *fleet) skip(ctx context.Context, p replica.Peer, err error) {
	if ctx.Err() == nil {
		f.cfg.Logger.Warn("replica does not answer, what its nodes serve is not known", "replica", p.ID, "address", p.Address, "err", err)
	}
}

// listPeers asks replicas, so many of which are listed, for their nodes, all at once,
// and gives their alarms, and one for each that is listed and silent.
func (f *fleet) listPeers(ctx context.Context, req *adminv1.ListNodesRequest, peers []replica.Peer, listed int) (lists [][]*adminv1.Node, alarms []string) {
	lists = make([][]*adminv1.Node, len(peers))
	told := make([][]string, len(peers))
	call, cancel := context.WithTimeout(asLocal(ctx, knowsNothing), f.cfg.PeerTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, p := range peers {
		asking.Go(func() {
			client, done, err := f.ask(p, i < listed)
			defer done()
			if err == nil {
				var got *adminv1.ListNodesResponse
				got, err = client.ListNodes(call, req)
				lists[i], told[i] = got.GetNodes(), got.GetAlarms()
			}
			if err != nil {
				f.silent(ctx, p, i < listed, err)
			}
			switch {
			case i >= listed:
			case err == nil:
				f.conns.heard(p.Address)
			default:
				told[i] = []string{notListed(p)}
			}
		})
	}
	asking.Wait()
	return lists, slices.Concat(told...)
}

// peerNodes are the nodes that other replicas list.
type peerNodes struct {
	mu     sync.Mutex
	byPeer map[replica.Peer]*adminv1.WatchNodesResponse // nil: it is silent

	// Of replicas that have left.
	left       [][]*adminv1.Node
	leftAlarms []string
}

// lists gives them, a list per replica, and the alarms of these, with one for each
// that is silent.
func (n *peerNodes) lists() (lists [][]*adminv1.Node, alarms []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lists, alarms = slices.Clone(n.left), slices.Clone(n.leftAlarms)
	for p, last := range n.byPeer {
		lists, alarms = append(lists, last.GetNodes()), append(alarms, last.GetAlarms()...)
		if last == nil {
			alarms = append(alarms, notListed(p))
		}
	}
	slices.Sort(alarms)
	return lists, alarms
}

// set replaces what a replica has said; nil: it is silent.
func (n *peerNodes) set(p replica.Peer, last *adminv1.WatchNodesResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byPeer == nil {
		n.byPeer = make(map[replica.Peer]*adminv1.WatchNodesResponse)
	}
	n.byPeer[p] = last
}

// setLeft replaces what those that have left say.
func (n *peerNodes) setLeft(lists [][]*adminv1.Node, alarms []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left, n.leftAlarms = lists, alarms
}

// forget drops a replica that is not listed any more.
func (n *peerNodes) forget(p replica.Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.byPeer, p)
}

// watchPeers keeps others up to date, and wakes woken, until ctx ends and the
// group it returns is done.
func (f *fleet) watchPeers(ctx context.Context, req *adminv1.WatchNodesRequest, interval time.Duration, others *peerNodes, woken chan struct{}) *sync.WaitGroup {
	var watching sync.WaitGroup
	watching.Go(func() {
		f.eachPeer(ctx, func(ctx context.Context, p replica.Peer) {
			f.watchPeer(ctx, p, req, func(last *adminv1.WatchNodesResponse) {
				others.set(p, last)
				poke(woken)
			})
			others.forget(p)
			poke(woken)
		})
	})
	watching.Go(func() {
		f.watchLeft(ctx, &adminv1.ListNodesRequest{Region: req.GetRegion()}, interval, func(lists [][]*adminv1.Node, alarms []string) {
			others.setLeft(lists, alarms)
			poke(woken)
		})
	})
	return &watching
}

// watchLeft asks replicas that have left for their nodes, once each interval while any
// of them answers, until ctx ends.
func (f *fleet) watchLeft(ctx context.Context, req *adminv1.ListNodesRequest, interval time.Duration, set func([][]*adminv1.Node, []string)) {
	for ctx.Err() == nil {
		_, changed := f.peers()
		peers, listed := f.peersAndLeft()
		set(f.listPeers(ctx, req, peers[listed:], 0))
		var again <-chan time.Time
		if len(peers) > listed {
			again = time.After(interval)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
}

// watchPeer follows the nodes of another replica until ctx ends. It gives nil
// while that is silent: a watch is answered at once, and what hangs later is found
// out by the connection's keepalive.
func (f *fleet) watchPeer(ctx context.Context, p replica.Peer, req *adminv1.WatchNodesRequest, set func(*adminv1.WatchNodesResponse)) {
	for ctx.Err() == nil {
		err := func() error {
			client, err := f.peer(p)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(asLocal(ctx, knowsNothing))
			defer cancel()
			hangs := time.AfterFunc(f.cfg.PeerTimeout, cancel)
			defer hangs.Stop()
			stream, err := client.WatchNodes(ctx, req)
			if err != nil {
				return err
			}
			for {
				got, err := stream.Recv()
				if err != nil {
					return err
				}
				hangs.Stop()
				f.conns.heard(p.Address)
				set(got)
			}
		}()
		f.skip(ctx, p, err)
		set(nil)
		sleep(ctx, f.cfg.PeerTimeout)
	}
}

// eachPeer runs work for every other replica while it is listed, until ctx ends.
func (f *fleet) eachPeer(ctx context.Context, work func(context.Context, replica.Peer)) {
	var running sync.WaitGroup
	defer running.Wait()
	stops := make(map[replica.Peer]context.CancelFunc)
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	for {
		peers, changed := f.peers()
		for p, stop := range stops {
			if !slices.Contains(peers, p) {
				stop()
				delete(stops, p)
			}
		}
		for _, p := range peers {
			if stops[p] == nil {
				ctx, stop := context.WithCancel(ctx)
				stops[p] = stop
				running.Go(func() { work(ctx, p) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// sleep waits for a time or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
