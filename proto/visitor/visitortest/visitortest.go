// Package visitortest writes small MaxMind databases. It is for tests only.
package visitortest

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/affleet/affleet/proto/link"
)

// Database writes a database of places by network into a temporary folder, and
// gives its path.
func Database(t testing.TB, places map[string]link.Place) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "places.mmdb")
	Write(t, path, places)
	return path
}

// Write writes a database, or replaces one, in one step.
func Write(t testing.TB, path string, places map[string]link.Place) {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", RecordSize: 24, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, place := range places {
		_, ipnet, err := net.ParseCIDR(network)
		if err == nil {
			err = tree.Insert(ipnet, record(place))
		}
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	_, err = tree.WriteTo(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// record is a place in the layout of GeoIP2.
func record(p link.Place) mmdbtype.Map {
	return mmdbtype.Map{
		"country":                  mmdbtype.Map{"iso_code": mmdbtype.String(p.Country)},
		"subdivisions":             mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String(p.Region)}},
		"city":                     mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String(p.City)}},
		"autonomous_system_number": mmdbtype.Uint32(p.ASN),
	}
}
