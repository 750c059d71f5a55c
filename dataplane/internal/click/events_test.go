package click

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
)

// browserEvents are requests as browsers send them: 1,000 links with 45-byte
// destinations, 100 user agents, a few referrers and languages.
func browserEvents(n int) []Event {
	rnd := rand.New(rand.NewPCG(1, 2))
	events := make([]Event, n)
	for i := range events {
		link := rnd.IntN(1000)
		agent := rnd.IntN(100)
		destination := fmt.Sprintf("https://store.example.com/p/%06d?ref=aff_%03d", link, link%50)
		events[i] = Event{
			Time: int64(1_700_000_000_000_000 + i*37), Epoch: 0xabcdef0123456789, Revision: 4711,
			LinkDomain: []byte("go.example.com"), LinkPath: fmt.Appendf(nil, "/go/summer-%06d", link),
			Affiliate: fmt.Appendf(nil, "aff_%03d", link%50), Campaign: fmt.Appendf(nil, "summer-%d", link%7),
			Destination: []byte(destination), Status: 302,
			Address:   netip.AddrFrom4([4]byte{byte(rnd.IntN(223)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), byte(rnd.IntN(256))}),
			UserAgent: fmt.Appendf(nil, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Safari/537.36", 100+agent%30, 4000+agent*13, agent),
			Referrer:  fmt.Appendf(nil, "https://www.example-%d.com/", rnd.IntN(20)),
			Languages: []byte([]string{"en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "fr-FR,fr;q=0.9"}[rnd.IntN(3)]),
			Host:      []byte("go.example.com"), Path: fmt.Appendf(nil, "/go/summer-%06d", link),
		}
	}
	return events
}
