// Package link says what a link means. The control plane validates with it,
// the node compiles and decides with it, affctl explains with it: there is no
// second opinion anywhere.
//
// It is pure: no I/O, no clock, no log, no goroutine. Every function may be
// called from any goroutine; values are not changed after they are made.
//
// The way of a link through the package:
//
//	Name, Validate, Marshal   when it is written: its key, its problems, its bytes
//	HashEntry                 when it travels: its share of a state's set hash
//	Compile                   when a node takes it in: where in its bytes the parts are
//	Candidates                when a request comes: which resources may answer it
//	Policy, Prefixes, HashKey how a table finds those without writing their names
//	Resolve                   the answer, and why
//
// A resource is known by its name, which is also its key in etcd and in the
// feed: "links/<domain><path>", "domains/<host>", "affiliates/<id>" or
// "blocks/<id>". The stored bytes are the only form that a link has; a Compiled
// is an index into them.
package link
