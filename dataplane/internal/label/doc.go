// Package label judges requests: it gives each the labels that speak against its
// being a person's click, and finds out how it is to be treated. What a request
// says by itself, proto/visitor labels; what blocks and policies say, proto/link;
// what takes memory, this package: how many requests an address sends (rate),
// whether a click is like one before (duplicate), and whether it is the very
// same one (replay).
//
// A label is a hint with a reason, not a verdict: what is done about it is up to
// the policies, and by default nothing is.
//
// # The labels of this package
//
//   - rate: an address has sent more requests than Config.Rate within
//     Config.RateWindow, or more than Config.RatePerLink for one link. Every
//     request counts, also those that find no link. The window slides: what came
//     in the last whole window counts for as much of it as is still within reach.
//   - duplicate: the same address has asked for the same link with the same user
//     agent within Config.Duplicate before. Each request begins the time anew.
//   - replay: a click that a cache, a retry or a person who copied it sends again.
//     It is one of two. Its query has a click id of a network (gclid, fbclid,
//     ttclid, msclkid, wbraid or gbraid) that came with a click of the same link
//     within Config.Replay before; an id has 16 to 512 letters, digits and
//     "-._~", so that a template that nobody has filled in is none. Or it
//     has the path and the query of the click before it of the same address, user
//     agent and link, and comes at most 2 s after that.
//
// An IPv6 address counts as its /64, which is what one subscriber has. Requests
// that are labelled bot, prefetch, preview or head are no clicks, and are
// neither duplicates nor replays, nor is what follows them.
//
// # Memory
//
// All counts and marks are in four tables of equal size that are allocated once
// and together have Config.Memory bytes. Each is divided into lines of 64 bytes,
// which is what a core fetches at a time: a key is in the one line that its hash
// says, in one of eight places. So a key costs one cache miss, whereas a
// count-min sketch of four rows costs four. Which line, an attacker cannot
// choose: the hash has a seed that is drawn when the process starts.
//
// Counting is Space-Saving within a line: a key that has no place takes that of
// the least count and goes on from there. So no key ever counts for less than it
// has sent (but for races), and for more by at most an eighth of what its line
// has got in the window, or through another key with the same 16 bits of hash.
// At the default size a table has 131,072 lines. For an honest address to be
// labelled, its line has to get 8 times the limit from others, or one of the
// seven others in its line must be over the limit and share its 16 bits:
//
//   - n addresses that send one request each in a window are n/131072 to a line.
//     With a million a second over a minute that is 458 +- 21, of 4,800 that the
//     limit of 600 needs, and of 960 that the limit per link of 120 needs: by
//     Chernoff's bound less than 1e-60 and 1e-70;
//   - beside a thousand addresses over their limit, 1000/131072/65535 = 1.2e-7;
//     eight of them in its line, (1000/131072)^8/8! < 1e-21.
//
// Marks are found by 26 bits (duplicate) and 36 bits (click ids) besides their
// line: of all first clicks at most 8/2^26 = 1.2e-7 and 8/2^36 = 1.2e-10 are
// taken for others. When a line is full, the oldest mark goes: from about
// 500,000 clicks within a window on, some duplicates are not seen. Two clicks of
// one client and link within 2 s whose path or query differ are taken for the
// same with a probability of 1/1024.
//
// TestHonestAddresses... and TestFirstClicks... measure these.
//
// # Time
//
// The lines of a request are in no cache, as a rule, and memory takes longer than
// all else here. So they are prefetched as soon as the keys are known, and looked
// at when all that needs no memory is done.
//
// # Concurrency
//
// A Judge may be used by any number of goroutines. There is no lock: places are
// changed by compare-and-swap, and who loses the race four times is not counted.
package label
