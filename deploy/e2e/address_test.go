package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// behindProxy are the flags of a node that believes the PROXY header of this machine.
func behindProxy(flags ...string) []string {
	return append([]string{"--trusted-proxies", "127.0.0.1/32", "--proxy-protocol"}, flags...)
}

// visitFrom asks the node at addr for /a as a client of that address would, with more
// header lines.
func visitFrom(t *testing.T, addr, client, header string) {
	t.Helper()
	family := "TCP4 %s 127.0.0.1"
	if len(client) > len("255.255.255.255") {
		family = "TCP6 %s ::1"
	}
	proxy := fmt.Sprintf("PROXY "+family+" 4711 80\r\n", client)
	if got := closes(t, addr, proxy+"GET /a HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n"+header+"\r\n"); len(got) < 12 || got[9:12] != "302" {
		t.Fatalf("from %s: %.100q", client, got)
	}
}

// addressForms gives the addresses of n clicks, and their forms.
func (f *fleet) addressForms(n int) map[string]clickstream.AddressForm {
	f.t.Helper()
	forms := map[string]clickstream.AddressForm{}
	f.readClicks(n, func(c *clickstream.Click) { forms[c.Address.String()] = c.Address.Form() })
	return forms
}

func TestAConsumerIsToldWhichAddressesTheirClientsHaveTruncated(t *testing.T) {
	f := startListening(t, behindProxy("--click-address", "full")...)
	visitFrom(t, f.NodeAddr[0], "203.0.113.9", "")
	visitFrom(t, f.NodeAddr[0], "203.0.113.10", "Sec-GPC: 1\r\n")
	visitFrom(t, f.NodeAddr[0], "2001:db8:1:2:3:4:5:6", "Sec-GPC: 1\r\n")
	want := map[string]clickstream.AddressForm{
		"203.0.113.9": clickstream.AddressFull, "203.0.113.0/24": clickstream.AddressTruncated, "2001:db8:1::/48": clickstream.AddressTruncated,
	}
	if got := f.addressForms(3); !maps.Equal(got, want) {
		t.Errorf("the clicks come from %v, want %v", got, want)
	}
}

// A visitor that two nodes have seen, one of them before and after a restart, is one.
func TestNodesThatShareAHashKeyHashAnAddressAlike(t *testing.T) {
	key := filepath.Join(t.TempDir(), "hash.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("secret ", 5)), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, 1, 2)
	f.NodeArgs = behindProxy("--click-address", "hashed", "--click-hash-key", key)
	f.must(f.StartAll())
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	today := func() string { return time.Now().UTC().Format(time.DateOnly) }
	began := today()
	for _, addr := range f.NodeAddr {
		visitFrom(t, addr, "203.0.113.9", "")
		visitFrom(t, addr, "203.0.113.10", "Sec-GPC: 1\r\n")
	}
	f.Nodes[0].Kill()
	f.must(f.Nodes[0].Restart())
	f.must(f.WaitReady())
	visitFrom(t, f.NodeAddr[0], "203.0.113.9", "")
	got := f.addressForms(5)
	delete(got, "203.0.113.0/24")
	if len(got) != 1 && began == today() { // at midnight there are two
		t.Errorf("the address has the hashes %v, want one", got)
	}
	for hash, form := range got {
		if form != clickstream.AddressHashed || len(hash) != 16 {
			t.Errorf("%s has form %d", hash, form)
		}
	}
}
