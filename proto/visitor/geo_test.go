package visitor

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/affleet/affleet/proto/link"
)

// writeDatabase makes a MaxMind database of records by network.
func writeDatabase(t testing.TB, records map[string]mmdbtype.Map) []byte {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", RecordSize: 24, BuildEpoch: 1_700_000_000, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, record := range records {
		_, ipnet, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(ipnet, record); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := tree.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func city(country, region, name string) mmdbtype.Map {
	m := mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(country), "geoname_id": mmdbtype.Uint32(1)}}
	if region != "" {
		m["subdivisions"] = mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String(region)}}
	}
	if name != "" {
		m["city"] = mmdbtype.Map{"names": mmdbtype.Map{"de": mmdbtype.String("other"), "en": mmdbtype.String(name)}}
	}
	return m
}

func asn(number uint32) mmdbtype.Map {
	return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(number), "autonomous_system_organization": mmdbtype.String("Example")}
}

// writeFile writes a file as an operator should: beside, and renamed.
func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func testDatabases(t testing.TB) (cities, systems string) {
	dir := t.TempDir()
	cities, systems = filepath.Join(dir, "city.mmdb"), filepath.Join(dir, "asn.mmdb")
	writeFile(t, cities, writeDatabase(t, map[string]mmdbtype.Map{
		"192.0.2.0/24":      city("DE", "BY", "Munich"),
		"198.51.100.0/25":   city("US", "CA", ""),
		"2001:db8::/32":     city("fr", "", "Paris"),
		"203.0.113.0/24":    {"registered_country": mmdbtype.Map{"iso_code": mmdbtype.String("GB")}},
		"198.51.100.128/25": {"country": mmdbtype.String("not a map")},
	}))
	writeFile(t, systems, writeDatabase(t, map[string]mmdbtype.Map{
		"192.0.2.0/25": asn(64500), "2001:db8::/33": asn(4_200_000_000),
	}))
	return cities, systems
}

func open(t testing.TB, cfg Config) *Sources {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func placeOf(country, region, city string, asn uint32) link.Place {
	return link.Place{Country: country, Region: region, City: city, ASN: asn}
}

func TestAPlaceIsMergedFromAllDatabases(t *testing.T) {
	cities, systems := testDatabases(t)
	s := open(t, Config{Geo: []string{systems, cities}})
	for addr, want := range map[string]link.Place{
		"192.0.2.1":        placeOf("DE", "BY", "Munich", 64500),
		"192.0.2.200":      placeOf("DE", "BY", "Munich", 0),
		"::ffff:192.0.2.1": placeOf("DE", "BY", "Munich", 64500),
		"198.51.100.1":     placeOf("US", "CA", "", 0),
		"198.51.100.200":   {}, // its record is of another layout
		"2001:db8::1":      placeOf("FR", "", "Paris", 4_200_000_000),
		"2001:db8:8000::1": placeOf("FR", "", "Paris", 0),
		"fe80::1%eth0":     {},
		"203.0.113.1":      {},
		"8.8.8.8":          {},
	} {
		for range 2 { // computed, then remembered
			if got := s.Place(netip.MustParseAddr(addr)); got != want {
				t.Errorf("%s is %+v, want %+v", addr, got, want)
			}
		}
	}
	if got := s.Place(netip.Addr{}); got != (link.Place{}) {
		t.Errorf("no address is at %+v", got)
	}
	if n := s.Stats().LookupErrors; n != 2 {
		t.Errorf("%d lookup errors, want 2", n)
	}
}

func TestTheFirstDatabaseThatKnowsWins(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeFile(t, a, writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("AT", "", "")}))
	writeFile(t, b, writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("DE", "BY", "Munich")}))
	addr := netip.MustParseAddr("192.0.2.1")
	if got := open(t, Config{Geo: []string{a, b}}).Place(addr); got != (link.Place{Country: "AT"}) {
		t.Errorf("got %+v: a city of another country was added", got)
	}
}

func TestAReplacedDatabaseIsReadAndABrokenOneLeavesTheOld(t *testing.T) {
	cities, _ := testDatabases(t)
	s := open(t, Config{Geo: []string{cities}})
	addr := netip.MustParseAddr("192.0.2.1")
	if errs := s.read(); errs != nil || s.Stats().Loads != 1 {
		t.Fatalf("the same file was read again: %v", errs)
	}
	good := writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("IT", "", "Rome")})
	writeFile(t, cities, good)
	if errs := s.read(); errs != nil {
		t.Fatal(errs)
	}
	if got := s.Place(addr).City; got != "Rome" {
		t.Fatalf("got %q, want Rome", got)
	}
	flipped := bytes.Clone(good)
	for i := range 300 {
		flipped[i] = 0xff
	}
	for name, bad := range map[string][]byte{"empty": nil, "cut": good[:len(good)-20], "flipped": flipped, "text": []byte("<html>")} {
		before := s.Stats()
		writeFile(t, cities, bad)
		errs := s.read()
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "city.mmdb") {
			t.Fatalf("%s: errors %v", name, errs)
		}
		if errs := s.read(); errs != nil {
			t.Fatalf("%s: reported twice: %v", name, errs)
		}
		st := s.Stats()
		if st.Broken != 1 || st.LoadErrors != before.LoadErrors+1 || s.Place(addr).City != "Rome" {
			t.Fatalf("%s: %+v, and %+v", name, st, s.Place(addr))
		}
	}
	if err := os.Remove(cities); err != nil {
		t.Fatal(err)
	}
	if errs := s.read(); len(errs) != 1 || s.Place(addr).City != "Rome" {
		t.Fatalf("missing: %v", errs)
	}
	writeFile(t, cities, writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("ES", "", "")}))
	if errs := s.read(); errs != nil || s.Stats().Broken != 0 || s.Place(addr).Country != "ES" {
		t.Fatalf("after the cure: %v, %+v", errs, s.Stats())
	}
	if got := s.Stats().Oldest; !got.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("built at %v", got)
	}
}

func TestAStartWithABrokenFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.mmdb")
	if _, err := Open(Config{Geo: []string{path}}); err == nil || !strings.Contains(err.Error(), "x.mmdb") {
		t.Errorf("a missing file: %v", err)
	}
	writeFile(t, path, []byte("no"))
	if _, err := Open(Config{Geo: []string{path}}); err == nil || !strings.Contains(err.Error(), "x.mmdb: is no MaxMind database") {
		t.Errorf("a broken file: %v", err)
	}
}

func TestGeoHeadersAreReadFromASetting(t *testing.T) {
	for setting, want := range map[string]GeoHeaders{
		"":                                     {},
		"cloudflare":                           {"cf-ipcountry", "cf-region-code", "cf-ipcity", ""},
		"country=X-Country":                    {Country: "x-country"},
		"country=A, region=B , city=C,asn=D-1": {"a", "b", "c", "d-1"},
	} {
		if got, err := ParseGeoHeaders(setting); err != nil || got != want {
			t.Errorf("%q: %+v, %v", setting, got, err)
		}
	}
	for _, setting := range []string{"akamai", "country", "country=", "planet=X", "country=A,country=B", "country=a b", "country=A,", "country=a:b"} {
		if got, err := ParseGeoHeaders(setting); err == nil {
			t.Errorf("%q was taken for %+v", setting, got)
		}
	}
}

func TestWhatAProxySaysWinsAndDatabasesAddToIt(t *testing.T) {
	cities, systems := testDatabases(t)
	s := open(t, Config{Geo: []string{cities, systems}})
	addr := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		country, region, city, asn string
		want                       link.Place
	}{
		{"", "", "", "", placeOf("DE", "BY", "Munich", 64500)},
		{"de", "", "", "", placeOf("DE", "BY", "Munich", 64500)},
		{"AT", "", "", "AS1", placeOf("AT", "", "", 1)},
		{"XX", "", "", "x", placeOf("DE", "BY", "Munich", 64500)},
		{"T1", "bad region", "", "-1", placeOf("DE", "BY", "Munich", 64500)},
		{"US", "ny", "New York", "4294967295", placeOf("US", "NY", "New York", 4294967295)},
	} {
		v := GeoValues{[]byte(test.country), []byte(test.region), []byte(test.city), []byte(test.asn)}
		if got := s.PlaceFrom(&v, addr); got != test.want {
			t.Errorf("%+v: %+v, want %+v", test, got, test.want)
		}
	}
}
