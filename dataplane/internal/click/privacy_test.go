package click

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Also by who reads it after a crash, under a policy that has changed meanwhile.
func TestAnAddressThatItsClientHasTruncatedIsMarked(t *testing.T) {
	for form, marked := range map[AddressForm]bool{AddressFull: true, AddressTruncated: false, AddressHashed: true} {
		dir, boot := t.TempDir(), uint64(7)
		r := open(t, func(c *Config) { c.Dir, c.Boot, c.Address = dir, boot, form })
		for _, e := range []Event{
			{Address: netip.MustParseAddr("192.0.2.77"), GPC: true},
			{Address: netip.MustParseAddr("2001:db8:1:2::3"), GPC: true, Head: true},
			{Address: netip.MustParseAddr("192.0.2.77"), Head: true},
			{GPC: true},
		} {
			r.Record(&e)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		next := open(t, func(c *Config) { c.Dir, c.Boot = dir, boot+1 })
		if len(next.Earlier()) != 1 || next.Earlier()[0].Identity().Address != form {
			t.Fatalf("form %d: %d logs were recovered", form, len(next.Earlier()))
		}
		var got, heads []bool
		clicks := readAll(t, next.Earlier()[0], 0)
		for i := range clicks {
			got, heads = append(got, clicks[i].Truncated), append(heads, clicks[i].Head)
		}
		if want := []bool{marked, marked, false, false}; !slices.Equal(got, want) || !slices.Equal(heads, []bool{false, true, true, false}) {
			t.Errorf("form %d: marked are %v, want %v; HEAD are %v", form, got, want, heads)
		}
		if string(clicks[0].Address) != "\xc0\x00\x02\x00" || string(clicks[1].Address) != "\x20\x01\x0d\xb8\x00\x01"+strings.Repeat("\x00", 10) {
			t.Errorf("form %d: %x and %x", form, clicks[0].Address, clicks[1].Address)
		}
	}
}

func TestFieldsThatAreOmittedAreNotRecorded(t *testing.T) {
	all, err := ParseFields(FieldNames())
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, func(c *Config) { c.Omit = all })
	secret := []byte("secret-of-a-visitor")
	r.Record(&Event{
		Address: netip.MustParseAddr("192.0.2.77"), UserAgent: secret, Referrer: secret, Languages: secret, Host: secret, Path: secret,
		Destination: secret, Parameters: []Pair{{Name: secret, Value: secret}}, Country: [2]byte{'D', 'E'}, ASN: 7,
		Affiliate: []byte("aff"), Labels: []Pair{{Name: []byte("bot"), Value: []byte("agent")}},
	})
	c := readAll(t, r.Log(), 0)[0]
	if len(c.Address) != 0 || c.ASN != 0 || c.Country != [2]byte{} || c.Parameters.Len() != 0 || string(c.Affiliate) != "aff" {
		t.Fatalf("%+v", c)
	}
	if label, ok := c.Labels.Next(); !ok || string(label.Name) != "bot" || string(label.Value) != "agent" {
		t.Fatalf("%+v", label)
	}
	if strings.Contains(string(r.current.Load().bytes()), "secret") {
		t.Fatal("an omitted field is in the spool")
	}
	if _, err := ParseFields("address,shoe-size"); err == nil || !strings.Contains(err.Error(), "shoe-size") {
		t.Fatal(err)
	}
}
