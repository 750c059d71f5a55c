// Package link says what a link means. The control plane validates with it,
// the node compiles and decides with it, affctl explains with it: there is no
// second opinion anywhere.
//
// It is pure: no I/O, no clock, no log, no goroutine. Every function may be
// called from any goroutine; values are not changed after they are made, but for
// a Decision, which belongs to one goroutine.
//
// The way of a link through the package:
//
//	Name, Encode, Validate    when it is written: its key, its bytes, its problems
//	HashEntry                 when it travels: its share of a state's set hash
//	Compile                   when a node takes it in: where in its bytes the parts are
//	NewPlan                   likewise: its query policy, rules and splits
//	Candidates                when a request comes: which resources may answer it
//	Policy, Prefixes, HashKey how a table finds those without writing their names
//	Resolve                   the answer; with a Trace, why
//
// A resource is known by its name, which is also its key in etcd and in the
// feed: "links/<domain><path>", "domains/<host>", "affiliates/<id>",
// "blocks/<id>" or "policies/<scope>". The stored bytes are the only form that a link has; a Compiled
// is an index into them. What few links have and many share, their query policy,
// rules and splits, is a Plan, compiled from the part of the bytes that says it:
// a table that keeps each plan once keeps its links bare, without that part (see
// Compiled.AppendBare).
//
// # A decision
//
// Resolve goes through what may keep a link from its destination in this order:
// disabled, schedule, suspended affiliate, rules, splits, cap. Then it composes
// the Location: the destination with its macros filled in, the rest of the path
// of a prefix link, the destination's own parameters, the affiliate's, and those
// of the request that the query policy lets through.
//
// Whatever a client sends, a Location has the scheme, host and port that the
// operator wrote, no dot segment that the operator did not write, and only bytes
// from "!" to "~" without the backslash.
//
// What is known of the visitor comes from the Visitor of the Request, which is
// asked only when a rule or a macro wants to know.
//
// # Rules
//
// A rule's condition is CEL. CEL's parser and type checker say what is valid, its
// estimate of costs what is too much. Conditions of the usual kind (comparisons,
// in, &&, ||, !, ?:, string functions, sums of ints, parts of the time, cidr,
// keys of maps) are then compiled to closures, which do not allocate; a property
// test holds them against CEL's own evaluator, which does all others, in some µs
// and with garbage. A text is compiled once for as long as some Plan uses it.
//
// # Costs
//
// Measured with the benchmarks of this package, one core of a Xeon (Sapphire
// Rapids), no allocations, what the Visitor says at no cost:
//
//	plain link                                        15 ns
//	plain link, request with two recorded parameters  40 ns
//	prefix link                                       67 ns
//	three rules on country and device                 65 ns
//	split of two variants                             80 ns
//	three macros and query policy override            420 ns
//	Compile                                           170 ns
//	NewPlan of three rules that are in use            2.8 µs, 34 allocations
package link
