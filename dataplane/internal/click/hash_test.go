package click

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTheHashIsSipHash(t *testing.T) {
	// From the paper's reference implementation: key 00 to 0f, 16 bytes 00 to 0f.
	key := dayKey{k0: 0x0706050403020100, k1: 0x0f0e0d0c0b0a0908}
	var address [16]byte
	for i := range address {
		address[i] = byte(i)
	}
	if got := key.hash(address); got != 0x3f2acc7f57c29bdb {
		t.Fatalf("%x", got)
	}
}

func TestAHashedAddressIsTheSameForADayAndThenAnother(t *testing.T) {
	r := open(t, func(c *Config) { c.Address = AddressHashed })
	addr := netip.MustParseAddr("192.0.2.77")
	const noon = 20_000*dayMicros + dayMicros/2
	for _, e := range []Event{
		{Time: noon, Address: addr},
		{Time: noon + 1, Address: netip.AddrFrom16(addr.As16())},
		{Time: noon, Address: netip.MustParseAddr("192.0.2.78")},
		{Time: noon + dayMicros, Address: addr},
		{Time: noon, Address: addr}, // late: the day's key is gone
		{Time: noon, Address: addr, GPC: true},
		{Time: noon - dayMicros, Address: addr}, // the clock was set back
	} {
		r.Record(&e)
	}
	clicks := readAll(t, r.Log(), 0)
	hash := func(i int) uint64 {
		if len(clicks[i].Address) != 8 {
			t.Fatalf("click %d: %x", i, clicks[i].Address)
		}
		return binary.LittleEndian.Uint64(clicks[i].Address)
	}
	if hash(0) != hash(1) || hash(0) == hash(2) || hash(0) == hash(3) || hash(3) != hash(4) {
		t.Fatalf("%x %x %x %x %x", hash(0), hash(1), hash(2), hash(3), hash(4))
	}
	if got := clicks[5].Address; string(got) != "\xc0\x00\x02\x00" {
		t.Fatalf("with Sec-GPC: %x", got)
	}
	if hash(6) == hash(0) || hash(6) == hash(3) {
		t.Fatalf("two days before: %x", hash(6))
	}
	other := open(t, func(c *Config) { c.Address = AddressHashed })
	other.Record(&Event{Time: noon, Address: addr})
	if got := readAll(t, other.Log(), 0); string(got[0].Address) == string(clicks[0].Address) {
		t.Fatal("another start has the same key")
	}
}

// secret is a hash key that nodes share.
const secret = "0123456789abcdef0123456789abcdef"

func TestNodesThatShareAHashKeyGiveAnAddressTheSameHashOnOneDay(t *testing.T) {
	const noon = 20_000*dayMicros + dayMicros/2 // 2024-10-04
	hashes := func(secret string) (all []string) {
		r := open(t, func(c *Config) { c.Address, c.HashKey = AddressHashed, []byte(secret) })
		for _, e := range []Event{
			{Time: noon, Address: netip.MustParseAddr("192.0.2.77")},
			{Time: noon + dayMicros, Address: netip.MustParseAddr("192.0.2.77")},
			{Time: noon, Address: netip.MustParseAddr("::ffff:192.0.2.77")}, // late: the day's key is made again
			{Time: noon, Address: netip.MustParseAddr("192.0.2.78")},
		} {
			r.Record(&e)
		}
		for _, c := range readAll(t, r.Log(), 0) {
			all = append(all, hex.EncodeToString(c.Address))
		}
		return all
	}
	node := hashes(secret)
	// By another program: SipHash-2-4 under HMAC-SHA-256 of "affleet address 2024-10-04".
	if node[0] != "a93444c0dd755080" || node[2] != node[0] || node[1] == node[0] || node[3] == node[0] {
		t.Errorf("one node: %v", node)
	}
	if another := hashes(secret); !slices.Equal(another, node) {
		t.Errorf("another node: %v, want %v", another, node)
	}
	for i, hash := range hashes(strings.ToUpper(secret)) {
		if hash == node[i] {
			t.Errorf("a node with another key has the same hash %s", hash)
		}
	}
}

func TestAHashKeyThatCannotBeUsedIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		holds string
		mode  os.FileMode
		want  string // of the error; empty: the key is taken
	}{
		"good":     {secret, 0o600, ""},
		"lines":    {"\n" + secret + "\r\n", 0o400, ""},
		"group":    {secret, 0o640, ""},
		"longest":  {strings.Repeat("x", MaxHashKey), 0o600, ""},
		"everyone": {secret, 0o644, "(mode 0644): chmod 600"},
		"short":    {secret[1:] + "\n", 0o600, "short holds 31 bytes, and at least 32 are needed"},
		"empty":    {"", 0o600, "openssl rand -hex 32"},
		"long":     {strings.Repeat("x", MaxHashKey+1), 0o600, "long has more than 4096 bytes"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.holds), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := ReadHashKey(path)
		switch {
		case c.want == "" && (err != nil || string(got) != strings.TrimSpace(c.holds)):
			t.Errorf("%s: %q, %v", name, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for path, want := range map[string]string{filepath.Join(dir, "none"): "no such file", dir: "is no file"} {
		if _, err := ReadHashKey(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
