package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	"github.com/affleet/affleet/dataplane/internal/natstest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func config(name, url, control string) Config {
	return Config{
		Name: name, NATS: url, Control: []string{control}, Lease: 2 * time.Second, Checkpoint: 200 * time.Millisecond, Rebuild: 10 * 365 * 24 * time.Hour,
		Engine: guard.Settings{Addresses: 1 << 10, Networks: 1 << 10, Agents: 1 << 8, ASNs: 1 << 6, Affiliates: 1 << 6},
		Dial:   []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func TestURLOfNATSThatCannotBeReadIsRefusedWithoutItsSecret(t *testing.T) {
	_, err := New(config("one", "nats://ada:s3cret%zz@a:4222", "127.0.0.1:1"))
	if want := `guard: "nats://xxxxx@a:4222" is no URL of NATS`; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}

// admin is a control plane that takes blocks, and has one policy.
type admin struct {
	adminv1.UnimplementedLinkServiceServer
	t      *testing.T
	addr   string
	server *grpc.Server

	mu       sync.Mutex
	blocks   map[string]*linkv1.Block
	writes   int
	refuse   codes.Code
	policy   *linkv1.Policy
	watchers []chan *linkv1.Policy
}

func startAdmin(t *testing.T) *admin {
	a := &admin{t: t, addr: "127.0.0.1:0", blocks: make(map[string]*linkv1.Block)}
	a.start()
	t.Cleanup(a.stop)
	return a
}

func (a *admin) start() {
	ln, err := net.Listen("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	a.server = grpc.NewServer()
	adminv1.RegisterLinkServiceServer(a.server, a)
	server := a.server
	go server.Serve(ln)
}

func (a *admin) stop() { a.server.Stop() }

func (a *admin) set(p *linkv1.Policy) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.policy = p
	for _, w := range a.watchers {
		w <- p
	}
}

func (a *admin) made() (ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.blocks {
		ids = append(ids, id)
	}
	return ids
}

func (a *admin) Get(_ context.Context, r *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.policy == nil || r.GetName() != policyName {
		return nil, status.Error(codes.NotFound, "none")
	}
	return &adminv1.GetResponse{Resource: &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: a.policy}}, Version: &linkv1.Version{Revision: 1}}, nil
}

func (a *admin) Update(_ context.Context, r *adminv1.UpdateRequest) (*adminv1.UpdateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writes++
	if a.refuse != codes.OK {
		return nil, status.Error(a.refuse, "no")
	}
	b := r.GetResource().GetBlock()
	if b == nil || !r.GetAllowMissing() {
		return nil, status.Error(codes.InvalidArgument, "no block")
	}
	a.blocks[b.GetId()] = b
	return &adminv1.UpdateResponse{Resource: r.GetResource()}, nil
}

func (a *admin) Watch(_ *adminv1.WatchRequest, s grpc.ServerStreamingServer[adminv1.WatchResponse]) error {
	changes := make(chan *linkv1.Policy, 16)
	a.mu.Lock()
	a.watchers = append(a.watchers, changes)
	changes <- a.policy // what was written between Get and Watch
	a.mu.Unlock()
	for {
		select {
		case <-s.Context().Done():
			return nil
		case p := <-changes:
			change := &adminv1.Change{Name: policyName}
			if p != nil {
				change.Resource = &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}
			}
			if err := s.Send(&adminv1.WatchResponse{Changes: []*adminv1.Change{change}}); err != nil {
				return err
			}
		}
	}
}

// world is a NATS server, a control plane, and a node that publishes.
type world struct {
	t        *testing.T
	js       jetstream.JetStream
	url      string
	admin    *admin
	sequence uint64
}

func newWorld(t *testing.T) *world {
	server := natstest.Start(t)
	w := &world{t: t, js: server.JetStream(), url: server.URL(), admin: startAdmin(t), sequence: 1}
	if _, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}}); err != nil {
		t.Fatal(err)
	}
	return w
}

// floods publishes a flood of each address, some seconds long and ended now, in
// batches of ten clicks.
func (w *world) flood(addresses ...int) {
	w.t.Helper()
	for _, n := range addresses {
		begin := time.Now().Add(-3 * time.Second)
		for range 4 {
			b := &clickv1.Batch{Node: "n1", Region: "eu", Boot: 7, FirstSequence: w.sequence, BaseTimeUs: begin.UnixMicro(), AddressForm: clickv1.AddressForm_ADDRESS_FORM_FULL, Strings: [][]byte{nil, []byte("agent")}}
			for i := range 10 {
				b.Clicks = append(b.Clicks, &clickv1.Click{TimeUs: int64(i) * 70_000, UserAgent: 1, Address: netip.AddrFrom4([4]byte{203, 0, byte(n / 250), byte(1 + n%250)}).AsSlice()})
			}
			begin = begin.Add(700 * time.Millisecond)
			w.sequence += 10
			data, err := proto.Marshal(b)
			if err != nil {
				w.t.Fatal(err)
			}
			w.publish(data)
		}
	}
}

func (w *world) publish(data []byte) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), clickstream.Subject("eu", "n1"), data); err != nil {
		w.t.Fatal(err)
	}
}

// run runs a guard until the test or stop ends it.
func (w *world) run(name string) (p *Process, stop func()) {
	w.t.Helper()
	p, err := New(config(name, w.url, w.admin.addr))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("guard %s: %v", name, err)
		}
	})
	w.t.Cleanup(stop)
	return p, stop
}

func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			findings, decisions := w.reports()
			w.t.Fatalf("there is not %s; findings %v, decisions %v", what, findings, decisions)
		}
	}
}

// reports reads the stream of findings: ids, and verdicts.
func (w *world) reports() (findings, decisions []string) {
	w.t.Helper()
	err := clickstream.Reports(w.t.Context(), w.js, clickstream.ReportOptions{}, func(r *clickstream.Report) error {
		if d := r.GetDecision(); d != nil {
			decisions = append(decisions, d.GetFinding()+" "+verdictName(d.GetVerdict()))
		} else {
			findings = append(findings, r.GetFinding().GetId())
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return findings, decisions
}

// decided waits for so many decisions, and proves that no finding is there twice
// and none decided twice.
func (w *world) decided(n int) (verdicts map[string]int) {
	w.t.Helper()
	var findings, decisions []string
	w.eventually(fmt.Sprintf("%d decisions", n), func() bool {
		findings, decisions = w.reports()
		return len(decisions) >= n
	})
	seen := map[string]bool{}
	verdicts = map[string]int{}
	for _, id := range findings {
		if seen[id] {
			w.t.Errorf("finding %s is there twice", id)
		}
		seen[id] = true
	}
	for _, d := range decisions {
		id, verdict, _ := strings.Cut(d, " ")
		if seen[id+"!"] || !seen[id] {
			w.t.Errorf("decision %s is there twice, or of no finding", d)
		}
		seen[id+"!"] = true
		verdicts[verdict]++
	}
	return verdicts
}

// each flood gives a finding of the address: its /24 is that address.
func TestAFloodIsFoundDecidedAndBlocked(t *testing.T) {
	w := newWorld(t)
	p, _ := w.run("a")
	w.publish([]byte("none of ours"))
	w.flood(1)
	if v := w.decided(1); v["blocked"] != 1 {
		t.Fatal(v)
	}
	if ids := w.admin.made(); len(ids) != 1 {
		t.Fatal(ids)
	}
	w.admin.mu.Lock()
	defer w.admin.mu.Unlock()
	for _, b := range w.admin.blocks {
		if b.GetTtl().AsDuration() != time.Hour || b.GetAction() != linkv1.BlockAction_BLOCK_ACTION_LABEL || !strings.Contains(b.GetReason(), "clicks in") || b.GetFinding() == "" {
			t.Errorf("%v", b)
		}
	}
	if err := p.Healthy(); err != nil || !p.Leading() {
		t.Errorf("%v, leads: %v", err, p.Leading())
	}
}

func TestTheKillSwitchAndTheBudgetHoldAtOnceAndForTheNextLeader(t *testing.T) {
	w := newWorld(t)
	w.admin.policy = &linkv1.Policy{Scope: "*", Guard: &linkv1.GuardPolicy{BlocksPerHour: 1}}
	_, stop := w.run("a")
	w.flood(1, 300)
	if v := w.decided(2); v["blocked"] != 1 || v["no_budget"] != 1 {
		t.Fatal(v)
	}
	stop()
	w.run("b")
	w.flood(600)
	if v := w.decided(3); v["blocked"] != 1 || v["no_budget"] != 2 {
		t.Fatal(v)
	}
	w.admin.set(&linkv1.Policy{Scope: "*", Off: true})
	w.eventually("the kill switch", func() bool {
		w.flood(900 + int(w.sequence)) // until the guard has heard of it
		_, d := w.reports()
		return slices.ContainsFunc(d, func(d string) bool { return strings.HasSuffix(d, " off") })
	})
	if ids := w.admin.made(); len(ids) != 1 {
		t.Fatal(ids)
	}
}

func TestFindingsGoOnWhileTheControlPlaneIsAwayAndBlocksComeWhenItIsBack(t *testing.T) {
	w := newWorld(t)
	w.run("a")
	w.flood(1)
	w.decided(1)
	w.admin.stop()
	w.flood(300, 600)
	w.eventually("three findings", func() bool { f, _ := w.reports(); return len(f) == 3 })
	if _, d := w.reports(); len(d) != 1 {
		t.Fatal(d)
	}
	w.admin.start()
	if v := w.decided(3); v["blocked"] != 3 {
		t.Fatal(v)
	}
	w.admin.mu.Lock()
	w.admin.refuse = codes.InvalidArgument
	w.admin.mu.Unlock()
	w.flood(900)
	if v := w.decided(4); v["failed"] != 1 {
		t.Fatal(v)
	}
}

func TestAGuardThatStartsWithoutAControlPlaneDecidesNothingUnderAnUnknownPolicy(t *testing.T) {
	w := newWorld(t)
	w.admin.stop()
	_, stop := w.run("a")
	w.flood(1)
	w.eventually("a finding", func() bool { f, _ := w.reports(); return len(f) == 1 })
	if _, d := w.reports(); len(d) != 0 {
		t.Fatal(d)
	}
	stop() // the findings are left to the next
	w.admin.policy = &linkv1.Policy{Scope: "*", Off: true}
	w.admin.start()
	w.run("b")
	if v := w.decided(1); v["off"] != 1 {
		t.Fatal(v)
	}
}

func TestNATSMayRestartBelowTheGuard(t *testing.T) {
	server := natstest.Start(t)
	w := &world{t: t, js: server.JetStream(), url: server.URL(), admin: startAdmin(t), sequence: 1}
	if _, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}}); err != nil {
		t.Fatal(err)
	}
	w.run("a")
	w.flood(1)
	w.decided(1)
	server.Stop()
	server.Restart()
	w.eventually("NATS", func() bool { _, err := w.js.AccountInfo(t.Context()); return err == nil })
	w.flood(300)
	if v := w.decided(2); v["blocked"] != 2 {
		t.Fatal(v)
	}
}

func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	good := config("a", "nats://127.0.0.1:1", "127.0.0.1:1")
	for name, change := range map[string]func(*Config){
		"name":    func(c *Config) { c.Name = "" },
		"NATS":    func(c *Config) { c.NATS = " " },
		"control": func(c *Config) { c.Control = nil },
		"lease":   func(c *Config) { c.Lease = time.Millisecond },
		"engine":  func(c *Config) { c.Engine.Again = time.Second },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	p, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}
