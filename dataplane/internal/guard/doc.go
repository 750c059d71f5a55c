// Package guard looks for fraud in the stream of clicks.
//
// A node judges one request by itself; the guard sees all of them. Engine takes
// clicks in the order of the stream, keeps what it needs in memory of a fixed
// size, and gives findings: who, by which detector, with which figures, how sure.
// It has no clock, no network and no randomness: time is the clicks' own, so that
// the same stream gives the same findings, also when it is played again.
//
// What is watched:
//
//   - sources, which are addresses, networks, user agents and autonomous systems,
//     over ten seconds, ten minutes and a day: tables of fixed size, in which the
//     source with the fewest clicks goes first (source.go, features.go);
//   - affiliates, over ten minutes, hours and weeks (affiliate.go);
//   - the fleet, for what is usual everywhere (fleet.go).
//
// The detectors, each in its file, with its rule, the practice or paper that it
// comes from, and what its confidence means: flood, low_and_slow, entropy,
// timing, bursts, many_agents, labelled_share, country_mix.
//
// Clicks of declared robots count for no source: the node labels them, and who
// says that it is a robot earns nothing.
//
// An Engine belongs to one goroutine.
package guard
