package label

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/race"
	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

const phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1"

// bench judges requests one after the other.
type bench struct {
	judge   *Judge
	book    *table.Table
	sources *visitor.Sources
	match   link.Match
	none    link.Match // of a request without a link

	visitor visitor.Visitor
	headers visitor.Headers
	verdict link.Verdict
	req     link.Request
	r       Request
}

func newBench(t testing.TB, cfg Config, lists ...string) *bench {
	t.Helper()
	judge, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sources, err := visitor.Open(visitor.Config{Datacenters: lists})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{judge: judge, sources: sources, book: table.NewBuilder(0).Build(table.Version{})}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "h", Path: "/p", Destination: "https://store.example/"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.match.Load(value); err != nil {
		t.Fatal(err)
	}
	b.headers = visitor.Headers{visitor.UserAgent: []byte(phone), visitor.Accept: []byte("*/*"), visitor.AcceptLanguage: []byte("de")}
	b.req = link.Request{Host: []byte("h"), Path: []byte("/p"), Address: netip.MustParseAddr("192.0.2.1"), UserAgent: b.headers[visitor.UserAgent]}
	b.r = Request{Visitor: &b.visitor, Mono: int64(time.Hour)}
	return b
}

// ask judges the request, and gives its labels.
func (b *bench) ask() link.LabelSet {
	b.visitor.Reset(b.sources, b.req.Address, &b.headers)
	b.judge.Judge(&b.verdict, &b.r, &b.match, &b.req, b.book)
	return b.verdict.Set()
}

// add adds a block or a policy.
func (b *bench) add(t testing.TB, r *linkv1.Resource) {
	t.Helper()
	name, err := link.Name(r)
	if err != nil {
		t.Fatal(err)
	}
	value, err := link.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	builder := b.book.Edit()
	if err := builder.Put([]byte(name), value); err != nil {
		t.Fatal(err)
	}
	b.book = builder.Build(table.Version{})
}

func (b *bench) pass(d time.Duration) { b.r.Mono += int64(d) }

func TestAnAddressThatAsksTooOftenIsLabelled(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory, Rate: 20, RatePerLink: 10, Off: link.Of(link.LabelDuplicate, link.LabelReplay)})
	for i := 1; i <= 12; i++ {
		if got := b.ask().Has(link.LabelRate); got != (i > 10) {
			t.Fatalf("request %d: rate is %v", i, got)
		}
	}
	if why := string(b.verdict.Reason(link.LabelRate)); why != "rate-address-link 1: over 10 in 1m0s" {
		t.Errorf("the reason is %q", why)
	}
	b.match = b.none // 404 after 404 counts for the address alone
	for i := 13; i <= 22; i++ {
		if got := b.ask().Has(link.LabelRate); got != (i > 20) {
			t.Fatalf("request %d: rate is %v", i, got)
		}
	}
	if why := string(b.verdict.Reason(link.LabelRate)); why != "rate-address 1: over 20 in 1m0s" {
		t.Errorf("the reason is %q", why)
	}
	b.req.Address = netip.MustParseAddr("192.0.2.2")
	if b.ask() != 0 {
		t.Error("its neighbour is labelled too")
	}
	b.req.Address = netip.MustParseAddr("192.0.2.1")
	b.pass(2 * time.Minute)
	if b.ask() != 0 {
		t.Error("it is labelled for ever")
	}
}

func TestAnIPv6AddressCountsAsItsNetwork(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory, Rate: 20, RatePerLink: 10})
	for i := range 10 {
		b.req.Address = netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2:%x::1", i))
		b.ask()
	}
	if got := b.ask(); !got.Has(link.LabelRate) || !got.Has(link.LabelDuplicate) {
		t.Errorf("labels %b of another address of the /64", got)
	}
	b.req.Address = netip.MustParseAddr("2001:db8:1:3::1")
	if got := b.ask(); got != 0 {
		t.Errorf("labels %b of another /64", got)
	}
	b.req.Address = netip.MustParseAddr("::ffff:192.0.2.1") // IPv4, however it is written
	b.ask()
	b.req.Address = netip.MustParseAddr("192.0.2.1")
	if got := b.ask(); !got.Has(link.LabelDuplicate) {
		t.Errorf("labels %b of the same IPv4 address", got)
	}
}

func TestAClickThatIsLikeOneBeforeIsADuplicate(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory})
	other := func(change func()) {
		t.Helper()
		req, headers := b.req, b.headers
		change()
		if got := b.ask(); got != 0 {
			t.Errorf("labels %b of a first click", got)
		}
		b.req, b.headers = req, headers
	}
	other(func() {})
	b.pass(5 * time.Second)
	other(func() { b.req.Address = netip.MustParseAddr("192.0.2.77") })
	other(func() { b.req.UserAgent = []byte("Other/1"); b.headers[visitor.UserAgent] = b.req.UserAgent })
	if got := b.ask(); got != link.Of(link.LabelDuplicate) || string(b.verdict.Reason(link.LabelDuplicate)) != "address-agent-link 1: within 30s" {
		t.Errorf("labels %b, %s", got, b.verdict.Reason(link.LabelDuplicate))
	}
	b.pass(29 * time.Second) // each one begins the time anew
	if got := b.ask(); got != link.Of(link.LabelDuplicate) {
		t.Errorf("labels %b", got)
	}
	b.pass(31 * time.Second)
	if got := b.ask(); got != 0 {
		t.Errorf("labels %b after the time is over", got)
	}
}

func TestTheSameClickAgainIsAReplay(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory, Off: link.Of(link.LabelDuplicate)})
	at := func(change func()) bool {
		req, headers := b.req, b.headers
		defer func() { b.req, b.headers = req, headers }()
		change()
		return b.ask().Has(link.LabelReplay)
	}
	b.ask()
	b.pass(time.Second)
	taken := 0
	for _, change := range map[string]func(){
		"path":  func() { b.req.Path = []byte("/P") },
		"query": func() { b.req.Query = []byte("x=1") },
	} {
		b.ask()
		if at(change) {
			taken++ // with a probability of 1/1024 by chance
		}
	}
	if taken > 1 {
		t.Errorf("%d requests that differ are taken for the same", taken)
	}
	b.pass(10 * time.Second)
	b.ask()
	b.pass(1900 * time.Millisecond)
	if !at(func() {}) || string(b.verdict.Reason(link.LabelReplay)) != "same-request 1: within 2s" {
		t.Error("the same request within 2 s is no replay")
	}
	b.pass(2200 * time.Millisecond)
	if at(func() {}) {
		t.Error("the same request after more than 2 s is a replay")
	}
}

func TestTheSameClickIDAgainIsAReplayWhoeverSendsIt(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory})
	from := byte(0)
	ask := func(query string) bool { // each time another client
		from++
		b.pass(3 * time.Second)
		b.req.Address, b.req.Query = netip.AddrFrom4([4]byte{10, 0, 0, from}), []byte(query)
		return b.ask().Has(link.LabelReplay)
	}
	const id = "Cj0KCQjw-abcdefghijkl_mnop"
	for i, name := range idNames {
		query := fmt.Sprintf("a=b&%s=%s%d&c", name, id, i)
		if ask(query) {
			t.Errorf("%s: the first click is a replay", name)
		}
		if !ask(query) || string(b.verdict.Reason(link.LabelReplay)) != "click-id 1: "+name+" within 1h0m0s" {
			t.Errorf("%s: the second is none: %q", name, b.verdict.Reason(link.LabelReplay))
		}
	}
	for _, query := range []string{"gclid=1", "gclid={gclid_of_the_click}", "gclid=", "gclid", "xgclid=" + id, "gclid=%41" + id, "fbclidx=" + id, "gclid=" + strings.Repeat("x", 600)} {
		if first, second := ask(query), ask(query); first || second {
			t.Errorf("%.40s: is a replay", query)
		}
	}
	ask("gclid=" + id + "one")
	b.pass(61 * time.Minute)
	if ask("gclid=" + id + "one") {
		t.Error("it is a replay for ever")
	}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "h", Path: "/other", Destination: "https://store.example/"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.match.Load(value); err != nil {
		t.Fatal(err)
	}
	if ask("gclid=" + id + "one") {
		t.Error("a click of another link is a replay")
	}
}

func TestWhatIsNoClickMakesNoDuplicates(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory})
	b.req.Query = []byte("fbclid=IwAR0abcdefghijklmnopqrstuvwxyz")
	first := func(label link.Label) {
		t.Helper()
		if got := b.ask(); !got.Has(label) || got.Has(link.LabelDuplicate) || got.Has(link.LabelReplay) {
			t.Errorf("labels %b", got)
		}
	}
	b.r.Head = true
	first(link.LabelHead)
	b.r.Head = false
	b.headers[visitor.SecPurpose] = []byte("prefetch")
	first(link.LabelPrefetch)
	b.headers[visitor.SecPurpose], b.headers[visitor.Purpose] = nil, []byte("preview")
	first(link.LabelPreview)
	b.headers[visitor.Purpose] = nil
	if got := b.ask(); got != 0 {
		t.Errorf("the click itself has labels %b", got)
	}
	if got := b.ask(); got != link.Of(link.LabelDuplicate, link.LabelReplay) {
		t.Errorf("the click after it has labels %b", got)
	}
}

func TestEachLabelCanBeSwitchedOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clouds.txt")
	if err := os.WriteFile(path, []byte("192.0.2.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for off := range link.NumLabels {
		b := newBench(t, Config{Memory: MinMemory, Rate: 1, RatePerLink: 1, Off: link.Of(off)}, path)
		b.add(t, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b", Reason: "r", Match: &linkv1.Block_Prefix{Prefix: "192.0.2.1"}}}})
		ask := func(agent string, head bool, purpose, languages string) link.LabelSet {
			b.req.UserAgent, b.r.Head = []byte(agent), head
			b.headers[visitor.UserAgent], b.headers[visitor.Purpose], b.headers[visitor.AcceptLanguage] = b.req.UserAgent, []byte(purpose), []byte(languages)
			return b.ask()
		}
		got := ask(phone, false, "", "")
		got |= ask(phone, false, "", "") | ask("", true, "prefetch preview", "de") | ask("Googlebot/2.1", false, "", "")
		if all := link.LabelSet(1<<link.NumLabels - 1); got != all&^link.Of(off) {
			t.Errorf("without %v: labels %b", off, got)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for flag, cfg := range map[string]Config{
		"label-memory":        {Memory: MinMemory - 1},
		"label-memory: ":      {Memory: MaxMemory + 1},
		"label-rate-window":   {RateWindow: time.Millisecond},
		"label-rate-window: ": {RateWindow: 2 * time.Hour},
		"label-rate":          {Rate: -1},
		"label-rate: ":        {Rate: MaxRate + 1},
		"label-rate-per-link": {RatePerLink: MaxRate + 1},
		"label-duplicate":     {Duplicate: 25 * time.Hour},
		"label-replay":        {Replay: -time.Second},
	} {
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	j, err := New(Config{})
	if err != nil || j.Memory() != 16<<20 {
		t.Errorf("%v, %d bytes by default", err, j.Memory())
	}
}

func TestJudgingAllocatesNothing(t *testing.T) {
	b := newBench(t, Config{})
	b.req.Query = []byte("a=b&gclid=Cj0KCQjw-abcdefghijklmnop")
	i := uint32(0)
	if allocs := testing.AllocsPerRun(1, func() {
		for range 1000 { // of one run: what one in two allocates is rounded down to nothing
			i++
			b.req.Address = address(i)
			b.pass(time.Millisecond)
			b.ask()
		}
	}); allocs > 10 { // some may be the runtime's
		t.Errorf("%v allocations by 1000 requests", allocs)
	}
}

// address makes up an address.
func address(i uint32) netip.Addr {
	h := uint32(mix(uint64(i), 1))
	return netip.AddrFrom4([4]byte{byte(h>>24)%200 + 1, byte(h >> 16), byte(h >> 8), byte(h)})
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemoryStaysTheSameWhateverTheTraffic floods with ten million made-up
// addresses, user agents and click ids, half of them for paths without a link.
// What is remembered of user agents and the like is bounded too: 8192 of them
// and their facts, each cut at 1 kB.
func TestMemoryStaysTheSameWhateverTheTraffic(t *testing.T) {
	flood := uint32(10_000_000)
	if race.Enabled || testing.Short() {
		flood = 200_000
	}
	b := newBench(t, Config{})
	linked := b.match
	agent := []byte("Made-Up/0000000000")
	query := []byte("gclid=made-up-0000000000000000")
	number := func(dst []byte, i uint32) {
		for at := len(dst) - 1; i > 0; at, i = at-1, i/10 {
			dst[at] = '0' + byte(i%10)
		}
	}
	send := func(from, to uint32) {
		for i := from; i < to; i++ {
			if number(query, i); i%32 == 0 { // parsing one takes 4 µs
				number(agent, i)
			}
			b.req.Address, b.req.Query, b.req.UserAgent, b.headers[visitor.UserAgent] = address(i), query, agent, agent
			b.req.Path = query
			b.match = linked
			if i%2 == 0 {
				b.match = link.Match{}
			}
			b.pass(10 * time.Microsecond)
			b.ask()
		}
	}
	send(0, flood/10)
	before := heap()
	send(flood/10, flood)
	after := heap()
	if grown := int64(after) - int64(before); grown > 2<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if after > 64<<20 {
		t.Errorf("it all takes %d bytes", after)
	}
	t.Logf("%d requests: %.1f MB before, %.1f MB after", flood, float64(before)/1e6, float64(after)/1e6)
	runtime.KeepAlive(b)
}

func TestManyGoroutinesMayJudgeAtTheSameTime(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory, Rate: 100, RatePerLink: 100})
	var wg sync.WaitGroup
	var mu sync.Mutex
	labelled := 0
	for w := range 4 {
		wg.Go(func() {
			mine := &bench{judge: b.judge, sources: b.sources, book: b.book, match: b.match, headers: b.headers, req: b.req}
			mine.r = Request{Visitor: &mine.visitor, Mono: b.r.Mono}
			n := 0
			for i := range uint32(2000) {
				mine.req.Address = address(i % 20)
				if mine.ask().Has(link.LabelRate) {
					n++
				}
				mine.req.Address = address(uint32(w)<<20 | i)
				mine.ask()
			}
			mu.Lock()
			labelled += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if want := 4*2000 - 20*100; labelled < want*9/10 || labelled > want*11/10 {
		t.Errorf("%d requests are over the rate, want about %d", labelled, want)
	}
}

func TestReasonsHaveARuleAndItsVersion(t *testing.T) {
	b := newBench(t, Config{Memory: MinMemory})
	for _, why := range append([][]byte{b.judge.rate, b.judge.ratePerLink, b.judge.duplicate, b.judge.retry}, b.judge.replays[:]...) {
		name, _, _ := strings.Cut(string(why), ":")
		if words := strings.Fields(name); len(words) != 2 || words[1] != "1" {
			t.Errorf("%q is no rule and version", why)
		}
	}
	if slices.ContainsFunc(b.judge.replays[:], func(r []byte) bool { return r == nil }) {
		t.Error("a click id has no reason")
	}
}

func FuzzClickID(f *testing.F) {
	f.Add([]byte("gclid=0123456789abcdef&x=1"))
	f.Add([]byte("&&=&gclid=&fbclid=0123456789abcdef0123"))
	f.Add([]byte("msclkid"))
	f.Fuzz(func(t *testing.T, query []byte) {
		id, value := clickID(query)
		if value == nil {
			return
		}
		if len(value) < minID || len(value) > maxID || !strings.Contains("&"+string(query)+"&", "&"+idNames[id]+"="+string(value)+"&") {
			t.Fatalf("%q has %s %q", query, idNames[id], value)
		}
	})
}
