package visitor

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/affleet/affleet/proto/link"
)

// merge takes what p does not know from another place. A region and a city
// belong to their country: they are not taken from beside another one.
func merge(p, other *link.Place) {
	if p.Country == "" || p.Country == other.Country {
		p.Country = other.Country
		if p.Region == "" {
			p.Region = other.Region
		}
		if p.City == "" {
			p.City = other.City
		}
	}
	if p.ASN == 0 {
		p.ASN = other.ASN
	}
}

// complete says that there is nothing left to look for.
func complete(p *link.Place) bool {
	return p.Country != "" && p.Region != "" && p.City != "" && p.ASN != 0
}

// geoRecord is what is read of a database's records: the layout of GeoIP2,
// GeoLite2 and DB-IP.
type geoRecord struct {
	Country struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"country"`
	Subdivisions []struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"subdivisions"`
	City struct {
		Names struct {
			English string `maxminddb:"en"`
		} `maxminddb:"names"`
	} `maxminddb:"city"`
	ASN uint32 `maxminddb:"autonomous_system_number"`
}

func (r *geoRecord) place() link.Place {
	p := link.Place{Country: strings.ToUpper(r.Country.ISOCode), City: r.City.Names.English, ASN: r.ASN}
	if len(r.Subdivisions) > 0 {
		p.Region = strings.ToUpper(r.Subdivisions[0].ISOCode)
	}
	return p
}

// geoSlots is how many records of a database are kept decoded. A record is
// shared by all networks of one place.
const geoSlots = 1 << 13

// database is one file, in memory: a file that is written over while it is
// mapped would end the process.
type database struct {
	reader *maxminddb.Reader
	slots  [geoSlots]atomic.Pointer[geoEntry]
	errors *atomic.Uint64 // records that could not be read
}

type geoEntry struct {
	offset uintptr
	place  link.Place
}

// openDatabase reads a whole database and looks at all of its records, so that
// none that is damaged is used.
func openDatabase(name string, data []byte, failed *atomic.Uint64) (*database, error) {
	reader, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: is no MaxMind database: %w", name, err)
	}
	if err := checkDatabase(reader); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &database{reader: reader, errors: failed}, nil
}

func checkDatabase(reader *maxminddb.Reader) error {
	useful, other := 0, 0
	seen := map[uintptr]struct{}{}
	for result := range reader.Networks() {
		if err := result.Err(); err != nil {
			return fmt.Errorf("is damaged: %w", err)
		}
		offset := result.Offset()
		if _, again := seen[offset]; again {
			continue
		}
		seen[offset] = struct{}{}
		var r geoRecord
		err := result.Decode(&r)
		_, layout := errors.AsType[maxminddb.UnmarshalTypeError](err)
		switch {
		case layout:
			other++
		case err != nil:
			return fmt.Errorf("%s is damaged: %w", result.Prefix(), err)
		case r.place() != link.Place{}:
			useful++
		}
	}
	if useful == 0 {
		return fmt.Errorf("has no record with country.iso_code, subdivisions, city.names or autonomous_system_number, and %d of another layout", other)
	}
	return nil
}

// lookup gives what the database knows about an address, nil if that is nothing.
func (d *database) lookup(addr netip.Addr) *link.Place {
	result := d.reader.Lookup(addr)
	if !result.Found() {
		return nil
	}
	offset := result.Offset()
	slot := &d.slots[(uint64(offset)*0x9e3779b97f4a7c15>>40)%geoSlots]
	if e := slot.Load(); e != nil && e.offset == offset {
		return &e.place
	}
	var r geoRecord
	if err := result.Decode(&r); err != nil {
		d.errors.Add(1)
		return nil
	}
	e := &geoEntry{offset: offset, place: r.place()}
	slot.Store(e)
	return &e.place
}

// GeoHeaders are the names of the headers in which a trusted proxy says where
// its client is, in lower case; empty for what it does not say.
type GeoHeaders struct{ Country, Region, City, ASN string }

// geoPresets are the settings of proxies that are known.
var geoPresets = map[string]string{
	"cloudflare": "country=CF-IPCountry,region=CF-Region-Code,city=CF-IPCity",
	"cloudfront": "country=CloudFront-Viewer-Country,region=CloudFront-Viewer-Country-Region,city=CloudFront-Viewer-City,asn=CloudFront-Viewer-ASN",
	"fastly":     "country=Fastly-Geo-Country,region=Fastly-Geo-Region,city=Fastly-Geo-City,asn=Fastly-Geo-ASN",
}

// ParseGeoHeaders reads a setting: "cloudflare", "cloudfront", "fastly", or pairs
// such as "country=CF-IPCountry,asn=X-ASN" of country, region, city and asn.
// Empty is none.
func ParseGeoHeaders(setting string) (h GeoHeaders, err error) {
	if preset, ok := geoPresets[setting]; ok {
		setting = preset
	}
	for pair := range strings.SplitSeq(setting, ",") {
		if setting == "" {
			break
		}
		fact, name, _ := strings.Cut(strings.TrimSpace(pair), "=")
		fields := map[string]*string{"country": &h.Country, "region": &h.Region, "city": &h.City, "asn": &h.ASN}
		field := fields[fact]
		switch {
		case field == nil:
			return GeoHeaders{}, fmt.Errorf("%q is not cloudflare, cloudfront, fastly, or FACT=HEADER with country, region, city or asn as FACT", pair)
		case *field != "":
			return GeoHeaders{}, fmt.Errorf("%s is said twice", fact)
		case !isHeaderName(name):
			return GeoHeaders{}, fmt.Errorf("%q is no header's name", name)
		}
		*field = strings.ToLower(name)
	}
	return h, nil
}

func isHeaderName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// GeoValues are the values of such headers, nil where a request has none.
type GeoValues struct{ Country, Region, City, ASN []byte }

// key joins the values, to look them up.
func (v *GeoValues) key(dst []byte) []byte {
	for _, b := range [][]byte{v.Country, v.Region, v.City, v.ASN} {
		dst = append(append(dst, b[:min(len(b), maxGeoValue)]...), 0)
	}
	return dst
}

// maxGeoValue is how much of a header's value is looked at, in bytes.
const maxGeoValue = 64

// parseGeoValues reads joined values. What cannot be a country ("XX" and "T1"
// stand for unknown ones) is none.
func parseGeoValues(key string) (p link.Place) {
	values := strings.SplitN(key, "\x00", 5)
	if c := strings.ToUpper(values[0]); isCountry(c) {
		p.Country = c
	}
	if r := strings.ToUpper(values[1]); len(r) <= 3 && strings.Trim(r, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == "" {
		p.Region = r
	}
	p.City = strings.ToValidUTF8(values[2], "")
	digits := strings.TrimPrefix(strings.ToUpper(values[3]), "AS")
	if n, err := strconv.ParseUint(digits, 10, 32); err == nil {
		p.ASN = uint32(n)
	}
	return p
}

func isCountry(c string) bool {
	return len(c) == 2 && c != "XX" && 'A' <= c[0] && c[0] <= 'Z' && 'A' <= c[1] && c[1] <= 'Z'
}
