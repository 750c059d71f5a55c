package clickstream

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestEachUnsafeSettingOfTheStreamIsSaidInALine(t *testing.T) {
	good := jetstream.StreamConfig{
		Subjects: []string{Subjects}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		Duplicates: 2 * time.Minute, MaxBytes: 1 << 30, Replicas: 3,
	}
	for _, servers := range []int{1, 3} {
		if lines := CheckStream(good, servers); len(lines) > 0 {
			t.Fatal(lines)
		}
	}
	wide := good
	wide.Subjects = []string{"x", "aff.>"}
	if lines := CheckStream(wide, 3); len(lines) > 0 {
		t.Fatal(lines)
	}
	for want, change := range map[string]func(*jetstream.StreamConfig){
		"is in memory":                       func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"discards old messages":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"deletes what has been acknowledged": func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"does not acknowledge":               func(c *jetstream.StreamConfig) { c.NoAck = true },
		"before it has written":              func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"duplicate window is 30s":            func(c *jetstream.StreamConfig) { c.Duplicates = 30 * time.Second },
		"no limit of bytes":                  func(c *jetstream.StreamConfig) { c.MaxBytes = -1 },
		"forgets clicks after 10m0s":         func(c *jetstream.StreamConfig) { c.MaxAge = 10 * time.Minute },
		"a limit of messages":                func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 },
		"at most 7 messages":                 func(c *jetstream.StreamConfig) { c.MaxMsgs = 7 },
		"sealed":                             func(c *jetstream.StreamConfig) { c.Sealed = true },
		"at most 1000 bytes":                 func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
		"has 1 replicas though":              func(c *jetstream.StreamConfig) { c.Replicas = 1 },
		"2 replicas: it stops":               func(c *jetstream.StreamConfig) { c.Replicas = 2 },
		"does not take all":                  func(c *jetstream.StreamConfig) { c.Subjects = []string{"aff.clicks.v1.eu.*"} },
	} {
		bad := good
		change(&bad)
		servers := 3
		if bad.Replicas == 2 { // with three, it is said that there can be as many replicas
			servers = 2
		}
		if lines := CheckStream(bad, servers); len(lines) != 1 || !strings.Contains(lines[0], want) {
			t.Errorf("%s: %q", want, lines)
		}
	}
	for want, lines := range map[string][]string{
		"": CheckSync(2*time.Minute, false, 1), "loses clicks for good": CheckSync(time.Hour, false, 3), "have little of": CheckSync(8*time.Minute, false, 1),
	} {
		if len(lines) == 0 && want == "" {
			continue
		}
		if len(lines) != 1 || want == "" || !strings.Contains(lines[0], want) || !strings.Contains(lines[0], "by default (--click-keep)") {
			t.Errorf("%q: %q", want, lines)
		}
	}
	if lines := CheckSync(time.Hour, true, 1); len(lines) > 0 {
		t.Error(lines)
	}
}
