package clickstream

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// noRegistry is what npm says when there is no network, rather than a defect.
var noRegistry = regexp.MustCompile(`\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|ETIMEDOUT|ENOTCACHED)\b`)

// A consumer in another language, with the ordinary NATS client and the .proto
// alone, gets each click once and sees the gap. It runs twice, and goes on.
func TestAConsumerInNodeJSFollowsTheREADME(t *testing.T) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: apt-get install nodejs npm (version 18 or newer)", program)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "consumer.js"} {
		text, err := os.ReadFile(filepath.Join("testdata", "node", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		if noRegistry.Match(out) {
			t.Skipf("npm's registry cannot be reached:\n%s", out)
		}
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	proto, err := filepath.Abs("../../proto/aff/click/v1/click.proto")
	if err != nil {
		t.Fatal(err)
	}
	s := natstest.Start(t)
	publish := stream(t, s.JetStream())
	affiliates := func(b *clickv1.Batch) {
		b.Strings = append(b.Strings, []byte("aff_01"), []byte("darian_v"))
		b.AddressForm = clickv1.AddressForm_ADDRESS_FORM_HASHED
		for i, c := range b.Clicks {
			c.Affiliate = uint32((b.FirstSequence + uint64(i)) % 3) // none, aff_01, darian_v, ...
			switch c.Affiliate {
			case 1:
				c.Address = make([]byte, 8)
			case 2:
				c.Address = []byte{203, 0, 113, 0}
				if i%2 == 0 {
					c.AddressForm = clickv1.AddressForm_ADDRESS_FORM_TRUNCATED
				} // and else as nodes of earlier releases leave it
			}
		}
	}
	final := func(b *clickv1.Batch) { b.Ledger.Final = true }
	type result struct {
		PerAffiliate map[string]int `json:"perAffiliate"`
		PerForm      map[string]int `json:"perForm"`
		Gaps         []string       `json:"gaps"`
		Ended        []string       `json:"ended"`
	}
	consume := func() (r result) {
		t.Helper()
		run := exec.Command("node", "consumer.js", s.URL(), proto, "result.json")
		run.Dir = dir
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		text, err := os.ReadFile(filepath.Join(dir, "result.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	const boot = 0xfedcba9876543210 // larger than a number of JavaScript
	subject := Subject("eu", "n")
	publish(subject, message(t, "n", boot, 1, 30, affiliates))
	publish(subject, packed(t, message(t, "n", boot, 20, 20, affiliates))) // 20 to 30 once more, as nodes send it
	publish(subject, message(t, "n", boot, 46, 5, affiliates))             // 40 to 45 are missing
	if diff := cmp.Diff(result{map[string]int{"": 14, "aff_01": 15, "darian_v": 15}, map[string]int{"0": 14, "3": 15, "2": 15}, []string{"n 40 to 45"}, []string{}}, consume()); diff != "" {
		t.Fatal(diff)
	}
	publish(subject, message(t, "n", boot, 38, 6, affiliates)) // 40 to 43 come late
	publish(subject, message(t, "n", boot, 51, 0, affiliates, final))
	if diff := cmp.Diff(result{map[string]int{"": 15, "aff_01": 17, "darian_v": 16}, map[string]int{"0": 15, "3": 17, "2": 16}, []string{"n 40 to 45"}, []string{"n"}}, consume()); diff != "" {
		t.Fatal(diff)
	}
}
