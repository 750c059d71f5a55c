package traffic

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"math"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// small is traffic that a test can make in a moment.
func small(seed uint64) Config {
	cfg := Default(seed)
	cfg.Affiliates, cfg.Baseline, cfg.Length, cfg.Attacks, cfg.Rate = 60, 4*time.Hour, 44*time.Hour, 2, 1
	return cfg
}

// made is small traffic that several tests look at.
var made = sync.OnceValues(func() (*Traffic, []Click) {
	t := New(small(3))
	var all []Click
	for c := range t.Clicks() {
		all = append(all, *c)
	}
	return t, all
})

func digest(cfg Config, how Batching) (sum [32]byte, clicks int) {
	t, h := New(cfg), sha256.New()
	for b, message := range t.Batches(t.Clicks(), how) {
		h.Write(message)
		clicks += len(b.GetClicks())
	}
	return [32]byte(h.Sum(nil)), clicks
}

func TestTheSameSeedGivesTheSameBytesAndAnotherSeedOthers(t *testing.T) {
	cfg := small(1)
	cfg.Length = 12 * time.Hour
	cfg.Only = []Class{Flood, Botnet}
	a, n := digest(cfg, Batching{})
	if b, m := digest(cfg, Batching{}); a != b || n != m {
		t.Errorf("the same seed gave %d clicks and then %d, or other bytes", n, m)
	}
	cfg.Seed = 2
	if b, _ := digest(cfg, Batching{}); a == b {
		t.Error("another seed gave the same bytes")
	}
}

func TestClicksComeInOrderAndEachKnowsItsClass(t *testing.T) {
	tr, clicks := made()
	last := int64(0)
	var classes [NumClasses]int
	for i := range clicks {
		c := &clicks[i]
		if c.Time < last {
			t.Fatalf("a click at %d comes behind one at %d", c.Time, last)
		}
		last = c.Time
		classes[c.Class]++
		if c.Class.Attack() != (c.Instance >= 0 && tr.Instances[c.Instance].Class.Attack()) {
			t.Fatalf("a click of class %v has instance %d", c.Class, c.Instance)
		}
		if c.Class.Attack() && c.Time < tr.attacksFrom()-minute {
			t.Fatalf("%v clicks in the baseline", c.Class)
		}
		if c.Affiliate != tr.Shop.Links[c.Link].Affiliate || !c.Address.IsValid() || len(c.Country) != 2 || c.ASN == 0 {
			t.Fatalf("a click that cannot be: %+v", c)
		}
	}
	for class, n := range classes {
		if n == 0 {
			t.Errorf("no click of class %v", Class(class))
		}
	}
	if rate := float64(classes[Ordinary]) / float64(tr.End()-tr.begin()) * float64(second); math.Abs(rate/tr.Config.Rate-1) > .2 {
		t.Errorf("ordinary clicks come at %.2f/s, want %.2f", rate, tr.Config.Rate)
	}
}

func TestEachAttackEndsInTimeAndIsAsStrongAsItSays(t *testing.T) {
	tr, clicks := made()
	type seen struct {
		agents, addresses map[string]bool
		n                 int
		first, last       int64
	}
	got := make(map[int32]*seen)
	for i := range clicks {
		c := &clicks[i]
		if !c.Class.Attack() {
			continue
		}
		s := got[c.Instance]
		if s == nil {
			s = &seen{agents: make(map[string]bool), addresses: make(map[string]bool), first: c.Time}
			got[c.Instance] = s
		}
		s.n++
		s.last = c.Time
		s.agents[c.Agent], s.addresses[c.Address.String()] = true, true
	}
	for id, in := range tr.Instances {
		if !in.Class.Attack() {
			continue
		}
		s := got[int32(id)]
		if s == nil {
			t.Errorf("%s makes no click", in.Name(id))
			continue
		}
		length := time.Duration(s.last-s.first) * time.Microsecond
		rate := float64(s.n) / length.Seconds()
		agents, addresses := len(s.agents), len(s.addresses)
		var ok bool
		switch in.Class {
		case Flood:
			ok = addresses == 1 && rate > .8 && rate < 36 && s.n <= 6600 && agents <= 3
		case Botnet:
			ok = rate > .17 && addresses > s.n*9/10 && length > 50*time.Minute && length < 5*time.Hour
		case CookieCut:
			ok = agents == 1 && addresses > 100 && length > 50*time.Minute
		case LowAndSlow:
			ok = addresses > 40 && addresses <= 1200 && length > 19*time.Hour && rate < 1./25 && agents > 10
		case Regular:
			ok = addresses == 1 && agents == 1 && length > 19*time.Hour && rate < 1./29
		case Burst:
			ok = s.n >= 300 && addresses > s.n/2
		case ManyAgents:
			ok = addresses == 1 && agents >= 40 && rate < .6 && rate > .04
		case Labelled:
			ok = addresses >= 40 && length > time.Hour
		case CountryMix:
			ok = addresses >= 100 && length > 3*time.Hour
		}
		if !ok {
			t.Errorf("%s: %d clicks (%.3f/s in %v) of %d agents and %d addresses", in.Name(id), s.n, rate, length, agents, addresses)
		}
	}
}

func TestNightsAreQuietAndPlacesAndBrowsersHaveTheirShares(t *testing.T) {
	cfg := Default(5)
	cfg.Baseline, cfg.Length, cfg.Attacks = 2*24*time.Hour, time.Hour, 0
	tr := New(cfg)
	var hours [24]float64
	var n, us, six, mobile, chrome float64
	agents, addresses, affiliates := make(map[string]int), make(map[string]int), make(map[string]float64)
	for c := range tr.Clicks() {
		if c.Class != Ordinary {
			continue
		}
		n++
		addresses[c.Address.String()]++
		agents[c.Agent]++
		affiliates[tr.Shop.Affiliates[c.Affiliate].ID]++
		if c.Country == "DE" {
			hours[(c.Time/hour+1)%24]++
		}
		if c.Country == "US" {
			us++
		}
		if c.Address.Is6() {
			six++
		}
		if bytes.Contains([]byte(c.Agent), []byte("Mobile")) {
			mobile++
		}
		if bytes.Contains([]byte(c.Agent), []byte("Chrome/")) {
			chrome++
		}
	}
	within := func(what string, got, low, high float64) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s is %.3f, want %.3f to %.3f", what, got, low, high)
		}
	}
	within("Germans at 4 h to those at 20 h", hours[4]/hours[20], .08, .22)
	within("the share of the US", us/n, .12, .40)
	within("the share of IPv6", six/n, .40, .50)
	within("the share of phones", mobile/n, .55, .66)
	within("the share of Chrome's engine", chrome/n, .5, .85)
	within("the share of the first affiliate", affiliates["aff-00000"]/n, .07, .12)
	within("clicks per address", n/float64(len(addresses)), 1.4, 6)
	most := 0
	for _, k := range agents {
		most = max(most, k)
	}
	// "User-Agent reduction": one agent has a good share, and there are many.
	within("the share of the commonest agent", float64(most)/n, .06, .25)
	within("the number of agents", float64(len(agents)), 200, 5000)
}

func TestLabelsFollowFromWhatANodeSees(t *testing.T) {
	_, clicks := made()
	var labels [NumClasses]map[string]int
	for i := range labels {
		labels[i] = make(map[string]int)
	}
	for i := range clicks {
		c := &clicks[i]
		labels[c.Class]["all"]++
		for _, name := range c.LabelNames() {
			labels[c.Class][name]++
		}
	}
	if l := labels[Crawler]; l["bot"] != l["all"] {
		t.Errorf("of %d clicks of crawlers, %d have the label", l["all"], l["bot"])
	}
	if l := labels[Preview]; l["preview"] != l["all"] || l["head"] == 0 {
		t.Errorf("of %d previews, %d have the label, and %d are HEAD", l["all"], l["preview"], l["head"])
	}
	if l := labels[Ordinary]; 100*(l["rate"]+l["odd_headers"]+l["no_ua"]+l["bot"]) > l["all"] || 25*l["duplicate"] > 2*l["all"] || l["duplicate"] == 0 {
		t.Errorf("people are labelled: %v", l)
	}
	if l := labels[Flood]; 2*l["duplicate"] < l["all"] {
		t.Errorf("floods are hardly labelled: %v", l)
	}
	if l := labels[Labelled]; l["datacenter"]+l["no_ua"]+l["odd_headers"] != l["all"] {
		t.Errorf("labels of the class that has its name from them: %v", l)
	}
}

func TestBatchesHoldEveryClickOnce(t *testing.T) {
	cfg := small(7)
	cfg.Baseline, cfg.Length, cfg.Only = time.Hour, 8*time.Hour, []Class{Flood}
	want := 0
	for range New(cfg).Clicks() {
		want++
	}
	for _, how := range []Batching{{}, {Span: 50_000, Most: 10, Truncate: true}} {
		tr, next, got := New(cfg), make(map[string]uint64), 0
		for _, message := range tr.Batches(tr.Clicks(), how) {
			var b clickv1.Batch
			if err := proto.Unmarshal(message, &b); err != nil {
				t.Fatal(err)
			}
			if b.GetFirstSequence() != next[b.GetNode()]+1 {
				t.Fatalf("%s goes on with %d behind %d", b.GetNode(), b.GetFirstSequence(), next[b.GetNode()])
			}
			next[b.GetNode()] += uint64(len(b.GetClicks()))
			got += len(b.GetClicks())
			for _, c := range b.GetClicks() {
				if how.Truncate && len(c.GetAddress()) == 4 && c.GetAddress()[3] != 0 {
					t.Fatalf("address %v is not truncated", c.GetAddress())
				}
				if string(b.GetStrings()[c.GetLink()]) == "" || string(b.GetStrings()[c.GetCountry()]) == "" {
					t.Fatal("a click without link or country")
				}
			}
		}
		if got != want {
			t.Errorf("batches hold %d clicks of %d", got, want)
		}
	}
}

func TestRequestsCanBeReadAndNameTheClient(t *testing.T) {
	cfg := small(8)
	cfg.Baseline = time.Hour
	tr, n := New(cfg), 0
	for c := range tr.Clicks() {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(tr.Shop.AppendRequest(nil, c))))
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		if req.URL.Path != tr.Shop.Links[c.Link].Path || req.Header.Get("X-Forwarded-For") != c.Address.String() || req.UserAgent() != c.Agent || req.Referer() != c.Referrer {
			t.Fatalf("%+v became %+v", c, req)
		}
		if n++; n == 20_000 {
			return
		}
	}
}
