package traffic

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// country is where people are.
type country struct {
	code      string
	share     float64 // of clicks, in %
	zone      int     // hours to UTC, in winter
	iPhone    float64 // share of phones
	languages []string
	isps      []*isp
	byISP     weights
}

// isp is an access network.
type isp struct {
	asn    uint32
	v4     uint32 // its first /16
	blocks int    // /16s
	v6     uint32 // its /32
	nat    []netip.Addr
	byNAT  weights
}

// hosters is how many data centres there are; robots of honest people are in the
// first ones.
const (
	hosters          = 60
	firstOfAttackers = 24
	ofScanners       = 20
)

// world is who has which addresses. It is invented, and the same for every
// seed: detectors do not know it.
type world struct {
	countries []*country
	byShare   weights
	byCode    map[string]*country
	hosters   []hoster
}

// hoster is a data centre's network: a few /24s.
type hoster struct {
	asn   uint32
	first uint32 // the first /24
	nets  int
	known bool // its networks are in the lists that nodes have
}

// countries: shares as an affiliate network of Europe and America has them, by
// assumption. Shares of iPhones are StatCounter's of 2025, rounded (mobile
// operating systems by country). Time zones are those of most of the people.
var countries = []country{
	{code: "US", share: 24, zone: -6, iPhone: .57, languages: []string{"en-US,en;q=0.9", "en-US,en;q=0.5", "en-US,en;q=0.9,es;q=0.8"}},
	{code: "DE", share: 12, zone: 1, iPhone: .38, languages: []string{"de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7", "de,en-US;q=0.7,en;q=0.3", "de-DE,de;q=0.9"}},
	{code: "GB", share: 9, zone: 0, iPhone: .50, languages: []string{"en-GB,en-US;q=0.9,en;q=0.8", "en-GB,en;q=0.9"}},
	{code: "FR", share: 7, zone: 1, iPhone: .36, languages: []string{"fr-FR,fr;q=0.9,en-US;q=0.8,en;q=0.7", "fr-FR,fr;q=0.9"}},
	{code: "IT", share: 5, zone: 1, iPhone: .29, languages: []string{"it-IT,it;q=0.9,en-US;q=0.8,en;q=0.7", "it-IT,it;q=0.9"}},
	{code: "BR", share: 5, zone: -3, iPhone: .19, languages: []string{"pt-BR,pt;q=0.9,en-US;q=0.8,en;q=0.7", "pt-BR,pt;q=0.9"}},
	{code: "IN", share: 5, zone: 5, iPhone: .05, languages: []string{"en-IN,en-GB;q=0.9,en-US;q=0.8,en;q=0.7", "hi-IN,hi;q=0.9,en;q=0.8"}},
	{code: "ES", share: 4.5, zone: 1, iPhone: .24, languages: []string{"es-ES,es;q=0.9,en;q=0.8", "es-ES,es;q=0.9"}},
	{code: "PL", share: 4, zone: 1, iPhone: .12, languages: []string{"pl-PL,pl;q=0.9,en-US;q=0.8,en;q=0.7"}},
	{code: "NL", share: 4, zone: 1, iPhone: .42, languages: []string{"nl-NL,nl;q=0.9,en-US;q=0.8,en;q=0.7", "nl-NL,nl;q=0.9"}},
	{code: "CA", share: 3.5, zone: -5, iPhone: .60, languages: []string{"en-CA,en-US;q=0.9,en;q=0.8", "fr-CA,fr;q=0.9,en;q=0.8"}},
	{code: "AU", share: 3, zone: 10, iPhone: .58, languages: []string{"en-AU,en;q=0.9"}},
	{code: "JP", share: 3, zone: 9, iPhone: .62, languages: []string{"ja-JP,ja;q=0.9", "ja,en-US;q=0.9,en;q=0.8"}},
	{code: "SE", share: 2, zone: 1, iPhone: .57, languages: []string{"sv-SE,sv;q=0.9,en-US;q=0.8,en;q=0.7"}},
	{code: "AT", share: 2, zone: 1, iPhone: .37, languages: []string{"de-AT,de;q=0.9,en;q=0.8"}},
	{code: "CH", share: 2, zone: 1, iPhone: .56, languages: []string{"de-CH,de;q=0.9,en;q=0.8", "fr-CH,fr;q=0.9,en;q=0.8"}},
	{code: "MX", share: 2, zone: -6, iPhone: .25, languages: []string{"es-MX,es;q=0.9,en;q=0.8"}},
	{code: "BE", share: 1.5, zone: 1, iPhone: .43, languages: []string{"nl-BE,nl;q=0.9,fr;q=0.8", "fr-BE,fr;q=0.9,nl;q=0.8"}},
	{code: "TR", share: 1.5, zone: 3, iPhone: .20, languages: []string{"tr-TR,tr;q=0.9,en-US;q=0.8,en;q=0.7"}},
	{code: "CZ", share: 1, zone: 1, iPhone: .26, languages: []string{"cs-CZ,cs;q=0.9,en;q=0.8"}},
	{code: "PT", share: 1, zone: 0, iPhone: .31, languages: []string{"pt-PT,pt;q=0.9,en;q=0.8"}},
	{code: "DK", share: 1, zone: 1, iPhone: .63, languages: []string{"da-DK,da;q=0.9,en;q=0.8"}},
	{code: "NO", share: 1, zone: 1, iPhone: .61, languages: []string{"nb-NO,nb;q=0.9,en;q=0.8"}},
	{code: "KR", share: 1, zone: 9, iPhone: .27, languages: []string{"ko-KR,ko;q=0.9,en;q=0.8"}},
	{code: "ID", share: 1, zone: 7, iPhone: .11, languages: []string{"id-ID,id;q=0.9,en-US;q=0.8,en;q=0.7"}},
	{code: "RO", share: .8, zone: 2, iPhone: .22, languages: []string{"ro-RO,ro;q=0.9,en;q=0.8"}},
	{code: "PH", share: .6, zone: 8, iPhone: .15, languages: []string{"en-PH,en;q=0.9,fil;q=0.8"}},
	{code: "VN", share: .4, zone: 7, iPhone: .38, languages: []string{"vi-VN,vi;q=0.9,en;q=0.8"}},
	{code: "BD", share: .2, zone: 6, iPhone: .04, languages: []string{"en-US,en;q=0.9,bn;q=0.8", "bn-BD,bn;q=0.9"}},
	{code: "PK", share: .2, zone: 5, iPhone: .06, languages: []string{"en-US,en;q=0.9,ur;q=0.8"}},
	{code: "EG", share: .2, zone: 2, iPhone: .13, languages: []string{"ar-EG,ar;q=0.9,en;q=0.8"}},
	{code: "NG", share: .2, zone: 1, iPhone: .13, languages: []string{"en-NG,en;q=0.9"}},
}

// farms are where click farms have been found (Vietnam, Bangladesh, Indonesia,
// Pakistan, Egypt, the Philippines: De Cristofaro et al., IMC 2014).
var farms = []string{"VN", "BD", "ID", "PK", "EG", "PH"}

func newWorld() *world {
	r := rand.New(rand.NewPCG(7, 7)) // one world, whatever the seed
	w := &world{byCode: make(map[string]*country)}
	next := uint32(20 << 24) // 20.0.0.0; all in use stays below 60.0.0.0
	asn, v6 := uint32(20_000), uint32(0x2a000000)
	var shares []float64
	for i := range countries {
		c := countries[i] // a copy
		for range whole(r, 4, 8) {
			p := &isp{asn: asn, v4: next, blocks: whole(r, 2, 16), v6: v6}
			next += uint32(p.blocks) << 16
			asn += uint32(whole(r, 1, 40))
			v6++
			// A phone's IPv4 goes through carrier-grade NAT in most cellular
			// networks, dozens to hundreds of subscribers an address (Richter et
			// al., IMC 2016).
			for j := range whole(r, 48, 200) {
				p.nat = append(p.nat, addr4(next-1<<16+uint32(j)+1))
			}
			p.byNAT = newWeights(zipf(len(p.nat), .3)) // nearly evenly balanced
			c.isps = append(c.isps, p)
		}
		c.byISP = newWeights(zipf(len(c.isps), 1)) // the first has a third to a half
		w.countries = append(w.countries, &c)
		w.byCode[c.code] = &c
		shares = append(shares, c.share)
	}
	w.byShare = newWeights(shares)
	first := uint32(160 << 24) // 160.0.0.0
	for i := range hosters {
		h := hoster{asn: 60_000 + uint32(i)*37, first: first, nets: whole(r, 4, 16), known: i%2 == 0}
		first += 1 << 16
		w.hosters = append(w.hosters, h)
	}
	return w
}

func addr4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// line is a subscriber's connection.
type line struct {
	address netip.Addr
	country *country
	asn     uint32
	mobile  bool
}

// place fills in what a click has from its line.
func (l line) place(c *Click) {
	c.Address, c.Country, c.ASN = l.address, l.country.code, l.asn
}

const (
	// mobileShare of clicks come from phones: StatCounter 2025 says 60 % of page
	// views.
	mobileShare = .6
	// cellularShare of phones are not in a wireless network at home: half,
	// by assumption.
	cellularShare = .5
	// v6Share of clients use IPv6: 45 % of Google's users in 2025.
	v6Share = .45
)

// home is a line at which the household has its own address.
func (c *country) home(r *rand.Rand) line {
	p := c.isps[c.byISP.pick(r)]
	if r.Float64() < v6Share {
		return line{p.six(r), c, p.asn, false}
	}
	// The last /16 is that of the gateways.
	return line{addr4(p.v4 + uint32(r.IntN((p.blocks-1)<<16))), c, p.asn, false}
}

// six is an address in a /64 of the provider.
func (p *isp) six(r *rand.Rand) netip.Addr {
	var a [16]byte
	binary.BigEndian.PutUint32(a[:], p.v6)
	binary.BigEndian.PutUint32(a[4:], r.Uint32()&0x00ffffff<<8) // a /56 a household
	binary.BigEndian.PutUint64(a[8:], r.Uint64())
	return netip.AddrFrom16(a)
}

// visitor draws the line of one who clicks.
func (c *country) visitor(r *rand.Rand) line {
	mobile := r.Float64() < mobileShare
	if !mobile || r.Float64() >= cellularShare {
		l := c.home(r)
		l.mobile = mobile
		return l
	}
	p := c.isps[c.byISP.pick(r)]
	if r.Float64() < v6Share {
		return line{p.six(r), c, p.asn, true}
	}
	return line{p.nat[p.byNAT.pick(r)], c, p.asn, true}
}

// host is an address in a data centre: the n-th of a network.
func (h hoster) host(net, n int) netip.Addr {
	return addr4(h.first + uint32(net)<<8 + uint32(n))
}
